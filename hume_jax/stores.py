"""Paths in object stores: `gs://BUCKET/...` and `s3://BUCKET/...`.

`etils.epath`, which comes with Orbax, opens them; the package that reaches a store is installed by
those who have one.
"""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hume_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

# What reaches each of them.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# As fsspec calls the file systems.
_FILE_SYSTEMS = ("gcs", *_PACKAGES)
_REASON = 200


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one in an object store.

    Raises:
      UserError: it is an address, but of no store that is known.
    """
    if scheme(path) in _PACKAGES:
        return True
    if re.match(r"[A-Za-z][A-Za-z0-9+-]+:/", os.fspath(path)):
        raise UserError(
            f"{os.fspath(path)} is no path: object stores are named gs://BUCKET/... or "
            "s3://BUCKET/..., other files by their path on this machine"
        )
    return False


def scheme(path: str | os.PathLike[str]) -> str:
    """Returns what stands before `://`, '' if that is missing."""
    before, found, _ = os.fspath(path).partition("://")
    return before if found else ""


def open_path(url: str) -> "epath.Path":
    """The path as `etils.epath` has it; nothing is looked for yet.

    Raises:
      UserError: it is no address of an object.
    """
    if not re.match(r"\w+://[^/]+", url) or ".." in url.split("/"):
        raise UserError(f"{url} is no path in an object store, such as gs://BUCKET/FOLDER/FILE.npy")
    # Half a second that those with local files alone need not wait.
    from etils import epath

    _settle()
    return epath.Path(url)


@functools.cache
def _settle() -> None:
    """Sets the packages that reach the stores, once: quiet, and without lists of their own."""
    import fsspec

    for name in ("fsspec", *_PACKAGES.values()):
        # Of how they read, they tell a line each time; of what fails, more than the error says.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _FILE_SYSTEMS:
        # What other hosts write is seen at once.
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False


@contextlib.contextmanager
def reaching(url: object) -> Iterator[None]:
    """Tells what a store's package raises, which has errors of its own, as a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        package = _PACKAGES[scheme(str(url))]
        raise UserError(
            f"{url} is in an object store, which is reached by {package}: pip install {package}"
        ) from error
    except Exception as error:
        why = " ".join(str(error).split())[:_REASON] or type(error).__name__
        raise UserError(
            f"{url} cannot be reached ({why}): check its name, the network, and what this machine "
            "may read and write there"
        ) from error


def modified(url: str) -> int:
    """When an object was last written, in seconds since 1970.

    `epath` knows it of Google's store alone.
    """
    import fsspec

    files, path = fsspec.core.url_to_fs(url)
    return int(files.modified(path).timestamp())


def cache_folder() -> Path:
    """Where local copies are kept: $HUME_JAX_CACHE, or hume_jax among the caches of the user."""
    own = os.environ.get("HUME_JAX_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(own) if own else Path(shared) / "hume_jax").expanduser()


def check_local(path: str, field: str) -> None:
    """Raises a `UserError` about a path in an object store that has to be a local one."""
    if is_store(path):
        raise UserError(
            f"config field {field!r} is {path}: images are read from and encoded to local disks; "
            "copy the images, or the finished arrays, yourself"
        )
