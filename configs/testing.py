"""The quickstart's data with settings so small that all of a run takes seconds.

    python -m hume_jax.main --config=configs/testing.py --workdir=/tmp/hume_jax_testing

For tests and for trying out a machine: what it finds is poor.

Variants: `inductive` (default), `transductive`; `preset=fast|paper`, both made small.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 10
    for split in ("train", "test"):
        for field in ("phi1", "phi2", "labels"):
            config.data[split][field] = f"hume_jax:quickstart/{field}_{split}.npy"
    fast, paper = config.presets.fast, config.presets.paper
    for preset in (fast, paper):
        preset.n_tasks = 4
        preset.search.steps = 6
        preset.search.subset_size = 640
        preset.search.subsets_per_step = 1
        preset.search.anneal_steps = (3, 5)
    paper.inner.steps = 10
    # The figures in tests/golden/testing.json are of these values, wherever the preset's go.
    fast.encoder.start = "random"
    fast.encoder.labels = "sparsemax"
    fast.encoder.temperature = 0.2
    fast.search.spaces = "given"
    fast.search.train_fraction = 0.5
    fast.search.learning_rate = 0.03
    fast.search.clip = 1.0
    fast.search.anneal_learning_rate = 0.1
    fast.search.anneal_temperature = 0.5
    fast.search.entropy_weight = 10.0
    fast.inner.penalty = 1e-4
    fast.inner.solver = "newton"
    fast.inner.steps = 2
    fast.inner.newton_steps = 6
    fast.inner.adjoint_steps = 10
    fast.inner.start = "warm"
    fast.ensemble.select = "agreement"
    fast.ensemble.vote = "hard"
    # Ten rows for each class and shard: 64 shards of these few rows would leave one or two each.
    config.search.shards = 8
    config.score.rows = 600
    config.score.folds = 3
    config.score.penalty = 1e-4
    config.score.steps = 20
    config.report = False
    config.log_every = 2
    config.checkpoint_seconds = 0.0
    apply_variant(config, arg)
    return config
