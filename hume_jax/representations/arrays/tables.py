"""Columns of Parquet and Arrow files, and of folders that Hugging Face `datasets` saved.

Parquet is decoded into memory. Arrow that lies in one batch is used where it lies in the file;
several batches, or shards, are copied into one array.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays import columns, saved_datasets
from hume_jax.representations.arrays.stored import Stored, as_read, choose, reason
from hume_jax.representations.arrays.table_files import Arrow, Parquet, Table

# About what is decoded at a time.
_BATCH_BYTES = 16 * 2**20


def find_parquet(file: Path, member: str, hint: str) -> Stored:
    """Reads what the header of a Parquet file says of a column.

    Args:
      file: the file.
      member: name of the column, '' for the only one.
      hint: not needed: the format holds no Python objects.

    Returns:
      The column: (n, d) for lists of numbers, (n,) for numbers or text. That lists are of one
      length, and no value is missing, is seen when they are read.

    Raises:
      UserError: no such file or column, it is damaged or cut short, it holds something else, or
        pyarrow is not installed.
    """
    del hint
    with _readable(str(file)):
        return _find(Parquet(file), member)


def find_arrow(file: Path, member: str, hint: str) -> Stored:
    """As `find_parquet`, of an Arrow file or stream (Feather 2 is such a file)."""
    del hint
    with _readable(str(file)):
        return _find(Arrow(str(file), (file,)), member)


def find_dataset(folder: Path, member: str, hint: str) -> Stored:
    """As `find_parquet`, of a folder that Hugging Face `datasets` saved."""
    del hint
    files = saved_datasets.shards(folder)
    with _readable(str(folder)):
        return _find(Arrow(str(folder), files), member)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns what pyarrow raises into one line that names the file."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UserError(
            f'{name} needs pyarrow to be read: pip install "hume_jax[arrays]"'
        ) from error
    try:
        yield
    except UserError:
        raise
    # pyarrow's own are of these kinds too.
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        raise UserError(
            f"{name} cannot be read, it may be damaged or cut short: {reason(error)}"
        ) from error


def _find(table: Table, member: str) -> Stored:
    """The column of a table that is meant."""
    column = choose(table.name, member, table.schema.names, "column")
    name = f"{table.name}:{column}" if member else table.name
    dtype, lists = columns.describe(name, table.schema.field(column).type)
    rows = table.rows(column)
    first = _first(table, column)
    if rows <= 0 or first is None:
        raise UserError(f"{name} is empty: it has no rows")
    if not lists:
        read = partial(_read_labels, table, name, column, rows)
        return Stored(name, (rows,), dtype, read, rows * dtype.itemsize)
    shape = rows, columns.width(name, first)
    if shape[1] == 0:
        raise UserError(f"{name} is empty: its shape is {shape}")
    if table.in_place and len(first) == rows:
        return Stored(name, shape, dtype, partial(_read_in_place, table, name, column, shape))
    read = partial(_read_rows, table, name, column, shape, as_read(dtype))
    return Stored(name, shape, dtype, read, rows * shape[1] * as_read(dtype).itemsize)


def _first(table: Table, column: str) -> Any:
    with contextlib.closing(table.chunks(column, 1)) as chunks:
        return next((chunk for chunk in chunks if len(chunk)), None)


def _read_labels(table: Table, name: str, column: str, rows: int) -> np.ndarray:
    parts, at = [], 0
    with _readable(name):
        for chunk in table.chunks(column, _BATCH_BYTES // 8):
            parts.append(columns.to_labels(name, chunk, at))
            at += len(chunk)
    _check_count(name, at, rows)
    return np.concatenate(parts)


def _read_in_place(table: Table, name: str, column: str, shape: tuple[int, int]) -> np.ndarray:
    with _readable(name):
        chunk = _first(table, column)
        return columns.to_rows(name, chunk, 0, shape[1])


def _read_rows(
    table: Table, name: str, column: str, shape: tuple[int, int], dtype: np.dtype
) -> np.ndarray:
    # Memory is taken page by page as it is written, so a claim alone takes none.
    out, at = np.empty(shape, dtype), 0
    with _readable(name), np.errstate(over="ignore"):
        for chunk in table.chunks(column, max(1, _BATCH_BYTES // (shape[1] * dtype.itemsize))):
            rows = columns.to_rows(name, chunk, at, shape[1])
            out[at : at + len(rows)] = rows
            at += len(rows)
        _give_back()
    _check_count(name, at, shape[0])
    out.flags.writeable = False
    return out


def _give_back() -> None:
    """Lets go of what pyarrow keeps for its next decoding."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def _check_count(name: str, found: int, rows: int) -> None:
    if found != rows:
        raise UserError(f"{name} is damaged: it has {found} rows, its header says {rows}")
