"""Runs a method of this folder from its first step to its last, and labels rows by it."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hume_jax.baselines.method import Data, Info

# Rows that are labelled at a time.
_BLOCK = 4096
# How often progress is told, about.
_REPORTS = 20


class Settings(Protocol):
    """What the settings of every method have."""

    @property
    def n_classes(self) -> int:
        """K."""

    def _asdict(self) -> dict[str, Any]:
        """All of them by name."""

    @property
    def length(self) -> int:
        """Number of steps."""


class Method(Protocol):
    """A module of this folder, see `method`."""

    def init(self, seed: Array | int, tasks: Array, data: Data, settings: Any) -> Any:
        """The state before the first step."""

    def step(self, state: Any, seed: Array | int, data: Data, settings: Any) -> tuple[Any, Info]:
        """One step."""

    def predict(self, state: Any, spaces: tuple[Array, ...]) -> Array:
        """Labels (S, m) int32."""

    def score(self, state: Any, data: Data, settings: Any) -> Array:
        """Its own label-free score, (S,)."""


class Fitted(NamedTuple):
    """What a method ends at."""

    state: Any  # of S tasks
    steps: int  # taken; fewer than asked for where nothing changed any more
    seconds: float  # of these steps
    compile_seconds: float


def fit(
    method: Method,
    settings: Settings,
    data: Data,
    tasks: np.ndarray,
    seed: int,
    *,
    done: Callable[[int, float], None] = lambda steps, loss: None,
) -> Fitted:
    """All steps of a batch of tasks, from the first.

    Args:
      method: a module of this folder.
      settings: of the method.
      data: the rows.
      tasks: (S,) integer numbers of the tasks.
      seed: of the run.
      done: called some 20 times, with the number of steps since the last call, and the mean loss of
        the last one.

    Returns:
      The last state, and what it took.
    """
    began = time.perf_counter()
    first = jax.jit(functools.partial(method.init, settings=settings))
    state = jax.block_until_ready(first(seed, jnp.asarray(tasks, jnp.int32), data))
    length = settings.length
    each = max(1, -(-length // _REPORTS))
    # Any number of steps in one program: the last block is shorter.
    block = jax.jit(functools.partial(_steps, method=method, settings=settings), donate_argnums=0)
    program = block.lower(state, jnp.uint32(seed), data, jnp.int32(each)).compile()
    compiled = time.perf_counter()
    taken = 0
    while taken < length and not _settled(state):
        count = min(each, length - taken)
        state, loss = program(state, jnp.uint32(seed), data, jnp.int32(count))
        taken += count
        done(count, float(jnp.mean(loss)))
    return Fitted(state, taken, time.perf_counter() - compiled, compiled - began)


def _steps(
    state: Any, seed: Array, data: Data, count: Array, *, method: Method, settings: Any
) -> tuple[Any, Array]:
    def body(_: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, info = method.step(carry[0], seed, data, settings)
        return state, info.loss

    loss = jnp.zeros(state.task.shape, data.spaces[0].dtype)
    return jax.lax.fori_loop(0, count, body, (state, loss))


def _settled(state: Any) -> bool:
    """Whether no further step changes anything, of a method that can tell."""
    return "settled" in state._fields and bool(jnp.all(state.settled))


def predict(method: Method, state: Any, spaces: tuple[np.ndarray, ...]) -> np.ndarray:
    """Labels of rows, a block of them at a time.

    Args:
      method: a module of this folder.
      state: of S tasks.
      spaces: (m, d_i) float32 rows, centred, of unit norm.

    Returns:
      (S, m) int32.
    """
    m = len(spaces[0])
    size = min(m, _BLOCK)
    program = jax.jit(method.predict)
    labels = np.empty((len(state.task), m), np.int32)
    for start in range(0, m, size):
        # The last block reaches back, so that all have one shape.
        rows = slice(min(start, m - size), min(start, m - size) + size)
        labels[:, rows] = program(state, tuple(jnp.asarray(x[rows]) for x in spaces))
    return labels


def score(method: Method, settings: Settings, state: Any, data: Data) -> np.ndarray:
    """The method's own label-free score of each task, (S,) float32, lowest is best."""
    return np.asarray(jax.jit(functools.partial(method.score, settings=settings))(state, data=data))
