"""One factor at a time from the defaults, on a small cell: settings for `hume_jax.sweep`.

    python -m hume_jax.sweep --config=experiments/ablations.py:rate --out=runs/ablations/rate

The cell is Imagenette's features (experiments/datasets/imagenette.py) with 256 directions of each
second space and 16 tasks, for seeds 0, 1 and 2 in one program; a setting takes about two minutes on
two CPU cores. The factors are those of `FACTORS`; `all` is every one of them in one table but for
`changes`, which goes from the defaults of before to those of now, and `decisive`, what decided
these, which is run once more with `full`, all directions and 64 tasks:

    python -m hume_jax.sweep --config=experiments/ablations.py:decisive,full,held_out \
        --out=runs/ablations/full

Choices are made by the mean agreement of the tasks, the agreement of the votes of the seeds and the
objective of the best task, which need no label; accuracies on train rows stand beside them. With
`held_out` they are of train rows that no search saw, a fourth of all:

    python experiments/subset.py --hold-out=0.25 --out=runs/held_out
    for factor in rate start labels; do
        python -m hume_jax.sweep --config=experiments/ablations.py:$factor,held_out \
            --out=runs/ablations/cell --table=$factor
    done

The test rows of the dataset take no part in either. How many tasks vote, which and how is no factor
here: `votes.py` takes all such votes of one run. `many_classes`, `many_spaces` and
`many_temperature` are on a cell of their own: CLINC150 (150 classes) without any label, 8 tasks,
all directions, seeds 0 and 1 or 0 alone, one to three minutes a setting and seed.

Some factors need arrays that these commands make. `rows`, as many train rows as its settings name:

    for n in 500 1000 2000 4000; do
        python experiments/subset.py --rows=$n --out=runs/subsets/rows_$n
    done

`imbalance`, a long tail, and the labels whose shares are the estimated prior:

    python experiments/subset.py --long-tail=10 --out=runs/subsets/tail_10
    python -m hume_jax.main --workdir=runs/subsets/tail_10_weak \
        --config=experiments/ablations.py:imbalance,source=runs/subsets/tail_10 \
        --config.search.entropy_weight=0.1

`third_space`, a ViT's features of the same photographs:

    python -m hume_jax.encode --config=experiments/datasets/imagenette_images.py
"""

import itertools
import operator
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax.errors import UserError
from hume_jax.report import results

SEEDS = (0, 1, 2)

Settings = list[dict[str, Any]]


def _grid(field: str, *values: Any) -> Settings:
    return [{field: value} for value in values]


def _table(fields: tuple[str, ...], *rows: tuple[Any, ...]) -> Settings:
    return [dict(zip(fields, row, strict=True)) for row in rows]


# What the defaults were, and the changes that made them what they are, one upon the other.
_BEFORE: dict[str, Any] = {
    "search.learning_rate": 0.03,
    "encoder.start": "random",
    "ensemble.select": "agreement",
    "ensemble.vote": "hard",
    "search.steps": 150,
    "search.anneal_steps": (90, 120),
    "search.spaces": "given",
    "encoder.temperature": 0.2,
    "search.entropy_weight": 10.0,
}
_CHANGES: Settings = [
    {"search.learning_rate": 0.1},
    {"encoder.start": "rows"},
    {"ensemble.select": "all", "ensemble.vote": "soft"},
    {"search.steps": 80, "search.anneal_steps": (48, 64)},
    {"search.spaces": "both"},
    {"encoder.start": "clusters"},
    {"encoder.temperature": 0.4},
    {"search.entropy_weight": 5.0},
]

# Of a factor, and once more at full size.
_ONE_STEP: dict[str, Any] = {"inner.adjoint": "first_order", "inner.steps": 1}
_LONGER: dict[str, Any] = {"search.steps": 160, "search.anneal_steps": (96, 128)}


