"""Makes the golden files of tests/representations/encoders/test_vit.py.

    git clone https://github.com/facebookresearch/dinov2 ~/dinov2
    python -m pip install ".[golden]"
    python experiments/make_vit_golden.py --dinov2=$HOME/dinov2

Tiny networks with random weights, run by three implementations that are not ours: Hugging Face
transformers (CLIP, DINOv2 with and without a gated MLP and registers, SigLIP), the authors' code of
DINOv2, and timm. The weights are kept under the names that each of them writes to its files, with
the versions in the file's metadata; in `vit_expected.npz` what the networks make of the same
pixels, at the size that their positions are for and at others. Written by other versions or on
another machine, the files differ in the last digits.

Needs neither jax nor hume_jax. Content of the files, S the side of the images:

    vit_CASE.safetensors             weights, float32
    vit_expected.npz  pixels_S       (2, S, S, 3) float16, already normalised
                      CASE/OUTPUT_S  (2, d) float32, OUTPUT as `ViT.outputs` names it
"""

import argparse
import importlib
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

try:
    import timm
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
except ModuleNotFoundError as error:
    if "--help" not in sys.argv:
        sys.exit(f'error: {error}: pip install ".[golden]" in the checkout')
    print(__doc__)
    sys.exit(0)

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "representations" / "encoders" / "golden"
WIDTH, DEPTH, HEADS, PATCH, TRAINED = 16, 2, 2, 4, 28
# Fewer patches than in training, as many, and more.
SIZES = (20, 28, 36)
# Of everything that is learned: biases, norms and scales too are far from where they start.
SPREAD = 0.2

SIZE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
    "image_size": TRAINED,
}
# The text's half is there to be left out.
TEXT: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 4,
    "max_position_embeddings": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "projection_size": WIDTH,
}

Outputs = dict[str, "torch.Tensor"]


class Case(NamedTuple):
    """A network, and what is kept of its output."""

    model: "torch.nn.Module"
    run: Callable[["torch.Tensor"], Outputs]  # (2, 3, S, S)
    version: str


def clip() -> Case:
    """CLIP of transformers, both halves."""
    vision = SIZE | {"intermediate_size": 2 * WIDTH}
    config = transformers.CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=12)
    model = transformers.CLIPModel(config)

    def run(pixels: "torch.Tensor") -> Outputs:
        half = model.vision_model
        found = half(pixel_values=pixels, interpolate_pos_encoding=True)
        patches = half.post_layernorm(found.last_hidden_state[:, 1:])
        return {
            "projection": model.visual_projection(found.pooler_output),
            "cls": found.pooler_output,
            "mean_patch": patches.mean(1),
        }

    return Case(model, run, _transformers())


def siglip() -> Case:
    """SigLIP of transformers, both halves; fixed sizes of SigLIP 2 are of this class."""
    vision = SIZE | {"intermediate_size": 2 * WIDTH}
    text = TEXT | {"hidden_size": WIDTH, "num_attention_heads": 2}
    model = transformers.SiglipModel(
        transformers.SiglipConfig(vision_config=vision, text_config=text)
    )

    def run(pixels: "torch.Tensor") -> Outputs:
        found = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)
        return {"map": found.pooler_output, "mean_patch": found.last_hidden_state.mean(1)}

    return Case(model, run, _transformers())


def dinov2(gated: bool) -> Case:
    """DINOv2 of transformers; the gated MLP is that of the giant one."""
    config = transformers.Dinov2Config(**SIZE, mlp_ratio=2, use_swiglu_ffn=gated)
    return _hugging_face(transformers.Dinov2Model(config), 0)


def registers() -> Case:
    """DINOv2 with registers of transformers."""
    config = transformers.Dinov2WithRegistersConfig(**SIZE, mlp_ratio=2, num_register_tokens=3)
    return _hugging_face(transformers.Dinov2WithRegistersModel(config), 3)


def authors(checkout: pathlib.Path, **fields: Any) -> Case:
    """DINOv2 of its authors, with the fields that `dinov2/hub/backbones.py` sets."""
    sys.path.insert(0, str(checkout))
    vits = importlib.import_module("dinov2.models.vision_transformer")
    model = vits.DinoVisionTransformer(
        img_size=TRAINED,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        mlp_ratio=2,
        init_values=1.0,
        block_chunks=0,
        **fields,
    )
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def run(pixels: "torch.Tensor") -> Outputs:
        found = model.forward_features(pixels)
        return {
            "cls": found["x_norm_clstoken"],
            "mean_patch": found["x_norm_patchtokens"].mean(1),
        }

    return Case(model, run, f"facebookresearch/dinov2 {commit}")


