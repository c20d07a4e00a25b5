"""Images in a .zip file, read in place."""

import stat
import struct
import zipfile
import zlib

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.images import naming
from hume_jax.representations.images.archives import (
    ArchiveFile,
    ArchiveImages,
    Bounds,
    Names,
    check_size,
)
from hume_jax.representations.images.decoding import BrokenImage

_ENCRYPTED = 0x1
_LOCAL_HEADER = struct.Struct("<4s22x2H")  # APPNOTE.TXT 4.3.7: signature, lengths of name and extra
_SIGNATURE = b"PK\x03\x04"
_RAW_DEFLATE = -15  # zlib's window size for a stream without a header
_DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    NotImplementedError,
    ValueError,
    LookupError,
    ArithmeticError,
    EOFError,
    OSError,
    struct.error,
)


class ZipImages(ArchiveImages):
    """The images of a .zip file, in the order of its central directory.

    Members are inflated here, not by `zipfile`, up to the size they claim and not a byte beyond,
    and by any number of threads at once. See `archives` for what is refused.
    """

    def __init__(self, where: str, labels: bool) -> None:
        """Reads the central directory.

        Args:
          where: the file.
          labels: whether the folders in it are read as classes.

        Raises:
          UserError: not a zip file, damaged, cut short, without images, encrypted, or compressed
            by a method other than deflate.
        """
        self._file = ArchiveFile(where)
        names, rows = Names(where), []
        for member in _members(self._file):
            # Some programs on Windows write `\`, against the format's definition.
            name = member.filename.replace("\\", "/")
            if names.add(name, not name.endswith("/")):
                _check_member(self._file, member)
                rows.append(
                    (
                        member.header_offset,
                        member.compress_size,
                        member.file_size,
                        member.CRC,
                        member.compress_type,
                        stat.S_ISLNK(member.external_attr >> 16),
                    )
                )
        super().__init__(where, names.finish(), labels)
        self._rows = np.array(rows, np.int64)  # (n, 6)

    def read(self, i: int) -> bytes:
        """Returns the content of image i.

        Raises:
          BrokenImage: a link, damaged, or larger than it claims or than any image should be.
          UserError: the file cannot be read.
        """
        start, packed, size, checksum, method, link = map(int, self._rows[i])
        if link:
            raise BrokenImage("it is a link: make the archive without zip's option --symlinks")
        check_size(size)
        header = self._file.read_all(Bounds(start, _LOCAL_HEADER.size))
        signature, name, extra = _LOCAL_HEADER.unpack(header)
        start += _LOCAL_HEADER.size + name + extra
        if signature != _SIGNATURE or start + packed > self._file.size:
            raise BrokenImage("its header in the archive is damaged")
        data = self._file.read_all(Bounds(start, packed))
        if method == zipfile.ZIP_DEFLATED:
            data = _inflate(data, size)
        if len(data) != size or zlib.crc32(data) != checksum:
            raise BrokenImage("its size or checksum differs from what the archive says of it")
        return data

    def fingerprint(self) -> str:
        """Returns a hash of names, sizes, checksums and places."""
        return naming.digest(self.ids, self._rows)


def _members(file: ArchiveFile) -> list[zipfile.ZipInfo]:
    try:
        with (
            open(file.descriptor, "rb", closefd=False) as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            return archive.infolist()
    except _DAMAGED as error:
        raise UserError(
            f"{file.where} is not a .zip file, damaged or cut short: {error}; get it again, or "
            "make it anew"
        ) from error


def _check_member(file: ArchiveFile, member: zipfile.ZipInfo) -> None:
    where, name = file.where, member.filename
    if member.flag_bits & _ENCRYPTED:
        raise UserError(f"{where}: {name!r} is encrypted: unpack the archive and give the folder")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{where}: {name!r} is compressed by method {member.compress_type}, only deflate (8) "
            "can be read: unpack the archive and give the folder"
        )
    room = file.size - member.compress_size - _LOCAL_HEADER.size
    if not 0 <= member.header_offset <= room:
        raise UserError(
            f"{where} is damaged or cut short: {name!r} claims {member.compress_size} bytes from "
            f"byte {member.header_offset} of {file.size}"
        )


def _inflate(data: bytes, size: int) -> bytes:
    try:
        # One byte more than there should be tells a stream that does not end.
        return zlib.decompressobj(_RAW_DEFLATE).decompress(data, size + 1)
    except zlib.error as error:
        raise BrokenImage(f"it is damaged in the archive: {error}") from error
