"""A ViT of real size with its own weights, as Hugging Face names them."""

import pathlib

import jax
import numpy as np
import pytest

from hume_jax.representations.encoders import vit_names, weights
from hume_jax.representations.encoders.vit import ViT

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.mark.parametrize(
    ("size", "images"), [(98, 16), pytest.param(224, 4, marks=pytest.mark.slow)]
)
def test_a_real_checkpoint_gives_its_published_features(
    shared: pathlib.Path, size: int, images: int
) -> None:
    folder = shared / "weights"
    file = weights.read(folder / "vits14_saliency.safetensors")
    model = ViT(
        size=size,
        patch=14,
        width=384,
        depth=12,
        heads=6,
        hidden=1536,
        layer_scale=True,
        output="cls_mean_patch",
    )
    rules = vit_names.rules(model, list(file))
    # Every tensor is used: nothing is there to be ignored.
    params = weights.assemble(rules, file, where="FILE")
    with np.load(folder / "vits14_saliency_expected.npz") as expected:
        pixels = expected[f"pixels_{size}"][:images].astype(np.float32) / 255
        wanted = [expected[f"{name}_{size}"][:images] for name in ("cls", "mean_patch")]
    found = np.asarray(jax.jit(model.apply)({"params": params}, (pixels - MEAN) / STD))
    for got, value in zip(np.split(found, 2, axis=1), wanted, strict=True):
        scale = np.abs(value).max()
        assert scale > 1
        assert np.abs(got - value).max() < 1e-3 * scale
