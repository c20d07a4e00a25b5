"""The rows of each step read from disk, while the devices work on the step before.

Rows travel as they are stored and are normalised on the devices. Memory holds one subset as the
algorithm reads it, float32, and the next one as it is stored.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from hume_jax import parallel
from hume_jax.core import search, subsets
from hume_jax.core.objective import Subset
from hume_jax.core.subsets import Changes, Gathered
from hume_jax.feeds import Programs, Seconds, placed_shape, state_shapes
from hume_jax.representations.gather import READERS, Ahead, Stack, scattered
from hume_jax.stored_rows import StoredRows


class _Programs(NamedTuple):
    """What a step is made of, compiled."""

    nothing: Any  # (state) -> learned
    change: Any  # (gathered, changes) -> subset
    learn: Any  # (state, learned, seed, index, subset, log_prior) -> learned
    update: Any  # (state, learned) -> (state, info)


class FromDisk:
    """Each step's rows are read from disk. A context, which ends what reads them."""

    def __init__(
        self,
        rows: StoredRows,
        settings: search.Search,
        seed: int,
        steps: int,
        log_prior: np.ndarray,
        mesh: Mesh,
    ) -> None:
        """Prepares the reading; nothing is read before the `with` block.

        Args:
          rows: the search rows.
          settings: of the search.
          seed: of the run.
          steps: of the whole search, after which nothing is read ahead.
          log_prior: (K,).
          mesh: of the devices.
        """
        self.seconds = Seconds()
        self._compiled = Programs(self.seconds)
        self._programs: dict[int, _Programs] = {}  # by the number of tasks
        self._rows, self._settings, self._mesh = rows, settings, mesh
        self._steps = steps
        self._seed, self._log_prior = parallel.place_everywhere(
            (np.asarray(seed, np.uint32), np.asarray(log_prior, np.float32)), mesh
        )
        self._changes = parallel.place_everywhere(rows.changes, mesh)
        self._draw = _Draw(rows.n, rows.shards, settings, seed)
        self._ahead = Ahead(self._gather)
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._open = contextlib.ExitStack()

    @property
    def gathering(self) -> tuple[int, float, float]:
        """Subsets read so far, the seconds that took, and those that the devices waited."""
        return self._ahead.items, self._ahead.made_seconds, self._ahead.waited_seconds

    def __enter__(self) -> Self:
        """Begins to read."""
        for stack in jax.tree.leaves(self._rows.stacks):
            self._open.enter_context(scattered(stack.arrays))
        self._open.enter_context(self._readers)
        self._open.enter_context(self._ahead)
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the threads, after the subset that they are at."""
        self._open.close()

    def programs(self) -> list[str]:
        """See `Feed`."""
        return self._compiled.texts()

    def shapes(self, tasks: Sequence[int]) -> search.State:
        """See `Feed`."""
        return state_shapes(tasks, *self._rows.shape, self._settings, self._mesh)

    def start(self, tasks: Sequence[int]) -> search.State:
        """See `Feed`."""
        numbers = parallel.place_everywhere(np.asarray(tasks, np.int32), self._mesh)

        def blank(seed: jax.Array, tasks: jax.Array) -> search.State:
            return search.blank(seed, tasks, *self._rows.shape, self._settings)

        where = jax.tree.map(lambda leaf: leaf.sharding, self.shapes(tasks))
        inputs = self._seed, numbers
        program = self._compiled.get(("blank", len(tasks)), blank, inputs, out_shardings=where)
        state = program(*inputs)
        if not search.begins_from_rows(self._settings):
            return state
        self._ahead.start((0, 0))
        settings = search.first_settings(self._settings)
        change = self._change(settings)
        first = functools.partial(search.begin, settings=settings)
        key = ("first", len(tasks))
        arguments = (state, self._seed, self._subset_like(settings))
        program = self._compiled.get(key, first, arguments, out_shardings=self._by_task(state))
        began = time.perf_counter()
        subset = self._take((0, 0), (0, 0), change)
        state = jax.block_until_ready(program(state, self._seed, subset))
        self.seconds.search += time.perf_counter() - began
        return state

    def compile(self, state: search.State, length: int) -> None:
        """See `Feed`."""
        # The first rows are read meanwhile.
        self._ahead.start((int(state.step), 0))
        self._programs_of(state)

    def advance(self, state: search.State, length: int) -> tuple[search.State, search.Info]:
        """See `Feed`."""
        nothing, change, learn, update = self._programs_of(state)
        began, first, infos = time.perf_counter(), int(state.step), []
        for step in range(first, first + length):
            learned = nothing(state)
            for index in range(self._settings.subsets_per_step):
                subset = self._take((step, index), self._following(step, index), change)
                learned = learn(*self._arguments(state, learned, index, subset))
                # Were the next one changed before this one is done with, memory would hold both.
                jax.block_until_ready(learned)
                del subset
            state, info = update(state, learned)
            infos.append(parallel.fetch(info))
        self.seconds.search += time.perf_counter() - began
        return state, jax.tree.map(lambda *values: np.stack(values), *infos)

    def _take(self, key: tuple[int, int], following: tuple[int, int] | None, change: Any) -> Subset:
        """A split as the algorithm reads it; reading of the following one begins."""
        subset = jax.block_until_ready(change(self._ahead.take(key), self._changes))
        # Only now that what was read is done with.
        if following is not None:
            self._ahead.start(following)
        return subset

    def _following(self, step: int, index: int) -> tuple[int, int] | None:
        if index + 1 < self._settings.subsets_per_step:
            return step, index + 1
        return (step + 1, 0) if step + 1 < self._steps else None

    def _gather(self, key: tuple[int, int]) -> Gathered:
        """Reads a split of a step and sends it to the devices."""
        numbers = self._draw(*key)
        placed = parallel.by_shard(self._gathered_like(), self._mesh)

        def put(stack: Stack, sharding: NamedSharding) -> jax.Array:
            shape = (*numbers.shape, stack.shape[1])
            parts: dict[Any, np.ndarray] = {}
            found = []
            for device, index in sharding.addressable_devices_indices_map(shape).items():
                assert index is not None
                own, first = numbers[index[0]], index[0].start
                # Devices along the axis of tasks have the same rows.
                if first not in parts:
                    rows = stack.take(own.reshape(-1), self._readers)
                    parts[first] = rows.reshape(*own.shape, -1)
                found.append(jax.device_put(parts[first], device))
            return jax.make_array_from_single_device_arrays(shape, sharding, found)

        return jax.block_until_ready(jax.tree.map(put, self._rows.stacks, placed))

    def _gathered_like(self) -> Any:
        """Shapes of what `_gather` returns."""
        size = self._settings.train_rows + self._settings.test_rows

        def like(stack: Stack) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self._rows.shards, size, stack.shape[1]), stack.dtype)

        return jax.tree.map(like, self._rows.stacks)

    def _subset_like(self, settings: search.Search) -> Any:
        """Shapes of what `_change` returns, and where it lies."""
        program = functools.partial(_change, settings=settings)
        shapes = jax.eval_shape(program, self._gathered_like(), self._changes)
        return _placed(shapes, parallel.by_shard(shapes, self._mesh))

    def _by_task(self, tree: Any) -> Any:
        return parallel.by_task(tree, self._mesh)

    def _learned_like(self, state: search.State) -> Any:
        shapes = jax.eval_shape(search.nothing, state)
        return _placed(shapes, self._by_task(shapes))

    def _arguments(
        self, state: search.State, learned: search.Learned, index: int, subset: Subset
    ) -> tuple:
        number = parallel.place_everywhere(np.asarray(index, np.int32), self._mesh)
        return state, learned, self._seed, number, subset, self._log_prior

    def _programs_of(self, state: search.State) -> _Programs:
        """The programs of a batch of so many tasks; compiled where they are not yet."""
        tasks = len(state.task)
        if tasks not in self._programs:
            self._programs[tasks] = self._compile(tasks, state)
        return self._programs[tasks]

    def _compile(self, tasks: int, state: search.State) -> _Programs:
        learned = self._learned_like(state)
        learn = functools.partial(search.learn, settings=self._settings)
        update = functools.partial(search.update, settings=self._settings)
        arguments = self._arguments(state, learned, 0, self._subset_like(self._settings))
        by_task = self._by_task(learned)
        updated = self._by_task(jax.eval_shape(update, state, learned))

        def get(name: str, function: Callable, arguments: tuple, **how: Any) -> Any:
            return self._compiled.get((name, tasks), function, arguments, **how)

        return _Programs(
            get("nothing", search.nothing, (state,), out_shardings=by_task),
            self._change(self._settings),
            get("learn", learn, arguments, out_shardings=by_task),
            get("update", update, (state, learned), donate_argnums=0, out_shardings=updated),
        )

    def _change(self, settings: search.Search) -> Any:
        program = functools.partial(_change, settings=settings)
        like = self._gathered_like()
        arguments = _placed(like, parallel.by_shard(like, self._mesh)), self._changes
        where = jax.tree.map(lambda leaf: leaf.sharding, self._subset_like(settings))
        return self._compiled.get(("change", settings), program, arguments, out_shardings=where)


class _Draw:
    """Row numbers of a split, drawn beside the devices: on the host's own one."""

    def __init__(self, n: int, shards: int, settings: search.Search, seed: int) -> None:
        self._counts, self._shards = subsets.shard_counts(n, shards), shards
        self._seed = np.uint32(seed)
        depth = -(-n // shards)

        def draw(
            seed: jax.Array, step: jax.Array, index: jax.Array, counts: jax.Array
        ) -> jax.Array:
            return search.split_rows(seed, step, index, counts, depth, settings)

        self._program = jax.jit(draw)
        try:
            self._device = jax.local_devices(backend="cpu")[0]
        except RuntimeError:  # the platforms that jax was told of have none
            self._device = None

    def __call__(self, step: int, index: int) -> np.ndarray:
        """(V, rows of a shard) int64 numbers of rows of the dataset."""
        with jax.default_device(self._device):
            drawn = self._program(self._seed, np.int32(step), np.int32(index), self._counts)
        rows = np.asarray(drawn).astype(np.int64)
        return rows * self._shards + np.arange(self._shards)[:, None]


def _change(gathered: Gathered, changes: Changes, settings: search.Search) -> Subset:
    return subsets.change(gathered, changes, settings.train_rows, settings.inner)


def _placed(shapes: Any, where: Any) -> Any:
    return jax.tree.map(placed_shape, shapes, where)
