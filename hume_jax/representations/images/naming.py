"""The files of a folder or an archive: which are images, what they are called, their classes."""

import collections
import hashlib
import itertools
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from hume_jax.errors import UserError
from hume_jax.progress import count

# A fixed list, of the formats of `decoding.FORMATS`: which rows there are must not depend on what
# the installed Pillow can read.
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        *(".pbm", ".pgm", ".ppm", ".pnm"),
        *(".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".avif"),
    )
)
# Encoded images beyond are not read: uncompressed, it would be an image of 89 million pixels.
MAX_BYTES = 256 * 2**20

# What systems and NAS boxes leave beside photographs, thumbnails among them.
_DEBRIS = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
_SUFFIX = re.compile(r"\.\w{1,12}")


class Classes(NamedTuple):
    """What the folders of images say about their classes."""

    labels: np.ndarray | None  # (n,) int64
    names: tuple[str, ...]


def is_hidden(name: str) -> bool:
    """Says whether a file or folder of this name is left out without a word."""
    return name.startswith(".") or name.casefold() in _DEBRIS


def is_image(name: str) -> bool:
    """Says whether a file of this name counts as an image, whatever it holds."""
    return posixpath.splitext(name)[1].lower() in SUFFIXES


def printable(name: str) -> str:
    """Returns a name that can be written as UTF-8 on one line, other bytes in hexadecimal."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", name)


def check_some(where: str, found: Sequence[str], others: collections.Counter[str]) -> None:
    """Raises a `UserError` if there are no images, and logs which other files there are.

    Args:
      where: as the user named it.
      found: the images.
      others: files that are none, by suffix.
    """
    number = sum(others.values())
    kinds = ", ".join(f"{times} {suffix}" for suffix, times in others.most_common(5))
    if not found:
        beside = f", only other files: {kinds}" if number else ""
        raise UserError(
            f"{where} holds no images{beside}; images are files that end in "
            f"{', '.join(sorted(SUFFIXES))}, in capitals too"
        )
    if number:
        logging.info("%s: %s left out, as no images: %s", where, count(number, "file"), kinds)


def suffix_of(name: str) -> str:
    """Returns how a file that is no image is counted: by its suffix."""
    suffix = posixpath.splitext(name)[1].lower()
    return suffix if _SUFFIX.fullmatch(suffix) else "without a suffix"


def classes(where: str, ids: Sequence[str]) -> Classes:
    """Reads classes off the folders, for scores only.

    The folders that all images share are passed over. If every image then still lies in a folder,
    the first of its folders is its class; otherwise there are no classes.

    Args:
      where: as the user named it.
      ids: relative paths with `/`.

    Returns:
      Labels, numbered in the order of the sorted names; None and no names if there are none.
    """
    folders = {name: tuple(name.split("/")) if name else () for name in set(map(_folder, ids))}
    # What the first and the last in order share, all share.
    pairs = zip(min(folders.values()), max(folders.values()), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if any(len(parts) == shared for parts in folders.values()):
        if any(folders.values()):
            logging.info(
                "%s: its folders are not taken for classes, since %s: no labels are read off them",
                where,
                "all images lie in one" if len(folders) == 1 else "images lie beside some of them",
            )
        return Classes(None, ())
    names = tuple(sorted({parts[shared] for parts in folders.values()}))
    if all(name.casefold() in _SPLITS for name in names):
        logging.warning(
            "%s: its folders %s look like splits, not classes: name one of them, or the scores "
            "compare with these",
            where,
            ", ".join(names),
        )
    number = {name: i for i, name in enumerate(names)}
    of_folder = {name: number[parts[shared]] for name, parts in folders.items()}
    labels = np.fromiter((of_folder[_folder(name)] for name in ids), np.int64, len(ids))
    return Classes(labels, names)


def digest(ids: Iterable[str], numbers: np.ndarray | None = None) -> str:
    """Returns a hash of the images' ids, in order, and of integers that are known of them."""
    content = hashlib.sha256()
    for name in ids:
        content.update(name.encode() + b"\0")
    if numbers is not None:
        content.update(numbers.astype("<i8").tobytes())
    return content.hexdigest()


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
