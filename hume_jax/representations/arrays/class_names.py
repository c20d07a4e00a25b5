"""Labels as numbers: integers as they are, class names in sorted order."""

import sys
from collections.abc import Sequence

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks
from hume_jax.representations.arrays.formats import find_array
from hume_jax.representations.arrays.stored import reason


def numbers(given: Sequence[tuple[str, np.ndarray | None]]) -> list[np.ndarray | None]:
    """Numbers the labels of all splits alike.

    Args:
      given: of each split, the path of its labels and what is there: integers, or class names as
        text (`U`, or UTF-8 in `S`); None where there are no labels.

    Returns:
      (n,) int64 for each. Names are numbered from 0 in the order of their code points, those of all
      splits together, so that a class has the same number in each.

    Raises:
      UserError: a label is too large, a name empty, or one split has names and another numbers.
    """
    there = [(path, labels) for path, labels in given if labels is not None]
    for path, labels in there:
        checks.check_label_values(find_array(path), labels)
    named = [labels.dtype.kind in "US" for _, labels in there]
    if not any(named):
        return [None if labels is None else labels.astype(np.int64) for _, labels in given]
    if not all(named):
        raise UserError(
            f"{there[named.index(True)][0]} holds class names, {there[named.index(False)][0]} "
            "numbers: give the same kind of labels for train and test"
        )
    encoded = [None if labels is None else _encode(path, labels) for path, labels in given]
    names = np.unique(np.concatenate([np.unique(text) for text in encoded if text is not None]))
    return [None if text is None else np.searchsorted(names, text) for text in encoded]


def _encode(path: str, labels: np.ndarray) -> np.ndarray:
    """Text as UTF-8, which sorts as its code points do."""
    if labels.dtype.kind == "S":
        return np.asarray(labels)
    native = np.ascontiguousarray(labels, labels.dtype.newbyteorder("="))
    try:
        # NumPy takes what stands in a file for text without a look at it.
        if native.view(np.uint32).max() > sys.maxunicode:
            raise ValueError("it has numbers that are no code points")
        return np.strings.encode(native, "utf-8")
    except ValueError as error:
        raise UserError(f"{find_array(path)} holds what is no text: {reason(error)}") from error
