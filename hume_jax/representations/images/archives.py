"""What .tar and .zip files of images share. Nothing of an archive is ever written to disk.

Images are in the order in which the archive stores them, as arrays made from it are. Their names
are checked all the same, since others may build paths from ids: a member with an absolute path, a
drive or `..` makes the whole archive an error, as does a name that comes twice. What concerns one
image only (a link, a size out of bounds, damage) breaks its row, when it is read.
"""

import collections
import os
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.images import naming
from hume_jax.representations.images.decoding import BrokenImage

# Of archives that are no use here: first bytes, what they are, how to get at what they hold.
_KINDS = (
    (b"\x1f\x8b", "compressed by gzip", "gunzip --keep {0}"),
    (b"BZh", "compressed by bzip2", "bunzip2 --keep {0}"),
    (b"\xfd7zXZ\0", "compressed by xz", "unxz --keep {0}"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unzstd --keep {0}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x {0}"),
    (b"Rar!\x1a\x07", "a RAR archive", "unrar x {0}"),
)
_DRIVE = re.compile("[A-Za-z]:")


class Bounds(NamedTuple):
    """Where the bytes of an image lie in an archive."""

    offset: int
    size: int


class ArchiveFile:
    """An open file of which any thread may read any part."""

    def __init__(self, where: str) -> None:
        """Opens it.

        Args:
          where: the file.

        Raises:
          UserError: it cannot be read.
        """
        self.where = where
        try:
            self.descriptor = os.open(Path(where).expanduser(), os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Returns bytes from a place of the file, fewer at its end.

        Raises:
          UserError: the disk does not give them.
        """
        parts = []
        try:
            while size > 0 and (part := os.pread(self.descriptor, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError as error:
            raise UserError(f"{self.where} cannot be read: {error.strerror}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_all(self, bounds: Bounds) -> bytes:
        """Returns the bytes within bounds, all of them.

        Raises:
          BrokenImage: more than an image should have.
          UserError: the file has become shorter since it was opened, or cannot be read.
        """
        check_size(bounds.size)
        data = self.read(*bounds)
        if len(data) < bounds.size:
            raise UserError(f"{self.where} has changed while it was read: start again")
        return data


class Names:
    """Collects the names of an archive's images, in order, and refuses those nobody should have."""

    def __init__(self, where: str) -> None:
        """Starts with none.

        Args:
          where: the archive.
        """
        self._where = where
        self._rows: dict[str, int] = {}
        self._others: collections.Counter[str] = collections.Counter()

    def add(self, member: str, is_file: bool) -> bool:
        """Takes the next member.

        Args:
          member: its name in the archive.
          is_file: False for what is neither a file nor a link.

        Returns:
          Whether it is a further image.

        Raises:
          UserError: its path leads out of a folder, or there was one of its name.
        """
        path = self._path(member)
        parts = path.split("/")
        if not path or any(map(naming.is_hidden, parts)):
            return False
        if not is_file or not naming.is_image(path):
            if is_file:
                self._others[naming.suffix_of(path)] += 1
            return False
        if path in self._rows:
            raise UserError(f"{self._where} holds {path!r} twice: make the archive anew")
        self._rows[path] = len(self._rows)
        return True

    def row(self, member: str) -> int | None:
        """Returns the row of an image that was added before, by a name it goes by."""
        return self._rows.get("/".join(_parts(member)))

    def _path(self, member: str) -> str:
        parts = _parts(member)
        drive = bool(parts) and _DRIVE.fullmatch(parts[0])
        if member.startswith(("/", "\\")) or ".." in parts or drive:
            raise UserError(
                f"{self._where} holds {member!r}, a path that leads out of the archive: it is "
                "damaged or made to do harm; make it anew from within the folder of the images"
            )
        return "/".join(parts)

    def finish(self) -> tuple[str, ...]:
        """Returns the ids; raises a `UserError` if there are none."""
        ids = tuple(self._rows)
        naming.check_some(self._where, ids, self._others)
        return ids


class ArchiveImages:
    """What the images of a .tar and of a .zip have in common, see `sources.Source`."""

    name: str
    ids: Sequence[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    has_own_numbers = False

    def __init__(self, where: str, ids: Sequence[str], labels: bool) -> None:
        """Names the images.

        Args:
          where: the archive.
          ids: paths in it, as stored.
          labels: whether the folders in it are read as classes.
        """
        self.name = where
        self.ids = ids
        self.labels, self.class_names = naming.classes(where, ids) if labels else (None, ())

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)


def check_size(size: int) -> None:
    """Raises `BrokenImage` if an image has more bytes than are read."""
    if size > naming.MAX_BYTES:
        raise BrokenImage(f"it takes {size:,} bytes, more than {naming.MAX_BYTES:,}")


def check_kind(where: str, head: bytes) -> None:
    """Raises a `UserError` if a file begins as an archive that cannot be read in any order.

    Args:
      where: the file.
      head: its first bytes.
    """
    for magic, what, command in _KINDS:
        if head.startswith(magic):
            raise UserError(
                f"{where} is {what}, so single images cannot be read from it: unpack it once, "
                f"{command.format(where)}, and give what comes out"
            )


def _parts(member: str) -> list[str]:
    return [part for part in naming.printable(member).split("/") if part not in ("", ".")]
