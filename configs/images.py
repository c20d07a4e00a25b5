"""Your own images: a folder, a .tar or .zip of one, or a dataset of tfds.

    python -m hume_jax.main --config=configs/images.py --config.images.train=photos \
        --config.n_classes=10

Sub-folders, if there are some, are taken as true labels, for the scores alone; more images to label
and not to search are given by --config.images.test=FOLDER. The two spaces are DINOv2 ViT-S/14 and
SigLIP 2 ViT-B/16, which a laptop runs; their weights are downloaded once. Others, or weights that
are at hand (`python -m hume_jax.encode --list` names the presets):

        --config.encode.phi1=dinov2_vits14:weights=FILE.safetensors,size=98 \
        --config.encode.phi2=clip_vit_b16:weights=FILE.safetensors

A space may also be an array that is there, one row for each image, in the order of their names (of
an archive: in its order): --config.encode.phi2= --config.data.train.phi2=FILE.npy

Arrays are kept in `representations/`, and what is there is not encoded again.

Variants: `inductive` (default), `transductive`; `preset=fast|paper`.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    apply_variant(config, arg)
    config.encode.phi1 = "dinov2_vits14"
    config.encode.phi2 = "siglip2_vitb16"
    return config
