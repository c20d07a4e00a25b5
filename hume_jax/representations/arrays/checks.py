"""Checks of one array on disk: the header before anything is read, then the values."""

import hashlib
import io
import math
import os
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays.kept import Array, KeptRows
from hume_jax.representations.arrays.stored import Stored, reason

# About what one block of rows takes as float32.
_BLOCK_BYTES = 16 * 2**20
_DIGEST_ROWS = 256

# Formats of .npy that hold plain arrays: how a header is read, the bytes that give its length.
_HEADERS = {
    (1, 0): (np.lib.format.read_array_header_1_0, 2),
    (2, 0): (np.lib.format.read_array_header_2_0, 4),
}
_MAGIC_BYTES = 8
# NumPy refuses longer ones; a plain array's has about 100.
_HEADER_BYTES = 10_000
_MOST_DIMENSIONS = 32
# What NumPy's reader of headers raises over what is none. It parses a Python literal, so nearly
# anything.
_MALFORMED = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    MemoryError,
    RecursionError,
)
# What other files start with, and what to do with them.
_OTHER_FILES = {
    b"PK": "it looks like an .npz archive, give it that ending",
    b"PAR1": "it looks like a Parquet file, give it the ending .parquet",
    b"ARROW1": "it looks like an Arrow file, give it the ending .arrow",
    b"\x89HDF": "it looks like an HDF5 file, read the array and save it with np.save",
    b"\x80": "it looks like a pickle, which is never read: save the array with np.save",
}


# What to do about an array of Python objects.
SPACE_HINT = "save one plain array, np.save(file, np.stack(rows).astype(np.float32))"
LABELS_HINT = "save one integer for each sample, np.save(file, np.array(labels, dtype=int))"


class Scan(NamedTuple):
    """What one pass over an array finds."""

    zero_rows: int
    constant: np.ndarray  # (d,) bool, columns with the same value in every row
    first: np.ndarray  # (d,) float32, the first row


class Header(NamedTuple):
    """What the header of an .npy file says."""

    shape: tuple[int, ...]
    order: Literal["F", "C"]
    dtype: np.dtype
    length: int  # bytes of the header itself

    @property
    def needed(self) -> int:
        """Bytes of the whole file."""
        return self.length + math.prod(self.shape) * self.dtype.itemsize


def open_array(path: Path, hint: str = SPACE_HINT) -> np.ndarray:
    """Memory-maps an .npy file after checking that it holds numbers and is complete.

    Args:
      path: the file.
      hint: what to do if it holds Python objects.

    Returns:
      A read-only array of any shape, at least one value.

    Raises:
      UserError: not an .npy file, object dtype, cut short, empty or unreadable.
    """
    try:
        with open(path, "rb") as file:
            header = read_header(path, file)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    check_header(path, header, size, hint)
    return map_array(path, header)


def read_header(path: Path | str, file: IO[bytes]) -> Header:
    """Reads the header of an .npy file, whatever the file holds.

    Args:
      path: its name, for messages.
      file: at its first byte; the rest is not read.

    Raises:
      UserError: it is no .npy file of a plain array, or its header is damaged.
    """
    start = file.read(_MAGIC_BYTES)
    _check_magic(path, start)
    version = tuple(start[len(np.lib.format.MAGIC_PREFIX) :])
    if version not in _HEADERS:
        raise UserError(f"{path}: .npy format {version} holds no plain array of numbers")
    parse, length_bytes = _HEADERS[version]
    try:
        prefix = file.read(length_bytes)
        length = int.from_bytes(prefix, "little")
        if length > _HEADER_BYTES:
            raise ValueError(f"it is said to be {length} bytes long")
        with warnings.catch_warnings():
            # About headers that Python 2 wrote, which are sound, and about text that is no header.
            warnings.simplefilter("ignore")
            shape, fortran, dtype = parse(io.BytesIO(prefix + file.read(length)))
        _check_shape(shape, dtype)
    except _MALFORMED as error:
        raise UserError(f"{path}: the .npy header is damaged: {reason(error)}") from error
    order: Literal["F", "C"] = "F" if fortran else "C"
    return Header(shape, order, dtype, _MAGIC_BYTES + length_bytes + length)


def _check_shape(shape: tuple[int, ...], dtype: np.dtype) -> None:
    if len(shape) > _MOST_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"it claims the shape {shape}")
    if dtype.subdtype is not None:
        raise ValueError(f"dtype {dtype} is an array in itself")


