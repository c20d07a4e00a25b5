"""The search rows where they are stored, and all of them on the devices."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from hume_jax import memory, parallel
from hume_jax.core import subsets
from hume_jax.core.search import Data, Rows
from hume_jax.core.subsets import Changes, Gathered
from hume_jax.representations.gather import READERS, Stack


class StoredRows(NamedTuple):
    """The search rows where they are stored."""

    phi1: tuple[Stack, ...]  # of each file
    phi2: tuple[Stack, ...]  # of each second space
    changes: Changes  # what they pass through
    shards: int  # virtual shards

    @property
    def stacks(self) -> Any:
        """As `Gathered` has the rows of one split."""
        return Gathered._make((self.phi1, self.phi2))

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.phi1[0].shape[0]

    @property
    def depth(self) -> int:
        """Rows of a shard, padding included."""
        return -(-self.n // self.shards)

    @property
    def shape(self) -> tuple[int, tuple[int, ...]]:
        """Columns of phi1, and coordinates of the inner fit in each second space."""
        widths = tuple(len(space.penalty) for space in self.changes.spaces)
        return sum(stack.shape[1] for stack in self.phi1), widths


def hold(
    rows: StoredRows,
    mesh: Mesh,
    done: Callable[[int], None] = lambda rows: None,
    storage: str = "float32",
) -> Data:
    """All rows as the algorithm reads them, on the devices of a mesh.

    Files are read in their order, a block of rows at a time, and normalised where they will lie.
    A process reads the rows of its own devices' shards alone. Padding holds other rows.

    Args:
      rows: where they are stored.
      mesh: with axes `task` and `data`; every `task` row of it has all of them.
      done: called with the number of rows read since the last call.
      storage: what they are stored as, a key of `subsets.HELD`.
    """
    shape = (rows.shards, rows.depth)
    sharding = parallel.over_data(mesh)
    parts: dict[int, tuple[Array, ...]] = {}
    placed: list[tuple[Array, ...]] = []
    with ThreadPoolExecutor(READERS, "read") as readers:
        for device, index in sharding.addressable_devices_indices_map(shape).items():
            assert index is not None
            first, last, _ = index[0].indices(rows.shards)
            if first not in parts:
                parts[first] = _fill(rows, range(first, last), device, readers, done, storage)
                placed.append(parts[first])
            else:  # Devices along the axis of tasks have the same rows.
                placed.append(tuple(jax.device_put(part, device) for part in parts[first]))
    whole = [
        jax.make_array_from_single_device_arrays((*shape, part[0].shape[-1]), sharding, list(part))
        for part in zip(*placed, strict=True)
    ]
    small = parallel.place_everywhere([space.penalty for space in rows.changes.spaces], mesh)
    counts = subsets.shard_counts(rows.n, rows.shards)
    spaces = tuple(map(Rows, whole[1:], small))
    return Data(whole[0], spaces, parallel.place_by_shard(counts, mesh))


def _fill(
    rows: StoredRows,
    shards: range,
    device: jax.Device,
    readers: ThreadPoolExecutor,
    done: Callable[[int], None],
    storage: str,
) -> tuple[Array, ...]:
    """The rows of some shards on one device: of phi1, then of each second space."""
    columns, widths = rows.shape
    length = min(rows.depth, max(1, memory.BLOCK // len(shards)))
    changes = jax.device_put(rows.changes, device)
    with jax.default_device(device):
        shapes = [(len(shards), rows.depth, width) for width in (columns, *widths)]
        held = tuple(jnp.zeros(shape, subsets.HELD[storage]) for shape in shapes)
        put = jax.jit(functools.partial(_put, storage=storage), donate_argnums=0)
        for start in range(0, rows.depth, length):
            # The last block is as long as the others, so that one program does for all.
            first = min(start, rows.depth - length)
            numbers = np.arange(first, first + length)[None] * rows.shards
            numbers = np.minimum(numbers + np.asarray(shards)[:, None], rows.n - 1)
            take = functools.partial(_take, numbers=numbers, readers=readers)
            held = put(held, jax.tree.map(take, rows.stacks), changes, first)
            done(numbers.size)
    return jax.block_until_ready(held)


def _take(stack: Stack, numbers: np.ndarray, readers: ThreadPoolExecutor) -> np.ndarray:
    return stack.take(numbers.reshape(-1), readers).reshape(*numbers.shape, -1)


def _put(
    held: tuple[Array, ...], gathered: Gathered, changes: Changes, first: Array, storage: str
) -> tuple[Array, ...]:
    """Writes a block of rows, (shards, length, d) as stored, where it belongs."""
    return tuple(
        jax.lax.dynamic_update_slice(whole, subsets.held(part, storage), (0, first, 0))
        for whole, part in zip(held, subsets.changed(gathered, changes), strict=True)
    )
