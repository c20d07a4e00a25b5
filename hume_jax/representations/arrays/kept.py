"""An array less some of its rows: those of images that could not be read, or all but a sample."""

from typing import Any

import numpy as np


class KeptRows:
    """Rows of an array, numbered anew; they are read as they are asked for, as slices or by number.

    A copy of an array without a few of its rows may be more than memory holds.
    """

    def __init__(self, array: np.ndarray, numbers: np.ndarray) -> None:
        """Takes rows of an array; nothing is read.

        Args:
          array: (n, d) floating, memory-mapped or not.
          numbers: (m,) integers, the rows that are kept, ascending.
        """
        self.array, self.numbers = array, numbers
        self.shape, self.dtype, self.ndim = (len(numbers), array.shape[1]), array.dtype, array.ndim
        self.size = len(numbers) * array.shape[1]

    def __len__(self) -> int:
        """Returns the number of rows kept."""
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Returns a copy of (m, d) rows: of a slice, by number, or (d,) of one."""
        return self.array[self.numbers[rows]]


# What the rows of a space are read from.
Array = np.ndarray | KeptRows


def less(array: np.ndarray, rows: np.ndarray) -> Array:
    """Returns an array without some rows, the array itself if there are none.

    Args:
      array: (n, d) floating.
      rows: (m,) integers, ascending.
    """
    if not len(rows):
        return array
    return KeptRows(array, np.setdiff1d(np.arange(len(array)), rows))


def some(array: Array, numbers: np.ndarray) -> KeptRows:
    """Returns some rows of an array.

    Args:
      array: (n, d) floating.
      numbers: (m,) integers, ascending.
    """
    if isinstance(array, KeptRows):
        return KeptRows(array.array, array.numbers[numbers])
    return KeptRows(array, numbers)
