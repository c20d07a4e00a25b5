"""The encoders that have a name, and what was published of each.

Every revision, URL and hash below was read in the source that stands beside it (`Weights.source`);
what could not be read is None. No published weights were at hand: names and shapes were checked
against the sources and against tiny networks of independent implementations, and `run` says that
the weights themselves were not run.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

from flax import linen as nn

from hume_jax.representations.encoders import resnet_names, vit_names
from hume_jax.representations.encoders.resnet import ResNet
from hume_jax.representations.encoders.vit import ViT
from hume_jax.representations.encoders.weights import Rules
from hume_jax.representations.images.preprocess import Preprocessing


class Weights(NamedTuple):
    """Where a preset's weights were published."""

    repo: str | None = None  # of the Hugging Face Hub
    filename: str | None = None  # in it
    revision: str | None = None  # a commit; None: the main branch as it is
    url: str | None = None  # where the authors put them
    sha256: str | None = None  # of `filename`
    md5: str = ""  # first digits, of what lies at `url`
    licence: str = ""
    source: str = ""  # where the above was read
    run: bool = False  # whether these very weights were run


class Preset(NamedTuple):
    """An encoder before options are applied."""

    model: nn.Module
    rules: Callable[[Any, Collection[str]], Rules]  # from the model and the names of a file
    ignored: tuple[str, ...]  # patterns of names of tensors beside the encoder
    weights: Weights
    preprocessing: Preprocessing
    outputs: tuple[str, ...]  # what the model's field `output` may be


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def _resnet(model: ResNet, published: Weights, preprocessing: Preprocessing) -> Preset:
    names = resnet_names
    return Preset(model, names.rules, names.IGNORED, published, preprocessing, ("pool",))


def _vit(model: ViT, published: Weights, preprocessing: Preprocessing) -> Preset:
    names = vit_names
    return Preset(model, names.rules, names.IGNORED, published, preprocessing, model.outputs)


_MTEB = "embeddings-benchmark/mteb at a905523, mteb/models/model_implementations"

# ---- ResNet v1, MoCo v2

# The files are gone from the repository since commit 8976944 (2026-02-03).
_MOCO = Weights(
    url="https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
    md5="a04e12f8",
    licence="MIT since 2023-01-18, CC BY-NC 4.0 before; the README still says the latter",
    source="facebookresearch/moco at 132aea9: README.md (URL; md5 begins with a04e12f8), LICENSE",
)
# For ResNet-18s trained on the dataset itself, as phi1 of the paper's small datasets: its authors
# name solo-learn among what they used (mlbio-epfl/hume at c723a24, README.md).
_SOLO_LEARN = Weights(
    licence="that of your own training",
    source="vturrisi/solo-learn at 9187ea3, README.md: its checkpoints are no longer available",
)


def _moco_v2_r50() -> Preset:
    # main_lincls.py: torchvision's Resize(256), bilinear, and CenterCrop(224).
    preprocessing = Preprocessing(256, 224, "shortest", "bilinear", *_IMAGENET)
    return _resnet(ResNet(version=1, blocks=(3, 4, 6, 3)), _MOCO, preprocessing)


def _moco_v2_r18(stem: Literal["imagenet", "cifar"]) -> Preset:
    """solo-learn's, as it trains on STL-10 or, with the stem for 32 pixels, on CIFAR."""
    # solo/data/classification_dataloader.py.
    mean, std = (0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)
    size = 96
    if stem == "cifar":
        mean, size = (0.4914, 0.4822, 0.4465), 32
    model = ResNet(version=1, blocks=(2, 2, 2, 2), bottleneck=False, stem=stem)
    return _resnet(model, _SOLO_LEARN, Preprocessing(size, size, "squash", "bilinear", mean, std))


# ---- ResNet v2, BiT


def _bit_m_r50x1() -> Preset:
    published = Weights(
        repo="timm/resnetv2_50x1_bit.goog_in21k",
        filename="model.safetensors",
        url="https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz",
        licence="Apache-2.0",
        source="google-research/big_transfer at 140de6e: README.md (URL), LICENSE; "
        "huggingface/pytorch-image-models at aa4b585, timm/models/resnetv2.py (repository, "
        "licence, preprocessing); the repository's page on huggingface.co (file)",
    )
    # timm's; Google's own fine-tuning squashes an image to 480 or 128 pixels instead.
    preprocessing = Preprocessing(256, 224, "shortest", "bilinear", *_HALF)
    return _resnet(ResNet(version=2, blocks=(3, 4, 6, 3)), published, preprocessing)


# ---- CLIP

_CLIP_LICENCE = "MIT (of openai/CLIP; the Hugging Face repository names none)"


def _clip(model: ViT, published: Weights) -> Preset:
    # clip/clip.py of openai/CLIP.
    preprocessing = Preprocessing(224, 224, "shortest", "bicubic", *_CLIP)
    return _vit(model, published._replace(licence=_CLIP_LICENCE), preprocessing)


def _clip_vit(patch: int, width: int, depth: int, projection: int) -> ViT:
    return ViT(
        size=224,
        patch=patch,
        width=width,
        depth=depth,
        heads=width // 64,
        hidden=4 * width,
        output="projection",
        activation="quick_gelu",
        epsilon=1e-5,
        patch_bias=False,
        pre_norm=True,
        projection=projection,
    )


def _clip_vit_b32() -> Preset:
    published = Weights(
        repo="openai/clip-vit-base-patch32",
        filename="pytorch_model.bin",
        revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        source=f"{_MTEB}/clip_models.py (revision); the file's page on huggingface.co (sha256)",
    )
    return _clip(_clip_vit(32, 768, 12, 512), published)


