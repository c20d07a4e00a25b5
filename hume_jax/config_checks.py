"""What the values of a config may be."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hume_jax.errors import UserError

# What `n_classes` and `class_prior` are where a run is to find them, see `choose_k` and
# `class_sizes`.
AUTO, ESTIMATE = "auto", "estimate"
# The values a text field may take.
CHOICES: dict[str, tuple[str, ...]] = {
    "setting": ("inductive", "transductive"),
    "preset": ("fast", "paper"),
    "images.broken": ("fail", "skip"),
    "encode.dtype": ("float16", "float32"),
    "search.spaces": ("given", "both", "first", "second"),
    "search.splits": ("random", "folds"),
    "search.rows": ("auto", "memory", "disk"),
    "search.storage": ("float32", "bfloat16"),
    "inner.adjoint": ("implicit", "unrolled", "first_order"),
    "inner.solver": ("newton", "nesterov", "gradient"),
    "inner.start": ("warm", "cold", "fixed", "random"),
    "encoder.labels": ("sparsemax", "softmax"),
    "encoder.start": ("rows", "clusters", "random"),
    "encoder.coordinates": ("matrix", "householder"),
    "ensemble.vote": ("soft", "hard"),
    "ensemble.select": ("agreement", "objective", "cv_accuracy", "all"),
    "precision": ("default", "high", "highest"),
}

# The bounds of number fields. Every number must be finite.
_AT_LEAST = {
    "n_classes": 2,
    "n_tasks": 1,
    "task_batch": 0,
    "seed": 0,
    "search.steps": 1,
    "search.subset_size": 2,
    "search.subsets_per_step": 1,
    "search.entropy_weight": 0,
    "prior.first_weight": 0,
    "prior.weight": 0,
    "prior.rounds": 1,
    "prior.tasks": 1,
    "search.shards": 1,
    "mesh.task": 0,
    "mesh.data": 0,
    "inner.directions": 0,
    "inner.variance_floor": 0,
    "inner.moment_rows": 2,
    "inner.tolerance": 0,
    "inner.penalty": 0,
    "inner.steps": 1,
    "inner.newton_steps": 1,
    "inner.adjoint_steps": 1,
    "inner.step_size": 0,
    "score.folds": 2,
    "score.rows": 2,
    "score.steps": 1,
    "encode.batch": 1,
    "encode.threads": 0,
    "log_every": 1,
    "checkpoint_seconds": 0,
}
_GREATER_THAN_ZERO = (
    "encoder.temperature",
    "search.train_fraction",
    "search.learning_rate",
    "search.clip",
    "search.anneal_learning_rate",
    "search.anneal_temperature",
    "score.penalty",
    "score.tolerance",
    "ensemble.fraction",
)
# Seeds, as all whole numbers, are 32-bit integers in the program.
LAST_SEED = 2**31 - 1
_AT_MOST = {"ensemble.fraction": 1}
# Below it float32 has nothing that is above 0.
_LEAST = 2.0**-126
_LESS_THAN = {"search.train_fraction": 1, "inner.tolerance": 1}


def suggest(word: str, known: Iterable[str], most: int = 1) -> str:
    """Returns `; did you mean 'X'?` with the nearest known words, or nothing if none is near."""
    near = _near(word, known, most)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns the known word nearest to a mistyped one, '' if none is near."""
    return next(iter(_near(word, known, 1)), "")


def _near(word: str, known: Iterable[str], most: int) -> list[str]:
    """The nearest first; capitals do not count."""
    by_text = {text.casefold(): text for text in known}
    found = difflib.get_close_matches(word.casefold(), list(by_text), most, 0.6)
    return [by_text[text] for text in found]


def check_choice(name: str, value: Any) -> None:
    """Raises a `UserError` unless the value is one of the field's `CHOICES`."""
    if value not in CHOICES[name]:
        raise UserError(
            f"config field {name!r} is {value!r}, it must be one of "
            f"{', '.join(CHOICES[name])}{suggest(str(value), CHOICES[name])}"
        )