FACTORS: dict[str, Settings] = {
    "default": [{}],
    "rate": _grid("search.learning_rate", 0.01, 0.03, 0.3),
    "start": _grid("encoder.start", "random", "rows"),
    "labels": [
        {"encoder.labels": "softmax", "encoder.temperature": temperature}
        for temperature in (0.2, 0.1, 0.05)
    ],
    # Those of docs/ablations.md.
    "changes": list(itertools.accumulate(_CHANGES, operator.or_, initial=_BEFORE)),
    "spaces": [
        {"search.spaces": "first"},
        {"search.spaces": "second"},
        {"search.spaces": "given"},
        {"search.spaces": "given", "variant": "phi1=lite2"},
    ],
    "adjoint": [
        {"inner.adjoint": "first_order"},
        _ONE_STEP,
        {"inner.adjoint": "unrolled", "inner.solver": "nesterov", "inner.steps": 15},
        {"inner.adjoint": "implicit", "inner.solver": "nesterov", "inner.steps": 15},
    ],
    # As many steps as take the seconds of the default's 80, from the seconds of `adjoint`.
    "adjoint_time": _table(
        (
            "inner.adjoint",
            "inner.solver",
            "inner.steps",
            "search.steps",
            "search.anneal_steps",
        ),
        ("implicit", "newton", 2, 80, (48, 64)),
        ("first_order", "newton", 2, 120, (72, 96)),
        ("first_order", "newton", 1, 140, (84, 112)),
        ("unrolled", "nesterov", 15, 55, (33, 44)),
        ("implicit", "nesterov", 15, 70, (42, 56)),
    ),
    "temperature": _table(
        ("encoder.temperature", "search.anneal_temperature", "search.entropy_weight"),
        *((0.1, 0.5, 10.0), (0.2, 0.1, 10.0), (0.2, 0.5, 10.0), (0.2, 1.0, 10.0)),
        *((0.4, 0.5, 10.0), (0.4, 0.7, 10.0), (0.4, 1.0, 10.0), (0.8, 0.5, 10.0), (0.4, 0.5, 5.0)),
    ),
    "entropy": _grid("search.entropy_weight", 1.0, 3.0, 10.0, 30.0),
    "penalty": _grid("inner.penalty", 1e-3, 1e-5),
    "subsets": _grid("search.subsets_per_step", 2, 4),
    # Two folds, then five of a fifth each.
    "splits": [
        {"search.splits": "folds"},
        {"search.train_fraction": 0.8},
        {"search.splits": "folds", "search.train_fraction": 0.8},
    ],
    "subset_size": _grid("search.subset_size", 1000, 2500, 9000),
    "classes": _grid("n_classes", 8, 12, 20),
    "steps": [
        {"search.steps": 40, "search.anneal_steps": (24, 32)},
        _LONGER,
    ],
    # What was chosen here and has no run at full size in docs/RESULTS.md, for `full`.
    "decisive": [
        {"search.learning_rate": 0.03},
        _ONE_STEP,
        _LONGER,
    ],
}


_TAIL = "source=runs/subsets/tail_10"
_LITE2 = "../shared/data/imagenette/effnet_lite2_train.npy"
_VIT = "runs/representations/imagenette/vits14_cls_train.npy"

# Tables that hold the defaults, or what they were, among their own settings.
_WHOLE = ("default", "changes", "temperature", "adjoint_time")
# Settings of other factors once more; `all` leaves them out.
_AGAIN = ("changes", "decisive")

# Those of arrays that are made first, see above; `all` leaves them out.
PREPARED: dict[str, Settings] = {
    "rows": [{"variant": f"source=runs/subsets/rows_{n}"} for n in (500, 1000, 2000, 4000)] + [{}],
    # The given prior is the one that the tail is made with.
    "imbalance": [
        {"variant": _TAIL, "search.entropy_weight": weight} for weight in (10.0, 5.0, 3.0, 1.0, 0.1)
    ]
    + [
        {"variant": f"{_TAIL},prior=runs/subsets/tail_10_weak"},
        {"variant": _TAIL, "class_prior": tuple(round(10 ** (-c / 9), 4) for c in range(10))},
    ],
    "third_space": [
        {"search.spaces": spaces, "data.train.phi2": files}
        for spaces in ("given", "both")
        for files in (_LITE2, _VIT, (_LITE2, _VIT))
    ],
}

# On CLINC150.
_FEWER: dict[str, Any] = {"search.steps": 80, "search.anneal_steps": (48, 64)}
MANY: dict[str, Settings] = {
    # The settings of the cell are the first.
    "many_classes": [
        {**setting, "seed": seed}
        for setting in (
            {},
            _FEWER,
            {**_FEWER, "encoder.start": "rows"},
            {**_FEWER, "inner.adjoint": "implicit", "inner.steps": 2},
            {"inner.newton_steps": 3},
            {"search.steps": 320, "search.anneal_steps": (192, 256), "inner.newton_steps": 3},
            {"search.steps": 640, "search.anneal_steps": (384, 512), "inner.newton_steps": 3},
        )
        for seed in SEEDS[:2]
    ],
    # That of the dataset's config, MiniLM-L6 alone, is the first.
    "many_spaces": [
        {},
        *_grid("search.spaces", "second", "both", "given"),
        {"search.spaces": "given", "variant": "phi1=paraphrase_l3"},
    ],
    "many_temperature": _table(
        (
            "encoder.temperature",
            "search.anneal_temperature",
            "search.entropy_weight",
            "inner.penalty",
            "inner.newton_steps",
        ),
        *((0.2, 0.5, 10.0, 1e-4, 6), (0.4, 0.5, 10.0, 1e-4, 6)),
        *((0.3, 0.5, 3.0, 1e-4, 6), (0.4, 0.5, 3.0, 1e-4, 6), (0.5, 0.5, 3.0, 1e-4, 6)),
        *((0.4, 0.5, 5.0, 1e-4, 6), (0.4, 1.0, 5.0, 1e-4, 6), (0.5, 0.5, 5.0, 1e-4, 6)),
        *((0.4, 0.5, 1.0, 1e-4, 6), (0.4, 0.5, 3.0, 1e-3, 6)),
        *((0.4, 0.5, 3.0, 1e-4, 3), (0.5, 0.5, 3.0, 1e-4, 3), (0.6, 0.5, 3.0, 1e-4, 3)),
        (0.5, 0.5, 5.0, 1e-4, 3),
    ),
}


