"""From a config and the sizes of a dataset to what is searched, in which pieces."""

import bisect
import functools
import json
import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import memory, parallel
from hume_jax.core.consensus import evenness_of
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.search import Search
from hume_jax.errors import UserError
from hume_jax.processes import Processes
from hume_jax.progress import count
from hume_jax.search_loop import Plan
from hume_jax.workdir import Workdir

# Fewest rows of a virtual shard, and of a subset drawn from it: below these, fewer shards are used.
_SHARD_ROWS, _SHARD_DRAW = 32, 16
# Share of the free memory that is planned with: the estimates are some, and others use memory too.
_USABLE = 0.9
# Share of it that copies of the rows may take where nobody asked for them.
_COMFORTABLE = 0.5


def class_prior(config: config_dict.ConfigDict) -> np.ndarray:
    """The class prior of a resolved config, ``(K,)`` float64; uniform where none is given."""
    return np.asarray(config.class_prior or (1 / config.n_classes,) * config.n_classes, np.float64)


def evenness(config: config_dict.ConfigDict) -> float:
    """How far a soft vote brings classes to the prior: as the objective's entropy weight says."""
    return evenness_of(config.search.entropy_weight)


def shard_count(config: config_dict.ConfigDict, n: int) -> int:
    """Virtual shards: a power of two, fewer than asked for where rows are few.

    Args:
      config: resolved.
      n: searched rows.
    """
    subset = min(config.search.subset_size, n)
    most = min(config.search.shards, n // _SHARD_ROWS, subset // _SHARD_DRAW)
    return 2 ** int(math.log2(max(1, most)))


def draws(config: config_dict.ConfigDict, n: int, shards: int) -> tuple[int, int]:
    """Rows of each shard that a split fits on, and that it is judged on.

    Args:
      config: resolved.
      n: searched rows.
      shards: virtual shards.
    """
    draw = min(config.search.subset_size, n) // shards
    train = min(draw - 1, max(1, round(draw * config.search.train_fraction)))
    return train, draw - train


def make_plan(
    config: config_dict.ConfigDict,
    n: int,
    phi1: int,
    inner: tuple[int, ...],
    rows: str | None = None,
) -> Plan:
    """Plans a search.

    Args:
      config: resolved.
      n: searched rows.
      phi1: columns of phi1.
      inner: directions of each second space, or the most that there can be.
      rows: where they are read from whatever the config says, as a run began with it.

    Raises:
      UserError: more tasks at a time than fit in memory, or more rows than can be scored.
    """
    shards = shard_count(config, n)
    train, test = draws(config, n, shards)
    settings = settings_of(config, train, test)
    shape = memory.Shape(-(-n // shards) * shards, train * shards, test * shards, phi1, inner)
    seeds = tuple(config.seeds) or (config.seed,)
    # All batches are of this many tasks, or of a multiple of it.
    unit = math.gcd(config.n_tasks, min(config.task_batch or config.n_tasks, config.n_tasks))
    asked = parallel.Sizes(config.mesh.task, config.mesh.data)
    sizes = parallel.mesh_sizes(unit, shards, jax.device_count(), asked)
    stored = memory.stored_bytes(config.search.storage)
    # Of what a device has.
    own, free = shape.part(sizes.data), _free(sizes)
    rows = rows or choose_rows(config.search.rows, own, settings, free, stored)
    if len(seeds) > 1 and rows == "disk":
        raise UserError(
            "config field 'seeds': several seeds are searched in one program only where the rows "
            "are in memory, and these are read from disk: give one 'seed' at a time"
        )
    needed = functools.partial(
        memory.search_bytes, own, settings, seeds=len(seeds), rows=rows, stored=stored
    )
    size = batch_size(config.n_tasks, config.task_batch, sizes.task, needed, free)
    available = memory.available_bytes()
    _check_fits(
        f"encoders, labels and agreement of {config.n_tasks} tasks need",
        memory.result_bytes(config.n_tasks, n, phi1, config.n_classes)
        + (len(seeds) - 1) * memory.encoder_bytes(config.n_tasks, phi1, config.n_classes),
        available,
        "lower n_tasks",
    )
    scored = min(config.score.rows, n)
    _check_fits(
        f"scoring on {scored} rows needs",
        memory.score_bytes(
            scored,
            max(inner),
            config.n_classes,
            config.n_tasks,
            waiting=sum(inner) - max(inner),
        ),
        available,
        "lower score.rows",
    )
    tasks = tuple(range(config.n_tasks))
    return Plan(
        settings,
        shape,
        seeds,
        config.search.steps,
        tuple(tasks[i : i + size] for i in range(0, config.n_tasks, size)),
        config.log_every,
        config.checkpoint_seconds,
        rows,
        config.search.storage,
        asked,
    )


def _free(sizes: parallel.Sizes) -> int:
    """Bytes of free memory of each device of a mesh."""
    return memory.available_bytes(min(jax.local_device_count(), sizes.task * sizes.data))


def choose_rows(
    asked: str, shape: memory.Shape, settings: Search, available: int, stored: int
) -> str:
    """Where the search reads its rows from, `memory` or `disk`.

    Args:
      asked: `search.rows` of the config: one of them, or `auto` for memory if the rows leave half
        of it free.
      shape: of what a device has of the search.
      settings: of the search.
      available: bytes of free memory of a device.
      stored: bytes of a number that is held.
    """
    if asked != "auto":
        return asked
    held = memory.data_bytes(shape, stored) <= _COMFORTABLE * available
    one = memory.search_bytes(shape, settings, 1, stored=stored)
    return "memory" if held and one <= _USABLE * available else "disk"


def where(plan: Plan) -> str:
    """A line that says where rows are read from, and why, and what memory the search takes."""
    sizes = plan.mesh_sizes()
    own, stored = plan.shape.part(sizes.data), memory.stored_bytes(plan.storage)
    held = memory.data_bytes(own, stored)
    needed = memory.search_bytes(
        own,
        plan.settings,
        len(plan.batches[0]) // sizes.task,
        seeds=len(plan.seeds),
        rows=plan.rows,
        stored=stored,
    )
    held_here = plan.rows == "memory"
    rows = "rows are searched in memory" if held_here else "each step reads its rows from disk"
    take = "take" if held_here else "would take"
    each = " of each device" if sizes.task * sizes.data > 1 else ""
    text = (
        f"{rows}: as {plan.storage} they {take} {held / 2**30:.3g} GiB{each}, the search "
        f"{needed / 2**30:.3g} GiB; {_free(sizes) / 2**30:.3g} GiB are free"
    )
    if plan.rows == "disk" and sizes.task > 1:
        return f"{text}; mesh.data above {sizes.data} would share them among more devices"
    return text


def _check_fits(what: str, needed: int, available: int, advice: str) -> None:
    if needed > _USABLE * available:
        raise UserError(
            f"{what} about {needed / 2**30:.3g} GiB, {available / 2**30:.3g} GiB are free: {advice}"
        )


def clamped(config: config_dict.ConfigDict, n: int, shape: memory.Shape) -> list[str]:
    """A line to warn with if a subset is larger than the data, or none."""
    subset = config.search.subset_size
    if subset <= n:
        return []
    taken = shape.train + shape.test
    return [f"search.subset_size is {subset}, there are {n} rows: a subset takes {taken} of them"]


def check_processes(plan: Plan) -> None:
    """Raises a `UserError` if a process of the run would have nothing to do."""
    parallel.check_processes(plan.unit, plan.shards, plan.mesh_sizes())


def idle(plan: Plan) -> list[str]:
    """A line to warn with if some devices have nothing to do, or none."""
    sizes, devices = plan.mesh_sizes(), jax.device_count()
    if sizes.task * sizes.data == devices:
        return []
    return [
        f"{devices - sizes.task * sizes.data} of {devices} devices stay idle: {sizes.task} share "
        f"batches of {plan.unit} tasks, {sizes.data} the {plan.shards} shards of the rows; with "
        "n_tasks, or mesh.task times mesh.data, a multiple of the devices all would work"
    ]


def kept_rows(workdir: pathlib.Path) -> str | None:
    """Where the run of a folder read its rows from when it began; None if it did not begin."""
    path = workdir / "rows.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    # Before there was a choice.
    return "memory" if (workdir / "batches.json").exists() else None


def keep_batches(plan: Plan, workdir: Workdir) -> Plan:
    """The plan with the batches that the run began with, whatever memory was free then.

    Where it reads its rows from is kept too, for `kept_rows`.
    """
    path = workdir.path / "batches.json"
    if not workdir.owner:
        return plan
    if not path.exists():
        workdir.write_json("rows.json", plan.rows)
        workdir.write_json(path.name, plan.batches)
    batches = tuple(map(tuple, json.loads(path.read_text(encoding="utf-8"))))
    if len(batches[0]) > len(plan.batches[0]):
        logging.warning(
            "the run began with batches of %d tasks, %d fit in the memory that is free now",
            len(batches[0]), len(plan.batches[0]),
        )  # fmt: skip
    return plan._replace(batches=batches)


def shared(plan: Plan, processes: Processes) -> Plan:
    """The plan of process 0: where rows are read from, and the batches."""
    rows, batches = processes.share([plan.rows, plan.batches])
    return plan._replace(rows=rows, batches=tuple(map(tuple, batches)))


def settings_of(config: config_dict.ConfigDict, train: int, test: int) -> Search:
    """What the search is given of a config.

    Args:
      config: resolved.
      train: rows of each shard that a split fits on.
      test: that it is judged on.
    """
    inner = config.inner
    return Search(
        n_classes=config.n_classes,
        train_rows=train,
        test_rows=test,
        subsets_per_step=config.search.subsets_per_step,
        splits=config.search.splits,
        entropy_weight=config.search.entropy_weight,
        temperature=config.encoder.temperature,
        learning_rate=config.search.learning_rate,
        clip=config.search.clip,
        anneal_steps=tuple(config.search.anneal_steps),
        anneal_learning_rate=config.search.anneal_learning_rate,
        anneal_temperature=config.search.anneal_temperature,
        labels=config.encoder.labels,
        encoder_start=config.encoder.start,
        coordinates=config.encoder.coordinates,
        start=inner.start,
        inner=InnerFit(
            adjoint=inner.adjoint,
            solver=inner.solver,
            steps=inner.steps,
            newton_steps=inner.newton_steps,
            adjoint_steps=inner.adjoint_steps,
            step_size=inner.step_size,
            tolerance=inner.tolerance,
            precision=config.precision,
        ),
    )


def batch_size(
    tasks: int, asked: int, devices: int, needed: Callable[..., int], available: int
) -> int:
    """Tasks of each seed searched at a time.

    Args:
      tasks: of the run.
      asked: `task_batch` of the config, 0 for as many as fit.
      devices: that share a batch's tasks; they divide the tasks, and a batch that is asked for.
      needed: bytes of a device for the tasks that it has, as `memory.search_bytes`.
      available: bytes of its free memory.

    Returns:
      The size asked for, or else the largest that fits, evened out over the batches.

    Raises:
      UserError: it does not fit; the estimate and the size that fits are named.
    """
    usable = _USABLE * available
    fitting = devices * bisect.bisect_right(range(1, tasks // devices + 1), usable, key=needed)
    size = min(asked, tasks) if asked else min(tasks, max(devices, fitting))
    if size > fitting:
        if fitting:
            advice = f"set task_batch={fitting}, the tasks then run in several batches"
        else:
            advice = "lower search.subset_size or n_classes, or take a machine with more memory"
            if needed(1, rows="disk") <= min(usable, needed(1) - 1):
                advice = f"set search.rows=disk, {advice}"
        each = " on each device" if devices > 1 else ""
        raise UserError(
            f"a batch of {count(size, 'task')} needs about "
            f"{needed(-(-size // devices)) / 2**30:.3g} GiB{each}, "
            f"{available / 2**30:.3g} GiB are free: {advice}"
        )
    if asked:
        return size
    batches = -(-tasks // size)
    return devices * -(-tasks // (devices * batches))
