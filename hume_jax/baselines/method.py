"""What every baseline is: pure functions from spaces to a batch of labelings, like the search.

A method is a module of these functions over a state of S tasks, and of its settings:

    Settings(n_classes, ...)                    NamedTuple of plain values, static under jit;
                                                `settings.length` is the number of steps
    init(seed, tasks, data, settings) -> state  `state.task` (S,), `state.step` ()
    step(state, seed, data, settings) -> (state, Info)
    predict(state, spaces) -> (S, n) int32 labels
    score(state, data, settings) -> (S,) float32, its own label-free score, lowest is best

What is drawn at random for a task depends on the seed and the task's number alone; which rows are
looked at together depends on the seed and the step's number, and all tasks share them. So a batch
of tasks finds what single ones find, up to rounding. Neither function sees a true label, but for
those of the supervised methods, whose `Data` has them.
"""

from typing import NamedTuple

import jax
from jax import Array


class Data(NamedTuple):
    """What a method sees of a dataset."""

    spaces: tuple[Array, ...]  # (n, d_i) float32, centred, rows of unit norm
    neighbours: Array | None = None  # (n, k) int32, nearest first, without the row itself
    labels: Array | None = None  # (n,) int32 true labels below K; of the supervised methods alone

    @property
    def near(self) -> Array:
        """The neighbours, of a method that needs them."""
        if self.neighbours is None:
            raise ValueError("the method needs the nearest neighbours of the rows")
        return self.neighbours

    @property
    def true(self) -> Array:
        """The true labels, of a supervised method."""
        if self.labels is None:
            raise ValueError("the method is supervised and needs labels")
        return self.labels


class Info(NamedTuple):
    """What is only looked at."""

    loss: Array  # (S,) float32, of this step


def task_keys(seed: Array | int, tasks: Array) -> Array:
    """A key for each task, ``(S,)``: of the run's seed and the task's number."""
    key = jax.random.key(seed)
    return jax.vmap(lambda task: jax.random.fold_in(key, task))(tasks)


def fold_keys(keys: Array, number: Array | int) -> Array:
    """Keys of each task ``(S,)`` for one use of several, by its number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def step_key(seed: Array | int, step: Array | int) -> Array:
    """The key of a step: of the run's seed and the step's number; no task has it."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2**31 - 1), step)


def held_out_rows(key: Array, n: int) -> Array:
    """A random tenth of n rows, ``(n,)`` bool, on which a supervised method is chosen."""
    return jax.random.permutation(jax.random.fold_in(key, 2**31 - 2), n) < n // 10
