"""How much memory a search takes, known before it starts."""

import pathlib
from typing import NamedTuple, Self

import jax
import psutil

from hume_jax.core.search import Search
from hume_jax.core.subsets import HELD

_FLOAT = 4
# Arrays of a label for each class and row that a program has at a time, as XLA lays them out for a
# CPU (`experiments/benchmark.py memory` has both, side by side): of all rows while labels
# are made; of train rows in an inner fit, more in Newton's, and in each further one; of test rows
# meanwhile.
_LABELLING = 4.6
_FITTING = {"newton": 10.2, "nesterov": 4.7, "gradient": 4.7}
_FITTING_UNROLLED = {"newton": 6.0, "nesterov": 4.7, "gradient": 4.7}
_FURTHER, _JUDGED = 2.2, 1.0
# What reverse mode keeps of each unrolled step: matrices W and arrays of train labels.
_KEPT = {"newton": (2.0, 2.0), "nesterov": (2.0, 0.0), "gradient": (1.0, 0.0)}
# Of each conjugate-gradient step in one of Newton's, which is taken again on the way back.
_KEPT_WITHIN = (3.5, 2.75)
# Matrices of the size of a basis that the start has at a time, where there is one.
_BASIS = 6.25
# Rows that are read and normalised at a time before they are held, see `stored_rows`.
BLOCK = 16384
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

    def part(self, devices: int) -> Self:
        """What is on each of some devices that share the rows, whose number divides the shards."""
        return self._replace(
            rows=self.rows // devices, train=self.train // devices, test=self.test // devices
        )


def search_bytes(
    shape: Shape,
    settings: Search,
    tasks: int,
    *,
    seeds: int = 1,
    rows: str = "memory",
    stored: int = _FLOAT,
) -> int:
    """The most that a search takes of a device's memory.

    Args:
      shape: of what the device has of it.
      settings: of the search.
      tasks: of each seed, those that the device has of a batch.
      seeds: searched at a time; each has splits of its own.
      rows: where they are read from, `memory` or `disk`.
      stored: bytes of each number of rows in memory, see `stored_bytes`.
    """
    running = steps_bytes(shape, settings, tasks, seeds=seeds, rows=rows, stored=stored)
    starting = seeds * tasks * start_bytes(shape, settings)
    if rows == "disk":
        return max(running, starting)
    # While they are brought there, and then tasks begin.
    return max(running, data_bytes(shape, stored) + max(block_bytes(shape), starting))


def steps_bytes(
    shape: Shape,
    settings: Search,
    tasks: int,
    *,
    seeds: int = 1,
    rows: str = "memory",
    stored: int = _FLOAT,
) -> int:
    """What a search takes while its steps run; arguments as of `search_bytes`."""
    searched = seeds * tasks * task_bytes(shape, settings)
    if rows == "disk":
        return subset_bytes(shape) + searched
    return data_bytes(shape, stored) + seeds * split_bytes(shape, settings) + searched


def stored_bytes(storage: str) -> int:
    """Bytes of each number of rows in memory, by `search.storage`."""
    return HELD[storage].itemsize


def data_bytes(shape: Shape, stored: int = _FLOAT) -> int:
    """Bytes of the rows that are held."""
    return stored * shape.columns * shape.rows


def block_bytes(shape: Shape) -> int:
    """Bytes of rows on their way: as stored, as they are normalised, and normalised."""
    return 3 * _FLOAT * shape.columns * min(BLOCK, shape.rows)


def split_bytes(shape: Shape, settings: Search) -> int:
    """Bytes of one split of the rows that are held."""
    split = shape.columns * (shape.train + shape.test)
    # Reverse mode through the solver's steps, and those of gradients, take transposed rows too.
    if settings.inner.adjoint == "unrolled" or settings.inner.solver != "newton":
        split += sum(shape.inner) * shape.train
    return _FLOAT * split


