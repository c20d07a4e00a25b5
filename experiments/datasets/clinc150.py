"""CLINC150 (Larson et al. 2019, CC BY 3.0): 150 intents of short English requests.

    python -m hume_jax.main --config=experiments/datasets/clinc150.py
    python -m hume_jax.main --config=experiments/datasets/clinc150.py:phi1=paraphrase_l3

18,000 train and 4,500 test rows, two spaces of 384 columns: mean last hidden states of
all-MiniLM-L6-v2 and of paraphrase-MiniLM-L3-v2, neither of which saw a label of this dataset.

Variants: `inductive` (default), `transductive`; `phi1=minilm_l6|paraphrase_l3`, the other one is
phi2 (which matters with `search.spaces=given` alone); `preset=fast|paper`; `source=DIR`, the folder
of the arrays.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common

SPACES = ("minilm_l6", "paraphrase_l3")


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 150
    # Half the default: a task is fifteen times the work of one with ten classes.
    config.presets.fast.n_tasks = 8
    variant = apply_variant(config, arg, phi1=SPACES, source=())
    source = variant.get("source", "../shared/data/clinc150")
    first = variant.get("phi1", SPACES[0])
    names = SPACES if first != SPACES[1] else SPACES[::-1]
    for split in ("train", "test"):
        fields = config.data[split]
        files = tuple(f"{source}/{name}_{split}.npy" for name in names)
        fields.phi1, fields.phi2 = files
        fields.labels = f"{source}/labels_{split}.npy"
    return config
