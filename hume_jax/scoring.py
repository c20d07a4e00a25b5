"""What a finished search is judged by: label-free scores of its tasks, floor and ceiling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import memory
from hume_jax.baselines.kmeans import kmeans
from hume_jax.baselines.probe import probe
from hume_jax.core import aggregate
from hume_jax.evaluation import generalization
from hume_jax.representations.prepare import inner_rows, joined_rows, space_statistics
from hume_jax.representations.store import Dataset, Split


def score_tasks(
    config: config_dict.ConfigDict,
    splits: Sequence[Split],
    tasks: np.ndarray,
    log_prior: np.ndarray,
) -> dict[str, np.ndarray]:
    """Scores tasks on their hard labels, in second spaces that do not depend on the search.

    Centred, scaled and preconditioned with `score.penalty`, whatever the search did, so that scores
    of different settings compare. Several second spaces are averaged.

    Args:
      config: resolved.
      splits: the searched ones.
      tasks: (S, n) int32 hard labels of the searched rows.
      log_prior: (K,).

    Returns:
      The fields of `generalization.Generalization`, (S,) float32 each.
    """
    logging.info("scoring %d tasks by cross-validation", len(tasks))
    files = zip(*(split.phi2.arrays for split in splits), strict=True)
    found = [_score_in(config, arrays, tasks, log_prior) for arrays in files]
    return {name: np.mean([scores[name] for scores in found], axis=0) for name in found[0]}


def _score_in(
    config: config_dict.ConfigDict,
    arrays: Sequence[np.ndarray],
    tasks: np.ndarray,
    log_prior: np.ndarray,
) -> dict[str, np.ndarray]:
    settings = config.score
    folds = generalization.folds(tasks.shape[1], settings.folds, settings.rows, config.seed)
    rows = folds.reshape(-1)
    space = inner_rows(
        arrays,
        normalised=True,
        precondition=True,
        directions=0,
        penalty=settings.penalty,
        rows=rows,
    )
    program = jax.jit(
        generalization.score, static_argnames=("entropy_weight", "steps", "tolerance")
    )
    each = memory.score_task_bytes(rows.size, config.n_classes)
    size = max(1, min(len(tasks), memory.SCORE_BATCH // each))
    # Equal batches compile once.
    size = -(-len(tasks) // -(-len(tasks) // size))
    parts = []
    for start in range(0, len(tasks), size):
        # The rows were taken in the folds' order, so the folds are consecutive now.
        part = program(
            jnp.asarray(tasks[start : start + size][:, rows]),
            jnp.asarray(space.x),
            jnp.asarray(space.penalty),
            jnp.arange(rows.size, dtype=jnp.int32).reshape(folds.shape),
            jnp.asarray(log_prior, jnp.float32),
            entropy_weight=config.search.entropy_weight,
            steps=settings.steps,
            tolerance=settings.tolerance,
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
    order = aggregate.rank(
        scores[settings.select], tiers, highest_first=settings.select != "objective"
    )
    return np.sort(order[: max(1, round(settings.fraction * len(order)))])


def baselines(
    config: config_dict.ConfigDict, dataset: Dataset, splits: Sequence[Split]
) -> dict[str, np.ndarray]:
    """k-means in each space (the floor) and the supervised probe in each space (the ceiling).

    Both on centred rows of unit norm. k-means is fitted on the searched rows; the probe always on
    train labels, and predicts the test rows.

    Returns:
      Labels under `METHOD_SPACE_SPLIT`, e.g. `kmeans_phi1_train`, `probe_phi2_test`.
    """
    found: dict[str, np.ndarray] = {}
    true = dataset.train.labels
    for name in ("phi1", "phi2"):
        train, test = _unit_rows(dataset, splits, name)
        logging.info("k-means in %s", name)
        if test is not None and len(splits) == 2:
            labels, _ = kmeans(np.concatenate([train, test]), None, config.n_classes, config.seed)
            more: np.ndarray | None = labels[len(train) :]
        else:
            labels, more = kmeans(train, test, config.n_classes, config.seed)
        found[f"kmeans_{name}_train"] = labels[: len(train)]
        if more is not None:
            found[f"kmeans_{name}_test"] = more
        if test is not None and true is not None:
            logging.info("supervised probe in %s", name)
            found[f"probe_{name}_test"] = probe(train, true, test, config.seed).labels
    return found


def _unit_rows(
    dataset: Dataset, splits: Sequence[Split], name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Centred train and test rows of unit norm of a space; None without test rows."""
    stats = space_statistics([getattr(split, name) for split in splits], "rows")
    train = joined_rows(getattr(dataset.train, name).arrays, stats, "rows")
    if dataset.test is None or not getattr(dataset.test, name).arrays:
        return train, None
    return train, joined_rows(getattr(dataset.test, name).arrays, stats, "rows")