def _clip_vit_b16() -> Preset:
    published = Weights(
        repo="openai/clip-vit-base-patch16",
        filename="pytorch_model.bin",
        revision="57c216476eefef5ab752ec549e440a49ae4ae5f3",
        sha256="ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0",
        source=f"{_MTEB}/clip_models.py (revision); the file's page on huggingface.co (sha256)",
    )
    return _clip(_clip_vit(16, 768, 12, 512), published)


def _clip_vit_l14() -> Preset:
    published = Weights(
        repo="openai/clip-vit-large-patch14",
        filename="model.safetensors",
        revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
        sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        source=f"{_MTEB}/clip_models.py (revision); pages of its copies on huggingface.co, "
        "InvokeAI/clip-vit-large-patch14 and Fluf22/openai-clip-large (sha256)",
    )
    return _clip(_clip_vit(14, 1024, 24, 768), published)


# ---- DINOv2

# Width, depth, heads, hidden units, and Hugging Face's word for the size.
_DINOV2 = {
    "vits14": (384, 12, 6, 1536, "small"),
    "vitb14": (768, 12, 12, 3072, "base"),
    "vitl14": (1024, 24, 16, 4096, "large"),
    "vitg14": (1536, 40, 24, 4096, "giant"),
}
# Without and with registers: revision and SHA-256 of `model.safetensors`.
_DINOV2_FILES = {
    "vits14": (
        "ed25f3a31f01632728cabb09d1542f84ab7b0056",
        "ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1",
    ),
    "vitb14": (
        "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
    ),
    "vitl14": (
        "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
        "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    ),
    "vitg14": (
        "611a9d42f2335e0f921f1e313ad3c1b7178d206d",
        "917d3c470db999d32a312f8542149be91c7cbac61ee8fb4b67ae3d82b79ce21f",
    ),
}
_DINOV2_REGISTERS = {
    "vits14": "0d9846e56b43a21fa46d7f3f5070f0506a5795a9",
    "vitb14": "a1d738ccfa7ae170945f210395d99dde8adb1805",
    "vitl14": "e4c89a4e05589de9b3e188688a303d0f3c04d0f3",
    "vitg14": "8d0d49f77fb8b5dd78842496ff14afe7dd4d85cb",
}


def _dinov2(size: str, registers: bool) -> Preset:
    width, depth, heads, hidden, _ = _DINOV2[size]
    model = ViT(
        size=224,
        patch=14,
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        activation="swiglu" if size == "vitg14" else "gelu",
        registers=4 if registers else 0,
        layer_scale=True,
    )
    # dinov2/data/transforms.py, make_classification_eval_transform.
    preprocessing = Preprocessing(256, 224, "shortest", "bicubic", *_IMAGENET)
    return _vit(model, _dinov2_weights(size, registers), preprocessing)


def _dinov2_weights(size: str, registers: bool) -> Weights:
    name = _DINOV2[size][-1]
    suffix = "_reg4" if registers else ""
    folder = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_{size}"
    authors = "facebookresearch/dinov2 at b8931f7, README.md (URL, licence)"
    published = Weights(
        filename="model.safetensors",
        url=f"{folder}/dinov2_{size}{suffix}_pretrain.pth",
        licence="Apache-2.0",
    )
    if registers:
        return published._replace(
            repo=f"facebook/dinov2-with-registers-{name}",
            revision=_DINOV2_REGISTERS[size],
            source=f"{authors}; open-edge-platform/geti-instant-learn at be4ca92, "
            "library/src/instantlearn/components/encoders/huggingface.py (revision)",
        )
    revision, sha256 = _DINOV2_FILES[size]
    return published._replace(
        repo=f"facebook/dinov2-{name}",
        revision=revision,
        sha256=sha256,
        source=f"{authors}; {_MTEB}/dino_models.py (revision); the file's page on huggingface.co "
        "(sha256)",
    )


# ---- SigLIP 2


def _siglip2_vitb16() -> Preset:
    published = Weights(
        repo="google/siglip2-base-patch16-224",
        filename="model.safetensors",
        revision="75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
        licence="Apache-2.0",
        source=f"{_MTEB}/siglip_models.py (revision, licence)",
    )
    model = ViT(
        size=224,
        patch=16,
        width=768,
        depth=12,
        heads=12,
        hidden=3072,
        output="map",
        activation="gelu_tanh",
        class_token=False,
        head=True,
    )
    # transformers, models/siglip/convert_siglip_to_hf.py: bilinear, unlike SigLIP.
    return _vit(model, published, Preprocessing(224, 224, "squash", "bilinear", *_HALF))


PRESETS: Mapping[str, Callable[[], Preset]] = {
    "moco_v2_r50": _moco_v2_r50,
    "moco_v2_r18_stl10": functools.partial(_moco_v2_r18, "imagenet"),
    "moco_v2_r18_cifar": functools.partial(_moco_v2_r18, "cifar"),
    "bit_m_r50x1": _bit_m_r50x1,
    "clip_vit_b32": _clip_vit_b32,
    "clip_vit_b16": _clip_vit_b16,
    "clip_vit_l14": _clip_vit_l14,
    **{f"dinov2_{size}": functools.partial(_dinov2, size, False) for size in _DINOV2},
    **{f"dinov2_{size}_reg": functools.partial(_dinov2, size, True) for size in _DINOV2},
    "siglip2_vitb16": _siglip2_vitb16,
}
