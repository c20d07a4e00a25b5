"""Parquet and Arrow files as chunks of one column.

Parquet is decoded; Arrow that is not compressed stays where it lies in the file.
"""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

from hume_jax.errors import UserError

_FILE_MAGIC, _FEATHER_1_MAGIC = b"ARROW1", b"FEA1"
# The magic is padded to 8 bytes.
_FILE_START = 8
# What a stream ends with (Arrow columnar format, "IPC Streaming Format"). It may go without, but
# then a file that was cut between two batches could not be told from a whole one.
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class Table(Protocol):
    """One file, or several that follow each other."""

    name: str  # for messages
    schema: Any  # pyarrow.Schema
    in_place: bool  # whether chunks lie in the file as they are in memory

    def rows(self, column: str) -> int:
        """Counts rows by the headers alone."""
        ...

    def chunks(self, column: str, size: int) -> Generator[Any, None, None]:
        """Yields the `pyarrow.Array`s of a column; where it is decoded, `size` rows at a time."""
        ...


class Parquet:
    """A Parquet file."""

    in_place = False

    def __init__(self, file: Path) -> None:
        """Reads its header."""
        self.name, self._file = str(file), file
        with self._open() as parquet:
            self.schema = parquet.schema_arrow
            self._rows = parquet.metadata.num_rows

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        # Mapped and not buffered ahead, so that only what is decoded at a time is held.
        return pq.ParquetFile(
            self._file, memory_map=True, pre_buffer=False, page_checksum_verification=True
        )

    def rows(self, column: str) -> int:
        """See `Table`."""
        del column
        return self._rows

    def chunks(self, column: str, size: int) -> Generator[Any, None, None]:
        """See `Table`."""
        with self._open() as parquet:
            for batch in parquet.iter_batches(size, columns=[column], use_threads=False):
                yield batch.column(column)


class Arrow:
    """Arrow files or streams that hold one table together."""

    in_place = True

    def __init__(self, name: str, files: tuple[Path, ...]) -> None:
        """Reads the headers.

        Args:
          name: for messages.
          files: one or several that follow each other.

        Raises:
          UserError: a stream is cut short, or columns differ.
        """
        self.name, self._files = name, files
        schemas = [_schema(file) for file in files]
        self.schema = schemas[0]
        for file, schema in zip(files, schemas, strict=True):
            if not schema.equals(self.schema):
                raise UserError(f"{file} and {files[0]} differ in their columns: save them again")

    def rows(self, column: str) -> int:
        """See `Table`."""
        number = self.schema.get_field_index(column)
        return sum(_count_rows(file, number) for file in self._files)

    def chunks(self, column: str, size: int) -> Generator[Any, None, None]:
        """See `Table`."""
        del size
        for file in self._files:
            with _stream(file, self.schema.get_field_index(column)) as batches:
                for batch in batches:
                    chunk = batch.column(0)
                    # Offsets and lengths are used as they stand in the file.
                    chunk.validate(full=True)
                    yield chunk


def _schema(file: Path) -> Any:
    import pyarrow as pa

    if _is_stream(file):
        with _stream(file) as batches:
            return batches.schema
    # Its table of contents stands at the end, so a file that is cut short has none.
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as contents:
        return contents.schema


def _count_rows(file: Path, column: int) -> int:
    with _stream(file, column) as batches:
        return sum(batch.num_rows for batch in batches)


def _is_stream(file: Path) -> bool:
    """Tells an Arrow stream, which must be whole, from an Arrow file."""
    with open(file, "rb") as content:
        start = content.read(len(_FILE_MAGIC))
        if start == _FILE_MAGIC:
            return False
        if start.startswith(_FEATHER_1_MAGIC):
            raise UserError(f"{file} is of Feather version 1: save it again as version 2")
        content.seek(max(0, content.seek(0, 2) - len(_STREAM_END)))
        if content.read() != _STREAM_END:
            raise UserError(f"{file} is no Arrow file, or it is cut short: it has no end mark")
    return True


@contextlib.contextmanager
def _stream(file: Path, column: int | None = None) -> Iterator[Any]:
    """The batches of an Arrow stream or file; one column of them, if its number is given."""
    import pyarrow as pa

    fields = None if column is None else [column]
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    with pa.memory_map(str(file)) as source:
        # An Arrow file is a stream between its magic and its table of contents. pyarrow copies
        # single columns of a file, and leaves those of a stream where they are.
        source.seek(0 if _is_stream(file) else _FILE_START)
        with pa.ipc.open_stream(source, options=options) as reader:
            yield reader
