"""Runs the search over batches of tasks: blocks of steps, checkpoints, metrics, progress."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from hume_jax import compiling, memory, parallel, profiling, work
from hume_jax.core import search
from hume_jax.disk_feed import FromDisk
from hume_jax.errors import Preempted, UserError
from hume_jax.feeds import Feed, FromMemory, Programs
from hume_jax.preemption import Watch
from hume_jax.processes import ALONE, Processes
from hume_jax.progress import Progress, count, duration, rows_progress
from hume_jax.stored_rows import StoredRows, hold
from hume_jax.workdir import Workdir


class Plan(NamedTuple):
    """What is run, in which pieces."""

    settings: search.Search
    shape: memory.Shape
    seeds: tuple[int, ...]  # each is a run of its own, all in one program
    steps: int  # outer steps of every task
    batches: tuple[tuple[int, ...], ...]  # tasks of each seed that are searched at a time
    log_every: int
    checkpoint_seconds: float
    rows: str = "memory"  # where steps read their rows: 'memory' or 'disk'
    storage: str = "float32"  # what those in memory are stored as, a key of `subsets.HELD`
    mesh: parallel.Sizes = parallel.AUTOMATIC  # as the config asks for

    def mesh_sizes(self) -> parallel.Sizes:
        """Of the mesh that the search runs on.

        Raises:
          UserError: as `parallel.mesh_sizes`.
        """
        return parallel.mesh_sizes(self.unit, self.shards, jax.device_count(), self.mesh)

    @property
    def unit(self) -> int:
        """Tasks of which every batch has a multiple: the last may be smaller."""
        return math.gcd(*map(len, self.batches))

    @property
    def shards(self) -> int:
        """Virtual shards of the rows."""
        return self.shape.train // self.settings.train_rows


class Outcome(NamedTuple):
    """The task encoders found, and where the time of this process went."""

    theta: np.ndarray  # (G, S, d1, K) float32, of every seed
    dropped: np.ndarray  # (G, S) int32, the step, from 1, at which a task was dropped; 0: none
    # compile, search (without compilation); from disk also gather and gather_waited.
    seconds: dict[str, float]
    steps: int  # outer steps done, of all batches; fewer than planned, and fewer tasks, by Ctrl-C


def run(
    plan: Plan,
    rows: StoredRows,
    log_prior: np.ndarray,
    workdir: Workdir,
    processes: Processes = ALONE,
    profile: bool = False,
    interruptible: bool = False,
) -> Outcome:
    """Searches all tasks, from the last checkpoint on if there is one.

    Args:
      plan: what is run.
      rows: the search rows.
      log_prior: (K,).
      workdir: of the run.
      processes: that search together.
      profile: whether to trace a block of steps, to a folder `profile` of the run's.
      interruptible: whether Ctrl-C ends the search after the block of steps that it is at, with
        the tasks as they are then; the state is saved.

    Raises:
      UserError: no task is left, see `search.State.dropped`.
      Preempted: by SIGTERM; the state is saved.
      KeyboardInterrupt: Ctrl-C before the first step, a second one, or not `interruptible`.
    """
    watched = Watch(processes, interruptible=interruptible)
    with _feed(plan, rows, log_prior) as feed, watched as watch:
        runner = _Runner(plan, feed, workdir, watch, processes, profile)
        batches = _run(plan, feed, runner)
        workdir.finish()
        # What came after the last block, or to a search that had no steps left.
        if watch.asked_last():
            raise _preempted("the last step")
    seconds = {"compile": feed.seconds.compile, "search": feed.seconds.search}
    seconds["checkpoint"] = runner.saving
    if isinstance(feed, FromDisk):
        subsets, took, waited = feed.gathering
        logging.info(
            "read %s in %s, of which the search waited for %s",
            count(subsets, "subset"), duration(took), duration(waited),
        )  # fmt: skip
        seconds |= {"gather": took, "gather_waited": waited}
    theta, dropped = (
        np.concatenate([p.reshape(len(plan.seeds), -1, *p.shape[1:]) for p in parts], axis=1)
        for parts in zip(*batches, strict=True)
    )
    _check_left(plan, dropped)
    return Outcome(theta, dropped, seconds, runner.steps)


def encoders(
    plan: Plan, rows: StoredRows, log_prior: np.ndarray, programs: Programs | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A short search of one seed that keeps no state and logs nothing.

    Args:
      plan: what is run.
      rows: the search rows.
      log_prior: (K,).
      programs: of earlier searches of the same settings, used again for rows of one shape.

    Returns:
      (S, d1, K) float32 task encoders, and (S,) int32 the step, from 1, at which a task was
      dropped; 0: none.
    """
    found = []
    with _feed(plan, rows, log_prior, programs) as feed:
        for tasks in plan.batches:
            state = feed.start(tasks)
            while (left := plan.steps - int(state.step)) > 0:
                state, _ = feed.advance(state, min(plan.log_every, left))
            found.append(_encoders(state))
    theta, dropped = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return theta, dropped