def check_header(path: Path | str, header: Header, size: int, hint: str) -> None:
    """Raises a `UserError` unless a file of `size` bytes can hold what its header says."""
    if header.dtype.hasobject:
        raise UserError(f"{path} holds Python objects (dtype {header.dtype}), not numbers: {hint}")
    if 0 in header.shape or header.dtype.itemsize == 0:
        raise UserError(f"{path} is empty: its shape is {header.shape}")
    if size < header.needed:
        raise UserError(f"{path} is cut short: {size} bytes, its header asks for {header.needed}")


def map_array(path: Path, header: Header, start: int = 0) -> np.ndarray:
    """Memory-maps, read-only, what a header describes that lies at byte `start` of a file."""
    return np.memmap(
        path,
        dtype=header.dtype,
        mode="r",
        offset=start + header.length,
        shape=header.shape,
        order=header.order,
    )


def check_space(path: Path, array: Stored | np.ndarray) -> None:
    """Raises a `UserError` unless the array is (n, d) float16, bfloat16, float32 or float64.

    float64 is read as float32.
    """
    if array.ndim != 2:
        raise UserError(
            f"{path} has shape {array.shape}, a representation has two dimensions: "
            "one row for each sample"
        )
    # float64 is accepted since NumPy saves it by default. bfloat16 is no kind of NumPy's own.
    plain = array.dtype.kind == "f" and array.dtype.itemsize <= 8
    if not plain and array.dtype.name != "bfloat16":
        raise UserError(
            f"{path} has dtype {array.dtype}, a representation is float16 or float32 (float64 is "
            "read as float32): save it with .astype(np.float32)"
        )


def check_labels(path: Path, labels: Stored | np.ndarray, n: int, other: Path) -> None:
    """Raises a `UserError` unless labels are n integers or texts, as many as `other` has rows."""
    if labels.ndim != 1:
        raise UserError(f"{path} has shape {labels.shape}, labels have one dimension: ({n},)")
    if labels.dtype.kind not in "iuUS":
        raise UserError(
            f"{path} has dtype {labels.dtype}, labels are integers or class names: save them with "
            ".astype(int)"
        )
    if labels.shape[0] != n:
        raise UserError(f"{path} holds {labels.shape[0]} labels, {other} has {n} rows")


def check_label_values(path: Path, labels: np.ndarray) -> None:
    """Raises a `UserError` if a label is too large for int64, or a class name empty."""
    # As int64 they would become negative.
    if labels.dtype.kind == "u" and int(labels.max()) > np.iinfo(np.int64).max:
        raise UserError(
            f"{path} holds the label {labels.max()}, labels are less than 2**63: "
            "number the classes from 0"
        )
    if labels.dtype.kind in "US":
        nameless = np.flatnonzero(labels == labels.dtype.type())
        if len(nameless):
            raise UserError(
                f"{path} has no class name in row {nameless[0]} (counted from 0): labels are "
                "integers or class names, one for every row"
            )


def check_same_rows(names: Sequence[str], arrays: Sequence[Array]) -> None:
    """Raises a `UserError` unless arrays of these names, for the message, have as many rows."""
    for name, array in zip(names, arrays, strict=True):
        if len(array) != len(arrays[0]):
            raise UserError(
                f"{names[0]} has {len(arrays[0])} rows, {name} {len(array)}: they must hold the "
                "same samples in the same order"
            )


def scan(path: Path, array: Array) -> Scan:
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
        if isinstance(array, KeptRows):
            bad_row = int(array.numbers[bad_row])
        raise UserError(
            f"{path}: {bad} of {array.size} values are NaN or infinite as float32, the first in "
            f"row {bad_row} (counted from 0): drop these rows from all files or encode them again"
        )
    return Scan(zero_rows, ~varies, first)


def digest(array: Array) -> str:
    """Names an array by its shape, dtype and a hash of up to 256 rows spread over it."""
    rows = np.unique(np.linspace(0, len(array) - 1, _DIGEST_ROWS).astype(int))
    content = hashlib.sha256(np.ascontiguousarray(array[rows]).tobytes())
    return f"{array.shape} {array.dtype} {content.hexdigest()[:16]}"


def blocks(array: Array) -> Iterator[tuple[int, np.ndarray]]:
    """Yields `(first row, rows as float32)` of an (n, d) array, some 16 MB at a time."""
    rows = max(1, _BLOCK_BYTES // (4 * array.shape[1]))
    for start in range(0, len(array), rows):
        yield start, _as_float32(array[start : start + rows])


def _as_float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(array, dtype=np.float32)


def _check_magic(path: Path | str, start: bytes) -> None:
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        return
    hints = (hint for magic, hint in _OTHER_FILES.items() if start.startswith(magic))
    raise UserError(f"{path} is not an .npy file: {next(hints, 'save the array with np.save')}")
