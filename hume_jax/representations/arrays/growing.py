"""An ``.npy`` file that grows by blocks of rows and survives any interruption.

Until it is whole, rows lie in ``FILE.npy.part`` and each process notes in ``FILE.npy.rows-PROCESS``
which of them are on disk, one JSON object a line; ``FILE.npy`` appears when all are there. Rows are
written at their place in the file, not through a memory map, in which a full disk would kill the
process without a word. The processes of a run write to one file system that all of them see.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from absl import logging

from hume_jax.errors import UserError
from hume_jax.files import sync_folder
from hume_jax.representations.arrays import checks, side_file

Broken = tuple[int, str]  # row, reason


class GrowingArray:
    """Rows of one array, of which some are on disk."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: str, process: int = 0) -> None:
        """Prepares the object; nothing is touched before `begin`.

        Args:
          path: the array's file.
          shape: (n, d).
          dtype: float16 or float32.
          process: number of this process; process 0 makes and completes the files.
        """
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._process = process
        self._data: IO[bytes] | None = None
        self._notes: IO[str] | None = None
        self._offset = 0
        self._unnoted: list[np.ndarray] = []
        self.flushed = time.monotonic()  # when rows were last noted
        self._unnoted_broken: list[Broken] = []

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Notes what was written and closes the files."""
        if self._data is not None:
            # What failed for want of space would fail here once more.
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                self.flush()
            self._data.close()
            self._data = None
        if self._notes is not None:
            self._notes.close()
            self._notes = None

    def begin(self, description: Mapping[str, Any], again: bool = False) -> None:
        """Makes the files if they are not there; for process 0, before any other opens them.

        Args:
          description: what the side file says beside `complete`.
          again: whether a finished array is taken up once more, for its broken rows.

        Raises:
          UserError: the folder cannot be written, or the disk is full.
        """
        part = side_file.part(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Before anything is touched that another run may be writing to.
            self._lock()
            content = side_file.read(self.path)
            if self.path.exists() and content is not None and content["complete"]:
                if not again:
                    raise UserError(
                        f"{self.path} was just completed by another process: start again"
                    )
                self._take_up([row for row, _ in content["broken"]])
            elif self.path.exists() and not part.exists() and not self._unnoted_rows().size:
                # Killed when the array was in its place and the side file did not say so yet.
                os.replace(self.path, part)
            if content is None or not part.exists():
                # Notes of rows that are no longer there would be believed.
                for notes in self._all_notes():
                    os.truncate(notes, 0)
                side_file.write(self.path, {"complete": False, **description})
                self._make(part)
            elif content["complete"]:
                side_file.write(self.path, {"complete": False, **description})
        except OSError as error:
            raise UserError(
                f"{part} cannot be written: {error.strerror}; set encode.folder to a folder that "
                f"can be, with {self._bytes() / 1e6:.3g} MB of free space"
            ) from error

    def open(self) -> None:
        """Opens the files that `begin` made.

        Raises:
          UserError: another process of this number is writing, or the files are damaged.
        """
        part = side_file.part(self.path)
        if not part.exists():
            raise UserError(
                f"{part} is not there, and process 0 has just made it: all processes must see one "
                "file system; set encode.folder to a folder on it"
            )
        if self._notes is None:
            self._lock()
        self._data = part.open("r+b")
        try:
            stored = checks.open_array(part)
        except UserError as error:
            raise UserError(
                f"{part} is damaged: delete it and {side_file.place(self.path)}"
            ) from error
        if stored.shape != self.shape or stored.dtype != self.dtype:
            raise UserError(
                f"{part} has shape {stored.shape} and dtype {stored.dtype}, not {self.shape} and "
                f"{self.dtype}: delete it and {side_file.place(self.path)}"
            )
        self._offset = part.stat().st_size - self._bytes()

    def _lock(self) -> None:
        """Opens the notes of this process, which no other run may have open."""
        path = self._notes_path(self._process)
        self._notes = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._notes, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self.path} is being encoded by another process: wait for it, or set "
                "encode.folder"
            ) from error
        except OSError:
            logging.warning("%s: this file system has no locks, start one run at a time", path)
        # The run that held it may have ended and removed it since.
        if not path.exists() or not os.path.samestat(os.fstat(self._notes.fileno()), path.stat()):
            raise UserError(f"{self.path} was just completed by another process: start again")

    def _take_up(self, broken: Sequence[int]) -> None:
        """Makes a finished array one of which only some rows are missing."""
        good = np.setdiff1d(np.arange(self.shape[0]), broken)
        # The notes come first: without them all rows would be missing.
        self._note(good, ())
        os.replace(self.path, side_file.part(self.path))
        sync_folder(self.path.parent)

    def remaining(self) -> np.ndarray:
        """Returns the rows that are not there yet, (m,) int64 ascending.

        Those of broken images are among them: they may have been mended since.
        """
        broken = [row for row, _ in self.broken()]
        return np.union1d(self._unnoted_rows(), np.array(broken, np.int64))

    def _unnoted_rows(self) -> np.ndarray:
        """The rows that no process has noted, (m,) int64 ascending."""
        missing = np.ones(self.shape[0], bool)
        for note in self._read_notes():
            for start, stop in note["rows"]:
                missing[start:stop] = False
        return np.flatnonzero(missing)

    def broken(self) -> list[Broken]:
        """Returns the rows that were never anything but broken, ascending, with the reason."""
        found: dict[int, str] = {}
        good = np.zeros(self.shape[0], bool)
        for note in self._read_notes():
            here = {int(row): str(why) for row, why in note["broken"]}
            rows = np.zeros(self.shape[0], bool)
            for start, stop in note["rows"]:
                rows[start:stop] = True
            rows[list(here)] = False
            good |= rows
            found |= here
        return [(row, why) for row, why in sorted(found.items()) if not good[row]]

    def write(self, rows: np.ndarray, values: np.ndarray, broken: Sequence[Broken] = ()) -> None:
        """Writes rows at their place; they count as finished after the next `flush`.

        Args:
          rows: (m,) row numbers.
          values: (m, d), in the array's dtype.
          broken: those of the rows that hold nothing, and why.

        Raises:
          UserError: the disk is full.
        """
        assert self._data is not None
        width = self.shape[1] * self.dtype.itemsize
        values = np.ascontiguousarray(values, self.dtype)
        try:
            for start, stop in _runs(rows):
                block = values[start:stop].tobytes()
                at = self._offset + int(rows[start]) * width
                if os.pwrite(self._data.fileno(), block, at) != len(block):
                    raise OSError(0, "the disk is full")
        except OSError as error:
            raise UserError(
                f"{side_file.part(self.path)} cannot be written: {error.strerror}; what is on disk "
                "is kept, the same command goes on with it"
            ) from error
        self._unnoted.append(np.asarray(rows))
        self._unnoted_broken += broken

    def note_broken(self, broken: Sequence[Broken]) -> None:
        """Records rows that hold nothing, and why, at the next `flush`; they are not finished."""
        self._unnoted_broken += broken

    def flush(self) -> None:
        """Takes what was written to disk, and then notes it as finished."""
        if not (self._unnoted or self._unnoted_broken):
            return
        assert self._data is not None
        os.fsync(self._data.fileno())
        rows = np.concatenate([np.zeros(0, np.int64), *self._unnoted])
        self._note(np.sort(rows), self._unnoted_broken)
        self._unnoted, self._unnoted_broken = [], []
        self.flushed = time.monotonic()

    def _note(self, rows: np.ndarray, broken: Sequence[Broken]) -> None:
        assert self._notes is not None
        ranges = [[int(rows[start]), int(rows[stop - 1]) + 1] for start, stop in _runs(rows)]
        note = {"rows": ranges, "broken": [list(pair) for pair in broken]}
        # A line break before it too: the line before may have been torn.
        self._notes.write(f"\n{json.dumps(note)}\n")
        self._notes.flush()
        os.fsync(self._notes.fileno())

    def finish(self, description: Mapping[str, Any]) -> None:
        """Puts the array in its place once all rows are there; for process 0.

        Args:
          description: what the side file says beside `complete`, `digest` and `broken`.
        """
        left = self._unnoted_rows().size
        if left:
            raise UserError(
                f"{left} rows of {self.path} are not on disk, or this process does not see them: "
                "start the same command again"
            )
        part = side_file.part(self.path)
        broken = [list(pair) for pair in self.broken()]
        array = checks.open_array(part)
        content = {**description, "broken": broken, "digest": checks.digest(array)}
        os.replace(part, self.path)
        sync_folder(self.path.parent)
        side_file.write(self.path, {"complete": True, **content})
        for notes in self._all_notes():
            notes.unlink()

    def _make(self, part: Path) -> None:
        """Makes the file at its full size, so that a disk that is too small is known now."""
        new = part.with_name(f"{part.name}.new")
        with new.open("wb") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": self.shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            size = file.tell() + self._bytes()
            file.truncate(size)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            os.fsync(file.fileno())
        os.replace(new, part)
        sync_folder(part.parent)

    def _bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def _notes_path(self, process: int) -> Path:
        return self.path.with_name(f"{self.path.name}.rows-{process}")

    def _all_notes(self) -> list[Path]:
        prefix = f"{self.path.name}.rows-"
        return sorted(p for p in self.path.parent.iterdir() if p.name.startswith(prefix))

    def _read_notes(self) -> Iterator[dict[str, Any]]:
        for path in self._all_notes():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    note = json.loads(line)
                except ValueError:
                    # Torn by a kill, or empty; its rows are encoded again.
                    continue
                # What this package did not write is passed over too.
                if isinstance(note, dict) and all(
                    isinstance(note.get(key), list) for key in ("rows", "broken")
                ):
                    yield note


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields where runs of consecutive row numbers start and stop."""
    if not len(rows):
        return
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    yield from zip(edges[:-1], edges[1:], strict=True)