def _preempted(where: str) -> Preempted:
    return Preempted(
        f"stopped by SIGTERM after {where}, which is saved; the same command goes on from there"
    )


def _check_left(plan: Plan, dropped: np.ndarray) -> None:
    for seed, steps in zip(plan.seeds, dropped, strict=True):
        if np.all(steps):
            of_seed = f" of seed {seed}" if len(plan.seeds) > 1 else ""
            raise UserError(
                f"every task{of_seed} was dropped, the last at step {max(steps)}: lower "
                "search.learning_rate or inner.step_size, or raise inner.penalty, in another "
                "--workdir"
            )


@contextlib.contextmanager
def _feed(
    plan: Plan, rows: StoredRows, log_prior: np.ndarray, programs: Programs | None = None
) -> Iterator[Feed]:
    mesh = parallel.make_mesh(plan.unit, rows.shards, asked=plan.mesh)
    if plan.rows == "disk":
        (seed,) = plan.seeds
        with FromDisk(rows, plan.settings, seed, plan.steps, log_prior, mesh) as feed:
            yield feed
    else:
        with rows_progress(rows.n, "rows read") as done:
            data = hold(rows, mesh, done, plan.storage)
        yield FromMemory(data, plan.settings, plan.seeds, log_prior, mesh, programs)


def _run(plan: Plan, feed: Feed, runner: "_Runner") -> list[tuple[np.ndarray, np.ndarray]]:
    """The task encoders of every batch, and which of them were dropped."""
    theta: list[tuple[np.ndarray, np.ndarray]] = []
    logging.info("compiling")
    state = runner.restore(0)
    while int(state.step) == plan.steps and len(theta) + 1 < len(plan.batches):
        theta.append(_encoders(state))
        state = runner.restore(len(theta))
    current, reached = len(theta), int(state.step)
    # Lines of steps that the checkpoint has not seen are written again.
    runner.truncate(current, reached)
    total, done = plan.steps * len(plan.batches), plan.steps * current + reached
    if done:
        logging.info("going on from step %d of %d", done, total)
    runner.compile(state, done)
    with Progress(total, "search", done=done) as progress:
        theta.append(_encoders(runner.batch(current, state, progress)))
        for i in range(current + 1, len(plan.batches)):
            if runner.interrupted:
                break
            theta.append(_encoders(runner.batch(i, feed.start(plan.batches[i]), progress)))
    return theta


def estimate_seconds(plan: Plan) -> float:
    """Time of the whole search, from the measured time of one inner product of its shape."""
    shape, tasks = plan.shape, len(plan.batches[0]) * len(plan.seeds)
    x = jnp.ones((shape.train, shape.inner[0]), jnp.float32)
    w = jnp.ones((tasks * plan.settings.n_classes, x.shape[1]), x.dtype)
    product = jax.jit(lambda w, x: w @ x.T).lower(w, x).compile(compiling.options())
    jax.block_until_ready(product(w, x))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(product(w, x))
        times.append(time.perf_counter() - start)
    # The shortest: other work on the machine only ever adds.
    flops = 2.0 * w.size * len(x) / min(times)
    seconds = work.step_flops(shape, plan.settings, tasks) / flops * plan.steps
    # What is no product adds a fifth on CPU cores, the first steps' longer solves another.
    return 1.4 * seconds * sum(map(len, plan.batches)) / len(plan.batches[0])