class Asked(NamedTuple):
    """What stands behind the colon of `--config`."""

    factor: str
    held_out: bool
    full: bool
    prior: str  # workdir of the run that it is estimated by, '' where it is not
    variants: tuple[str, ...]  # of the dataset's config


def _asked(arg: str) -> Asked:
    """Reads the names behind the colon, in any order.

    Raises:
      UserError: no such factor, or several.
    """
    names = [name for name in arg.split(",") if name]
    variants = [name for name in names if "=" in name]
    factors = [name for name in names if name not in (*variants, "held_out", "full")]
    every = ("all", *FACTORS, *PREPARED, *MANY)
    for name in factors:
        if name not in every:
            raise UserError(f"no factor is called {name!r}, there are: {', '.join(every)}")
    if len(factors) > 1:
        raise UserError(f"{' and '.join(factors)}: one factor at a time")
    prior = "".join(name.removeprefix("prior=") for name in variants if name.startswith("prior="))
    return Asked(
        factor=(factors or ["all"])[0],
        held_out="held_out" in names,
        full="full" in names,
        prior=prior,
        variants=tuple(name for name in variants if not name.startswith("prior=")),
    )


def get_config(arg: str = "") -> config_dict.ConfigDict:
    asked = _asked(arg)
    if asked.factor in MANY:
        return _without_labels(asked.variants)
    source = ("source=runs/held_out",) if asked.held_out else ()
    # What docs/ablations.md was measured with.
    inner = () if any(name.startswith("inner=") for name in asked.variants) else ("inner=fixed",)
    variants = ",".join(asked.variants + source + inner)
    config = config_lib.load(f"experiments/datasets/imagenette.py:{variants}")
    config.n_tasks = 64 if asked.full else 16
    if not asked.full:
        config.inner.directions = 256
    # The scores of all rows would take longer than the search.
    config.score.rows = 2000
    config.baselines = config.plots = False
    if asked.prior:
        config.class_prior = _shares_found(asked.prior, config.n_classes)
    if not asked.held_out:
        # The test rows are for the final tables alone.
        _hide_test_rows(config)
    return config


def _hide_test_rows(config: config_dict.ConfigDict) -> None:
    for field in ("phi1", "phi2", "labels"):
        config.data.test[field] = ""


def _shares_found(workdir: str, n_classes: int) -> tuple[float, ...]:
    """Shares of the classes that a finished run found, the largest first: an estimated prior."""
    path = pathlib.Path(workdir) / "labels.csv"
    if not path.exists():
        raise UserError(f"{path} is not there: the run that the prior is estimated by comes first")
    # A class without rows still has a share.
    counts = 1 + np.bincount(results.read_labels(path, "train"), minlength=n_classes)
    return tuple(float(share) for share in np.round(np.sort(counts)[::-1] / counts.sum(), 4))


def _without_labels(variants: Sequence[str]) -> config_dict.ConfigDict:
    config = config_lib.load(f"experiments/datasets/clinc150.py:{','.join(variants)}")
    config.baselines = config.plots = False
    config.score.rows = 1500
    config.data.train.labels = ""
    _hide_test_rows(config)
    # The cell's own length, half that of the dataset's config.
    fast = config.presets.fast
    fast.search.steps, fast.search.anneal_steps = 160, (96, 128)
    fast.inner.newton_steps = 6
    return config


def sweep(arg: str = "all") -> Settings:
    factor = _asked(arg).factor
    if factor in MANY:
        return MANY[factor]
    names = [name for name in FACTORS if name not in _AGAIN] if factor == "all" else [factor]
    settings = [setting for name in names for setting in {**FACTORS, **PREPARED}[name]]
    # The defaults stand above what differs from them.
    if factor in FACTORS and factor not in _WHOLE:
        settings = [{}, *settings]
    return [{**setting, "seed": seed} for setting in settings for seed in SEEDS]
