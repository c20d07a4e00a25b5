"""Batches of decoded and preprocessed images, in order, made by threads ahead of their use."""

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.images.decoding import BrokenImage, decode
from hume_jax.representations.images.sources import Source

if TYPE_CHECKING:
    from PIL import Image

# Batches that wait or are being made while one is in use.
_AHEAD = 2


def check_installed() -> None:
    """Raises a `UserError` where a package that reads images is not installed."""
    try:
        import grain  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'reading images needs more packages ({error}): pip install "hume_jax[images]"'
        ) from error


class Batch(NamedTuple):
    """Some images; what is left of the last batch is padding."""

    pixels: np.ndarray  # (b, s, s, 3) uint8, zeros for padding and broken images
    rows: np.ndarray  # (b,) int64, row in the source, -1 for padding
    broken: tuple[tuple[int, str], ...]  # row and reason


class _Item(NamedTuple):
    row: int
    pixels: np.ndarray | None  # (s, s, 3) uint8
    why: str  # there are no pixels


def batches(
    source: Source,
    rows: Sequence[int] | np.ndarray,
    prepare: Callable[["Image.Image"], np.ndarray],
    *,
    size: int,
    batch: int,
    threads: int,
) -> Generator[Batch, None, None]:
    """Reads, decodes and prepares images.

    Threads of grain work on the next batches while the caller uses one: two batches of pixels are
    held beside it. They end with the iteration, also when the caller leaves it (at the latest when
    the iterator is collected; `contextlib.closing` does it at once), each after the image it is on.

    Args:
      source: the images.
      rows: which of them, in the order wanted; a row may come more than once.
      prepare: makes (size, size, 3) uint8 of a decoded RGB image, in any thread.
      size: side of the prepared images.
      batch: images in a batch.
      threads: how many threads; with 0 the images are made when they are asked for.

    Yields:
      Batches of one shape, all rows in order; broken images keep their place.

    Raises:
      UserError: grain is not installed, or the source cannot be read.
      ValueError: `prepare` gives another shape or dtype.
    """
    check_installed()
    import grain

    def item(row: int) -> _Item:
        try:
            pixels = prepare(decode(source.read(int(row))))
        except BrokenImage as error:
            return _Item(int(row), None, str(error))
        if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"prepared image of shape {pixels.shape} and dtype {pixels.dtype}")
        return _Item(int(row), pixels, "")

    if not len(rows):
        return
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD * batch)
    items = iter(grain.MapDataset.source(rows).map(item).to_iter_dataset(options))
    try:
        while chunk := _take(items, batch):
            yield _batch(chunk, batch, size)
    finally:
        items.close()


def _take(items: Any, count: int) -> list[_Item]:
    return list(itertools.islice(items, count))


def _batch(items: Sequence[_Item], batch: int, size: int) -> Batch:
    pixels = np.zeros((batch, size, size, 3), np.uint8)
    rows = np.full(batch, -1, np.int64)
    for i, item in enumerate(items):
        rows[i] = item.row
        if item.pixels is not None:
            pixels[i] = item.pixels
    broken = tuple((item.row, item.why) for item in items if item.pixels is None)
    return Batch(pixels, rows, broken)
