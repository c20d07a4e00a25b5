"""Labels of any rows from found task encoders, and the file that keeps them.

``predict`` is the vote of the stored, aligned task encoders, each on phi1 normalised as in the
search; what a run writes for its own rows comes from the same functions.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hume_jax.core import aggregate, consensus, task_encoder
from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks
from hume_jax.representations.arrays.kept import Array
from hume_jax.representations.prepare import joined_rows
from hume_jax.representations.scaling import Kind, Statistics

# All rows pass in blocks of one shape, so a row's label does not depend on the rows beside it.
_BLOCK = 4096
# Renumberings until classes are in the order of their size: rows of equal votes go to the first.
_ORDERINGS = 5


class Model(NamedTuple):
    """What is needed to label new rows."""

    theta: np.ndarray  # (M, d1, K) float32, members of the ensemble with common class numbers
    # Of each file that the encoders read, from the searched rows: those of phi1, then those of phi2
    # if the search saw both (`search.spaces`).
    statistics: tuple[Statistics, ...]
    kind: Kind  # how phi1 is normalised: 'rows' or 'stored'
    # Of a soft vote: (M, K, K) float32 shares of the vote of each member's class, and (K,) float64
    # weights of the classes. None: the majority.
    tables: np.ndarray | None = None
    weights: np.ndarray | None = None


def encode(
    theta: np.ndarray,
    arrays: Sequence[Array],
    statistics: Sequence[Statistics],
    kind: Kind,
    done: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Hard labels of every task encoder.

    Args:
      theta: (S, d1, K) float32.
      arrays: as stored, one (n, d_j) array for each file that the encoders read.
      statistics: of each file.
      kind: see `Model`.
      done: called with the number of rows of each block.

    Returns:
      (S, n) int32, each task in its own class numbers.
    """
    n = len(arrays[0])
    labels = np.empty((len(theta), n), np.int32)
    encoders = jnp.asarray(theta)
    for start in range(0, n, _BLOCK):
        block = [array[start : start + _BLOCK] for array in arrays]
        rows = joined_rows(block, statistics, kind)
        padded = np.zeros((_BLOCK, rows.shape[1]), np.float32)
        padded[: len(rows)] = rows
        labels[:, start : start + len(rows)] = _predict(encoders, padded)[:, : len(rows)]
        done(len(rows))
    return labels


