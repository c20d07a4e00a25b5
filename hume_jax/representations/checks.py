"""Checks of one array on disk: the header before anything is read, then the values."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hume_jax.errors import UserError

# About what one block of rows takes as float32.
_BLOCK_BYTES = 16 * 2**20
_DIGEST_ROWS = 256

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


# What to do about an array of Python objects.
_SPACE_HINT = "save one plain array, np.save(file, np.stack(rows).astype(np.float32))"
LABELS_HINT = "save one integer for each sample, np.save(file, np.array(labels, dtype=int))"


class Scan(NamedTuple):
    """What one pass over an array finds."""

    zero_rows: int
    constant: np.ndarray  # (d,) bool, columns with the same value in every row
    first: np.ndarray  # (d,) float32, the first row


def open_array(path: Path, hint: str = _SPACE_HINT) -> np.ndarray:
    """Memory-maps an .npy file after checking that it holds numbers and is complete.

    Args:
      path: the file.
      hint: what to do if it holds Python objects.

    Returns:
      A read-only array of any shape, at least one value.

    Raises:
      UserError: not an .npy file, object or structured dtype, cut short, empty or unreadable.
    """
    try:
        with open(path, "rb") as file:
            _check_magic(path, file.read(6))
            file.seek(0)
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise UserError(f"{path}: .npy format {version} holds no plain array of numbers")
            shape, fortran, dtype = _HEADERS[version](file)
            offset = file.tell()
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: the .npy header is damaged: {error}") from error
    if dtype.hasobject:
        raise UserError(f"{path} holds Python objects (dtype {dtype}), not numbers: {hint}")
    needed = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if 0 in shape or dtype.itemsize == 0:
        raise UserError(f"{path} is empty: its shape is {shape}")
    if size < needed:
        raise UserError(f"{path} is cut short: {size} bytes, its header asks for {needed}")
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order=order)


def check_space(path: Path, array: np.ndarray) -> None:
    """Raises a `UserError` unless the array is (n, d) float16, float32 or float64.

    float64 is read as float32.
    """
    if array.ndim != 2:
        raise UserError(
            f"{path} has shape {array.shape}, a representation has two dimensions: "
            "one row for each sample"
        )
    # float64 is accepted since NumPy saves it by default.
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError(
            f"{path} has dtype {array.dtype}, a representation is float16 or float32 (float64 is "
            "read as float32): save it with .astype(np.float32)"
        )


def check_labels(path: Path, labels: np.ndarray, n: int, other: Path) -> None:
    """Raises a `UserError` unless labels are n int64 values, as many as `other` has rows."""
    if labels.ndim != 1:
        raise UserError(f"{path} has shape {labels.shape}, labels have one dimension: ({n},)")
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{path} has dtype {labels.dtype}, labels are integers: save them with .astype(int)"
        )
    if len(labels) != n:
        raise UserError(f"{path} holds {len(labels)} labels, {other} has {n} rows")
    # As int64 they would become negative.
    if labels.dtype.kind == "u" and int(labels.max()) > np.iinfo(np.int64).max:
        raise UserError(
            f"{path} holds the label {labels.max()}, labels are less than 2**63: "
            "number the classes from 0"
        )


def scan(path: Path, array: np.ndarray) -> Scan:
    """Reads an array once, block by block.

    Args:
      path: its file, for messages.
      array: (n, d) floating.

    Returns:
      Its zero rows and constant columns.

    Raises:
      UserError: some values are NaN or infinite, also as float32.
    """
    first = _as_float32(array[0])
    varies = np.zeros(array.shape[1], dtype=bool)
    zero_rows, bad, bad_row = 0, 0, -1
    for start, block in blocks(array):
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", block, block)
        # A square may overflow or underflow where the values do not: look at these rows again.
        odd = np.flatnonzero(~np.isfinite(squares) | (squares == 0))
        finite = np.isfinite(block[odd])
        if not finite.all():
            bad += int(finite.size - np.count_nonzero(finite))
            if bad_row < 0:
                bad_row = start + int(odd[np.flatnonzero(~finite.all(axis=1))[0]])
        zero_rows += int(np.count_nonzero(~block[odd].any(axis=1)))
        varies |= (block != first).any(axis=0)
    if bad:
        raise UserError(
            f"{path}: {bad} of {array.size} values are NaN or infinite as float32, the first in "
            f"row {bad_row} (counted from 0): drop these rows from all files or encode them again"
        )
    return Scan(zero_rows, ~varies, first)


def digest(array: np.ndarray) -> str:
    """Names an array by its shape, dtype and a hash of up to 256 rows spread over it."""
    rows = np.unique(np.linspace(0, len(array) - 1, _DIGEST_ROWS).astype(int))
    content = hashlib.sha256(np.ascontiguousarray(array[rows]).tobytes())
    return f"{array.shape} {array.dtype} {content.hexdigest()[:16]}"


def constant_columns(*arrays: np.ndarray) -> np.ndarray:
    """Returns which columns hold one value in all rows of all (n_i, d) arrays, (d,) bool."""
    first = _as_float32(arrays[0][0])
    varies = np.zeros(len(first), dtype=bool)
    for array in arrays:
        for _, block in blocks(array):
            varies |= (block != first).any(axis=0)
    return ~varies


def blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields `(first row, rows as float32)` of an (n, d) array, some 16 MB at a time."""
    rows = max(1, _BLOCK_BYTES // (4 * array.shape[1]))
    for start in range(0, len(array), rows):
        yield start, _as_float32(array[start : start + rows])


def _as_float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32)


def _check_magic(path: Path, magic: bytes) -> None:
    if magic == np.lib.format.MAGIC_PREFIX:
        return
    hint = "save the array with np.save"
    if magic[:2] == b"PK":
        hint = "it looks like an .npz archive, save the one array in it with np.save"
    raise UserError(f"{path} is not an .npy file: {hint}")
