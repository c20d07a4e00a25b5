"""The real dataset that comes with the package: ten classes of photographs, two spaces.

    python -m hume_jax.main --config=configs/quickstart.py

6,000 train and 1,600 test rows of 128 columns, from two networks trained with ImageNet's labels,
these ten classes among them (see `hume_jax/data/quickstart/README.md`): real data to try the
method on, not a claim that nothing supervised went in.

Variants: `inductive` (default), `transductive`; `preset=fast|paper`.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 10
    for split in ("train", "test"):
        for field in ("phi1", "phi2", "labels"):
            # `hume_jax:` stands for the package's data, wherever it is installed, so that the same
            # config has the same hash on every machine.
            config.data[split][field] = f"hume_jax:quickstart/{field}_{split}.npy"
    apply_variant(config, arg)
    return config
