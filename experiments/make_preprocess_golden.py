"""Makes the golden file of tests/representations/images/test_preprocess.py.

    python -m pip install ".[golden]"
    python experiments/make_preprocess_golden.py

The published preprocessing of every family on two photographs that come with scikit-learn and on
pieces of them: portrait, panorama, and 32 pixels as CIFAR has. Of each 8-bit crop a checksum and
every 32nd pixel are kept. Prints how far Hugging Face's processors are from them.
"""

import argparse
import pathlib
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "tests" / "representations" / "encoders" / "golden"
STEP = 32
# (left, top, right, bottom) in `china.jpg` or `flower.jpg`, which have 640 x 427 pixels.
PIECES = {
    "china": ("china.jpg", (0, 0, 640, 427)),
    "flower": ("flower.jpg", (0, 0, 640, 427)),
    "portrait": ("china.jpg", (100, 3, 383, 427)),
    "panorama": ("china.jpg", (0, 200, 640, 261)),
    "square": ("flower.jpg", (100, 50, 356, 306)),
    "tiny": ("china.jpg", (300, 200, 332, 232)),
    "odd": ("flower.jpg", (7, 11, 508, 310)),
}


def photographs() -> dict[str, np.ndarray]:
    """The images, (height, width, 3) uint8."""
    from sklearn.datasets import load_sample_image

    found = {}
    for name, (file, (left, top, right, bottom)) in PIECES.items():
        found[name] = np.ascontiguousarray(load_sample_image(file)[top:bottom, left:right])
    return found


def published() -> dict[str, Callable[[Any], np.ndarray]]:
    """For each family, what its authors' code makes of a PIL image before mean and deviation."""
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    def torchvision(size: int, interpolation: Any) -> Callable[[Any], np.ndarray]:
        steps = [transforms.Resize(size, interpolation=interpolation), transforms.CenterCrop(224)]
        return lambda image: np.asarray(transforms.Compose(steps)(image))

    config = get_pretrained_cfg("resnetv2_50x1_bit.goog_in21k").to_dict()
    bit = create_transform(**resolve_data_config(config), normalize=False)
    # The values that transformers' conversion script gives SigLIP 2 (`convert_siglip_to_hf.py`).
    siglip2 = SiglipImageProcessorPil(
        size={"height": 224, "width": 224}, resample=2, do_rescale=False, do_normalize=False
    )
    squash = transforms.Resize((96, 96))
    return {
        # facebookresearch/moco, main_lincls.py.
        "moco_v2": torchvision(256, InterpolationMode.BILINEAR),
        "bit_m": lambda image: bit(image).permute(1, 2, 0).numpy(),
        # openai/CLIP, clip/clip.py.
        "clip": torchvision(224, InterpolationMode.BICUBIC),
        # facebookresearch/dinov2, dinov2/data/transforms.py.
        "dinov2": torchvision(256, InterpolationMode.BICUBIC),
        "siglip2": lambda image: _pixels(siglip2, image),
        # vturrisi/solo-learn, solo/data/classification_dataloader.py, STL-10.
        "solo_stl10": lambda image: np.asarray(squash(image)),
    }


def normalised() -> dict[str, np.ndarray]:
    """The piece `square` with mean and deviation taken off by Hugging Face's processors."""
    found = {}
    for name, processor in _hugging_face("Pil", rescale=True).items():
        found[name] = _pixels(processor, _image(photographs()["square"]))
    return found


def _hugging_face(backend: str, *, rescale: bool) -> dict[str, Any]:
    """Processors with the values of the published `preprocessor_config.json`s."""
    import importlib

    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    def make(family: str, kind: str, **values: Any) -> Any:
        module = f"transformers.models.{family}.image_processing{'_pil' * bool(backend)}_{family}"
        processor = getattr(importlib.import_module(module), f"{kind}ImageProcessor{backend}")
        return processor(do_rescale=rescale, do_normalize=rescale, **values)

    return {
        "clip": make("clip", "CLIP"),
        "dinov2": make(
            "bit",
            "Bit",
            size={"shortest_edge": 256},
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        ),
        "siglip2": make("siglip", "Siglip", size={"height": 224, "width": 224}, resample=2),
    }


def _pixels(processor: Any, image: Any) -> np.ndarray:
    values = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    whole = not processor.do_normalize
    return values.astype(np.uint8) if whole else values.astype(np.float32)


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def main(arguments: list[str]) -> None:
    """Writes the file and prints the differences."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    images = {name: _image(pixels) for name, pixels in photographs().items()}
    crops = {
        family: {name: prepare(image) for name, image in images.items()}
        for family, prepare in published().items()
    }
    tensors = {}
    for family, by_name in crops.items():
        samples = [pixels[::STEP, ::STEP] for pixels in by_name.values()]
        tensors[f"{family}/samples"] = np.stack(samples)
        checksums = [zlib.crc32(pixels.tobytes()) for pixels in by_name.values()]
        tensors[f"{family}/checksums"] = np.array(checksums, np.uint32)
    for family, values in normalised().items():
        tensors[f"{family}/normalised"] = values[::STEP, ::STEP]
    np.savez_compressed(GOLDEN / "preprocess.npz", allow_pickle=False, **tensors)
    for backend in ("Pil", ""):
        for family, processor in _hugging_face(backend, rescale=False).items():
            for name, image in images.items():
                difference = np.abs(
                    _pixels(processor, image).astype(int) - crops[family][name].astype(int)
                )
                print(
                    f"{backend or 'torchvision':12s}{family:10s}{name:10s}"
                    f"largest {difference.max():4d}, mean {difference.mean():.4f}"
                )


if __name__ == "__main__":
    main(sys.argv[1:])
