"""Devices: a mesh with axes ``task`` and ``data``, and where the search's arrays lie on it.

One global-view program is compiled by ``jax.jit``; the arrays' `NamedSharding` says how it is
spread, and XLA places the collectives. (``jax.pmap`` is in maintenance mode and is itself jit over
a sharded map today.) Tasks are independent, so the ``task`` axis needs no communication; rows
belong to virtual shards, which the ``data`` axis divides.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hume_jax.core.search import Data, State


def make_mesh(tasks: int, shards: int, devices: int | None = None) -> Mesh:
    """A mesh over the devices: as many as divide the tasks on ``task``, the rest on ``data``.

    Args:
      tasks: tasks of a batch.
      shards: virtual shards; what the ``data`` axis must divide.
      devices: number of devices, all by default. Those that divide neither stay idle.
    """
    count = devices or jax.device_count()
    task = math.gcd(tasks, count)
    data = math.gcd(shards, count // task)
    return jax.make_mesh(
        (task, data),
        ("task", "data"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices()[: task * data],
    )


def place_data(data: Data, mesh: Mesh) -> Data:
    """Spreads the virtual shards over ``data``; every ``task`` row of the mesh has all of them."""
    spaces = tuple(
        space._replace(
            x=place_by_shard(space.x, mesh), penalty=place_everywhere(space.penalty, mesh)
        )
        for space in data.spaces
    )
    return data._replace(
        phi1=place_by_shard(data.phi1, mesh),
        spaces=spaces,
        counts=place_by_shard(data.counts, mesh),
    )


def over_data(mesh: Mesh) -> NamedSharding:
    """Where arrays lie that have the virtual shards along their first axis."""
    return NamedSharding(mesh, P("data"))


def place_by_shard(tree: Any, mesh: Mesh) -> Any:
    """Spreads arrays that have the virtual shards along their first axis."""
    return _place(tree, mesh, lambda leaf: P("data"))


def place_state(state: State, mesh: Mesh) -> State:
    """Spreads the tasks over ``task``."""
    return jax.tree.map(_put, state, by_task(jax.tree.map(np.asarray, state), mesh))


def place_everywhere(tree: Any, mesh: Mesh) -> Any:
    """Gives every device of the mesh all of the arrays."""
    return _place(tree, mesh, lambda leaf: P())


def by_task(tree: Any, mesh: Mesh) -> Any:
    """Shardings of arrays, or of their shapes, that `place_state` would place."""

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        # What tasks share has a number for each seed.
        shared = not leaf.ndim or any(getattr(key, "name", "") == "effort" for key in path)
        return NamedSharding(mesh, P() if shared else P("task"))

    return jax.tree_util.tree_map_with_path(of, tree)


def by_shard(tree: Any, mesh: Mesh) -> Any:
    """Shardings of rows of the virtual shards, where `place_data` has them; all of the rest."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, P("data") if leaf.ndim > 1 else P()), tree)


def fetch(tree: Any) -> Any:
    """Arrays of any sharding as NumPy arrays, whole on every process; all ask at the same time."""

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return np.asarray(leaf)
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def _place(tree: Any, mesh: Mesh, spec: Callable[[Any], P]) -> Any:
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, spec(leaf))), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Every process holds the whole array and gives its devices their part."""
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
