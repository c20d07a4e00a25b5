"""ImageNet-1k: 1,000 kinds, 1.28 million train and 50,000 validation (here: test) images.

    python -m hume_jax.main --config=configs/imagenet.py
    python -m hume_jax.main --config=configs/imagenet.py:transductive,phi2=clip,preset=paper

Data: the arrays of the paper's authors, from their README: wget
https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip && unzip data.zip
Run the command where they were unpacked. Files:
`data/representations/mocov2/imagenet1000train_l2.npy` and so on, as the README spells them out.
`clip`, `bit` and the labels of the train rows follow the same pattern and were not checked. What is
named differently is set by `files=NAME` or by its field, --config.data.train.labels=FILE ('' for
none: labels are for the scores alone).

Variants: `inductive` (default), `transductive`; `phi2=dino|clip|bit`; `preset=fast|paper`;
`files=NAME`, what the names of the files start with.

`preset=paper` has settings of its own here: larger subsets, fewer and longer inner steps from one
fixed start, no annealing.

Published (ACC / ARI in %, arXiv:2311.02940): inductive 51.1 / 38.1; SCAN 39.7 / 27.9;
Twist 40.6 / 30.0; Self-classifier 41.1 / 29.5.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 1000
    variant = apply_variant(config, arg, phi2=("dino", "clip", "bit"), files=())
    common.use_authors_files(
        config, variant.get("files", "imagenet1000"), variant.get("phi2", "dino")
    )
    # Ten rows a class in each half of a subset.
    config.presets.fast.search.subset_size = 20_000
    paper = config.presets.paper
    paper.search.subset_size = 20_000
    paper.search.train_fraction = 0.7
    paper.search.learning_rate = 0.1
    paper.search.anneal_steps = ()
    paper.inner.steps = 100
    paper.inner.step_size = 0.1
    paper.inner.start = "fixed"
    return config
