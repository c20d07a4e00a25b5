"""Where the steps of a search get their rows; here, from devices that hold all of them.

`disk_feed` is the other way: rows are read from disk as steps need them. Both take the same steps
on the same subsets.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hume_jax import compiling, parallel
from hume_jax.core import search, seeds


class Seconds:
    """Where the time of a search goes."""

    def __init__(self) -> None:
        self.compile = 0.0
        self.search = 0.0  # without compilation


class Feed(Protocol):
    """Advances a batch: tasks of the same numbers, of every seed of the run."""

    seconds: Seconds

    def shapes(self, tasks: Sequence[int]) -> search.State:
        """What a state of these tasks is like: shapes, dtypes and where it lies."""

    def start(self, tasks: Sequence[int]) -> search.State:
        """The state before the first step."""

    def compile(self, state: search.State, length: int) -> None:
        """Compiles what `advance` will need."""

    def advance(self, state: search.State, length: int) -> tuple[search.State, search.Info]:
        """Takes so many steps; returns the info of each, leaves (length, ...) on the host."""

    def programs(self) -> list[str]:
        """The texts of the programs that are compiled."""


class Programs:
    """Compiled functions, each compiled once for each key."""

    def __init__(self, seconds: Seconds) -> None:
        self._compiled: dict[tuple, Any] = {}
        self._seconds = seconds

    def get(self, key: tuple, function: Callable, arguments: tuple, **how: Any) -> Any:
        """Returns what `jax.jit` with `how` compiles for the arguments, arrays or shapes."""
        if key not in self._compiled:
            began = time.perf_counter()
            lowered = jax.jit(function, **how).lower(*arguments)
            self._compiled[key] = lowered.compile(compiling.options())
            self._seconds.compile += time.perf_counter() - began
        return self._compiled[key]

    def texts(self) -> list[str]:
        """The compiled programs, as text."""
        return [program.as_text() for program in self._compiled.values()]


class FromMemory:
    """All rows lie on the devices; a block of steps is one program."""

    def __init__(
        self,
        data: search.Data,
        settings: search.Search,
        run_seeds: Sequence[int],
        log_prior: np.ndarray,
        mesh: Mesh,
        programs: Programs | None = None,
    ) -> None:
        """Takes what the steps read.

        Args:
          data: the search rows, where the mesh says.
          settings: of the search.
          run_seeds: of the run; every batch holds the tasks of all of them.
          log_prior: (K,).
          mesh: of the devices.
          programs: of a feed of the same settings, not to be compiled again for rows of one shape.
        """
        self.seconds = Seconds()
        self._programs = Programs(self.seconds) if programs is None else programs
        self._settings, self._mesh = settings, mesh
        self._data = data
        self._shape = tuple(leaf.shape for leaf in jax.tree.leaves(data))
        self._seeds, self._log_prior = parallel.place_everywhere(
            (np.asarray(run_seeds, np.uint32), np.asarray(log_prior, np.float32)), mesh
        )

    def shapes(self, tasks: Sequence[int]) -> search.State:
        """See `Feed`."""
        widths = tuple(space.x.shape[-1] for space in self._data.spaces)
        dim, count = self._data.phi1.shape[-1], len(self._seeds)
        return state_shapes(tasks, dim, widths, self._settings, self._mesh, count)

    def start(self, tasks: Sequence[int]) -> search.State:
        """See `Feed`."""
        program = functools.partial(seeds.init, settings=self._settings)
        numbers = parallel.place_everywhere(np.asarray(tasks, np.int32), self._mesh)
        arguments = self._seeds, numbers, self._data
        where = jax.tree.map(lambda leaf: leaf.sharding, self.shapes(tasks))
        key = ("init", len(tasks), *self._shape)
        init = self._programs.get(key, program, arguments, out_shardings=where)
        began = time.perf_counter()
        state = jax.block_until_ready(init(*arguments))
        self.seconds.search += time.perf_counter() - began
        return state

    def compile(self, state: search.State, length: int) -> None:
        """See `Feed`."""
        self._block(state, length)

    def advance(self, state: search.State, length: int) -> tuple[search.State, search.Info]:
        """See `Feed`."""
        program = self._block(state, length)
        began = time.perf_counter()
        state, info = program(*self._arguments(state))
        info = parallel.fetch(info)
        self.seconds.search += time.perf_counter() - began
        return state, info

    def programs(self) -> list[str]:
        """See `Feed`."""
        return self._programs.texts()

    def _arguments(self, state: search.State) -> tuple:
        return state, self._seeds, self._data, self._log_prior

    def _block(self, state: search.State, length: int) -> Any:
        program = functools.partial(seeds.run_steps, settings=self._settings, steps=length)
        key = (len(state.task), length, *self._shape)
        arguments = self._arguments(state)
        # Where the state lies it stays; what is looked at lies wherever XLA has it.
        where = (parallel.by_task(state, self._mesh), None)
        return self._programs.get(key, program, arguments, donate_argnums=0, out_shardings=where)


def state_shapes(
    tasks: Sequence[int],
    dim: int,
    widths: tuple[int, ...],
    settings: search.Search,
    mesh: Mesh,
    count: int = 1,
) -> search.State:
    """What a state is like, see `Feed.shapes`.

    Args:
      tasks: numbers of the tasks.
      dim: columns of phi1.
      widths: coordinates of the inner fit in each second space.
      settings: of the search.
      mesh: of the devices.
      count: of seeds.
    """

    def blank(every: jax.Array, tasks: jax.Array) -> search.State:
        return seeds.blank(every, tasks, dim, widths, settings)

    shapes = jax.eval_shape(blank, jnp.zeros(count, jnp.uint32), jnp.asarray(tasks, jnp.int32))
    return jax.tree.map(placed_shape, shapes, parallel.by_task(shapes, mesh))


def placed_shape(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array that lies as the sharding says."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
