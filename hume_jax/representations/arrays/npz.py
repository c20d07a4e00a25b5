"""Arrays in `.npz` archives: stored ones are memory-mapped, compressed ones read.

An archive may come from anywhere: nothing is extracted, names are only compared, and what a member
claims to hold is checked against what its bytes can hold before memory is asked for.
"""

import contextlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks
from hume_jax.representations.arrays.stored import Stored, as_read, choose, reason

_ENCRYPTED = 0x1  # bit of a member's flags
# No stream of deflate gives more bytes for each of its own: a byte codes at most four matches of
# 258 bytes (RFC 1951, 3.2.5: lengths up to 258, codes of at least one bit for length and distance).
_LARGEST_RATIO = 1032
# Of a member's own header (APPNOTE.TXT 4.3.7): its length, and the two lengths at its end.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_CHUNK = 2**20
# What `zipfile` and what it decompresses with raise over damaged files.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OverflowError,
    MemoryError,
)


def find(file: Path, member: str, hint: str) -> Stored:
    """Reads the header of an array in an .npz archive.

    Args:
      file: the archive.
      member: name of the array, with or without `.npy`; '' for the only one.
      hint: what to do if it holds Python objects.

    Returns:
      The array; `memory` is 0 where it is stored without compression.

    Raises:
      UserError: no archive, no such array, or a member that is encrypted, damaged, cut short, or
        not an array of numbers.
    """
    with _opened(file) as archive:
        info = _choose(file, member, archive)
        name = f"{file}:{info.filename.removesuffix('.npy')}" if member else str(file)
        _check_claims(name, info)
        with archive.open(info) as content:
            header = checks.read_header(name, content)
        checks.check_header(name, header, info.file_size, hint)
        if header.needed != info.file_size:
            raise UserError(
                f"{name} holds {info.file_size} bytes, its header asks for {header.needed}: it is "
                "damaged, save it again"
            )
        if info.compress_type == zipfile.ZIP_STORED:
            array = checks.map_array(file, header, _start(file, name, info))
            return Stored(name, header.shape, header.dtype, lambda: array)
    memory = math.prod(header.shape) * as_read(header.dtype).itemsize
    read = partial(_read, file, name, info.filename, header)
    return Stored(name, header.shape, header.dtype, read, memory)


def names(file: Path) -> list[str]:
    """Returns the names of the arrays in an .npz archive, in its order.

    Raises:
      UserError: no archive.
    """
    with _opened(file) as archive:
        return [info.filename.removesuffix(".npy") for info in _members(archive)]


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise UserError(
            f"{file} is not an .npz archive, or it is damaged ({reason(error)}): save it with "
            "np.savez"
        ) from error


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [info for info in archive.infolist() if info.filename.endswith(".npy")]


def _choose(file: Path, member: str, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = _members(archive)
    names = [info.filename.removesuffix(".npy") for info in members]
    chosen = choose(str(file), member.removesuffix(".npy"), names, "array")
    return members[names.index(chosen)]


def _check_claims(name: str, info: zipfile.ZipInfo) -> None:
    """Checks what the table of contents says of a member."""
    if info.flag_bits & _ENCRYPTED:
        raise UserError(f"{name} is encrypted: save it again with np.savez")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{name} is compressed by method {info.compress_type} of zip: save it with np.savez or "
            "np.savez_compressed"
        )
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.file_size > info.compress_size * (1 if stored else _LARGEST_RATIO):
        raise UserError(
            f"{name} is damaged: {info.compress_size} bytes of the file cannot hold the "
            f"{info.file_size} that it claims"
        )


def _start(file: Path, name: str, info: zipfile.ZipInfo) -> int:
    """Byte of the file at which a stored member begins."""
    with open(file, "rb") as content:
        content.seek(info.header_offset)
        _, *lengths = _LOCAL_HEADER.unpack(content.read(_LOCAL_HEADER.size))
        start = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
        size = os.fstat(content.fileno()).st_size
    if start + info.file_size > size:
        raise UserError(f"{name} is cut short: the file ends before it does")
    return start


def _read(file: Path, name: str, member: str, header: checks.Header) -> np.ndarray:
    # Memory is taken page by page as it is written, so a claim alone takes none.
    out = np.empty(header.shape, as_read(header.dtype), order=header.order)
    flat, size = out.reshape(-1, order="A"), header.dtype.itemsize
    most = max(1, _CHUNK // size)
    with _opened(file) as archive, archive.open(member) as content, np.errstate(over="ignore"):
        content.read(header.length)
        for at in range(0, len(flat), most):
            part = flat[at : at + most]
            chunk = content.read(len(part) * size)
            if len(chunk) < len(part) * size:
                raise UserError(f"{name} is cut short: it ends in value {at + len(chunk) // size}")
            part[:] = np.frombuffer(chunk, header.dtype)
    out.flags.writeable = False
    return out
