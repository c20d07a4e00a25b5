"""Exact nearest neighbours in a representation space, by blocks of rows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Cosines of a block that are held at a time.
_BLOCK_BYTES = 2**27


def neighbours(
    x: np.ndarray, count: int, *, done: Callable[[int], None] = lambda rows: None
) -> np.ndarray:
    """The rows of the highest cosine with each row.

    The products of all pairs, a block of rows at a time, and the largest of each: no index is
    built, none is missed.

    Args:
      x: (n, d) float32, rows of unit norm; a row of zeros has a cosine of 0 with every other.
      count: k, number of neighbours; fewer where there are fewer other rows.
      done: called with the number of rows of each block that no block before had.

    Returns:
      (n, k) int32, the nearest first, never the row itself; the lower number first where equal.
    """
    n = len(x)
    count = min(count, n - 1)
    size = max(1, min(n, _BLOCK_BYTES // (4 * n)))
    rows = jnp.asarray(x, jnp.float32)
    found = np.empty((n, count), np.int32)
    for start in range(0, n, size):
        # The last block reaches back, so that all have one shape.
        first = min(start, n - size)
        found[first : first + size] = _block(rows, jnp.int32(first), size=size, count=count)
        done(first + size - start)
    return found


@functools.partial(jax.jit, static_argnames=("size", "count"))
def _block(x: Array, start: Array, *, size: int, count: int) -> Array:
    own = start + jnp.arange(size)
    block = jax.lax.dynamic_slice_in_dim(x, start, size)
    cosines = block @ x.T
    others = cosines.at[jnp.arange(size), own].set(-jnp.inf)
    return jax.lax.top_k(others, count)[1].astype(jnp.int32)
