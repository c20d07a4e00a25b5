"""Searches on disjoint halves of the rows: how far they agree on a number of classes.

A half is searched as `hume_jax.pipeline` searches all rows; its tasks then label the rows of both.
What a half found is kept in the run's folder, from which a run that was stopped goes on.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import labelling, planning, rows, search_loop
from hume_jax.errors import UserError
from hume_jax.evaluation import n_classes as criteria
from hume_jax.evaluation.n_classes import Measured
from hume_jax.feeds import Programs, Seconds
from hume_jax.files import atomic_write
from hume_jax.representations import store
from hume_jax.representations.arrays.kept import some
from hume_jax.representations.prepared import Prepared, first_space
from hume_jax.representations.store import Dataset, Space, Split

# Random rows that a row of the reference is made of.
_MIXED = 32
# Rows of each half that linear models are fitted on, and judged on.
_SCORED = 2000
# Their penalty, for rows of unit mean squared norm.
_PENALTY = 1e-3


class Half(NamedTuple):
    """One half of the rows, and what they pass through on their way into a search."""

    numbers: np.ndarray  # (n / 2,) int64, ascending, among the rows of both
    checked: rows.Checked
    maps: Prepared


class Rows(NamedTuple):
    """The rows that are looked at, in memory, and the pairs of halves that they fall into."""

    dataset: Dataset  # train alone, without labels
    pairs: tuple[tuple[Half, Half], ...]


def sample(config: config_dict.ConfigDict, files: Dataset, most: int) -> Dataset:
    """The rows to look at, without labels: all that a run would search, or as many at random.

    Args:
      config: resolved.
      files: open, not looked at.
      most: rows.

    Raises:
      UserError: as `store.scan_files` and `store.check_search`.
    """
    given = store.scan_files(files)
    searched = store.search_spaces(given, config.search.spaces)
    for line in store.check_search(searched, 2, config.setting, normalise=False):
        logging.warning("%s", line)
    splits = store.search_splits(given, config.setting)
    n = sum(split.n for split in splits)
    rng = np.random.default_rng([config.seed, 0])
    numbers = np.sort(rng.permutation(n)[:most])
    starts = np.cumsum([0, *(split.n for split in splits)])
    own = [
        numbers[(numbers >= a) & (numbers < b)] - a
        for a, b in zip(starts, starts[1:], strict=False)
    ]

    def read(name: str) -> Space:
        spaces = [getattr(split, name) for split in splits]
        parts = zip(*(space.arrays for space in spaces), strict=True)
        arrays = tuple(
            np.concatenate([some(a, k)[:] for a, k in zip(files, own, strict=True)])
            for files in parts
        )
        return Space(arrays, spaces[0].paths, ())

    return Dataset(Split(read("phi1"), read("phi2"), None, len(numbers)), None)


def without_classes(dataset: Dataset, seed: int) -> Dataset:
    """Rows of the covariance of others, in both spaces together, that fall into no classes.

    Each is the sum of some random centred rows with random signs, the same in all files: close to
    Gaussian, by the central limit theorem, whatever the rows are.

    Args:
      dataset: as `sample` returns it.
      seed: of the rows.
    """
    rng = np.random.default_rng([seed, 1])
    n = dataset.train.n
    chosen = rng.integers(0, n, (n, _MIXED))
    signs = (2 * rng.integers(0, 2, (n, _MIXED)) - 1).astype(np.float32) / np.float32(_MIXED**0.5)

    def mix(array: np.ndarray) -> np.ndarray:
        centred = array.astype(np.float32)
        centred -= centred.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
        mixed = np.zeros_like(centred)
        for number, sign in zip(chosen.T, signs.T, strict=True):
            mixed += sign[:, None] * centred[number]
        return mixed

    def change(space: Space) -> Space:
        return space._replace(arrays=tuple(mix(np.asarray(array)) for array in space.arrays))

    train = dataset.train
    return Dataset(train._replace(phi1=change(train.phi1), phi2=change(train.phi2)), None)


def halve(config: config_dict.ConfigDict, dataset: Dataset, pairs: int) -> Rows:
    """Cuts rows in two at random, several times.

    Args:
      config: resolved.
      dataset: as `sample` returns it.
      pairs: how often.
    """
    n = dataset.train.n
    found = []
    for pair in range(pairs):
        order = np.random.default_rng([config.seed, 2, pair]).permutation(n)
        parts = order[: n // 2], order[n // 2 : 2 * (n // 2)]
        first, second = (_half(config, dataset, np.sort(part)) for part in parts)
        found.append((first, second))
    return Rows(dataset, tuple(found))


def _half(config: config_dict.ConfigDict, dataset: Dataset, numbers: np.ndarray) -> Half:
    def take(space: Space) -> Space:
        return space._replace(arrays=tuple(array[numbers] for array in space.arrays))

    train = dataset.train
    given = Dataset(Split(take(train.phi1), take(train.phi2), None, len(numbers)), None)
    searched = store.search_spaces(given, config.search.spaces)
    statistics, _ = first_space([searched.train], rows.kind(config))
    checked = rows.Checked(given, searched, statistics, [])
    return Half(numbers, checked, rows.maps_of(config, checked))


def measure(
    config: config_dict.ConfigDict,
    looked_at: Rows,
    folder: Path,
    done: Callable[[], None] = lambda: None,
) -> Measured:
    """Searches all halves for one number of classes.

    Args:
      config: resolved, with that number and the tasks of a half.
      looked_at: the rows.
      folder: of this number; what a half found is kept there.
      done: called after each half.

    Raises:
      UserError: every task of a half was dropped, or memory is short.
    """
    k, programs = config.n_classes, Programs(Seconds())
    parts = []
    for i, (first, second) in enumerate(looked_at.pairs):
        tasks = []
        for j, half in enumerate((first, second)):
            path = folder / f"half_{i}_{j}.npz"
            seed = int(np.random.default_rng([config.seed, 3, i, j]).integers(2**31))
            search = functools.partial(_search, config, half, looked_at, seed, programs)
            tasks.append(_kept(path, search))
            done()
        parts.append(_compare(config, tasks, (first, second), looked_at.dataset, k))
    fields = (np.stack(values) for values in zip(*parts, strict=True))
    return Measured(k, *fields)


def _kept(path: Path, search: Callable[[], np.ndarray]) -> np.ndarray:
    if path.exists():
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["tasks"].astype(np.int32)
    tasks = search()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez_compressed(file, tasks=tasks.astype(np.min_scalar_type(int(tasks.max()))))
    return tasks


def _search(
    config: config_dict.ConfigDict, half: Half, looked_at: Rows, seed: int, programs: Programs
) -> np.ndarray:
    """Labels of all rows by each task that was searched on a half: (M, n) int32."""
    own = config_dict.ConfigDict(config)
    with own.unlocked():
        own.seed, own.seeds, own.search.rows = seed, (), "memory"
    checked = half.checked
    columns = checked.dataset.train.phi1.columns
    plan = planning.make_plan(own, len(half.numbers), columns, half.maps.widths)
    found = rows.stored(own, checked, half.maps)
    prior = np.log(planning.class_prior(own))
    # As a run has it.
    with jax.default_matmul_precision("highest"):
        theta, dropped = search_loop.encoders(plan, found, prior, programs)
    if np.all(dropped):
        raise UserError(
            f"every task was dropped at {own.n_classes} classes: lower search.learning_rate or "
            "inner.step_size, or raise inner.penalty"
        )
    # One that was dropped stands as its start has it: it agrees with nothing, as it should.
    both = store.search_spaces(looked_at.dataset, own.search.spaces)
    return labelling.encode(theta, both.train.phi1.arrays, checked.statistics, rows.kind(own))


def _compare(
    config: config_dict.ConfigDict,
    tasks: list[np.ndarray],
    halves: tuple[Half, Half],
    dataset: Dataset,
    k: int,
) -> tuple[np.ndarray, ...]:
    """The fields of `Measured` of one pair of halves, from the labels of both."""
    counts = [np.stack([np.bincount(t, minlength=k) for t in half]) for half in tasks]
    n = tasks[0].shape[1]
    return (
        criteria.across(*tasks),
        np.stack([criteria.within(half) for half in tasks]),
        _linear_accuracy(config, tasks, halves, dataset),
        np.stack([(c > 0).sum(axis=1) for c in counts]),
        np.stack([c.min(axis=1) * k / n for c in counts]),
    )


def _linear_accuracy(
    config: config_dict.ConfigDict,
    tasks: list[np.ndarray],
    halves: tuple[Half, Half],
    dataset: Dataset,
) -> np.ndarray:
    """(2, M), of models that are fitted on the half that was searched and judged on the other."""
    numbers = [half.numbers[:: -(-len(half.numbers) // _SCORED)] for half in halves]
    arrays = store.search_spaces(dataset, config.search.spaces).train.phi2.arrays
    found = []
    for own, other, labels in zip(numbers, numbers[::-1], tasks, strict=True):
        of_spaces = []
        for array in arrays:
            train, test = (np.asarray(array[part], np.float64) for part in (own, other))
            mean = train.mean(axis=0)
            train, test = train - mean[None], test - mean[None]
            scale = np.sqrt(np.mean(np.sum(train**2, axis=1)))
            of_spaces.append(
                criteria.linear_accuracy(
                    train / scale, test / scale, labels[:, own], labels[:, other], _PENALTY
                )
            )
        found.append(np.mean(of_spaces, axis=0))
    return np.stack(found)
