"""Labels of any rows from found task encoders, and the file that keeps them.

``predict`` is the vote of the stored, aligned task encoders, each on phi1 normalised as in the
search; what a run writes for its own rows comes from the same functions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hume_jax.core import aggregate, task_encoder
from hume_jax.core.consensus import soft_vote
from hume_jax.representations.arrays.kept import Array
from hume_jax.representations.prepare import joined_rows
from hume_jax.representations.scaling import Kind, Statistics

# All rows pass in blocks of one shape, so a row's label does not depend on the rows beside it.
_BLOCK = 4096


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
    if model.tables is None or model.weights is None:
        return aggregate.vote(tasks, model.theta.shape[2])
    return soft_vote(tasks, model.tables, model.weights)


def aligned(theta: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Reorders columns so that column k of every encoder is class k of the ensemble.

    Args:
      theta: (M, d1, K).
      permutations: (M, K), class of a member -> class of the ensemble.
    """
    order = np.argsort(permutations, axis=1)
    return np.take_along_axis(theta, order[:, None, :], axis=2)


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
