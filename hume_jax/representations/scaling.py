"""Centre and scale representations with statistics of the searched rows."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks
from hume_jax.representations.arrays.kept import Array

# `rows` is for phi1, `scale` for phi2, `stored` leaves a space as it is.
Kind = Literal["rows", "scale", "stored"]

# The scale of what is not scaled.
ONE = np.asarray(1, np.float32)
# A centred row at most this long, against the row and the mean, is rounding and counts as zero.
ROUNDING = 1e-6
# Largest share of rows of zero norm that a search accepts.
_ZERO_ROWS = 0.01
# What `judge_zero_rows` says of rows that equal the mean.
ZERO_ONCE_CENTRED = "zero norm once the mean is taken off"


class Statistics(NamedTuple):
    """What normalises a space, taken from the searched rows."""

    mean: np.ndarray  # (d,) float32
    scale: np.ndarray  # () float32


def statistics(arrays: Sequence[Array], *, kind: Kind) -> Statistics:
    """Computes what `normalise` needs, in float64 and block by block.

    Args:
      arrays: the searched rows, (n_i, d) each, stacked by rows.
      kind: `rows` for phi1, `scale` for phi2, `stored` for neither.

    Returns:
      For `rows` the mean, and scale 1. For `scale` the mean and one over the root of the mean
      squared norm of the centred rows. For `stored` zero mean and scale 1.
    """
    d = arrays[0].shape[1]
    if kind == "stored":
        return Statistics(np.zeros(d, np.float32), ONE)
    n = sum(len(array) for array in arrays)
    total = np.zeros(d, np.float64)
    for array in arrays:
        for _, block in checks.blocks(array):
            total += block.sum(axis=0, dtype=np.float64)
    mean = (total / n).astype(np.float32)
    if kind == "rows":
        return Statistics(mean, ONE)
    # A second pass: the mean of squares less the square of the mean would cancel.
    squares = 0.0
    for array in arrays:
        for _, block in checks.blocks(array):
            squares += float(np.square(block - mean).sum(dtype=np.float64))
    scale = (n / squares) ** 0.5 if squares > 0 else 1.0
    return Statistics(mean, np.asarray(scale, np.float32))


def normalise(array: Array, stats: Statistics, kind: Kind) -> np.ndarray:
    """Centres and scales rows.

    Args:
      array: (n, d) floating.
      stats: of the searched rows.
      kind: `rows` gives rows of unit norm after centring (a row of zero norm stays zero), `scale`
        gives (x - mean) * scale, `stored` changes nothing.

    Returns:
      (n, d) float32.
    """
    out = np.empty(array.shape, np.float32)
    for start, block in checks.blocks(array):
        rows = out[start : start + len(block)]
        if kind == "stored":
            rows[:] = block
            continue
        np.subtract(block, stats.mean, out=rows)
        if kind == "scale":
            rows *= stats.scale
            continue
        norms = _norms(rows)
        zero = is_zero(rows, block, stats.mean)
        norms[zero] = 1
        rows /= norms[:, None]
        rows[zero] = 0
    return out


def is_zero(centred: np.ndarray, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns which centred rows are zero but for the rounding of the mean, (n,) bool."""
    return _norms(centred) <= ROUNDING * (_norms(rows) + float(np.linalg.norm(mean)))


def judge_zero_rows(zero_rows: int, n: int, path: str, what: str) -> list[str]:
    """Returns a warning about rows that unit norm cannot be given to, if there are any.

    Args:
      zero_rows: number of them.
      n: searched rows.
      path: the file, for the message.
      what: is wrong with them.

    Raises:
      UserError: they are more than 1 %.
    """
    text = f"{path}: {zero_rows} of {n} rows have {what}"
    if zero_rows > _ZERO_ROWS * n:
        raise UserError(f"{text}, more than 1 %: encode these samples again or leave them out")
    return [text] if zero_rows else []


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))
