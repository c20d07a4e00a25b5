"""Rows picked from arrays on disk, in the background of what is done with those before them."""

import contextlib
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.arrays.kept import Array, KeptRows

_Key = TypeVar("_Key")
_Item = TypeVar("_Item")
# Reads in flight: a disk answers many at a time. They wait far more than they work.
READERS = 16


def check_order(array: Array, path: str) -> None:
    """Raises a `UserError` if an array is stored so that a row is spread over all of the file."""
    array = _stored(array)
    if array.shape[1] > 1 and array.strides[1] != array.itemsize:
        raise UserError(
            f"{path} is stored column by column, so single rows of it cannot be read: save it with "
            "np.save(file, np.ascontiguousarray(array)), or set search.rows=memory"
        )


class Stack:
    """Arrays that lie one upon the other; rows are taken by number, without reading others."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        """Prepares the stack; nothing is read.

        Args:
          arrays: (n_i, d) floating each, memory-mapped or not.
        """
        self.arrays = tuple(map(_stored, arrays))
        self._starts = np.cumsum([0, *map(len, self.arrays)])
        self._numbers = self._kept(arrays)
        dtype = arrays[0].dtype
        same = all(array.dtype == dtype for array in arrays)
        # What devices hold as it is; the rest is read as float32, as everywhere.
        kept = same and dtype.isnative and dtype.itemsize <= 4
        self.dtype = dtype if kept else np.dtype(np.float32)
        self.shape = (sum(map(len, arrays)), arrays[0].shape[1])

    def _kept(self, arrays: Sequence[Array]) -> np.ndarray | None:
        """Where the rows lie in the stack of whole arrays, None if there they are all."""
        if not any(isinstance(array, KeptRows) for array in arrays):
            return None
        numbers = (
            array.numbers if isinstance(array, KeptRows) else np.arange(len(array))
            for array in arrays
        )
        return np.concatenate([n + start for n, start in zip(numbers, self._starts, strict=False)])

    def take(self, rows: np.ndarray, readers: ThreadPoolExecutor) -> np.ndarray:
        """Returns rows by number: (m,) integers -> (m, d) of `dtype`."""
        if self._numbers is not None:
            rows = self._numbers[rows]
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        # In the order of the file, which disks prefer.
        order = np.argsort(rows)
        jobs = []
        for i, array in enumerate(self.arrays):
            first, last = np.searchsorted(rows[order], self._starts[i : i + 2])
            here = order[first:last]
            for part in np.array_split(here, min(READERS, max(1, len(here)))):
                numbers = rows[part] - self._starts[i]
                jobs.append(readers.submit(_copy, array, numbers, out, part))
        for job in jobs:
            job.result()
        return out


def _stored(array: Array) -> np.ndarray:
    return array.array if isinstance(array, KeptRows) else array


def _copy(array: np.ndarray, rows: np.ndarray, out: np.ndarray, to: np.ndarray) -> None:
    # `take` lets other threads run while it waits for the disk. Of rows that lie at odd places in
    # their file, as some of an archive do, it would first copy all: it takes their bytes.
    if array.flags.aligned:
        out[to] = np.take(array, rows, axis=0)
    else:
        out[to] = np.take(array.view(np.uint8), rows, axis=0).view(array.dtype)


@contextlib.contextmanager
def scattered(arrays: Sequence[np.ndarray]) -> Iterator[None]:
    """Tells the system that single rows of memory-mapped arrays will be read.

    It would read 128 KB around each otherwise, most of the file at every step.
    """
    maps = {id(found): found for found in map(_mapping, arrays) if found is not None}.values()
    for mapping in maps:
        mapping.madvise(mmap.MADV_RANDOM)
    try:
        yield
    finally:
        for mapping in maps:
            mapping.madvise(mmap.MADV_NORMAL)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """What maps an array's file, if one does and can be advised."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_RANDOM") else None


class Ahead(Generic[_Key, _Item]):
    """Makes one item in a thread of its own, ahead of its use."""

    def __init__(self, make: Callable[[_Key], _Item]) -> None:
        """Prepares the thread.

        Args:
          make: the item of a key. What it raises is raised where the item is taken.
        """
        self._make = make
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._next: tuple[_Key, Future[_Item]] | None = None
        self.made_seconds = 0.0  # time that making took
        self.waited_seconds = 0.0  # time that `take` waited
        self.items = 0  # items taken

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the thread, after the item that it is at."""
        self._next = None
        self._thread.shutdown(cancel_futures=True)

    def start(self, key: _Key) -> Future[_Item]:
        """Begins with the next item, unless it is begun already."""
        if self._next is not None and self._next[0] == key:
            return self._next[1]
        if self._next is not None:
            self._next[1].cancel()
        future = self._thread.submit(self._timed, key)
        self._next = key, future
        return future

    def take(self, key: _Key) -> _Item:
        """Returns an item, which is there at once if it was begun early enough."""
        began = time.perf_counter()
        item = self.start(key).result()
        self._next = None
        self.waited_seconds += time.perf_counter() - began
        self.items += 1
        return item

    def _timed(self, key: _Key) -> _Item:
        began = time.perf_counter()
        item = self._make(key)
        self.made_seconds += time.perf_counter() - began
        return item