@jax.jit
def _predict(theta: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.lax.map(lambda one: task_encoder.predict(one, rows), theta)


def predict(
    model: Model,
    arrays: Sequence[Array],
    done: Callable[[int], None] = lambda rows: None,
) -> aggregate.Vote:
    """Labels rows by the vote of a model's task encoders, soft or of the majority.

    Ties go to the lowest class.

    Args:
      model: of a finished run.
      arrays: as stored, one (n, d_j) array for each file, in the order of `Model.statistics`.
      done: called with the number of rows of each block.
    """
    tasks = encode(model.theta, arrays, model.statistics, model.kind, done)
    return vote(model, tasks)


def vote(model: Model, tasks: np.ndarray) -> aggregate.Vote:
    """The vote of a model's task encoders, of labels that they gave: (M, n) integers."""
    if model.tables is None or model.weights is None:
        return aggregate.vote(tasks, model.theta.shape[2])
    return consensus.soft_vote(tasks, model.tables, model.weights)


def shares(model: Model, tasks: np.ndarray, *, soft: bool) -> np.ndarray:
    """The shares of the votes for every class.

    Args:
      model: of a finished run.
      tasks: (M, n) integers, labels that its task encoders gave.
      soft: whether classes of a task give shares of their vote, as in a soft vote of the model.

    Returns:
      (n, K) float64, sums of 1.

    Raises:
      ValueError: soft shares of a model whose vote is that of the majority.
    """
    if not soft:
        return aggregate.shares(tasks, model.theta.shape[2])
    if model.tables is None or model.weights is None:
        raise ValueError("the model has no soft vote")
    return consensus.shares(tasks, model.tables, model.weights)


def check(model: Model, arrays: Sequence[Array], names: Sequence[str]) -> None:
    """Checks that rows are such as a model labels, before any of them is.

    Args:
      model: of a finished run.
      arrays: one (n, d_j) array for each file that the encoders read, in their order.
      names: of the arrays, for messages.

    Raises:
      UserError: too few or too many arrays, rows or columns that do not fit, NaN or infinity.
    """
    widths = [len(stats.mean) for stats in model.statistics]
    if len(arrays) != len(widths):
        raise UserError(
            f"{' and '.join(names)} are {len(arrays)} arrays, the task encoders read "
            f"{len(widths)}, of {', '.join(map(str, widths))} columns: give those of the search, "
            "in its order"
        )
    for name, array, width in zip(names, arrays, widths, strict=True):
        if array.shape[1] != width:
            raise UserError(
                f"{name} has {array.shape[1]} columns, in the search it had {width}: it must come "
                "from the same model"
            )
    checks.check_same_rows(names, arrays)
    for name, array in zip(names, arrays, strict=True):
        checks.scan(Path(name), array)


def model_of(
    theta: np.ndarray,
    tasks: np.ndarray,
    ensemble: aggregate.Ensemble,
    statistics: tuple[Statistics, ...],
    kind: Kind,
    evenness: float | None = None,
    prior: np.ndarray | None = None,
) -> Model:
    """The model of an ensemble: its members, with classes in the order of their size.

    Class 0 is the largest. (Where rows have equal votes for several classes, which go to the first
    of them, sizes may be out of order by such rows.)

    Args:
      theta: (S, d1, K) float32, of all tasks.
      tasks: (S, n) integers, their labels of the searched rows.
      ensemble: of some of them.
      statistics: see `Model`.
      kind: see `Model`.
      evenness: of a soft vote, see `consensus.consensus`; None: the majority.
      prior: of the classes, see there.
    """
    # Column k of every encoder is class k of the ensemble.
    order = np.argsort(ensemble.permutations, axis=1)
    members = np.take_along_axis(theta[ensemble.members], order[:, None, :], axis=2)
    model = Model(members, statistics, kind)
    voters = aggregate.relabel(tasks[ensemble.members], ensemble.permutations)
    k, labels = theta.shape[2], ensemble.vote.labels
    if evenness is not None:
        soft = consensus.consensus(voters, labels, k, evenness=evenness, prior=prior)
        model, labels = model._replace(tables=soft.tables, weights=soft.weights), soft.vote.labels
    for _ in range(_ORDERINGS):
        by_size = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
        if np.all(np.diff(by_size) > 0):
            break
        model, voters = _renumbered(model, by_size), np.argsort(by_size)[voters]
        labels = vote(model, voters).labels
    return model


def _renumbered(model: Model, order: np.ndarray) -> Model:
    """A model whose class k is that of number ``order[k]`` before."""
    model = model._replace(theta=model.theta[:, :, order])
    if model.tables is None or model.weights is None:
        return model
    return model._replace(tables=model.tables[:, order][:, :, order], weights=model.weights[order])


def read(path: str | os.PathLike[str] | IO[bytes]) -> Model:
    """Reads the model of a finished run from its file, `model.npz`."""
    with np.load(path, allow_pickle=False) as arrays:
        return from_arrays(arrays)


def to_arrays(model: Model) -> dict[str, np.ndarray]:
    """A model as named arrays, for an .npz file."""
    arrays = {"theta": model.theta, "kind": np.asarray(model.kind)}
    if model.tables is not None and model.weights is not None:
        arrays |= {"tables": model.tables, "weights": model.weights}
    for i, stats in enumerate(model.statistics):
        arrays[f"mean_{i}"], arrays[f"scale_{i}"] = stats.mean, stats.scale
    return arrays


def from_arrays(arrays: Mapping[str, Any]) -> Model:
    """The inverse of `to_arrays`."""
    files = sum(name.startswith("mean_") for name in arrays)
    stats = tuple(Statistics(arrays[f"mean_{i}"], arrays[f"scale_{i}"]) for i in range(files))
    kind: Kind = "rows" if str(arrays["kind"]) == "rows" else "stored"
    soft = {name: arrays[name] for name in ("tables", "weights") if name in arrays}
    return Model(arrays["theta"], stats, kind, **soft)
