"""Exact nearest neighbours in a representation space: the flat index of faiss."""

from collections.abc import Callable
from typing import Any

import numpy as np

from hume_jax.errors import UserError

# Rows that are looked up at a time; each such call is a step of progress.
_QUERIES = 4096


def neighbours(
    x: np.ndarray, count: int, *, done: Callable[[int], None] = lambda rows: None
) -> np.ndarray:
    """The rows of the highest cosine with each row.

    The products of all pairs, so that none is missed. Of what finds the same, faiss takes the least
    time on a CPU (`experiments/nearest_neighbours.py`, docs/measurements.md).

    Args:
      x: (n, d) float32, rows of unit norm; a row of zeros has a cosine of 0 with every other.
      count: k, number of neighbours; fewer where there are fewer other rows.
      done: called with the number of rows of each block, once it is looked up.

    Returns:
      (n, k) int32, the nearest first, never the row itself; the lower number first where equal.
      Which of several as near as the last one are left out, faiss decides.

    Raises:
      UserError: faiss is not installed.
    """
    n = len(x)
    count = min(count, n - 1)
    x = np.ascontiguousarray(x, np.float32)
    index = _faiss().IndexFlatIP(x.shape[1])
    index.add(x)
    found = np.empty((n, count), np.int32)
    for start in range(0, n, _QUERIES):
        cosines, near = index.search(x[start : start + _QUERIES], count + 1)
        near = np.take_along_axis(near, np.lexsort((near, -cosines)), axis=1)
        found[start : start + len(near)] = _others(near, start)
        done(len(near))
    return found


def _others(near: np.ndarray, start: int) -> np.ndarray:
    """Neighbours (b, k) of rows from start on, out of the (b, k + 1) among which they are too."""
    own = near == np.arange(start, start + len(near))[:, None]
    # Where many rows are equal a row may not be among the first of them: then the last goes.
    own[:, -1] |= ~own.any(axis=1)
    return near[~own].reshape(len(near), -1)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f'nearest neighbours need faiss ({error}): pip install "hume_jax[baselines]"'
        ) from error
    return faiss
