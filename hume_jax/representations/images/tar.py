"""Images in an uncompressed .tar file, read in place."""

import contextlib
import struct
import tarfile
from collections.abc import Iterator
from typing import IO, Any, cast

import numpy as np
from absl import logging

from hume_jax.errors import UserError
from hume_jax.representations.images import naming
from hume_jax.representations.images.archives import ArchiveFile, ArchiveImages, Bounds, Names
from hume_jax.representations.images.decoding import BrokenImage

# A member's headers hold its name and attributes. Without a limit a header that claims gigabytes
# would be read into memory.
_HEADER_BYTES = 2**16
_LARGE = 2**30
# What `tarfile` was seen to raise over damaged headers.
_DAMAGED = (
    tarfile.TarError,
    ValueError,
    LookupError,
    ArithmeticError,
    EOFError,
    RecursionError,
    struct.error,
)


class TarImages(ArchiveImages):
    """The images of a .tar file, in the order in which it stores them.

    Links to images in the archive that come before them, which tar makes of hard links, are those
    images; other links and sparse files are broken rows. See `archives` for what is refused.
    """

    def __init__(self, where: str, labels: bool) -> None:
        """Goes through the headers once.

        Args:
          where: the file.
          labels: whether the folders in it are read as classes.

        Raises:
          UserError: not a tar file, damaged, cut short, or without images.
        """
        self._file = ArchiveFile(where)
        if self._file.size > _LARGE:
            logging.info("%s: looking for its images, a minute or two for a million", where)
        self._broken: dict[int, str] = {}
        names, bounds = Names(where), list[Bounds]()
        for member in _members(self._file):
            target = names.row(member.linkname) if member.islnk() else None
            if not names.add(member.name, member.isreg() or member.issym() or member.islnk()):
                continue
            place = Bounds(member.offset_data, member.size)
            if member.islnk() or member.issym() or member.issparse():
                if target is None or target in self._broken:
                    self._broken[len(bounds)] = _why(member)
                else:
                    place = bounds[target]
            bounds.append(place)
        super().__init__(where, names.finish(), labels)
        self._bounds = np.array(bounds, np.int64)

    def read(self, i: int) -> bytes:
        """Returns the content of image i.

        Raises:
          BrokenImage: a link, or larger than any image should be.
          UserError: the file cannot be read.
        """
        if i in self._broken:
            raise BrokenImage(self._broken[i])
        return self._file.read_all(Bounds(*map(int, self._bounds[i])))

    def fingerprint(self) -> str:
        """Returns a hash of names, places and sizes."""
        return naming.digest(self.ids, self._bounds)


class _Headers:
    """The file as `tarfile` sees it, which may read only so much for one member."""

    def __init__(self, file: ArchiveFile) -> None:
        self._file = file
        self._position = 0
        self.left = _HEADER_BYTES

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left or self._position < 0:
            raise tarfile.ReadError(f"a header of {size} bytes at byte {self._position}")
        self.left -= size
        data = self._file.read(self._position, size)
        self._position += len(data)
        return data


def _members(file: ArchiveFile) -> Iterator[tarfile.TarInfo]:
    """Yields the members of an archive that is whole."""
    headers = _Headers(file)
    with _explained(file.where):
        archive: Any = tarfile.TarFile(fileobj=cast(IO[bytes], headers))
    end = 0
    while True:
        headers.left = _HEADER_BYTES
        with _explained(file.where):
            member = archive.next()
        if member is None:
            break
        # It keeps all it has seen: gigabytes for a million images.
        archive.members.clear()
        _check_place(file, member)
        # Sizes below zero would lead back, and round and round.
        if archive.offset <= end:
            raise UserError(f"{file.where} is damaged or cut short at {member.name!r}")
        end = archive.offset
        yield member
    # `tarfile` takes a damaged header, and the end of the file, for the end of the archive, which
    # is a block of zeros.
    if file.read(archive.offset, tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise UserError(
            f"{file.where} is cut short or damaged at byte {archive.offset}: get it again, or make "
            "it anew"
        )


def _check_place(file: ArchiveFile, member: tarfile.TarInfo) -> None:
    stored = member.isreg() and not member.issparse()
    if member.size < 0 or (stored and member.offset_data + member.size > file.size):
        raise UserError(
            f"{file.where} is cut short or damaged: {member.name!r} claims {member.size} bytes "
            f"from byte {member.offset_data} of {file.size}"
        )


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(
            f"{where} is not a .tar file, damaged or cut short: {error}; a folder, a .tar or a "
            ".zip file can be read"
        ) from error


def _why(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "it is stored as a sparse file: make the archive without --sparse"
    if member.issym():
        return f"it is a link to {member.linkname!r}: make the archive with tar --dereference"
    return (
        f"it is a hard link to {member.linkname!r}, no image before it: make the archive with "
        "tar --hard-dereference"
    )
