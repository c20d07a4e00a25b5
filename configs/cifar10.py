"""CIFAR-10: ten kinds of objects, 50,000 train and 10,000 test images.

    python -m hume_jax.main --config=configs/cifar10.py
    python -m hume_jax.main --config=configs/cifar10.py:transductive,phi2=clip,preset=paper

Data: the arrays of the paper's authors, if their folder `data` is here; from their README: wget
https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip && unzip data.zip. Files:
`data/representations/mocov2/cifar10train_l2.npy` and so on, as the README spells them out. `clip`,
`bit` and the test rows of phi2 follow the same pattern and were not checked.
What is named differently is set by `files=NAME` or by its field, --config.data.train.phi1=FILE.

Otherwise the images: tfds prepares `cifar10` (once, with TensorFlow), and they are encoded by MoCo
v2 R50 of ImageNet (PyTorch reads its weights, `pip install "hume_jax[images,prepare,torch]"`
installs what all of this needs; the authors' phi1 was trained on the dataset itself, so figures
will differ) and by DINOv2 ViT-g/14 (CLIP ViT-L/14 with `phi2=clip`, BiT-M R50x1 with `phi2=bit`),
on an accelerator. On a laptop: --config.encode.phi1=siglip2_vitb16
--config.encode.phi2=dinov2_vits14

Variants: `inductive` (default), `transductive`; `phi2=dino|clip|bit`; `preset=fast|paper`;
`data=authors|images`; `files=NAME`, what the names of the authors' files start with.

Published (ACC / ARI in %, arXiv:2311.02940): inductive 88.4 / 77.6, transductive 89.2 / 79.2;
supervised on phi1 89.5 / 79.0; SCAN 83.3 / 70.5; SPICE 84.5 / 70.9.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 10
    variant = apply_variant(config, arg, **common.PAPER_VARIANTS)
    common.use_paper_data(
        config,
        variant,
        files="cifar10",
        train="tfds:cifar10/train",
        test="tfds:cifar10/test",
    )
    return config
