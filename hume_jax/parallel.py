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
    shards = data.phi1.shape[0]
    return _place(data, mesh, lambda leaf: P("data") if leaf.shape[0] == shards else P())


def place_state(state: State, mesh: Mesh) -> State:
    """Spreads the tasks over ``task``."""
    return _place(state, mesh, lambda leaf: P("task") if np.ndim(leaf) else P())


def _place(tree: Any, mesh: Mesh, spec: Callable[[Any], P]) -> Any:
    def put(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        # Every process holds the whole array and gives its devices their part.
        sharding = NamedSharding(mesh, spec(host))
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)
