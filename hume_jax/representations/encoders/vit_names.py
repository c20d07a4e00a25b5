"""Names of published ViT weights, and how their tensors become our parameters.

The names were read in Hugging Face transformers 5.23 (files that `save_pretrained` writes, which
are named as those on the hub), facebookresearch/dinov2 (`dinov2/models/vision_transformer.py`) and
timm 1.0 (`timm/models/vision_transformer.py`).
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.encoders import positions
from hume_jax.representations.encoders.vit import ViT
from hume_jax.representations.encoders.weights import Rule, Rules, unknown_layout

# Whole names, as regular expressions, of what lies beside the encoder.
IGNORED = (
    # DINOv2: what training puts in the place of hidden patches, and a classifier fitted later.
    r"(.*\.)?mask_token",
    r"classifier\..*",
    # CLIP and SigLIP: the text's half, and a buffer that numbers the positions.
    r"(.*\.)?(text_model\..*|text_projection\.weight|logit_scale|logit_bias|position_ids)",
    # What makes one vector in another way than the one that is asked for.
    r"(.*\.)?visual_projection\.weight",
    r"(.*\.)?head\..*",
)


class _Layout(NamedTuple):
    """How tensors are called. '' is what no model of this layout has."""

    class_token: str
    registers: str
    position: str
    patch: str
    norm_pre: str
    block: str
    norm_1: str
    qkv: tuple[str, ...]  # one of all three, or one each
    out: str
    scale_1: str
    norm_2: str
    mlp: tuple[str, str]
    swiglu: tuple[str, str]
    scale_2: str
    norm: str
    leading: tuple[int, ...]  # sizes before the two of `position`
    # Whether the file has the class token's position, or added it to the class token.
    class_position: bool
    # Of a model that has registers, and of one that has not: antialias, offset.
    resizing: tuple[tuple[bool, float], tuple[bool, float]]


_HF_DINOV2 = _Layout(
    class_token="embeddings.cls_token",
    registers="embeddings.register_tokens",
    position="embeddings.position_embeddings",
    patch="embeddings.patch_embeddings.projection",
    norm_pre="",
    block="encoder.layer.{}.",
    norm_1="norm1",
    qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    out="attention.output.dense",
    scale_1="layer_scale1.lambda1",
    norm_2="norm2",
    mlp=("mlp.fc1", "mlp.fc2"),
    swiglu=("mlp.weights_in", "mlp.weights_out"),
    scale_2="layer_scale2.lambda1",
    norm="layernorm",
    leading=(1,),
    class_position=True,
    resizing=((True, 0.0), (False, 0.0)),
)
# CLIP and SigLIP. The spelling of `pre_layrnorm` is theirs.
_HF_CLIP = _Layout(
    class_token="embeddings.class_embedding",
    registers="",
    position="embeddings.position_embedding.weight",
    patch="embeddings.patch_embedding",
    norm_pre="pre_layrnorm",
    block="encoder.layers.{}.",
    norm_1="layer_norm1",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    scale_1="",
    norm_2="layer_norm2",
    mlp=("mlp.fc1", "mlp.fc2"),
    swiglu=("", ""),
    scale_2="",
    norm="post_layernorm",
    leading=(),
    class_position=True,
    resizing=((False, 0.0), (False, 0.0)),
)
# The authors' own files of DINOv2.
_DINOV2 = _Layout(
    class_token="cls_token",
    registers="register_tokens",
    position="pos_embed",
    patch="patch_embed.proj",
    norm_pre="",
    block="blocks.{}.",
    norm_1="norm1",
    qkv=("attn.qkv",),
    out="attn.proj",
    scale_1="ls1.gamma",
    norm_2="norm2",
    mlp=("mlp.fc1", "mlp.fc2"),
    swiglu=("mlp.w12", "mlp.w3"),
    scale_2="ls2.gamma",
    norm="norm",
    leading=(1,),
    class_position=True,
    resizing=((True, 0.0), (False, 0.1)),
)
# Differs from the authors' in few names, so that files without registers or a gate are told apart
# by `mask_token`, which timm leaves out.
_TIMM = _DINOV2._replace(
    registers="reg_token",
    norm_pre="norm_pre",
    swiglu=("mlp.fc1", "mlp.fc2"),
    resizing=((True, 0.0), (True, 0.0)),
)


def rules(model: ViT, names: Collection[str]) -> Rules:
    """Says where each parameter comes from, in whichever published layout a file has.

    Positions of another size are resized as the code that belongs to the layout does it: bicubic,
    antialiased in DINOv2 with registers and in timm, and with an offset of 0.1 under the names of
    DINOv2's authors (without registers), which Hugging Face has dropped.

    Args:
      model: the network, for the size of image that it will be given.
      names: of the file's tensors, behind any prefix.

    Raises:
      UserError: the names are in no known layout, the layout lacks what the model needs, or
        `model.size` is no multiple of the patch.
    """
    layout, prefix = _detect(names)
    _check(model, layout, prefix)
    found = _tokens(model, layout) | _norm("norm", layout.norm, model.width)
    for i in range(model.depth):
        found |= _block(model, layout, i)
    if model.output == "map":
        found |= _head(model)
    found = {
        ours: rule._replace(names=tuple(prefix + name for name in rule.names))
        for ours, rule in found.items()
    }
    if model.output == "projection":
        # It lies outside of `vision_model`.
        name = f"{prefix.removesuffix('vision_model.')}visual_projection.weight"
        found["projection/kernel"] = Rule((name,), ((model.projection, model.width),), np.transpose)
    return found


def _detect(names: Collection[str]) -> tuple[_Layout, str]:
    """The layout of a file, and what stands before all names of the encoder."""
    for layout in (_HF_DINOV2, _HF_CLIP, _DINOV2):
        ending = f"{layout.patch}.weight"
        found = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        # A prefix ends where a level does.
        prefixes = [prefix for prefix in found if not prefix or prefix.endswith(".")]
        if len(prefixes) == 1:
            return _or_timm(layout, names, prefixes[0]), prefixes[0]
    wanted = [f"{layout.patch}.weight" for layout in (_HF_DINOV2, _HF_CLIP, _DINOV2)]
    raise unknown_layout("ViT", wanted, names)


def _or_timm(layout: _Layout, names: Collection[str], prefix: str) -> _Layout:
    if layout is not _DINOV2 or f"{prefix}mask_token" in names:
        return layout
    # Beside registers, timm keeps positions of the patches only.
    return _TIMM._replace(class_position=f"{prefix}{_TIMM.registers}" not in names)


def _check(model: ViT, layout: _Layout, prefix: str) -> None:
    """Raises a `UserError` for what a model has and no file of this layout."""
    clip = "visual_projection" if layout is _HF_CLIP else ""
    for what, needed, name in (
        ("registers", model.registers, layout.registers),
        ("a norm before the blocks", model.pre_norm, layout.norm_pre),
        ("layer scale", model.layer_scale, layout.scale_1),
        ("a gated MLP", model.activation == "swiglu", layout.swiglu[0]),
        (f"output={model.output}", model.output in ("projection", "map"), clip),
    ):
        if needed and not name:
            raise UserError(
                f"this encoder has {what}, which weights with a tensor "
                f"{prefix}{layout.patch}.weight do not have: give the weights of this encoder"
            )


def _tokens(model: ViT, layout: _Layout) -> dict[str, Rule]:
    """What stands before the blocks."""
    d, p = model.width, model.patch
    found = {"patch/kernel": _rule(f"{layout.patch}.weight", (d, 3, p, p), _patch)}
    if model.patch_bias:
        found["patch/bias"] = _rule(f"{layout.patch}.bias", (d,))
    if model.class_token:
        found["class_token"] = _rule(layout.class_token, (*layout.leading * 2, d), np.ravel)
    if model.registers:
        shape = (*layout.leading, model.registers, d)
        found["registers"] = _rule(layout.registers, shape, _rows)
    shape = (*layout.leading, -1, d)
    found["position"] = _rule(layout.position, shape, _resize(model, layout))
    return found | (_norm("norm_pre", layout.norm_pre, d) if model.pre_norm else {})


def _block(model: ViT, layout: _Layout, i: int) -> dict[str, Rule]:
    d, ours, theirs = model.width, f"block_{i}", layout.block.format(i)
    gated = model.activation == "swiglu"
    into, out = layout.swiglu if gated else layout.mlp
    found = {
        **_norm(f"{ours}/norm_1", theirs + layout.norm_1, d),
        **_product(f"{ours}/attention/qkv", [theirs + name for name in layout.qkv], (d, 3 * d)),
        **_product(f"{ours}/attention/out", [theirs + layout.out], (d, d)),
        **_norm(f"{ours}/norm_2", theirs + layout.norm_2, d),
        **_product(f"{ours}/mlp/in", [theirs + into], (d, model.hidden * (2 if gated else 1))),
        **_product(f"{ours}/mlp/out", [theirs + out], (model.hidden, d)),
    }
    if model.layer_scale:
        found[f"{ours}/scale_1"] = _rule(theirs + layout.scale_1, (d,))
        found[f"{ours}/scale_2"] = _rule(theirs + layout.scale_2, (d,))
    return found


def _head(model: ViT) -> dict[str, Rule]:
    """SigLIP's attention pooling, a `torch.nn.MultiheadAttention` and an MLP."""
    d = model.width
    kernel = functools.partial(_rule, "head.attention.in_proj_weight", (3 * d, d))
    bias = functools.partial(_rule, "head.attention.in_proj_bias", (3 * d,))
    return {
        "head/probe": _rule("head.probe", (1, 1, d), np.ravel),
        "head/query/kernel": kernel(lambda array: array[:d].T),
        "head/query/bias": bias(lambda array: array[:d]),
        "head/key_value/kernel": kernel(lambda array: array[d:].T),
        "head/key_value/bias": bias(lambda array: array[d:]),
        **_product("head/out", ["head.attention.out_proj"], (d, d)),
        **_norm("head/norm", "head.layernorm", d),
        **_product("head/mlp/in", ["head.mlp.fc1"], (d, model.hidden)),
        **_product("head/mlp/out", ["head.mlp.fc2"], (model.hidden, d)),
    }


