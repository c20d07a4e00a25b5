"""The searches of several seeds in one program, each with the splits it would have alone.

A state of G seeds is a `search.State` of ``G S`` tasks: S of the first seed, S of the next, and so
on. One seed is the plain search.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from hume_jax.core import search
from hume_jax.core.search import Data, Info, Search, State

# Seeds take their steps together, so what follows the step alone is one number for all.
_STATE = State(0, 0, 0, 0, 0, 0, None)  # type: ignore[arg-type]
_INFO = Info(1, 1, 1, 1, 1, 1, 1, 1, None, None)  # type: ignore[arg-type]


def init(seeds: Array, tasks: Array, data: Data, settings: Search) -> State:
    """The state before the first step.

    Args:
      seeds: ``(G,)`` uint32.
      tasks: ``(S,)`` int32 numbers of the tasks, of every seed.
      data: the search rows.
      settings: of the search.
    """
    return _each(functools.partial(search.init, tasks=tasks, data=data, settings=settings), seeds)


def blank(seeds: Array, tasks: Array, dim: int, widths: tuple[int, ...], settings: Search) -> State:
    """As `search.blank`, of every seed; arguments as of `init` and that."""
    sizes: dict[str, Any] = {"tasks": tasks, "dim": dim, "widths": widths, "settings": settings}
    return _each(functools.partial(search.blank, **sizes), seeds)


def _each(one: Callable[[Array], State], seeds: Array) -> State:
    """The states of all seeds, joined."""
    if len(seeds) == 1:
        return one(seeds[0])
    return _joined(jax.vmap(one, out_axes=_STATE)(seeds), 0)


def run_steps(
    state: State, seeds: Array, data: Data, log_prior: Array, settings: Search, steps: int
) -> tuple[State, Info]:
    """As `search.run_steps`, of every seed.

    Args:
      state: of ``G S`` tasks.
      seeds: ``(G,)`` uint32.
      data: the search rows.
      log_prior: ``(K,)``.
      settings: of the search.
      steps: number of steps.
    """
    count = len(seeds)
    if count == 1:
        return search.run_steps(state, seeds[0], data, log_prior, settings, steps)

    def one(state: State, seed: Array) -> tuple[State, Info]:
        return search.run_steps(state, seed, data, log_prior, settings, steps)

    apart = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]) if x.ndim else x, state)
    state, info = jax.vmap(one, in_axes=(_STATE, 0), out_axes=(_STATE, _INFO))(apart, seeds)
    return _joined(state, 0), _joined(info, 1)


def _joined(tree: Any, axis: int) -> Any:
    """Makes one axis of seeds and tasks of two, where there are two."""

    def join(x: Array) -> Array:
        if x.ndim < axis + 2:
            return x
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(join, tree)
