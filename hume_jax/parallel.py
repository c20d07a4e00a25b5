"""Devices: a mesh with axes ``task`` and ``data``, and where the search's arrays lie on it.

One global-view program is compiled by ``jax.jit``; the arrays' `NamedSharding` says how it is
spread, and XLA places the collectives. (``jax.pmap`` is in maintenance mode and is itself jit over
a sharded map today.) Tasks are independent, so the ``task`` axis needs no communication; rows
belong to virtual shards, which the ``data`` axis divides.
"""

import contextlib
import json
import math
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hume_jax.errors import LostProcess, UserError

if TYPE_CHECKING:  # Who encodes images need not wait for the import of the search.
    from hume_jax.core.search import Data, State

# Seconds that the processes of a run wait for each other to start.
_PATIENCE = 300
_RETRY_SECONDS = 1.0


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


def place_data(data: "Data", mesh: Mesh) -> "Data":
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


def place_state(state: "State", mesh: Mesh) -> "State":
    """Spreads the tasks over ``task``."""
    return _place(state, mesh, lambda leaf: P("task") if np.ndim(leaf) else P())


def place_everywhere(tree: Any, mesh: Mesh) -> Any:
    """Gives every device of the mesh all of the arrays."""
    return _place(tree, mesh, lambda leaf: P())


def by_task(tree: Any, mesh: Mesh) -> Any:
    """Shardings of arrays, or of their shapes, that `place_state` would place."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, P("task") if leaf.ndim else P()), tree)


def by_shard(tree: Any, mesh: Mesh) -> Any:
    """Shardings of rows of the virtual shards, where `place_data` has them; all of the rest."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, P("data") if leaf.ndim > 1 else P()), tree)


def _place(tree: Any, mesh: Mesh, spec: Callable[[Any], P]) -> Any:
    def put(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        # Every process holds the whole array and gives its devices their part.
        sharding = NamedSharding(mesh, spec(host))
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


class Processes(NamedTuple):
    """Which of the processes of a run this one is."""

    number: int = 0
    total: int = 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A part of the work that no process leaves before all are done with it.

        Raises:
          UserError: it failed in another process; so no process waits for one that has ended.
          LostProcess: another process was killed.
        """
        failed = True
        try:
            yield
            failed = False
        finally:
            others = self._failed(failed)
            if others.size and not failed:
                raise UserError(
                    f"process {others[0]} of {self.total} has failed, it says why: what is on disk "
                    "is kept, the same commands go on with it"
                )

    def agree(self, values: Mapping[str, Any]) -> None:
        """Checks that all processes were started for the same work; all ask at the same time.

        Args:
          values: what must be the same, that JSON can hold.

        Raises:
          UserError: a process has another value than process 0, the first of them by name.
          LostProcess: another process was killed.
        """
        first, *others = (json.loads(text) for text in self._gather(json.dumps(values)))
        for number, other in enumerate(others, 1):
            for name in (*first, *(name for name in other if name not in first)):
                if first.get(name) != other.get(name):
                    raise UserError(
                        f"process {number} has {name} {other.get(name)!r}, process 0 has "
                        f"{first.get(name)!r}: start all of them with the same command, the same "
                        "images and the same weights"
                    )

    def _gather(self, text: str) -> list[str]:
        """The texts of all processes, in their order."""
        if self.total == 1:
            return [text]
        content = np.frombuffer(text.encode(), np.uint8)
        sizes = _allgather(np.asarray(content.size))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: content.size] = content
        rows = _allgather(padded)
        return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]

    def _failed(self, failed: bool) -> np.ndarray:
        """The numbers of the processes that failed; all processes ask at the same time."""
        if self.total == 1:
            return np.flatnonzero([failed])
        return np.flatnonzero(_allgather(np.asarray(failed)))


def _allgather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes; all ask at the same time."""
    from jax.experimental import multihost_utils

    try:
        return np.asarray(multihost_utils.process_allgather(array))
    except (ValueError, RuntimeError) as error:
        raise LostProcess(
            "another process of this run has gone: what is on disk is kept, the same commands, all "
            f"of them started again, go on with it ({str(error)[:100]})"
        ) from error


ALONE = Processes()


def start(coordinator: str, count: int, index: int) -> Processes:
    """Joins the processes of a run; before anything asks for a device.

    Args:
      coordinator: `HOST:PORT` of process 0, 'auto' where the cluster says it (TPU pods, Slurm,
        Open MPI, Kubernetes; `jax.distributed.initialize`), '' for a process by itself.
      count: number of processes; not for 'auto'.
      index: number of this one; not for 'auto'.

    Raises:
      UserError: such processes cannot be, or process 0 does not answer.
    """
    if not coordinator:
        if (count, index) != (1, 0):
            raise UserError(
                f"process {index} of {count}: say where process 0 is, distributed=HOST:PORT"
            )
        return ALONE
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise UserError(
                f"distributed=auto found no cluster ({error}): give distributed=HOST:PORT, "
                "processes and process"
            ) from error
        return Processes(jax.process_index(), jax.process_count())
    if not re.fullmatch(r".+:[0-9]+", coordinator):
        raise UserError(f"distributed is {coordinator!r}, it must be 'auto' or HOST:PORT")
    if not 0 <= index < count:
        raise UserError(f"process is {index} of {count} processes: they are counted from 0")
    if index:
        _wait_for(coordinator)
    logging.info("waiting for all %d processes, up to %d s", count, _PATIENCE)
    jax.distributed.initialize(coordinator, count, index, initialization_timeout=_PATIENCE)
    return Processes(jax.process_index(), jax.process_count())


def _wait_for(coordinator: str) -> None:
    """Waits until process 0 answers; JAX would end in a dump where it does not."""
    host, _, port = coordinator.rpartition(":")
    end, why = time.monotonic() + _PATIENCE, ""
    logging.info("waiting for process 0 at %s, up to %d s", coordinator, _PATIENCE)
    while time.monotonic() < end:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_RETRY_SECONDS).close()
            return
        except socket.gaierror as error:
            raise UserError(f"distributed={coordinator}: {host} is no host: {error}") from error
        except (OSError, OverflowError) as error:
            why = str(error)
        time.sleep(_RETRY_SECONDS)
    raise UserError(
        f"process 0 does not answer at {coordinator} ({why}): start it with the same command and "
        "process=0, on the host that distributed=HOST:PORT names"
    )