def timm_vit(**fields: Any) -> Case:
    """A ViT of timm, with the fields that its models of the family set."""
    model = timm.models.VisionTransformer(
        img_size=TRAINED,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=0,
        dynamic_img_size=True,
        **fields,
    )

    def run(pixels: "torch.Tensor") -> Outputs:
        found = model.forward_features(pixels)
        return {"cls": found[:, 0], "mean_patch": found[:, model.num_prefix_tokens :].mean(1)}

    return Case(model, run, f"timm {timm.__version__}")


def _transformers() -> str:
    return f"transformers {transformers.__version__}"


def _hugging_face(model: "torch.nn.Module", count: int) -> Case:
    def run(pixels: "torch.Tensor") -> Outputs:
        found = model(pixel_values=pixels).last_hidden_state
        return {"cls": found[:, 0], "mean_patch": found[:, 1 + count :].mean(1)}

    return Case(model, run, _transformers())


def cases(checkout: pathlib.Path) -> Mapping[str, Callable[[], Case]]:
    """Every case by name."""
    packed = importlib.import_module("timm.layers").SwiGLUPacked
    return {
        "clip": clip,
        "siglip": siglip,
        "dinov2": lambda: dinov2(gated=False),
        "dinov2_gated": lambda: dinov2(gated=True),
        "dinov2_registers": registers,
        "authors": lambda: authors(checkout),
        "authors_gated_registers": lambda: authors(
            checkout,
            ffn_layer="swiglufused",
            num_register_tokens=3,
            interpolate_antialias=True,
            interpolate_offset=0.0,
        ),
        "timm_gated_registers": lambda: timm_vit(
            init_values=1.0,
            mlp_ratio=3,
            mlp_layer=packed,
            act_layer=torch.nn.SiLU,
            reg_tokens=3,
            no_embed_class=True,
        ),
        "timm_clip": lambda: timm_vit(
            mlp_ratio=2, pre_norm=True, act_layer="quick_gelu", norm_layer=_norm_of_clip()
        ),
    }


def _norm_of_clip() -> Any:
    return lambda width, **fields: torch.nn.LayerNorm(width, **fields | {"eps": 1e-5})


def randomise(model: "torch.nn.Module", seed: int) -> None:
    """Moves everything that is learned away from where it starts."""
    rng = np.random.default_rng(seed)
    with torch.inference_mode():
        for _, parameter in sorted(model.named_parameters()):
            parameter += torch.from_numpy(rng.normal(0, SPREAD, parameter.shape)).float()


def write(name: str, make: Callable[[], Case], seed: int, pixels: Mapping[int, np.ndarray]) -> Any:
    """Writes the weights of a case, and returns what it makes of the pixels."""
    torch.manual_seed(seed)
    model, run, version = make()
    model.eval()
    randomise(model, seed)
    path = GOLDEN / f"vit_{name}.safetensors"
    # One entry: the order of several would differ from run to run.
    save_file(_as_published(model), path, {"made by": f"{version}, torch {torch.__version__}"})
    path.chmod(0o644)
    found: Outputs = {}
    with torch.inference_mode():
        for size, images in pixels.items():
            outputs = run(torch.from_numpy(images).float().permute(0, 3, 1, 2))
            found |= {f"{name}/{output}_{size}": value for output, value in outputs.items()}
    return {key: value.numpy() for key, value in found.items()}


def _as_published(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """The tensors of a network under the names in its files."""
    if not isinstance(model, transformers.PreTrainedModel):
        return {name: value.contiguous() for name, value in model.state_dict().items()}
    # The names in the files of transformers are not those of its classes any more.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(pathlib.Path(folder) / "model.safetensors")


def main(arguments: Sequence[str]) -> None:
    """Writes all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dinov2", type=pathlib.Path, required=True, help="a checkout")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pixels = {size: rng.normal(size=(2, size, size, 3)).astype(np.float16) for size in SIZES}
    arrays: dict[str, Any] = {f"pixels_{size}": images for size, images in pixels.items()}
    for seed, (name, make) in enumerate(cases(options.dinov2).items()):
        print(name)
        arrays |= write(name, make, seed, pixels)
    np.savez(GOLDEN / "vit_expected.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
