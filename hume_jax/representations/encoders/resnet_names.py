"""Names of published ResNet weights, and how their tensors become our parameters.

The names were read in torchvision (`models/resnet.py`), facebookresearch/moco (`main_lincls.py`),
vturrisi/solo-learn (`main_linear.py`), timm (`models/resnetv2.py`) and google-research/big_transfer
(`bit_pytorch/models.py`).
"""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np

from hume_jax.representations.encoders import resnet
from hume_jax.representations.encoders.resnet import Block, Convolution, ResNet
from hume_jax.representations.encoders.weights import Rule, Rules, unknown_layout

# Added to a variance by torch.nn.BatchNorm2d; torchvision leaves it as it is.
_BATCH_NORM_EPSILON = 1e-5
# Added to a kernel's variance in Google's own code. timm adds 1e-8 to the same weights, which makes
# them smaller by 5e-9 / variance.
_STANDARDISE_EPSILON = 1e-10

# Prefixes of torchvision's names: none, MoCo's, solo-learn's.
_PREFIXES = ("", "module.encoder_q.", "backbone.")

# Whole names, as regular expressions, of what lies beside the encoder: heads, momentum encoders,
# queues, counters.
IGNORED = (
    r"(.*\.)?num_batches_tracked",
    r"(module\.encoder_q\.|backbone\.)?fc\..*",
    r"module\.(encoder_k\..*|queue|queue_ptr)",
    r"(momentum_)?(backbone|projector|classifier)\..*",
    r"queue|queue_ptr",
    r"head\.fc\..*",
    r"resnet/head/conv2d/.*",
)


class _Layout(NamedTuple):
    """How names of version 2 are formed, of block I, unit J, convolution K (from 0, or from 1)."""

    root: str
    kernel: str
    shortcut: str
    norm: str
    last_norm: str
    scale: str
    bias: str
    channels_last: bool  # kernels are (height, width, in, out), not (out, in, height, width)


_TIMM = _Layout(
    root="stem.conv.weight",
    kernel="stages.{i}.blocks.{j}.conv{K}.weight",
    shortcut="stages.{i}.blocks.{j}.downsample.conv.weight",
    norm="stages.{i}.blocks.{j}.norm{K}.{part}",
    last_norm="norm.{part}",
    scale="weight",
    bias="bias",
    channels_last=False,
)
_GOOGLE = _Layout(
    root="resnet/root_block/standardized_conv2d/kernel",
    kernel="resnet/block{I}/unit{J:02d}/{abc}/standardized_conv2d/kernel",
    shortcut="resnet/block{I}/unit{J:02d}/a/proj/standardized_conv2d/kernel",
    norm="resnet/block{I}/unit{J:02d}/{abc}/group_norm/{part}",
    last_norm="resnet/group_norm/{part}",
    scale="gamma",
    bias="beta",
    channels_last=True,
)


def rules(model: ResNet, names: Collection[str]) -> Rules:
    """Says where each parameter comes from, in whichever published layout a file has.

    Args:
      model: the network: version 1 has the layouts of torchvision, MoCo and solo-learn, version 2
        those of timm and of Google's `.npz` files.
      names: of the file's tensors.

    Raises:
      UserError: the names are in no layout of this version.
    """
    if model.version == 1:
        for prefix in _PREFIXES:
            if f"{prefix}conv1.weight" in names:
                return torchvision(model, prefix)
        wanted = [f"{prefix}conv1.weight" for prefix in _PREFIXES]
    else:
        if _TIMM.root in names:
            return timm(model)
        if _GOOGLE.root in _without_numbers(names):
            return google(model, names)
        wanted = [_TIMM.root, _GOOGLE.root]
    raise unknown_layout(f"ResNet of version {model.version}", wanted, names)


def torchvision(model: ResNet, prefix: str = "") -> Rules:
    """Rules for version 1 under torchvision's names behind a prefix; batch norms are multiplied in.

    A norm maps x to (x - mean) * weight / sqrt(variance + epsilon) + bias.
    """
    found = {}
    for ours, kernel, norm, convolution in _version_1(model):
        c = (convolution.channels_out,)
        factor = (f"{prefix}{norm}.weight", f"{prefix}{norm}.running_var")
        shift = (f"{prefix}{norm}.bias", f"{prefix}{norm}.running_mean")
        shapes = (_shape(convolution, channels_last=False), c, c)
        found[f"{ours}/kernel"] = Rule((f"{prefix}{kernel}", *factor), shapes, _fold_kernel)
        found[f"{ours}/bias"] = Rule((*factor, *shift), (c, c, c, c), _fold_bias)
    return found


