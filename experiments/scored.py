"""Label-free scores of labelings, and what else follows from them, kept as soon as it is there."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import baselines
import figures
import numpy as np
from ml_collections import config_dict

from hume_jax import planning, scoring
from hume_jax.representations import store
from hume_jax.representations.arrays import checks

# Labelings that are scored at a time, and kept together.
_AT_A_TIME = 16
# What the scores depend on, beside the labels.
_PARTS = ("n_classes", "class_prior", "score", "seed", "precision")


def scores(
    folder: pathlib.Path, config: config_dict.ConfigDict, split: store.Split, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores labelings as `hume_jax.main` scores its tasks; those of before are read again.

    Args:
      folder: `FOLDER/scores` holds them, a file for each few labelings, named by what is in it.
      config: resolved.
      split: the rows.
      labels: (G, n) integers of these rows.

    Returns:
      As `scoring.score_tasks`, (G,) each.
    """
    labels = labels.astype(np.int32)
    parts = [
        _scores(folder / "scores", config, split, labels[start : start + _AT_A_TIME])
        for start in range(0, len(labels), _AT_A_TIME)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores(
    folder: pathlib.Path, config: config_dict.ConfigDict, split: store.Split, labels: np.ndarray
) -> dict[str, Any]:
    values = json.loads(config.to_json_best_effort())
    given = {part: values[part] for part in _PARTS}
    given["entropy_weight"] = config.search.entropy_weight

    def make() -> dict[str, Any]:
        figures.use_precision()
        log_prior = np.log(planning.class_prior(config)).astype(np.float32)
        return scoring.score_tasks(config, (split,), labels, log_prior)

    return kept(folder, given, split, labels, make)


def kept(
    folder: pathlib.Path,
    settings: dict[str, Any],
    split: store.Split,
    labels: np.ndarray,
    make: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Arrays that follow from labels of some rows, made once and read again afterwards.

    Args:
      folder: of the files, which are named by what their arrays follow from.
      settings: what else they follow from, for JSON.
      split: the rows.
      labels: integers of these rows.
      make: makes the arrays.
    """
    # Rows that were written over under the same name are others.
    rows = [checks.digest(array) for array in split.phi2.arrays]
    made_with = json.dumps({**settings, "rows": rows}, sort_keys=True)
    name = hashlib.sha256(made_with.encode() + labels.tobytes()).hexdigest()[:16]
    figures.make_folder(folder)
    arrays = baselines.stored_or_made(
        folder / f"{name}.npz", made_with, lambda: {**make(), "settings": np.asarray(made_with)}
    )
    del arrays["settings"]
    return arrays
