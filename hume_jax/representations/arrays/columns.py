"""From Arrow arrays to NumPy: lists of numbers become rows, text becomes class names."""

from typing import Any

import numpy as np

from hume_jax.errors import UserError

# A longer text is no class name, and all texts of a column take as much room as its longest.
_NAME_BYTES = 256
# NumPy's names of Arrow's floats; integers have the same ones.
_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}


def describe(name: str, kind: Any) -> tuple[np.dtype, bool]:
    """Says what a column of an Arrow type holds.

    Args:
      name: of the column, for messages.
      kind: a `pyarrow.DataType`.

    Returns:
      The dtype of its numbers (of kind `S` for text), and whether each row is a list of them.

    Raises:
      UserError: it holds neither numbers nor text.
    """
    import pyarrow as pa

    stored = _stored_type(kind)
    rows = _is_list(stored)
    value = _stored_type(stored.value_type) if rows else stored
    if pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_boolean(value):
        return np.dtype(_FLOATS.get(str(value), str(value))), rows
    if _is_text(value) and not rows:
        return np.dtype("S"), False
    raise UserError(
        f"{name} is a column of {kind}: a representation is a list of float16, float32 or float64 "
        "in each row, a label an integer or a text"
    )


def width(name: str, chunk: Any) -> int:
    """Number of values in the first list of a chunk."""
    chunk = _stored(chunk)
    _check_present(name, chunk, 0)
    return len(chunk[0])


def to_rows(name: str, chunk: Any, at: int, columns: int) -> np.ndarray:
    """Gives lists of numbers as rows, without a copy.

    Args:
      name: of the column, for messages.
      chunk: a `pyarrow.Array` of lists.
      at: number of its first row.
      columns: values that each list must have.

    Returns:
      (n, columns), read-only.

    Raises:
      UserError: a list is missing, holds a missing value or is of another length.
    """
    import pyarrow.compute as pc

    chunk = _stored(chunk)
    _check_present(name, chunk, at)
    lengths = pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(lengths != columns)
    if len(odd):
        raise UserError(
            f"{name}: row {at + odd[0]} (counted from 0) has {lengths[odd[0]]} values, row 0 has "
            f"{columns}: all rows of a representation have the same number"
        )
    values = _stored(chunk.flatten())
    if values.null_count:
        row = at + _first_null(values) // columns
        raise UserError(f"{name}: row {row} (counted from 0) has a missing value: encode it again")
    return values.to_numpy(zero_copy_only=False).reshape(-1, columns)


def to_labels(name: str, chunk: Any, at: int) -> np.ndarray:
    """Gives numbers as they are, and text as UTF-8 in an array of bytes, (n,).

    Args:
      name: of the column, for messages.
      chunk: a `pyarrow.Array` of numbers or text.
      at: number of its first row.

    Raises:
      UserError: a value is missing, or a text too long for a class name.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    chunk = _stored(chunk)
    _check_present(name, chunk, at)
    if not _is_text(chunk.type):
        return chunk.to_numpy(zero_copy_only=False)
    texts = chunk.cast(pa.large_binary())
    lengths = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(lengths > _NAME_BYTES)
    if len(odd):
        raise UserError(
            f"{name}: row {at + odd[0]} (counted from 0) holds a text of {lengths[odd[0]]} bytes: "
            f"a class name has at most {_NAME_BYTES}"
        )
    return np.array(texts.to_pylist(), dtype="S")


def _stored_type(kind: Any) -> Any:
    """What the values of a dictionary or of an extension type are."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _stored_type(kind.storage_type)
    return _stored_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _stored(array: Any) -> Any:
    """The values of a dictionary or of an extension type."""
    import pyarrow as pa

    if isinstance(array, pa.ExtensionArray):
        return _stored(array.storage)
    return _stored(array.dictionary_decode()) if isinstance(array, pa.DictionaryArray) else array


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _check_present(name: str, chunk: Any, at: int) -> None:
    if chunk.null_count:
        raise UserError(
            f"{name}: row {at + _first_null(chunk)} (counted from 0) has no value: leave it out of "
            "all files, or fill it in"
        )


def _first_null(array: Any) -> int:
    return int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
