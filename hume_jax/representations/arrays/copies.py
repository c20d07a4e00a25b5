"""Local copies of arrays in object stores, so that they can be memory-mapped.

The copy of gs://BUCKET/a/x.npy lies at CACHE/gs/BUCKET/a/x.npy. It is made by ranges of rows,
several at a time; one that was interrupted goes on with the ranges that are left, one of an object
that has changed since is made anew.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from hume_jax import stores
from hume_jax.errors import UserError
from hume_jax.files import atomic_write, existing_folder, sync_folder
from hume_jax.progress import Progress
from hume_jax.representations.arrays import side_file
from hume_jax.representations.arrays.stored import Remote

# About what one range takes: so much that asking for it takes no time beside reading it.
_RANGE_BYTES = 32 * 2**20
_READERS = 8
_MIB = 2**20


class Layout(NamedTuple):
    """How the bytes of an object belong together."""

    start: int = 0  # where its rows begin
    row: int = 1  # bytes of one


_BYTES = Layout()


def place(url: str) -> Path:
    """Returns where the copy of an object lies, whether it is there or not."""
    scheme, _, rest = url.partition("://")
    return stores.cache_folder() / scheme / rest


def find(path: str) -> tuple[Remote | None, str]:
    """Looks for an object, and what is named inside it.

    Args:
      path: `URL` or `URL:NAME`; a colon is part of the object's name if there is such an object.

    Returns:
      The object, None if it is not there, and the name, '' for none.

    Raises:
      UserError: the store cannot be reached.
    """
    at = len(path)
    while at > path.index("://"):
        found = _describe(path[:at])
        if found is not None:
            return found, path[at + 1 :]
        at = path.rfind(":", 0, at)
    return None, ""


def head(remote: Remote, count: int) -> bytes:
    """Reads the first bytes of an object, or all if there are less; of its copy if it is whole."""
    if is_whole(remote):
        with place(remote.url).open("rb") as file:
            return file.read(count)
    return _read(remote.url, 0, min(count, remote.size))


def is_whole(remote: Remote) -> bool:
    """Whether the copy of an object is there, and the object still the same."""
    record = _record(place(remote.url))
    return place(remote.url).exists() and _is_of(record, remote) and record["complete"]


def missing_bytes(remote: Remote) -> int:
    """What is still to be copied of an object."""
    if is_whole(remote):
        return 0
    record = _record(place(remote.url))
    done = record["done"] if _is_of(record, remote) else []
    return remote.size - sum(stop - start for start, stop in done)


def whole(remote: Remote, layout: Layout = _BYTES) -> Path:
    """The complete copy of an object, made if it is not there.

    Processes of one machine make it once.

    Raises:
      UserError: the store cannot be reached, the disk is full, or the object changes meanwhile.
    """
    target = place(remote.url)
    with _folder_errors(target), _locked(target):
        if not is_whole(remote):
            check_room([remote])
            _copy(remote, target, layout)
    return target


def check_room(remotes: Sequence[Remote]) -> None:
    """Raises a `UserError` if the disk has no room for the copies of some objects."""
    needed = sum(map(missing_bytes, remotes))
    folder = stores.cache_folder()
    free = shutil.disk_usage(existing_folder(folder)).free
    if needed > free:
        names = ", ".join(remote.url for remote in remotes)
        raise UserError(
            f"{names}: {needed / 2**30:.1f} GiB are to be copied to {folder}, where "
            f"{free / 2**30:.1f} GiB are free: set HUME_JAX_CACHE to a folder of a larger disk"
        )


def get_side_file(remote: Remote) -> None:
    """Copies what stands beside an encoded array, with the table of its images."""
    target = place(remote.url)
    with _folder_errors(target):
        _get_beside(remote.url, side_file.place(target).name)
        table = (side_file.read(target) or {}).get("image_table")
        if table:
            _get_beside(remote.url, str(table))


def _get_beside(url: str, name: str) -> None:
    """Copies a small object beside another one, or removes the copy of one that is gone."""
    there, target = f"{url.rpartition('/')[0]}/{name}", place(url).with_name(name)
    remote = _describe(there)
    if remote is None:
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as file:
        file.write(_read(there, 0, remote.size))


def _describe(url: str) -> Remote | None:
    path = stores.open_path(url)
    with stores.reaching(url):
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        if found.is_directory:
            return None
        return Remote(url, found.length, int(found.mtime or stores.modified(url)))


def _read(url: str, start: int, stop: int) -> bytes:
    with stores.reaching(url), stores.open_path(url).open("rb") as file:
        file.seek(start)
        found = file.read(stop - start)
    if len(found) < stop - start:
        raise UserError(f"{url} became shorter while it was read: the same command starts it anew")
    return found


def _copy(remote: Remote, target: Path, layout: Layout) -> None:
    """Copies the ranges that are left, and puts the file in its place."""
    part = target.with_name(f"{target.name}.copying")
    record = _record(target)
    known = record["done"] if part.exists() and _is_of(record, remote) else []
    ranges = _ranges(remote.size, layout)
    # Those of another layout begin elsewhere.
    done = set(ranges) & {(start, stop) for start, stop in known}
    left = [bounds for bounds in ranges if bounds not in done]
    logging.info("copying %s to %s", remote.url, target)
    with part.open("r+b" if part.exists() else "w+b") as file:
        os.truncate(file.fileno(), remote.size)
        for bounds in _copied(remote, left, file.fileno()):
            done.add(bounds)
            _write_record(target, remote, done, complete=False)
    if _describe(remote.url) != remote:
        raise UserError(f"{remote.url} has changed while it was copied: start again once it rests")
    os.replace(part, target)
    sync_folder(target.parent)
    _write_record(target, remote, done, complete=True)


def _copied(
    remote: Remote, left: list[tuple[int, int]], descriptor: int
) -> Iterator[tuple[int, int]]:
    """Copies ranges, and yields each once it is on disk."""
    readers = ThreadPoolExecutor(_READERS, "copy")
    jobs = {readers.submit(_copy_range, remote.url, descriptor, *bounds): bounds for bounds in left}
    try:
        with _progress(remote, left) as copied:
            for job in as_completed(jobs):
                job.result()
                os.fsync(descriptor)
                yield jobs[job]
                copied(jobs[job][1] - jobs[job][0])
    finally:
        readers.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _progress(remote: Remote, left: list[tuple[int, int]]) -> Iterator[Callable[[int], None]]:
    """What counts bytes: shown where there are so many that they take more than seconds."""
    if len(left) <= _READERS:
        yield lambda count: None
        return
    name, total = remote.url.rpartition("/")[2], remote.size // _MIB
    done = remote.size - sum(stop - start for start, stop in left)
    with Progress(total, name, unit="MiB", done=done // _MIB) as progress:

        def copied(count: int) -> None:
            nonlocal done
            progress.update((done + count) // _MIB - done // _MIB)
            done += count

        yield copied


def _copy_range(url: str, descriptor: int, start: int, stop: int) -> None:
    content = memoryview(_read(url, start, stop))
    while content:
        written = os.pwrite(descriptor, content, start)
        content, start = content[written:], start + written


def _ranges(size: int, layout: Layout) -> list[tuple[int, int]]:
    """The bounds of the ranges of an object, of whole rows; the header goes with the first."""
    length = max(1, _RANGE_BYTES // layout.row) * layout.row
    inner = range(layout.start + length, size, length)
    return list(zip([0, *inner], [*inner, size], strict=True))


def _record_place(target: Path) -> Path:
    return target.with_name(f"{target.name}.copy.json")


def _record(target: Path) -> dict[str, Any]:
    """What is known of a copy; {} if nothing is."""
    try:
        found = json.loads(_record_place(target).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_of(record: dict[str, Any], remote: Remote) -> bool:
    return (record.get("size"), record.get("modified")) == (remote.size, remote.modified)


def _write_record(
    target: Path, remote: Remote, done: set[tuple[int, int]], *, complete: bool
) -> None:
    content = {**remote._asdict(), "complete": complete, "done": sorted(done)}
    with atomic_write(_record_place(target)) as file:
        file.write(json.dumps(content).encode())


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keeps other processes of this machine from copying the same; they wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _folder_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}): set HUME_JAX_CACHE to a "
            "folder that can"
        ) from error
