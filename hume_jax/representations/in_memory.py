"""Datasets of arrays in memory, in the place of files that a config names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils import check_array

from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks
from hume_jax.representations.store import Dataset, Space, Split

# What a space may hold as it is. Integers and booleans become the first.
DTYPES = (np.float32, np.float16, np.float64)


def dataset(
    phi1: Sequence[np.ndarray],
    phi2: Sequence[np.ndarray],
    names: tuple[str, str] = ("phi1", "phi2"),
) -> Dataset:
    """The rows of a search, of arrays as `space` returns them; their values are not looked at.

    Args:
      phi1: (n, d_j) each.
      phi2: (n, d_j) each.
      names: of the spaces, for messages.

    Raises:
      UserError: they differ in rows.
    """
    first, second = (
        Space(tuple(arrays), each(name, arrays), ())
        for arrays, name in zip((phi1, phi2), names, strict=True)
    )
    checks.check_same_rows((*first.paths, *second.paths), (*first.arrays, *second.arrays))
    return Dataset(Split(first, second, None, len(first.arrays[0])), None)


def each(name: str, arrays: Sequence[Any]) -> tuple[str, ...]:
    """What messages call the arrays of a space: `phi1`, or `phi1[0]`, `phi1[1]`."""
    if len(arrays) == 1:
        return (name,)
    return tuple(f"{name}[{j}]" for j in range(len(arrays)))


def space(values: Any, name: str) -> tuple[np.ndarray, ...]:
    """The arrays of one space, without a copy where they are floating already.

    Args:
      values: (n, d) of numbers: an array of NumPy, memory-mapped or not, or of JAX, a data frame,
        nested lists; or a tuple of such, as a config gives a space several files.
      name: of the space, for messages.

    Raises:
      UserError: they have no rows or columns, are no numbers, or differ in rows.
      TypeError: a sparse matrix.
    """
    several = values if isinstance(values, tuple) else (values,)
    names = each(name, several)
    arrays = tuple(_array(one, own) for one, own in zip(several, names, strict=True))
    checks.check_same_rows(names, arrays)
    return arrays


def _array(values: Any, name: str) -> np.ndarray:
    if getattr(getattr(values, "dtype", None), "name", "") == "bfloat16":
        # NumPy takes it for a kind of bytes.
        values = np.asarray(values).astype(np.float32)
    try:
        # NaN and infinite values are found with their row, in the pass that looks at all values.
        return check_array(
            values, dtype=DTYPES, ensure_all_finite=False, order=None, input_name=name
        )
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
