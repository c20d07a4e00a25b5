"""Files that are there whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hume_jax.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file for writing that takes its place only once it is complete and on disk.

    Args:
      path: the file; one of that name is replaced, and kept if writing fails.

    Yields:
      A binary file beside `path`, under a name of this process's own.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def read_json(path: Path) -> dict[str, Any]:
    """Reads an earlier result; {} if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def make_folder(path: Path, option: str = "--out") -> None:
    """Makes the folder of a script's results, with those above it; the option named it.

    Raises:
      UserError: there can be none.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{option}={path}: no folder can be made there ({error.strerror}); give another"
        ) from error


def existing_folder(path: Path) -> Path:
    """Returns a path, or the nearest one above it that is there: where its disk is known."""
    while not path.exists():
        path = path.parent
    return path


def sync_folder(folder: Path) -> None:
    """Writes a folder's list of names to disk, so that a rename survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
