"""Opens one array, whatever the format of its file.

| path | holds | how it is read |
|---|---|---|
| FILE.npy (or any other ending) | one array | memory-mapped |
| FILE.npz, FILE.npz:NAME | arrays | memory-mapped; read if compressed |
| FILE.safetensors, FILE.safetensors:NAME | tensors | memory-mapped |
| FILE.parquet:COLUMN | a table | read |
| FILE.arrow:COLUMN, FILE.feather:COLUMN | a table | in place if it is one batch, else read |
| FOLDER:COLUMN, FOLDER/SPLIT:COLUMN | what Hugging Face `datasets` saved | as FILE.arrow |

The name can be left out where there is only one. A colon is part of the file's name if there is
such a file. FILE may lie in an object store, gs://BUCKET/FILE.npy: it is copied to this machine.
"""

import io
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from hume_jax import stores
from hume_jax.errors import UserError
from hume_jax.representations.arrays import (
    checks,
    copies,
    npz,
    saved_datasets,
    side_file,
    tables,
    tensors,
)
from hume_jax.representations.arrays.stored import Stored

# A path that starts so is looked for among the data that comes with the package.
PACKAGE_PREFIX = "hume_jax:"
_PACKAGE_DATA = Path(__file__).resolve().parents[2] / "data"

_FORMATS: dict[str, Callable[[Path, str, str], Stored]] = {
    ".npz": npz.find,
    ".safetensors": tensors.find,
    ".parquet": tables.find_parquet,
    ".arrow": tables.find_arrow,
    ".feather": tables.find_arrow,
}
# More than the header of an .npy file takes.
_HEAD_BYTES = 2**16


class Address(NamedTuple):
    """Where an array is."""

    file: Path  # or a folder
    member: str  # array, tensor or column in it, '' if none is named


def open_array(path: str | os.PathLike[str], hint: str = checks.SPACE_HINT) -> np.ndarray:
    """Opens an array: memory-mapped where the format allows it, else read.

    Args:
      path: as a config names it, see this module.
      hint: what to do if it holds Python objects.

    Returns:
      Its values, read-only, of any shape; text as `U` or `S`.

    Raises:
      UserError: it cannot be read, is damaged or cut short, holds no array of numbers or text, or
        does not fit in memory.
    """
    stored = open_header(path, hint)
    check_room([stored])
    return stored.read()


def open_header(path: str | os.PathLike[str], hint: str = checks.SPACE_HINT) -> Stored:
    """Reads the header of an array. Every array that a config names is opened here.

    Args:
      path: as a config names it, see this module.
      hint: what to do if it holds Python objects.

    Raises:
      UserError: as far as the header shows what `open_array` raises.
    """
    if stores.is_store(path):
        return _open_remote(os.fspath(path), hint)
    file, member = locate(path)
    if os.path.isdir(file):
        return tables.find_dataset(file, member, hint)
    return _FORMATS.get(file.suffix.lower(), _find_npy)(file, member, hint)


def locate(path: str | os.PathLike[str]) -> Address:
    """Splits a path into the file, the longest part of it that is there, and a name inside it."""
    whole = find_array(path)
    if not os.path.exists(whole):
        text = str(whole)
        at = text.rfind(":")
        while at > 0:
            if os.path.exists(text[:at]):
                return Address(Path(text[:at]), text[at + 1 :])
            at = text.rfind(":", 0, at)
    return Address(whole, "")


def find_array(path: str | os.PathLike[str]) -> Path:
    """Returns where a path of the config points: `hume_jax:NAME` is data of the package.

    One in an object store points to its copy, there or not.
    """
    text = os.fspath(path)
    if stores.is_store(text):
        return copies.place(text)
    if text.startswith(PACKAGE_PREFIX):
        return _PACKAGE_DATA / text.removeprefix(PACKAGE_PREFIX)
    return Path(text).expanduser()


def what_is_missing(path: str) -> str | None:
    """Says what stands where an array should be; None if one may be there."""
    if stores.is_store(path):
        return "" if copies.find(path)[0] is None else None
    file, member = locate(path)
    # Not Path.is_file, which raises where a folder on the way may not be read.
    if os.path.isfile(file) or saved_datasets.is_dataset(file):
        return None
    if os.path.isdir(file):
        kind = "" if not member else " and not one that save_to_disk of datasets wrote"
        return f", which is a folder{kind}"
    if (side_file.read(file) or {}).get("complete") is False:
        return f", which is half-written: {side_file.GO_ON}"
    if os.path.islink(file):
        return f", which is a broken link to {os.readlink(file)}"
    return ", which is not a regular file" if os.path.exists(file) else ""


def check_room(arrays: Iterable[Stored]) -> None:
    """Raises a `UserError` if what will be read does not fit in memory, or copies on the disk."""
    arrays = list(arrays)
    # Each once: one file may be in two spaces.
    remotes = {array.remote for array in arrays if array.remote is not None}
    copies.check_room(sorted(remotes))
    to_read = [array for array in arrays if array.memory]
    needed, free = sum(array.memory for array in to_read), psutil.virtual_memory().available
    if needed > free:
        names = ", ".join(array.name for array in to_read)
        raise UserError(
            f"{names}: {needed / 2**30:.1f} GiB would be read into memory, {free / 2**30:.1f} GiB "
            "are free: save as .npy, which is memory-mapped (docs/recipes.md)"
        )


def _open_remote(path: str, hint: str) -> Stored:
    """The header of an array in an object store; of an .npy file it alone is read."""
    remote, member = copies.find(path)
    if remote is None:
        raise UserError(f"{path} is not there: give an array that is, or copy it to that place")
    copies.get_side_file(remote)
    file = copies.place(remote.url)
    find = _FORMATS.get(file.suffix.lower())
    if find is not None:
        # What their headers say may stand anywhere in them.
        return find(copies.whole(remote), member, hint)
    _check_no_member(remote.url, member)
    header = checks.read_header(remote.url, io.BytesIO(copies.head(remote, _HEAD_BYTES)))
    checks.check_header(remote.url, header, remote.size, hint)
    layout = copies.Layout(header.length, math.prod(header.shape[1:]) * header.dtype.itemsize)

    def read() -> np.ndarray:
        return _find_npy(copies.whole(remote, layout), "", hint).read()

    images = (side_file.read(file) or {}).get("ids_digest", "")
    return Stored(remote.url, header.shape, header.dtype, read, images=images, remote=remote)


def _check_no_member(file: Path | str, member: str) -> None:
    if member:
        raise UserError(f"{file} is one array, there is no {member!r} in it: give {file} alone")


def _find_npy(file: Path, member: str, hint: str) -> Stored:
    _check_no_member(file, member)
    side_file.check_whole(file)
    array = checks.open_array(file, hint)
    images = side_file.check(file, array).get("ids_digest", "")
    return Stored(str(file), array.shape, array.dtype, lambda: array, images=images)
