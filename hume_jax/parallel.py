"""Devices: a mesh with axes ``task`` and ``data``, and where the search's arrays lie on it.

One global-view program is compiled by ``jax.jit``; the arrays' `NamedSharding` says how it is
spread, and XLA places the collectives. (``jax.pmap`` is in maintenance mode and is itself jit over
a sharded map today.) Tasks are independent, so the ``task`` axis needs no communication; rows
belong to virtual shards, which the ``data`` axis divides.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hume_jax.core.search import Data, State
from hume_jax.errors import UserError


class Sizes(NamedTuple):
    """Of the mesh's axes; 0 where they follow from what there is."""

    task: int = 0
    data: int = 0


AUTOMATIC = Sizes()


def check_devices() -> None:
    """Raises a `UserError` where JAX finds no device to compute on."""
    try:
        jax.devices()
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"JAX finds no device ({str(error) or 'no backend starts'}): see that JAX_PLATFORMS="
            f"{os.environ.get('JAX_PLATFORMS', '')!r} and other JAX_... of the environment name "
            "what this machine has and this installation of JAX knows"
        ) from error


def mesh_sizes(tasks: int, shards: int, devices: int, asked: Sizes = AUTOMATIC) -> Sizes:
    """How many devices share the tasks, and how many the rows.

    Args:
      tasks: of a batch.
      shards: virtual shards.
      devices: that there are.
      asked: by the config. By default so many on ``task`` that divide the tasks, and on ``data``
        that divide the shards, that the fewest stay idle; of equals, the most on ``task``.

    Raises:
      UserError: there cannot be such a mesh.
    """
    found = [
        (task * data, task, data)
        for task in ([asked.task] if asked.task else _divisors(tasks))
        for data in ([asked.data] if asked.data else _divisors(shards))
        if task * data <= devices
    ]
    _, task, data = max(found, default=(0, asked.task or 1, asked.data or 1))
    if task * data > devices:
        raise UserError(
            f"mesh.task={asked.task} and mesh.data={asked.data} need {task * data} devices, there "
            f"are {devices}: lower them, or set them to 0"
        )
    if tasks % task:
        raise UserError(
            f"mesh.task={task} does not divide batches of {tasks} tasks: set n_tasks, or "
            "task_batch, to a multiple of it"
        )
    if shards % data:
        raise UserError(
            f"mesh.data={data} does not divide the {shards} virtual shards of the rows "
            "(search.shards): set it to a power of two up to that"
        )
    return Sizes(task, data)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def make_mesh(
    tasks: int, shards: int, devices: int | None = None, asked: Sizes = AUTOMATIC
) -> Mesh:
    """A mesh over the devices, of `mesh_sizes`; devices that it has no place for stay idle.

    Raises:
      UserError: as `mesh_sizes`; all devices of a process would stay idle.
    """
    sizes = mesh_sizes(tasks, shards, devices or jax.device_count(), asked)
    used = jax.devices()[: sizes.task * sizes.data]
    if devices is None:
        check_processes(tasks, shards, sizes)
    return jax.make_mesh(
        sizes, ("task", "data"), axis_types=(AxisType.Auto, AxisType.Auto), devices=used
    )


def check_processes(tasks: int, shards: int, sizes: Sizes) -> None:
    """Raises a `UserError` if all devices of a process would stay idle."""
    used = jax.devices()[: sizes.task * sizes.data]
    busy = {device.process_index for device in used}
    if len(busy) < jax.process_count():
        raise UserError(
            f"{jax.process_count()} processes are too many for {tasks} tasks at a time and "
            f"{shards} virtual shards of rows, {len(busy)} of them would do all: take as many as "
            "divide n_tasks, or a power of two up to search.shards"
        )


def own_mesh() -> Mesh:
    """A mesh of one device of this process."""
    device = np.asarray(jax.local_devices()[:1]).reshape(1, 1)
    return Mesh(device, ("task", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


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
