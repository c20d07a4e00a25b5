"""How much memory a search takes, known before it starts."""

import pathlib
from typing import NamedTuple

import jax
import psutil

from hume_jax.core.search import Search

_FLOAT = 4
# Bytes that the tasks scored at a time may take; tasks take turns beyond it.
SCORE_BATCH = 2**30
# What a container may use, where there is one.
_CGROUP = pathlib.Path("/sys/fs/cgroup")


class Shape(NamedTuple):
    """Sizes of a search."""

    rows: int  # searched rows, padding included
    train: int  # rows of a split that the inner model is fitted on
    test: int  # rows of a split that it is judged on
    phi1: int  # columns of phi1
    inner: tuple[int, ...]  # directions of each second space

    @property
    def columns(self) -> int:
        """Of all spaces."""
        return self.phi1 + sum(self.inner)


def data_bytes(shape: Shape) -> int:
    """Bytes that do not depend on the number of tasks: the rows and one split of them."""
    width = shape.columns
    # The rows as normalised, as dealt to shards and on the device, and one split.
    return _FLOAT * width * 3 * shape.rows + split_bytes(shape)


def split_bytes(shape: Shape) -> int:
    """Bytes of one split of the rows."""
    return _FLOAT * shape.columns * (shape.train + shape.test)


def subset_bytes(shape: Shape) -> int:
    """Bytes that do not depend on the number of tasks, where rows are read from disk."""
    # A split as float32, before and after the change of coordinates, and as stored, which is when
    # the next one is read. The changes, and the moments that they come from.
    split = 3 * (shape.train + shape.test) * shape.columns
    return _FLOAT * (split + sum(8 * r * r for r in shape.inner))


def task_bytes(shape: Shape, settings: Search) -> int:
    """Bytes that each further task of a batch takes."""
    k = settings.n_classes
    # theta, two Adam moments, gradient, update, and what the steps of the orthonormal map keep.
    encoder = 26 * k * shape.phi1 + 4 * k * k
    # Labels, logits, probabilities and their cotangents on one split.
    labels = 8 * k * (shape.train + shape.test)
    # Solution, extrapolation, gradient; residual, direction and product of the adjoint.
    solver = sum(8 * k * r for r in shape.inner)
    if settings.inner.adjoint == "unrolled":
        # Each step's start is kept for the way back: three matrices a step.
        solver += sum(3 * settings.inner.steps * k * r for r in shape.inner)
    return _FLOAT * (encoder + labels + solver)


def result_bytes(tasks: int, rows: int, phi1: int, n_classes: int) -> int:
    """Bytes of what is kept of all tasks: encoders, labels (also as int64), their agreement."""
    encoders = encoder_bytes(tasks, phi1, n_classes)
    return encoders + tasks * (3 * _FLOAT * rows + 4 * _FLOAT * tasks)


def encoder_bytes(tasks: int, phi1: int, n_classes: int) -> int:
    """Bytes of the encoders of all tasks."""
    return _FLOAT * tasks * phi1 * n_classes


def score_bytes(rows: int, columns: int, n_classes: int, tasks: int) -> int:
    """Bytes of the cross-validation of found tasks: the rows, those of a fold, the fits.

    Args:
      rows: `score.rows`, or as many as there are.
      columns: the most of a second space.
      n_classes: K.
      tasks: of the run.
    """
    each = score_task_bytes(rows, n_classes)
    return 4 * _FLOAT * rows * columns + min(tasks * each, max(SCORE_BATCH, each))


def score_task_bytes(rows: int, n_classes: int) -> int:
    """Bytes of labels, logits and what a fit derives from them, of one task that is scored."""
    return 5 * _FLOAT * rows * n_classes


def available_bytes() -> int:
    """Memory that a new computation may take: of the accelerator, or else of this machine."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return machine_bytes()


def machine_bytes() -> int:
    """Free memory of this machine, or of the part of it that this process may use."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (
            int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no control group, or one without a limit
        return free
    return min(free, limit - used)
