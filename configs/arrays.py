"""Your own arrays: two files with one row for each sample, in the same order.

    python -m hume_jax.main --config=configs/arrays.py --config.n_classes=10 \
        --config.data.train.phi1=a.npy --config.data.train.phi2=b.npy

Rows to score on, and true labels (for the scores alone), are optional:

        --config.data.test.phi1=a_test.npy --config.data.test.phi2=b_test.npy \
        --config.data.train.labels=y.npy --config.data.test.labels=y_test.npy

Several phi1 files are joined, column by column, to one space:

        --config.data.train.phi1="('a.npy','c.npy')"

Several phi2 files are separate second spaces, whose objectives are averaged.

Variants: `inductive` (default), `transductive`; `preset=fast|paper`.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    apply_variant(config, arg)
    return config
