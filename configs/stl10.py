"""STL-10: ten kinds of objects, 5,000 train and 8,000 test images.

    python -m hume_jax.main --config=configs/stl10.py
    python -m hume_jax.main --config=configs/stl10.py:transductive,phi2=clip,preset=paper

Data: the arrays of the paper's authors, from their README: wget
https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip && unzip data.zip
Run the command where they were unpacked. Files:
`data/representations/mocov2/stl10train_l2.npy` and so on. The README spells the names out for
CIFAR-10 with DINOv2; `stl10`, `clip` and `bit` follow that pattern and were not checked. What is
named differently is set by `files=NAME` or by its field, --config.data.train.phi1=FILE.

Variants: `inductive` (default), `transductive`; `phi2=dino|clip|bit`; `preset=fast|paper`;
`files=NAME`, what the names of the files start with.

Published (ACC / ARI in %, arXiv:2311.02940): inductive 90.8 / 81.2, transductive 93.2 / 86.0;
supervised on phi1 88.9 / 77.7; SCAN 77.8 / 61.3; SPICE 86.2 / 73.2.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 10
    variant = apply_variant(config, arg, phi2=("dino", "clip", "bit"), files=())
    common.use_authors_files(config, variant.get("files", "stl10"), variant.get("phi2", "dino"))
    return config
