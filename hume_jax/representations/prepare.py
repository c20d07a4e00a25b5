"""From checked arrays on disk to the rows that the search and the scores work on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hume_jax.core.inner_fit import Coordinates, coordinates
from hume_jax.representations.arrays.kept import Array
from hume_jax.representations.scaling import Kind, Statistics, normalise, statistics
from hume_jax.representations.store import Space

# Rows per block of a streaming pass.
_BLOCK = 8192


class InnerRows(NamedTuple):
    """Rows of one second representation in the coordinates of the inner fit."""

    x: np.ndarray  # (n, r) float32
    penalty: np.ndarray  # (r,) float32
    kept: float  # share of the variance in the directions kept
    dropped: int  # directions without variance, or beyond those asked for


def space_statistics(spaces: Sequence[Space], kind: Kind) -> tuple[Statistics, ...]:
    """Statistics of every file of a space over the searched rows.

    Args:
      spaces: the space in every searched split.
      kind: `rows` (centre, unit norm) or `stored`.
    """
    files = zip(*(space.arrays for space in spaces), strict=True)
    return tuple(statistics(arrays, kind=kind) for arrays in files)


def joined_rows(arrays: Sequence[Array], stats: Sequence[Statistics], kind: Kind) -> np.ndarray:
    """Rows of a space as the task encoder reads them.

    Several files are joined column by column after each was normalised, and scaled so that the
    joined rows have unit norm again.

    Args:
      arrays: one (n, d_j) array for each file.
      stats: the statistics of each file.
      kind: `rows` (centre, unit norm) or `stored`.

    Returns:
      (n, sum of d_j) float32.
    """
    parts = [normalise(a, s, kind) for a, s in zip(arrays, stats, strict=True)]
    if len(parts) == 1:
        return parts[0]
    joined = np.concatenate(parts, axis=1)
    return joined * np.float32(len(parts) ** -0.5) if kind == "rows" else joined


class NormalisedRows:
    """Rows of a space over all of its splits, read and normalised as they are asked for."""

    def __init__(self, spaces: Sequence[Space], stats: Sequence[Statistics], kind: Kind) -> None:
        """Takes what `joined_rows` takes.

        Args:
          spaces: the space in each of some splits, stacked by rows.
          stats: the statistics of each file.
          kind: `rows` (centre, unit norm) or `stored`.
        """
        self._files = list(zip(*(space.arrays for space in spaces), strict=True))
        self._stats, self._kind = stats, kind
        self.shape = sum(map(len, self._files[0])), spaces[0].columns

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Returns (m, d) float32 rows by number."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        taken = [_take(arrays, rows) for arrays in self._files]
        return joined_rows(taken, self._stats, self._kind)


def inner_rows(
    arrays: Sequence[Array],
    *,
    normalised: bool,
    precondition: bool,
    directions: int,
    penalty: float,
    rows: np.ndarray | None = None,
) -> InnerRows:
    """Rows of one second representation as the inner fit reads them: the constant appended.

    Args:
      arrays: the searched rows, (n_i, d2) each, stacked by rows.
      normalised: whether to centre and scale to unit mean squared norm.
      precondition: whether to solve in preconditioned coordinates (`core.inner_fit.coordinates`).
      directions: leading directions kept, 0 for all.
      penalty: lambda.
      rows: numbers of the rows to take; statistics and directions are then theirs.

    Returns:
      `InnerRows`.
    """
    if rows is not None:
        arrays = (_take(arrays, rows),)
    kind: Kind = "scale" if normalised else "stored"
    stats = statistics(arrays, kind=kind)
    d2 = arrays[0].shape[1]
    features = np.ones((sum(len(a) for a in arrays), d2 + 1), np.float32)
    at = 0
    for array in arrays:
        features[at : at + len(array), :d2] = normalise(array, stats, kind)
        at += len(array)
    gram = _gram(features) if precondition else np.eye(d2 + 1)
    change = coordinates(gram, penalty, precondition=precondition, directions=directions)
    return _apply(features, change, keep=not precondition)


def _apply(features: np.ndarray, change: Coordinates, keep: bool) -> InnerRows:
    x = features if keep else features @ change.basis.astype(np.float32)
    dropped = features.shape[1] - x.shape[1]
    return InnerRows(x, change.penalty.astype(np.float32), change.kept, dropped)


def _take(arrays: Sequence[Array], rows: np.ndarray) -> np.ndarray:
    """Rows of stacked arrays, without stacking them."""
    dtypes = {array.dtype for array in arrays}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.float32
    taken = np.empty((len(rows), arrays[0].shape[1]), dtype)
    start = 0
    for array in arrays:
        here = (rows >= start) & (rows < start + len(array))
        taken[here] = array[rows[here] - start]
        start += len(array)
    return taken


def _gram(features: np.ndarray) -> np.ndarray:
    """Mean of x^T x over rows, (d, d) float64, block by block."""
    total = np.zeros((features.shape[1],) * 2, np.float64)
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK].astype(np.float64)
        total += block.T @ block
    return total / len(features)
