"""Imagenette 2 from its photographs: from two .tar files to ten classes.

    python -m hume_jax.main --config=experiments/datasets/imagenette_images.py
    python -m hume_jax.main --config=experiments/datasets/imagenette_images.py:phi2=lite2

9,469 train and 3,925 test photographs of 96 pixels, encoded at 98 pixels by a ViT-S/14 of DINOv2's
architecture: phi1 is its class token, phi2 the mean of its patch tokens or, by `phi2=lite2`, the
array of EfficientNet-Lite2. This ViT was fine-tuned for saliency: weights to try the way from
images to classes with, not a strong representation, and the mean of patch tokens is hardly a
second view. Lite2 was trained with ImageNet's labels, these ten classes among them.

Variants: `inductive` (default), `transductive`; `phi2=patches|lite2`; `preset=fast|paper`;
`source=DIR`, the folder of the archives; `weights=FILE`, of the ViT; `arrays=DIR`, where arrays
are kept.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 10
    variant = apply_variant(
        config, arg, phi2=("patches", "lite2"), source=(), weights=(), arrays=()
    )
    source = variant.get("source", "../shared/data/imagenette")
    weights = variant.get("weights", "../shared/weights/vits14_saliency.safetensors")
    arrays = variant.get("arrays", "runs/representations/imagenette")
    encoder = f"dinov2_vits14:weights={weights},size=98"
    config.encode.phi1 = f"{encoder},output=cls"
    patches = variant.get("phi2", "patches") == "patches"
    if patches:
        config.encode.phi2 = f"{encoder},output=mean_patch"
    for split in ("train", "test"):
        config.images[split] = f"{source}/images96_{split}.tar"
        fields = config.data[split]
        fields.phi1 = f"{arrays}/vits14_cls_{split}.npy"
        fields.phi2 = (
            f"{arrays}/vits14_patches_{split}.npy"
            if patches
            else f"{source}/effnet_lite2_{split}.npy"
        )
        fields.labels = f"{source}/labels_{split}.npy"
    return config
