"""What a finished search is judged by: label-free scores of its tasks, floor and ceiling."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import memory
from hume_jax.core import aggregate
from hume_jax.evaluation import generalization
from hume_jax.progress import Progress, count
from hume_jax.representations.prepare import (
    InnerRows,
    NormalisedRows,
    inner_rows,
    space_statistics,
)
from hume_jax.representations.scaling import Statistics
from hume_jax.representations.store import Dataset, Split

# What k-means and the probe may take of the memory that a search from disk is meant to save.
_BOUNDED = 2**30


class ScoredRows(NamedTuple):
    """What tasks are scored on, in second spaces that do not depend on the search."""

    folds: np.ndarray  # (F, n / F) row numbers
    spaces: tuple[InnerRows, ...]  # of these rows, in the order of the folds


def scored_rows(config: config_dict.ConfigDict, splits: Sequence[Split]) -> ScoredRows:
    """Draws the rows that tasks are scored on, and prepares them in each second space.

    Centred, scaled and preconditioned with `score.penalty`, whatever the search did, so that scores
    of different settings compare.

    Args:
      config: resolved.
      splits: the searched ones.
    """
    settings, n = config.score, sum(split.n for split in splits)
    folds = generalization.folds(n, settings.folds, settings.rows, config.seed)
    files = zip(*(split.phi2.arrays for split in splits), strict=True)
    spaces = tuple(
        inner_rows(
            arrays,
            normalised=True,
            precondition=True,
            directions=0,
            penalty=settings.penalty,
            rows=folds.reshape(-1),
        )
        for arrays in files
    )
    return ScoredRows(folds, spaces)


def score_tasks(
    config: config_dict.ConfigDict,
    splits: Sequence[Split],
    tasks: np.ndarray,
    log_prior: np.ndarray,
    rows: ScoredRows | None = None,
) -> dict[str, np.ndarray]:
    """Scores tasks on their hard labels. Several second spaces are averaged.

    Args:
      config: resolved.
      splits: the searched ones.
      tasks: (S, n) int32 hard labels of the searched rows.
      log_prior: (K,).
      rows: of `scored_rows`, where they are there already.

    Returns:
      The fields of `generalization.Generalization`, (S,) float32 each.
    """
    logging.info("scoring %s by cross-validation", count(len(tasks), "labelling"))
    folds, spaces = rows or scored_rows(config, splits)
    batches = _batches(len(tasks), folds.size, config.n_classes)
    with Progress(len(spaces) * len(batches) * len(folds), "scores", unit="fits") as progress:
        found = [
            _score_in(config, space, tasks, folds, batches, log_prior, progress.update)
            for space in spaces
        ]
    return {name: np.mean([scores[name] for scores in found], axis=0) for name in found[0]}


def _batches(tasks: int, rows: int, n_classes: int) -> list[slice]:
    """Tasks that are scored at a time: as many as memory is meant for, in equal parts."""
    fitting = max(1, memory.SCORE_BATCH // memory.score_task_bytes(rows, n_classes))
    # Batches of one size compile once.
    size = -(-tasks // -(-tasks // fitting))
    return [slice(start, start + size) for start in range(0, tasks, size)]


def _score_in(
    config: config_dict.ConfigDict,
    space: InnerRows,
    tasks: np.ndarray,
    folds: np.ndarray,
    batches: Sequence[slice],
    log_prior: np.ndarray,
    done: Callable[[], None],
) -> dict[str, np.ndarray]:
    """Scores in one second space."""
    settings = config.score
    rows = folds.reshape(-1)
    x, penalty = jnp.asarray(space.x), jnp.asarray(space.penalty)
    # The rows were taken in the folds' order, so the folds are consecutive now.
    consecutive = jnp.arange(rows.size, dtype=jnp.int32).reshape(folds.shape)
    parts = []
    for batch in batches:
        part = generalization.score(
            jnp.asarray(tasks[batch][:, rows]),
            x,
            penalty,
            consecutive,
            jnp.asarray(log_prior, jnp.float32),
            entropy_weight=config.search.entropy_weight,
            steps=settings.steps,
            tolerance=settings.tolerance,
            done=done,
        )
        parts.append(jax.device_get(part)._asdict())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def voters(
    config: config_dict.ConfigDict, tasks: np.ndarray, scores: dict[str, np.ndarray]
) -> np.ndarray:
    """Chooses the tasks that vote, by the score that `ensemble.select` names.

    Args:
      config: resolved.
      tasks: (S, n) int32 hard labels of the searched rows.
      scores: (S,) each: the label-free ones, and whether a task is `collapsed`.

    Returns:
      (M,) int64 ascending task numbers.
    """
    settings = config.ensemble
    if settings.select == "all":
        return np.arange(len(tasks))
    tiers = scores["collapsed"].astype(int)
    if settings.select == "cv_accuracy":
        # Fewer classes are easier to predict, so only tasks with equally many are compared.
        tiers += 2 * (aggregate.class_counts(tasks, config.n_classes) == 0).sum(axis=1)
    # Of two tasks both agree equally with the other.
    order = aggregate.rank(
        scores[settings.select],
        tiers,
        highest_first=settings.select != "objective",
        ties=scores["objective"],
    )
    return np.sort(order[: max(1, round(settings.fraction * len(order)))])


def baselines(
    config: config_dict.ConfigDict,
    dataset: Dataset,
    splits: Sequence[Split],
    *,
    known: Mapping[str, tuple[Statistics, ...]] | None = None,
    bounded: bool = False,
) -> dict[str, np.ndarray]:
    """k-means in each space (the floor) and the supervised probe in each space (the ceiling).

    Both on centred rows of unit norm. k-means is fitted on the searched rows; the probe always on
    train labels, and predicts the test rows.

    Args:
      config: resolved.
      dataset: with labels of some split.
      splits: the searched ones.
      known: statistics of the files of `phi1` and `phi2`, of those that are known.
      bounded: whether to keep to a fixed amount of memory, by fitting on fewer rows.

    Returns:
      Labels under `METHOD_SPACE_SPLIT`, e.g. `kmeans_phi1_train`, `probe_phi2_test`.
    """
    # scikit-learn takes seconds to import; whatever is wrong with a run is told before.
    from hume_jax.baselines.kmeans import STARTS, kmeans
    from hume_jax.baselines.probe import FITS, probe

    found: dict[str, np.ndarray] = {}
    true = dataset.train.labels
    # Without test labels its predictions could not be scored.
    probed = dataset.test is not None and dataset.test.labels is not None
    max_bytes = _BOUNDED if bounded else None
    for name in ("phi1", "phi2"):
        stats = (known or {}).get(name)
        if stats is None:
            stats = space_statistics([getattr(split, name) for split in splits], "rows")
        train, test, rows = _unit_rows(dataset, splits, name, stats)
        with Progress(STARTS, f"k-means in {name}", unit="starts") as progress:
            labels, more = kmeans(
                rows,
                test if rows is train else None,
                config.n_classes,
                config.seed,
                max_bytes=max_bytes,
                done=progress.update,
            )
        if rows is not train:
            more = labels[len(train) :]
        found[f"kmeans_{name}_train"] = labels[: len(train)]
        if more is not None:
            found[f"kmeans_{name}_test"] = more
        if probed and test is not None and true is not None:
            with Progress(FITS, f"supervised probe in {name}", unit="fits") as progress:
                predicted = probe(
                    train, true, test, config.seed, max_bytes=max_bytes, done=progress.update
                )
            found[f"probe_{name}_test"] = predicted.labels
    return found


def _unit_rows(
    dataset: Dataset, splits: Sequence[Split], name: str, stats: tuple[Statistics, ...]
) -> tuple[NormalisedRows, NormalisedRows | None, NormalisedRows]:
    """Centred rows of unit norm of a space: train, test (None without), and the searched ones."""
    train = NormalisedRows([getattr(dataset.train, name)], stats, "rows")
    if dataset.test is None or not getattr(dataset.test, name).arrays:
        return train, None, train
    test = NormalisedRows([getattr(dataset.test, name)], stats, "rows")
    if len(splits) == 1:
        return train, test, train
    return train, test, NormalisedRows([getattr(split, name) for split in splits], stats, "rows")
