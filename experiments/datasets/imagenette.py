"""Imagenette 2, full features: ten classes of photographs, 9,469 train and 3,925 test rows.

    python -m hume_jax.main --config=experiments/datasets/imagenette.py
    python -m hume_jax.main --config=experiments/datasets/imagenette.py:transductive,phi1=lite2

Two spaces of 1,280 columns, the pooled last convolution of EfficientNet-Lite0 and Lite2. Both
networks were trained with ImageNet's labels, these ten classes among them: real data to exercise
the method on, not a claim that nothing supervised went in.

Variants: `inductive` (default), `transductive`; `phi1=lite0|lite2`, the other one is phi2 (which
matters with `search.spaces=given` alone); `preset=fast|paper`; `inner=default|fixed`, the default
inner solves, or fixed numbers of steps in all directions of phi2, by which docs/RESULTS.md was
measured; `source=DIR`, the folder of the arrays.
"""

from ml_collections import config_dict

from hume_jax.config import apply_variant, common

SPACES = ("lite0", "lite2")
INNER = ("default", "fixed")


def get_config(arg: str = "") -> config_dict.ConfigDict:
    config = common.get_config()
    config.n_classes = 10
    variant = apply_variant(config, arg, phi1=SPACES, inner=INNER, source=())
    source = variant.get("source", "../shared/data/imagenette")
    first = variant.get("phi1", SPACES[0])
    names = SPACES if first != SPACES[1] else SPACES[::-1]
    if variant.get("inner") == "fixed":
        _fix_inner(config)
    for split in ("train", "test"):
        fields = config.data[split]
        files = tuple(f"{source}/effnet_{name}_{split}.npy" for name in names)
        fields.phi1, fields.phi2 = files
        fields.labels = f"{source}/labels_{split}.npy"
    return config


def _fix_inner(config: config_dict.ConfigDict) -> None:
    """Inner solves of numbers of steps that follow nothing, in all directions of phi2."""
    inner = config.presets.fast.inner
    inner.steps, inner.newton_steps, inner.adjoint_steps = 2, 6, 10
    inner.tolerance, inner.variance_floor = 0.0, 0.0
