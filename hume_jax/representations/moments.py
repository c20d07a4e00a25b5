"""Mean and second moments of arrays too large for memory, each row read once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hume_jax.representations import scaling
from hume_jax.representations.arrays import checks
from hume_jax.representations.arrays.kept import Array

# Rows whose mean all products are taken around: near enough to that of all rows that nothing
# cancels.
_SAMPLE = 4096
# Up to this many products of two numbers, some ten seconds on two cores, they are float64. Beyond
# it they are float32, at twice the speed: the sums within a block carry some 1e-7 of rounding, of
# either sign, which the float64 sum over the blocks averages out. Directions without variance then
# show as up to 1e-8 of the largest and are kept; to the inner fit they are as good as zero.
_EXACT_PRODUCTS = 2e11
# Rows this near to the sample's mean, in units of the usual distance, may equal the mean.
_NEAR = 0.1


class Moments(NamedTuple):
    """Moments of stacked arrays."""

    mean: np.ndarray  # (d,) float64
    squares: float  # mean squared norm of the centred rows
    gram: np.ndarray | None  # (d, d) float64, mean of the products of centred columns
    zero_rows: int  # rows that equal the mean but for rounding, as `scaling.is_zero` says


def moments(
    arrays: Sequence[Array], *, products: bool, done: Callable[[int], None] = lambda rows: None
) -> Moments:
    """Computes moments of arrays stacked by rows.

    Args:
      arrays: (n_i, d) floating each, may be memory-mapped.
      products: whether to compute the Gram matrix.
      done: called with the number of rows read since the last call.
    """
    n, d = sum(len(array) for array in arrays), arrays[0].shape[1]
    around, usual = _sample(arrays, n)
    dtype = np.float64 if n * d * d <= _EXACT_PRODUCTS else np.float32
    total, squares = np.zeros(d), 0.0
    gram = np.zeros((d, d)) if products else None
    near: list[list[np.ndarray]] = []
    for array in arrays:
        near.append([])
        for start, block in checks.blocks(array):
            total += block.sum(axis=0, dtype=np.float64)
            centred = block - around
            norms = np.einsum("ij,ij->i", centred, centred)
            squares += float(norms.sum(dtype=np.float64))
            near[-1].append(start + np.flatnonzero(norms <= (_NEAR * usual) ** 2))
            if gram is not None:
                factor = centred.astype(dtype, copy=False)
                gram += factor.T @ factor
            done(len(block))
    mean = total / n
    shift = mean - around
    if gram is not None:
        gram /= n
        gram -= np.outer(shift, shift)
    candidates = [np.concatenate(rows) for rows in near]
    if np.linalg.norm(shift) + 4 * scaling.ROUNDING * np.linalg.norm(mean) > _NEAR * usual:
        # The sample says too little, or the rows differ too little: any row may equal the mean.
        candidates = [np.arange(len(array)) for array in arrays]
    zero_rows = _count_zero(arrays, candidates, mean.astype(np.float32))
    return Moments(mean, squares / n - float(shift @ shift), gram, zero_rows)


def _sample(arrays: Sequence[Array], n: int) -> tuple[np.ndarray, float]:
    """Mean of rows spread over the arrays, (d,) float32, and their usual distance to it."""
    step = -(-n // _SAMPLE)
    rows = np.concatenate([array[::step].astype(np.float32) for array in arrays])
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    rows -= mean
    return mean, float(np.sqrt(np.mean(np.einsum("ij,ij->i", rows, rows))))


def _count_zero(arrays: Sequence[Array], candidates: Sequence[np.ndarray], mean: np.ndarray) -> int:
    count = 0
    for array, rows in zip(arrays, candidates, strict=True):
        for start in range(0, len(rows), _SAMPLE):
            block = array[rows[start : start + _SAMPLE]].astype(np.float32)
            count += int(np.count_nonzero(scaling.is_zero(block - mean, block, mean)))
    return count
