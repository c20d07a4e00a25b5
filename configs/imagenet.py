"""ImageNet-1k: 1,000 kinds, 1.28 million train and 50,000 validation (here: test) images.

    python -m hume_jax.main --config=configs/imagenet.py
    python -m hume_jax.main --config=configs/imagenet.py:transductive,phi2=clip,preset=paper

Data: the arrays of the paper's authors, if their folder `data` is here; from their README: wget
https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip && unzip data.zip. Files:
`data/representations/mocov2/imagenet1000train_l2.npy` and so on, as the README spells them out.
`clip`, `bit` and the labels of the train rows follow the same pattern and were not checked.
What is named differently is set by `files=NAME` or by its field, --config.data.train.phi1=FILE.

Otherwise the images: tfds prepares `imagenet2012` (once, with TensorFlow, from archives that have
to be downloaded by hand), and they are encoded by MoCo v2 R50, as phi1 of the authors (PyTorch
reads its weights, `pip install "hume_jax[images,prepare,torch]"` installs what all of this needs),
and by DINOv2 ViT-g/14 (CLIP ViT-L/14 with `phi2=clip`, BiT-M R50x1 with `phi2=bit`), on an
accelerator.

Variants: `inductive` (default), `transductive`; `phi2=dino|clip|bit`; `preset=fast|paper`;
`data=authors|images`; `files=NAME`, what the names of the authors' files start with.

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
    variant = apply_variant(config, arg, **common.PAPER_VARIANTS)
    common.use_paper_data(
        config,
        variant,
        files="imagenet1000",
        train="tfds:imagenet2012/train",
        test="tfds:imagenet2012/validation",
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
