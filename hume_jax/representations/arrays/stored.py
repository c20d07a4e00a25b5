"""An array on disk of which the header has been read, whatever its format."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hume_jax.config_checks import suggest
from hume_jax.errors import UserError

# At most this many names are listed in a message, and so much of what a library says.
_LISTED = 10
_REASON = 200


class Remote(NamedTuple):
    """An object of an object store, as the store describes it."""

    url: str
    size: int  # bytes
    modified: int  # seconds since 1970


class Stored(NamedTuple):
    """What the header says, and the way to the values."""

    name: str  # the file, and the name inside it if one was given, for messages
    shape: tuple[int, ...]
    dtype: np.dtype
    # Gives the array: where it lies in the file if `memory` is 0, else a copy, see `as_read`.
    read: Callable[[], np.ndarray]
    memory: int = 0  # bytes that `read` takes
    images: str = ""  # digest of its images' names in order, where it was encoded from images
    remote: Remote | None = None  # the object that `read` copies to this machine first

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


def as_read(dtype: np.dtype) -> np.dtype:
    """The dtype of an array that is read into memory: float64 as float32, others as stored."""
    wide = dtype.kind == "f" and dtype.itemsize > np.dtype(np.float32).itemsize
    return np.dtype(np.float32) if wide else dtype


def choose(file: str, asked: str, names: Sequence[str], what: str) -> str:
    """Returns the one of the arrays in a file that is meant.

    Args:
      file: for messages.
      asked: the name given, '' for none.
      names: what is in the file.
      what: is in it: `array`, `tensor`, `column`.

    Raises:
      UserError: no such name, a name that stands there twice, or none given among several.
    """
    if not names:
        raise UserError(f"{file} holds no {what}")
    if not asked and len(names) == 1:
        return names[0]
    if asked not in names:
        there = ", ".join(map(printable, names[:_LISTED]))
        if len(names) > _LISTED:
            there += f" and {len(names) - _LISTED} more"
        if asked:
            near = suggest(asked, names)
            raise UserError(f"{file} holds no {what} {printable(asked)}{near}; it holds {there}")
        raise UserError(f"{file} holds {len(names)} {what}s, name one, {file}:NAME: {there}")
    if names.count(asked) > 1:
        raise UserError(f"{file} holds {names.count(asked)} {what}s of the name {asked}: keep one")
    return asked


def reason(error: BaseException) -> str:
    """Returns what a library says of a damaged file, short enough for a message of one line."""
    text = printable(str(error).partition("\n")[0] or type(error).__name__)
    return text if len(text) <= _REASON else f"{text[:_REASON]}..."


def printable(name: str) -> str:
    """Returns a name from a file as a terminal may show it."""
    return name if name.isprintable() else ascii(name)