def check_values(flat: Mapping[str, Any]) -> None:
    """Checks the values of a config, one by one and against each other.

    Args:
      flat: all fields under their dotted names.

    Raises:
      UserError: the first field found without a value or with one it cannot have.
    """
    for name, value in flat.items():
        if value is None:
            raise UserError(f"config field {name!r} has no value: set it, or choose a preset")
    for name in CHOICES:
        check_choice(name, flat[name])
    if isinstance(flat["n_classes"], str) and flat["n_classes"] != AUTO:
        raise UserError(
            f"config field 'n_classes' is {flat['n_classes']!r}, it must be a whole number, or "
            "'auto' to choose one"
        )
    for name, value in flat.items():
        if isinstance(value, int | float):
            _check_limits(name, value)
    steps = flat["search.anneal_steps"]
    if any(type(s) is not int or s < 1 for s in steps) or sorted(set(steps)) != list(steps):
        raise UserError(
            f"config field 'search.anneal_steps' is {steps}, it must be step numbers in rising "
            "order, e.g. (100, 200), or () for none"
        )
    seeds = flat["seeds"]
    if any(type(s) is not int or not 0 <= s <= LAST_SEED for s in seeds) or len(set(seeds)) != len(
        seeds
    ):
        raise UserError(
            f"config field 'seeds' is {seeds}, it must hold different whole numbers from 0 to "
            f"{LAST_SEED}, e.g. (0, 1, 2), or () for 'seed' alone"
        )
    if flat["class_prior"] == ESTIMATE and len(seeds) > 1:
        raise UserError(
            "config field 'seeds': sizes of classes are estimated for one seed at a time: give "
            "'seed', or 'class_prior' as numbers"
        )
    if flat["score.folds"] > flat["score.rows"]:
        raise UserError(
            f"config field 'score.folds' is {flat['score.folds']}, it must be at most score.rows, "
            f"which is {flat['score.rows']}: a fold needs a row"
        )
    if flat["inner.penalty"] < _LEAST and (
        flat["inner.adjoint"] == "implicit" or flat["inner.precondition"]
    ):
        raise UserError(
            f"config field 'inner.penalty' is {flat['inner.penalty']}, for float32 0, where the "
            "inner fit has no unique solution: set it to 1e-8 or more, or inner.adjoint to "
            "'unrolled' or 'first_order' and inner.precondition to False"
        )


def _check_limits(name: str, value: float) -> None:
    if math.isfinite(value):
        if name in _AT_LEAST and value < _AT_LEAST[name]:
            limit = f"at least {_AT_LEAST[name]}"
        elif name in _GREATER_THAN_ZERO and value <= 0:
            limit = "greater than 0"
        elif name in _AT_MOST and value > _AT_MOST[name]:
            limit = f"at most {_AT_MOST[name]}"
        elif isinstance(value, int) and value > LAST_SEED:
            limit = f"at most {LAST_SEED}"
        elif name in _LESS_THAN and value >= _LESS_THAN[name]:
            limit = f"less than {_LESS_THAN[name]}"
        else:
            return
    else:
        limit = "finite"
    hint = ": say how many classes to look for, --config.n_classes=K" if name == "n_classes" else ""
    raise UserError(f"config field {name!r} is {value}, it must be {limit}{hint}")


def specs(name: str, value: Any) -> str | tuple[str, ...]:
    """Returns the encoder or encoders of a field of `encode`, several as a tuple."""
    several = (value,) if isinstance(value, str) else tuple(value)
    if not several or not all(isinstance(spec, str) for spec in several):
        raise UserError(
            f"config field 'encode.{name}' is {value!r}, it must be an encoder such as "
            "'dinov2_vits14', or a tuple of them"
        )
    return value if isinstance(value, str) else several


def paths(field: str, value: Any, encoders: str | Sequence[str] = "") -> str | tuple[str, ...]:
    """Returns the path or paths of a data field, several as a tuple.

    Args:
      field: such as `data.train.phi1`.
      value: of it.
      encoders: that encode images for this field; '' in a tuple of paths is for one of them.
    """
    if field.endswith((".labels", ".samples")):
        if not isinstance(value, str):
            raise UserError(f"config field {field!r} is {value!r}, it must be one path")
        return value
    if isinstance(value, str):
        return value
    several = tuple(value)
    coming = (encoders,) if isinstance(encoders, str) else tuple(encoders)
    if not several or not all(
        isinstance(path, str) and (path or any(coming[i : i + 1])) for i, path in enumerate(several)
    ):
        raise UserError(f"config field {field!r} is {value!r}, it must hold paths")
    return several


def prior(weights: Iterable[float] | str, n_classes: int | str) -> tuple[float, ...] | str:
    """Checks the class prior and scales it to sum 1; () stands for the uniform one."""
    if isinstance(weights, str):
        if weights != ESTIMATE:
            raise UserError(
                f"config field 'class_prior' is {weights!r}, it must be numbers in brackets, "
                "'estimate', or () for the uniform prior"
            )
        return weights
    values = tuple(weights)
    if not values:
        return ()
    if isinstance(n_classes, str):
        raise UserError(
            f"config field 'class_prior' has {len(values)} values, and 'n_classes' is "
            f"{n_classes!r}: give the number of classes, or leave the prior () or 'estimate'"
        )
    if len(values) != n_classes:
        raise UserError(
            f"config field 'class_prior' has {len(values)} values for {n_classes} classes: "
            "give one for each class, or () for the uniform prior"
        )
    if not all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in values):
        raise UserError(f"config field 'class_prior' is {values}, it must be positive numbers")
    total = math.fsum(values)
    # What already sums to 1 stays as it is, so that resolving twice changes no bit.
    if abs(total - 1) < 1e-12:
        return tuple(float(v) for v in values)
    return tuple(v / total for v in values)
