"""Images -> one array of representations, resumable at any row."""

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hume_jax.errors import UserError
from hume_jax.processes import ALONE, Processes
from hume_jax.progress import Progress, count
from hume_jax.representations.arrays import side_file
from hume_jax.representations.arrays.growing import GrowingArray
from hume_jax.representations.encoders import presets
from hume_jax.representations.images import loader, preprocess, sources

# Between two notes of what is on disk: what a kill costs at most, beside the batches under way.
_FLUSH_SECONDS = 3.0
# Batches that the device works on while the host writes the one before them.
_AHEAD = 2


def encode(
    source: sources.Source,
    encoder: presets.Encoder,
    params: Any,
    path: Path,
    description: dict[str, Any],
    *,
    dtype: str = "float16",
    batch: int = 64,
    threads: int = 2,
    skip_broken: bool = False,
    again: bool = False,
    processes: Processes = ALONE,
) -> None:
    """Encodes images into an `.npy` file; what it holds of an interrupted run is kept.

    Args:
      source: the images, one row each.
      encoder: the model, and how images are prepared for it.
      params: its parameters.
      path: the array's file, (n, d) of `dtype` when it is finished.
      description: what the side file says of it.
      dtype: float16 or float32.
      batch: images at a time; rounded up to a multiple of the local devices.
      threads: that read and decode.
      skip_broken: whether images that cannot be read give a row of zeros, and are noted.
      again: whether the array is finished, and images of it that were broken are read once more.
      processes: which part of the rows is this process's; all see the same files.

    Raises:
      UserError: an image that cannot be read, a value that does not fit in `dtype`, no space.
    """
    width = presets.width(encoder)
    with GrowingArray(path, (len(source), width), dtype, processes.number) as array:
        with processes.together():
            if processes.number == 0:
                array.begin(description, again)
        # No process notes more rows before all have shared them out.
        with processes.together():
            array.open()
            left = array.remaining()
        mine = np.array_split(left, processes.total)[processes.number]
        with processes.together():
            if mine.size:
                logging.info("encoding %s with %s", count(len(mine), "image"), encoder.spec)
                mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
                size = -(-batch // mesh.size) * mesh.size
                apply = _compile(encoder, params, size, mesh)
                pixels = loader.batches(
                    source,
                    mine,
                    functools.partial(preprocess.crop, how=encoder.preprocessing),
                    size=encoder.preprocessing.crop,
                    batch=size,
                    threads=threads,
                )
                done = len(source) - left.size
                # Its threads end at once where a broken image ends the work.
                with contextlib.closing(pixels):
                    outputs = _outputs(apply, pixels)
                    _write_all(array, outputs, source, done, mine.size, skip_broken)
        with processes.together():
            if processes.number == 0:
                broken = array.broken()
                if len(broken) == len(source):
                    row, why = broken[0]
                    raise UserError(
                        f"{source.name}: all {count(len(source), 'image')} are broken, "
                        f"{source.ids[row]} (row {row}) because {why}"
                    )
                array.finish(description)
                _tell(path, width, source, broken)


def _write_all(
    array: GrowingArray,
    outputs: Iterator[tuple[loader.Batch, np.ndarray]],
    source: sources.Source,
    done: int,
    rows: int,
    skip_broken: bool,
) -> None:
    """Writes all batches and shows how far it is.

    Args:
      array: open.
      outputs: batches with what the encoder made of them.
      source: the images.
      done: rows that were there before.
      rows: of the batches.
      skip_broken: see `encode`.
    """
    label = f"encoding {array.path.name}"
    with Progress(done + rows, label, unit="images", done=done, every=10) as progress:
        for item, values in outputs:
            if item.broken and not skip_broken:
                array.note_broken(item.broken)
                raise broken_image(source, *item.broken[0])
            _put(array, item, values, source)
            progress.update(int(np.count_nonzero(item.rows >= 0)))
    array.flush()


def broken_image(source: sources.Source, row: int, why: str) -> UserError:
    """Returns the error about an image that cannot be read."""
    return UserError(
        f"{source.name}: image {source.ids[row]} (row {row}) is broken, {why}: mend it, or set "
        "images.broken=skip, which gives it a row of zeros"
    )


def _compile(
    encoder: presets.Encoder, params: Any, batch: int, mesh: Mesh
) -> Callable[[np.ndarray], jax.Array]:
    """Returns what encodes a batch of pixels, its rows shared by all devices."""
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    params = jax.device_put(params, whole)
    shape = (batch, encoder.preprocessing.crop, encoder.preprocessing.crop, 3)
    pixels = jax.ShapeDtypeStruct(shape, np.uint8, sharding=rows)
    program = jax.jit(functools.partial(presets.features, encoder), out_shardings=rows)
    # Ahead of the first batch, so that the time left is known from there on.
    compiled = program.lower(params, pixels).compile()
    return lambda pixels: compiled(params, jax.device_put(pixels, rows))


def _outputs(
    apply: Callable[[np.ndarray], jax.Array], pixels: Iterator[loader.Batch]
) -> Iterator[tuple[loader.Batch, np.ndarray]]:
    """Yields batches with their outputs, while the device works on those after them."""
    waiting: deque[tuple[loader.Batch, jax.Array]] = deque()
    for item in pixels:
        waiting.append((item, apply(item.pixels)))
        if len(waiting) > _AHEAD:
            before, values = waiting.popleft()
            yield before, np.asarray(values)
    for before, values in waiting:
        yield before, np.asarray(values)


def _put(
    array: GrowingArray, item: loader.Batch, values: np.ndarray, source: sources.Source
) -> None:
    """Writes the rows of a batch, those of broken images as zeros."""
    present = item.rows >= 0
    rows, values = item.rows[present], values[present]
    values[np.isin(rows, [row for row, _ in item.broken])] = 0
    with np.errstate(over="ignore"):
        stored = values.astype(array.dtype)
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if bad.size:
        row = int(rows[bad[0]])
        if np.isfinite(values[bad[0]]).all():
            what = "does not fit in float16: set encode.dtype=float32"
        else:
            what = "is not finite: check the weights; with compute=bfloat16, try float32"
        raise UserError(
            f"{source.name}: the representation of image {source.ids[row]} (row {row}) {what}"
        )
    array.write(rows, stored, item.broken)
    if time.monotonic() - array.flushed >= _FLUSH_SECONDS:
        array.flush()


def _tell(
    path: Path, width: int, source: sources.Source, broken: Sequence[tuple[int, str]]
) -> None:
    logging.info("%s: %d rows of %d columns", path, len(source), width)
    if broken:
        row, why = broken[0]
        logging.warning(
            "%s: %s of %d broken, rows of zeros: the first is %s (row %d), %s; %s lists them",
            path, count(len(broken), "image"), len(source), source.ids[row], row, why,
            side_file.place(path),
        )  # fmt: skip
