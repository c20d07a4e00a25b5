"""CIFAR-100-20: the twenty superclasses of CIFAR-100, 50,000 train and 10,000 test images.

    python -m hume_jax.main --config=configs/cifar100_20.py
    python -m hume_jax.main --config=configs/cifar100_20.py:transductive,phi2=clip,preset=paper

Data: the arrays of the paper's authors, if their folder `data` is here; from their README: wget
https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip && unzip data.zip. Files:
`data/representations/mocov2/cifar10020train_l2.npy` and so on. The README spells the names out for
CIFAR-10 with DINOv2; `cifar10020`, `clip` and `bit` follow that pattern and were not checked.
What is named differently is set by `files=NAME` or by its field, --config.data.train.phi1=FILE.

Otherwise the images: tfds prepares `cifar100` (once, with TensorFlow), and they are encoded by MoCo
v2 R50 of ImageNet (PyTorch reads its weights, `pip install "hume_jax[images,prepare,torch]"`
installs what all of this needs; the authors' phi1 was trained on the dataset itself, so figures
will differ) and by DINOv2 ViT-g/14 (CLIP ViT-L/14 with `phi2=clip`, BiT-M R50x1 with `phi2=bit`),
on an accelerator. On a laptop: --config.encode.phi1=siglip2_vitb16
--config.encode.phi2=dinov2_vits14

Variants: `inductive` (default), `transductive`; `phi2=dino|clip|bit`; `preset=fast|paper`;
`data=authors|images`; `files=NAME`, what the names of the authors' files start with.

Published (ACC / ARI in %, arXiv:2311.02940): inductive 55.5 / 37.7, transductive 56.7 / 39.6;
supervised on phi1 72.5 / 52.6; SCAN 45.4 / 29.7; SPICE 46.8 / 32.1.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 20
    variant = apply_variant(config, arg, **common.PAPER_VARIANTS)
    common.use_paper_data(
        config,
        variant,
        files="cifar10020",
        train="tfds:cifar100/train",
        test="tfds:cifar100/test",
        label="coarse_label",
    )
    return config
