import pathlib
import zlib

import numpy as np
import pytest
from make_preprocess_golden import PIECES, STEP, photographs
from PIL import Image

from hume_jax.representations.encoders import presets
from hume_jax.representations.images import preprocess
from hume_jax.representations.images.preprocess import Preprocessing

GOLDEN = pathlib.Path(__file__).parents[1] / "encoders" / "golden" / "preprocess.npz"
# The preset that stands for each family.
PRESETS = {
    "moco_v2": "moco_v2_r50",
    "bit_m": "bit_m_r50x1",
    "clip": "clip_vit_b32",
    "dinov2": "dinov2_vits14",
    "siglip2": "siglip2_vitb16",
    "solo_stl10": "moco_v2_r18_stl10",
}
PLAIN = Preprocessing(256, 224, "shortest", "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def images():
    return {name: Image.fromarray(pixels) for name, pixels in photographs().items()}


def how(family):
    return presets.PRESETS[PRESETS[family]]().preprocessing


# ---- as published


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("family", PRESETS)
def test_crop_equals_the_published_one_bit_for_bit(family, name, golden, images):
    crop = preprocess.crop(images[name], how(family))
    assert crop.dtype == np.uint8
    assert crop.shape == (how(family).crop, how(family).crop, 3)
    place = list(PIECES).index(name)
    np.testing.assert_array_equal(crop[::STEP, ::STEP], golden[f"{family}/samples"][place])
    assert zlib.crc32(crop.tobytes()) == golden[f"{family}/checksums"][place]


@pytest.mark.parametrize("family", ["clip", "dinov2", "siglip2"])
def test_mean_and_deviation_are_those_of_the_published_processor(family, golden, images):
    crop = preprocess.crop(images["square"], how(family)).astype(np.float32) / 255
    values = (crop - np.float32(how(family).mean)) / np.float32(how(family).std)
    expected = golden[f"{family}/normalised"]
    np.testing.assert_allclose(values[::STEP, ::STEP], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "mean", "std"),
    [
        # moco's main_lincls.py; big_transfer scales to [-1, 1]; solo-learn at 2aa1e64,
        # solo/data/classification_dataloader.py.
        ("moco_v2_r50", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("bit_m_r50x1", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("moco_v2_r18_stl10", (0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
        ("moco_v2_r18_cifar", (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    ],
)
def test_mean_and_deviation_of_resnets(preset, mean, std):
    how = presets.PRESETS[preset]().preprocessing
    assert (how.mean, how.std) == (mean, std)


def test_images_of_32_pixels_stay_as_they_are_for_a_network_of_cifar(images):
    how = presets.PRESETS["moco_v2_r18_cifar"]().preprocessing
    np.testing.assert_array_equal(preprocess.crop(images["tiny"], how), np.asarray(images["tiny"]))


# ---- sizes


@pytest.mark.parametrize(
    ("size", "mode", "expected"),
    [
        ((640, 427), "shortest", (383, 256)),  # 383.7, rounded down
        ((427, 640), "shortest", (256, 383)),
        ((300, 300), "shortest", (256, 256)),
        ((32, 32), "shortest", (256, 256)),
        ((640, 427), "squash", (256, 256)),
    ],
)
def test_size_after_the_resize(size, mode, expected):
    assert preprocess.resized(*size, PLAIN._replace(mode=mode)) == expected


def test_the_resize_scales_with_the_crop():
    assert PLAIN.at(98) == PLAIN._replace(resize=112, crop=98)
    assert PLAIN.at(518).resize == 592
    assert PLAIN.at(224) == PLAIN
    squash = PLAIN._replace(resize=224, mode="squash")
    assert squash.at(256) == squash._replace(resize=256, crop=256)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 1000), (1000, 3)])
def test_extreme_sizes_give_a_whole_crop(size, rng):
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    assert preprocess.crop(Image.fromarray(pixels), PLAIN).shape == (224, 224, 3)


def test_a_very_long_image_does_not_fill_the_memory(rng, monkeypatch):
    long = Image.fromarray(rng.integers(0, 256, (2, 600, 3), dtype=np.uint8))
    expected = preprocess.crop(long, PLAIN._replace(resize=28, crop=24)).astype(int)
    monkeypatch.setattr(preprocess, "_MOST_PIXELS", 1)
    got = preprocess.crop(long, PLAIN._replace(resize=28, crop=24)).astype(int)
    assert np.abs(got - expected).max() <= 1


def test_other_modes_are_refused():
    with pytest.raises(ValueError, match="RGB image is needed, not L"):
        preprocess.crop(Image.new("L", (9, 9)), PLAIN)
