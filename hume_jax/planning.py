"""From a config and the sizes of a dataset to what is searched, in which pieces."""

import json
import math
import pathlib

import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import memory
from hume_jax.core.consensus import evenness_of
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.search import Search
from hume_jax.errors import UserError
from hume_jax.processes import Processes
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
    """How even a soft vote makes the classes: as far as the objective's entropy weight says.

    Not at all under a prior of one's own: which class of a vote is its first nobody knows.
    """
    return 0.0 if config.class_prior else evenness_of(config.search.entropy_weight)


def shard_count(config: config_dict.ConfigDict, n: int) -> int:
    """Virtual shards: a power of two, fewer than asked for where rows are few.

    Args:
      config: resolved.
      n: searched rows.
    """
    subset = min(config.search.subset_size, n)
    most = min(config.search.shards, n // _SHARD_ROWS, subset // _SHARD_DRAW)
    return 2 ** int(math.log2(max(1, most)))


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
    draw = min(config.search.subset_size, n) // shards
    train = min(draw - 1, max(1, round(draw * config.search.train_fraction)))
    settings = _settings(config, train, draw - train)
    shape = memory.Shape(
        -(-n // shards) * shards, train * shards, (draw - train) * shards, phi1, inner
    )
    available = memory.available_bytes()
    rows = rows or choose_rows(config.search.rows, shape, settings, available)
    seeds = tuple(config.seeds) or (config.seed,)
    if len(seeds) > 1 and rows == "disk":
        raise UserError(
            "config field 'seeds': several seeds are searched in one program only where the rows "
            "are in memory, and these are read from disk: give one 'seed' at a time"
        )
    size = batch_size(
        config.n_tasks, config.task_batch, shape, settings, available, rows, len(seeds)
    )
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
        memory.score_bytes(scored, max(inner), config.n_classes, config.n_tasks),
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
    )


def choose_rows(asked: str, shape: memory.Shape, settings: Search, available: int) -> str:
    """Where the search reads its rows from, `memory` or `disk`.

    Args:
      asked: `search.rows` of the config: one of them, or `auto` for memory if the copies of the
        rows leave half of it free.
      shape: of the search.
      settings: of the search.
      available: bytes of free memory, where the search runs.
    """
    if asked != "auto":
        return asked
    copies = memory.data_bytes(shape)
    # Beside an accelerator, the rows pass through the memory of the machine.
    room = min(available, memory.machine_bytes())
    one = copies + memory.task_bytes(shape, settings)
    return "memory" if copies <= _COMFORTABLE * room and one <= _USABLE * available else "disk"


def where(plan: Plan) -> str:
    """A line that says where rows are read from, and why."""
    copies = memory.data_bytes(plan.shape) / 2**30
    free = memory.available_bytes() / 2**30
    cost = f"as float32 copies they take about {copies:.3g} GiB, {free:.3g} GiB are free"
    if plan.rows == "memory":
        return f"rows are searched in memory: {cost}"
    return f"each step reads its rows from disk: {cost}"


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


def _settings(config: config_dict.ConfigDict, train: int, test: int) -> Search:
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
        start=inner.start,
        inner=InnerFit(
            adjoint=inner.adjoint,
            solver=inner.solver,
            steps=inner.steps,
            newton_steps=inner.newton_steps,
            adjoint_steps=inner.adjoint_steps,
            step_size=inner.step_size,
            tolerance=inner.tolerance,
        ),
    )


def batch_size(
    tasks: int,
    asked: int,
    shape: memory.Shape,
    settings: Search,
    available: int,
    rows: str = "memory",
    seeds: int = 1,
) -> int:
    """Tasks of each seed searched at a time.

    Args:
      tasks: of the run.
      asked: `task_batch` of the config, 0 for as many as fit.
      shape: of the search.
      settings: of the search.
      available: bytes of free memory.
      rows: where they are read from, `memory` or `disk`.
      seeds: searched at a time; each has splits of its own.

    Returns:
      The size asked for, or else the largest that fits, evened out over the batches.

    Raises:
      UserError: it does not fit; the estimate and the size that fits are named.
    """
    fixed = memory.data_bytes(shape) if rows == "memory" else memory.subset_bytes(shape)
    fixed += (seeds - 1) * memory.split_bytes(shape)
    each = seeds * memory.task_bytes(shape, settings)
    fitting = max(0, int((_USABLE * available - fixed) // each))
    size = min(asked, tasks) if asked else min(tasks, max(1, fitting))
    if size > fitting:
        if fitting:
            advice = f"set task_batch={fitting}, the tasks then run in several batches"
        else:
            advice = "lower search.subset_size or n_classes, or take a machine with more memory"
            if rows == "memory" and memory.subset_bytes(shape) + each <= _USABLE * available:
                advice = f"set search.rows=disk, {advice}"
        raise UserError(
            f"a batch of {size} tasks needs about {(fixed + size * each) / 2**30:.3g} GiB, "
            f"{available / 2**30:.3g} GiB are free: {advice}"
        )
    return size if asked else -(-tasks // -(-tasks // size))