def subset_bytes(shape: Shape) -> int:
    """Bytes that do not depend on the number of tasks, where rows are read from disk."""
    # A split as float32, before and after the change of coordinates, and as stored, which is when
    # the next one is read. The changes, and the moments that they come from.
    split = 3 * (shape.train + shape.test) * shape.columns
    return _FLOAT * (split + sum(8 * r * r for r in shape.inner))


def task_bytes(shape: Shape, settings: Search) -> int:
    """Bytes that each further task of a batch takes: its state and what is computed from it."""
    return state_bytes(shape, settings) + working_bytes(shape, settings)


def state_bytes(shape: Shape, settings: Search) -> int:
    """Bytes of a task's state: the encoder, what moves it, the inner solutions."""
    size = settings.n_classes * (3 * shape.phi1 + sum(shape.inner))
    if settings.coordinates == "householder":
        size += shape.phi1 * (settings.n_classes + shape.phi1)
    return _FLOAT * size


def start_bytes(shape: Shape, settings: Search) -> int:
    """Bytes that each task takes to begin, beside rows: its state, and what its basis comes of."""
    basis = _BASIS * shape.phi1**2 if settings.coordinates == "householder" else 0
    return state_bytes(shape, settings) + int(_FLOAT * basis)


def working_bytes(shape: Shape, settings: Search) -> int:
    """Bytes of what a step computes for a task."""
    k, inner = settings.n_classes, settings.inner
    unrolled = inner.adjoint == "unrolled"
    fitting = (_FITTING_UNROLLED if unrolled else _FITTING)[inner.solver]
    fitting += _FURTHER * (len(shape.inner) - 1)
    matrices = 1.0
    if unrolled:
        kept = [inner.steps * size for size in _KEPT[inner.solver]]
        if inner.solver == "newton":
            kept = [a + inner.newton_steps * b for a, b in zip(kept, _KEPT_WITHIN, strict=True)]
        matrices, fitting = matrices + kept[0], fitting + kept[1] * len(shape.inner)
    labels = max(
        fitting * shape.train + _JUDGED * shape.test, _LABELLING * (shape.train + shape.test)
    )
    # The encoder's step comes after: updates, and what the orthonormal map makes of them.
    encoder = 4 * shape.phi1 + 4 * k
    step = max(labels + matrices * sum(shape.inner), encoder)
    return int(_FLOAT * k * (step + shape.phi1))


def result_bytes(tasks: int, rows: int, phi1: int, n_classes: int) -> int:
    """Bytes of what is kept of all tasks: encoders, labels (also as int64), their agreement."""
    encoders = encoder_bytes(tasks, phi1, n_classes)
    return encoders + tasks * (3 * _FLOAT * rows + 4 * _FLOAT * tasks)


def encoder_bytes(tasks: int, phi1: int, n_classes: int) -> int:
    """Bytes of the encoders of all tasks."""
    return _FLOAT * tasks * phi1 * n_classes


def score_bytes(rows: int, columns: int, n_classes: int, tasks: int, waiting: int = 0) -> int:
    """Bytes of the cross-validation of found tasks: the rows, those of a fold, the fits.

    Args:
      rows: `score.rows`, or as many as there are.
      columns: the most of a second space.
      n_classes: K.
      tasks: of the run.
      waiting: columns of the other second spaces, whose rows are there while one is scored in.
    """
    each = score_task_bytes(rows, n_classes)
    held = _FLOAT * rows * (4 * columns + waiting)
    return held + min(tasks * each, max(SCORE_BATCH, each))


def score_task_bytes(rows: int, n_classes: int) -> int:
    """Bytes of labels, logits and what a fit derives from them, of one task that is scored."""
    return 5 * _FLOAT * rows * n_classes


def available_bytes(devices: int = 1) -> int:
    """Memory that a new computation may take of a device: an accelerator's, or this machine's.

    Args:
      devices: of this process that compute at a time; CPU devices share the machine's memory.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return machine_bytes() // devices


def machine_bytes() -> int:
    """Free memory of this machine, or of the part of it that this process may use."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (
            int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Copies of files, of which the system gives up those that nobody reads.
        used -= int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):  # no control group, or one without a limit
        return free
    return min(free, limit - used)