def timm(model: ResNet) -> Rules:
    """Rules for version 2 under timm's names; kernels are standardised."""
    return _version_2(model, _TIMM)


def google(model: ResNet, names: Collection[str] = ()) -> Rules:
    """Rules for version 2 under the flat names of Google's `.npz` files; kernels are standardised.

    Args:
      model: the network.
      names: of the file's tensors. In some files convolutions are numbered, as
        google-research/big_vision (`models/bit_paper.py`) reports.
    """
    stored = dict(zip(_without_numbers(names), names, strict=True))
    return {
        ours: rule._replace(names=tuple(stored.get(name, name) for name in rule.names))
        for ours, rule in _version_2(model, _GOOGLE).items()
    }


def _without_numbers(names: Collection[str]) -> list[str]:
    return [re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", name) for name in names]


def _version_1(model: ResNet) -> Iterator[tuple[str, str, str, Convolution]]:
    """Our level, names of the kernel and of the norm, and shape of each convolution."""
    yield "stem", "conv1.weight", "bn1", resnet.root(model)
    for block in resnet.plan(model):
        where = f"layer{block.stage + 1}.{block.unit}"
        for k, convolution in enumerate(block.path):
            number = k + 1
            yield (
                f"{block.name}/conv_{k}",
                f"{where}.conv{number}.weight",
                f"{where}.bn{number}",
                convolution,
            )
        if block.shortcut is not None:
            norm = f"{where}.downsample.1"
            yield f"{block.name}/shortcut", f"{where}.downsample.0.weight", norm, block.shortcut


def _version_2(model: ResNet, layout: _Layout) -> dict[str, Rule]:
    found = {"stem/kernel": _standardised(layout.root, resnet.root(model), layout)}
    channels = model.width
    for block in resnet.plan(model):
        for k, convolution in enumerate(block.path):
            template = _fill(layout.norm, block, k)
            found |= _norm(f"{block.name}/norm_{k}", template, convolution.channels_in, layout)
            kernel = _fill(layout.kernel, block, k)
            found[f"{block.name}/conv_{k}/kernel"] = _standardised(kernel, convolution, layout)
            channels = convolution.channels_out
        if block.shortcut is not None:
            kernel = _fill(layout.shortcut, block, 0)
            found[f"{block.name}/shortcut/kernel"] = _standardised(kernel, block.shortcut, layout)
    return found | _norm("norm", layout.last_norm, channels, layout)


def _fill(template: str, block: Block, k: int) -> str:
    i, j = block.stage, block.unit
    return template.format(i=i, j=j, I=i + 1, J=j + 1, K=k + 1, abc="abc"[k], part="{part}")


def _norm(ours: str, template: str, channels: int, layout: _Layout) -> dict[str, Rule]:
    parts = {"scale": layout.scale, "bias": layout.bias}
    return {
        f"{ours}/{part}": Rule((template.format(part=name),), ((channels,),), _as_it_is)
        for part, name in parts.items()
    }


def _standardised(name: str, convolution: Convolution, layout: _Layout) -> Rule:
    build = _standardise if layout.channels_last else _standardise_torch
    return Rule((name,), (_shape(convolution, layout.channels_last),), build)


def _shape(convolution: Convolution, channels_last: bool) -> tuple[int, ...]:
    size, channels_in, channels_out, *_ = convolution
    if channels_last:
        return size, size, channels_in, channels_out
    return channels_out, channels_in, size, size


def _fold_kernel(kernel: np.ndarray, weight: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return _channels_last(kernel) * _factor(weight, variance)


def _fold_bias(
    weight: np.ndarray, variance: np.ndarray, bias: np.ndarray, mean: np.ndarray
) -> np.ndarray:
    return bias - mean * _factor(weight, variance)


def _factor(weight: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return weight / np.sqrt(variance.astype(np.float64) + _BATCH_NORM_EPSILON)


def _standardise_torch(kernel: np.ndarray) -> np.ndarray:
    return _standardise(_channels_last(kernel))


def _standardise(kernel: np.ndarray) -> np.ndarray:
    """Gives each output channel's weights, (height, width, in, out), mean 0 and variance 1."""
    wide = kernel.astype(np.float64)
    wide -= wide.mean(axis=(0, 1, 2))
    return wide / np.sqrt(np.square(wide).mean(axis=(0, 1, 2)) + _STANDARDISE_EPSILON)


def _channels_last(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0)


def _as_it_is(array: np.ndarray) -> np.ndarray:
    return array
