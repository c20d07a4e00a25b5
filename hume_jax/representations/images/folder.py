"""Images in a folder and the folders under it."""

import collections
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from hume_jax.errors import UserError
from hume_jax.representations.images import naming
from hume_jax.representations.images.decoding import BrokenImage


class FolderImages:
    """The images of a folder, in the order of their relative paths, see `sources.Source`."""

    name: str
    ids: Sequence[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    has_own_numbers = False

    def __init__(self, where: str, labels: bool) -> None:
        """Lists the folder.

        Paths are compared as text, by code points: `10.jpg` comes before `9.jpg`. Links are
        followed, also to folders; one that leads back into a folder it lies in is passed over, and
        an image's that leads nowhere is a broken image.
        Hidden files, and what systems leave beside photographs, are left out.

        Args:
          where: the folder.
          labels: whether its sub-folders are read as classes.

        Raises:
          UserError: a folder in it cannot be read, or there are no images.
        """
        self.name = where
        self._root = os.fspath(Path(where).expanduser())
        others: collections.Counter[str] = collections.Counter()
        found: dict[str, str] = {}
        for path in _walk(self._root, others):
            name = naming.printable(path)
            if name in found:
                raise UserError(f"{where} holds two images whose path is written {name}")
            found[name] = path
        naming.check_some(where, list(found), others)
        self.ids = tuple(sorted(found))
        self._paths = tuple(found[name] for name in self.ids)
        self.labels, self.class_names = naming.classes(where, self.ids) if labels else (None, ())

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    def read(self, i: int) -> bytes:
        """Returns the content of file i.

        Raises:
          BrokenImage: it may not be read, is a link that leads nowhere, or is larger than any
            image should be.
          UserError: the disk cannot be read.
        """
        path = os.path.join(self._root, self._paths[i])
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size > naming.MAX_BYTES:
                    raise BrokenImage(
                        f"its file takes {size:,} bytes, more than {naming.MAX_BYTES:,}"
                    )
                return file.read() or b""
        except PermissionError as error:
            raise BrokenImage(f"it cannot be read: {error.strerror}") from error
        except OSError as error:
            if _leads_nowhere(path, error):
                target = naming.printable(os.readlink(path))
                raise BrokenImage(f"it is a link to {target}, which is not there") from error
            # Of the disk rather than of the image.
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    def fingerprint(self) -> str:
        """Returns a hash of the relative paths; contents are not looked at."""
        return naming.digest(self.ids)


def _walk(root: str, others: collections.Counter[str]) -> Iterator[str]:
    """Yields the relative paths of the images under a folder, in no order."""
    waiting = [("", frozenset[tuple[int, int]]())]
    while waiting:
        prefix, above = waiting.pop()
        folder = os.path.join(root, prefix)
        try:
            status = os.stat(folder)
            own = (status.st_dev, status.st_ino)
            if own in above:
                logging.warning("%s leads back into a folder it lies in: passed over", folder)
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if naming.is_hidden(entry.name):
                        continue
                    kind = _kind(entry)
                    if kind == "folder":
                        waiting.append((path + "/", above | {own}))
                    elif not naming.is_image(entry.name):
                        others[naming.suffix_of(entry.name)] += 1
                    elif kind == "special":
                        # A pipe or a device, which reading might wait on for ever.
                        others["special"] += 1
                    else:
                        # A link that leads nowhere keeps its place, as in an archive.
                        yield path
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry is, or leads to: a folder, a file, special, or nothing."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError as error:
        if not _leads_nowhere(entry.path, error):
            raise
        return "nothing"
    return "special" if os.path.exists(entry.path) else "nothing"


def _leads_nowhere(path: str, error: OSError) -> bool:
    """Whether an error says that a link's target is not there, or is the link itself."""
    return error.errno in (errno.ENOENT, errno.ELOOP) and os.path.islink(path)