class _Runner:
    """Batches of one plan: blocks of steps, what is written of them, checkpoints."""

    def __init__(
        self,
        plan: Plan,
        feed: Feed,
        workdir: Workdir,
        watch: Watch,
        processes: Processes,
        profile: bool,
    ) -> None:
        self._plan, self._feed, self._workdir = plan, feed, workdir
        self._watch, self._processes = watch, processes
        self._saved = time.monotonic()
        self.saving = 0.0  # seconds that the search waited for its checkpoints
        self.steps = 0  # done, of all batches
        self._dropped: set[tuple[int, int]] = set()  # that were told of
        # Blocks to go until the one that is traced: the second, which waits for no first call.
        self._until_profile = 1 if profile and processes.first else -1
        self._block = work.block_steps(
            plan.shape,
            plan.settings,
            len(plan.batches[0]) * len(plan.seeds),
            plan.log_every,
        )

    def truncate(self, batch: int, step: int) -> None:
        """Drops the lines of metrics.jsonl after a step of a batch."""
        self._workdir.truncate(lambda row: (row["batch"], row["step"]) <= (batch, step))

    def restore(self, batch: int) -> search.State:
        """The last saved state of a batch, or its first."""
        tasks = self._plan.batches[batch]
        found = self._workdir.latest(_name(batch), self._feed.shapes(tasks))
        return found[1] if found else self._feed.start(tasks)

    def batch(self, batch: int, state: search.State, progress: Progress) -> search.State:
        """Runs one batch to its last step."""
        plan, step, seconds = self._plan, int(state.step), 0.0
        self._saved = time.monotonic()
        self.steps = plan.steps * batch + step
        while step < plan.steps:
            length = self._length(step)
            before = self._feed.seconds.search
            with self._profiled(length, last=step + length == plan.steps):
                state, info = self._feed.advance(state, length)
            seconds += self._feed.seconds.search - before
            self._report_dropped(info, batch)
            step += length
            self.steps += length
            done = step == plan.steps
            if done or step % plan.log_every == 0:
                for row in _rows(plan, batch, step, info, seconds):
                    self._workdir.append(row)
                seconds = 0.0
            progress.update(length, objective=_mean_objective(info))
            stop = self._watch.asked()
            if done or stop or self.interrupted or self._due():
                self._save(batch, step, state)
            if stop:
                self._workdir.finish()
                raise _preempted(f"step {step} of {plan.steps}")
            if self.interrupted:
                break
        return state

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C has ended the search, with what it has."""
        return self._watch.interrupted

    @contextlib.contextmanager
    def _profiled(self, steps: int, *, last: bool) -> Iterator[None]:
        """A block of steps, which is traced if it is its turn, or there is no other one."""
        due = self._until_profile == 0 or (last and self._until_profile > 0)
        self._until_profile -= 1
        if not due:
            yield
            return
        self._until_profile = -1
        folder = self._workdir.path / "profile"
        before = self._feed.seconds.search
        with profiling.traced(folder):
            yield
        known = profiling.operations(self._feed.programs())
        found = profiling.seconds_of(folder, known)
        summed = profiling.summary(found, steps, self._feed.seconds.search - before)
        self._workdir.write_json("profile/summary.json", summed)
        for line in profiling.lines(summed):
            logging.info("%s", line)
        shown = self._workdir.place / "profile"
        logging.info("the trace is in %s, for TensorBoard or Perfetto", shown)

    def _length(self, step: int) -> int:
        """Steps of the block that begins after a step: at most to the next that is logged."""
        plan = self._plan
        return min(self._block, plan.steps - step, plan.log_every - step % plan.log_every)

    def _due(self) -> bool:
        """Whether a checkpoint is; process 0 looks at its clock for all."""
        late = time.monotonic() - self._saved >= self._plan.checkpoint_seconds
        return self._processes.share(late)

    def _save(self, batch: int, step: int, state: search.State) -> None:
        began = time.monotonic()
        self._workdir.save(_name(batch), step, state)
        self._saved = time.monotonic()
        self.saving += self._saved - began

    def compile(self, state: search.State, done: int) -> None:
        """Compiles the block that the search begins with, after as many steps of all batches.

        Raises:
          Preempted: by SIGTERM meanwhile.
        """
        step = int(state.step)
        if step < self._plan.steps:
            # All begin at one time: the time left would count what one waits for another.
            with self._processes.together():
                self._feed.compile(state, self._length(step))
            if self._watch.asked():
                raise _preempted(f"step {done}") if done else Preempted
            if self.interrupted and not done:
                raise KeyboardInterrupt

    def _report_dropped(self, info: search.Info, batch: int) -> None:
        for index in np.flatnonzero(info.dropped[-1]):
            seed, task = divmod(int(index), len(self._plan.batches[batch]))
            number = self._plan.batches[batch][task]
            if (seed, number) in self._dropped:
                continue
            self._dropped.add((seed, number))
            of_seed = f" of seed {self._plan.seeds[seed]}" if len(self._plan.seeds) > 1 else ""
            logging.warning(
                "task %d%s is dropped: its step %d was not finite; it stays as it was before, and "
                "takes no part in the vote, the others go on",
                number, of_seed, info.dropped[-1][index],
            )  # fmt: skip


def _name(batch: int) -> str:
    return f"batch_{batch:04d}"


def _encoders(state: search.State) -> tuple[np.ndarray, np.ndarray]:
    return parallel.fetch((state.theta, state.dropped))


def _mean_objective(info: search.Info) -> float:
    """Of the tasks that are left, at the last step; NaN if none is."""
    left = info.objective[-1][info.dropped[-1] == 0]
    return float(np.mean(left)) if left.size else math.nan


def _rows(
    plan: Plan, batch: int, step: int, info: search.Info, seconds: float
) -> Iterator[dict[str, Any]]:
    """A line of metrics.jsonl for each seed."""
    tasks = plan.batches[batch]
    for i, seed in enumerate(plan.seeds):
        own = slice(i * len(tasks), (i + 1) * len(tasks))
        last = {name: value[-1] for name, value in info._asdict().items() if name != "effort"}
        last = {name: value[own] if np.ndim(value) else value for name, value in last.items()}
        if not np.any(last["dropped"]):
            del last["dropped"]
        row: dict[str, Any] = {"batch": batch, "step": step, "tasks": list(tasks)}
        if len(plan.seeds) > 1:
            row["seed"] = seed
        steps = {"inner": info.effort.steps, "adjoint": info.effort.adjoint_steps}
        taken = {f"{name}_steps": counts[-1][i] for name, counts in steps.items()}
        yield {**row, **last, **taken, "seconds": round(seconds, 3)}