def _norm(ours: str, theirs: str, width: int) -> dict[str, Rule]:
    return {
        f"{ours}/scale": _rule(f"{theirs}.weight", (width,)),
        f"{ours}/bias": _rule(f"{theirs}.bias", (width,)),
    }


def _product(ours: str, theirs: Sequence[str], shape: tuple[int, int]) -> dict[str, Rule]:
    """A product, (in, out), whose outputs a file may hold in several parts of the same size."""
    parts = len(theirs)
    rows, columns = shape[1] // parts, shape[0]
    weights, biases = (tuple(f"{name}.{part}" for name in theirs) for part in ("weight", "bias"))
    return {
        f"{ours}/kernel": Rule(weights, ((rows, columns),) * parts, _stack_kernels),
        f"{ours}/bias": Rule(biases, ((rows,),) * parts, _stack),
    }


def _rule(name: str, shape: tuple[int, ...], build: Callable[..., np.ndarray] = np.asarray) -> Rule:
    return Rule((name,), (shape,), build)


def _resize(model: ViT, layout: _Layout) -> Callable[[np.ndarray], np.ndarray]:
    """What makes the positions of a model of those of a file."""
    antialias, offset = layout.resizing[0 if model.registers else 1]
    side, in_file = model.grid, int(model.class_token and layout.class_position)
    # To a class token without a position of its own, nothing is added.
    missing = np.zeros((int(model.class_token) - in_file, model.width), np.float32)

    def build(table: np.ndarray) -> np.ndarray:
        table = _rows(table)
        first, patches = table[:in_file], table[in_file:]
        patches = positions.resize(patches, side, antialias=antialias, offset=offset)
        return np.concatenate([missing, first, patches])

    return build


def _patch(kernel: np.ndarray) -> np.ndarray:
    """(D, 3, p, p) to (p * p * 3, D), rows in the order row, column, channel."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _stack(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


def _stack_kernels(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts).T
