"""Runs the search over batches of tasks: compiled blocks, checkpoints, metrics, progress."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from hume_jax import memory, parallel
from hume_jax.core import search
from hume_jax.errors import UserError
from hume_jax.progress import Progress
from hume_jax.workdir import Workdir


class Plan(NamedTuple):
    """What is run, in which pieces."""

    settings: search.Search
    shape: memory.Shape
    seed: int
    steps: int  # outer steps of every task
    batches: tuple[tuple[int, ...], ...]  # tasks that are searched at a time
    log_every: int
    checkpoint_seconds: float


class Outcome(NamedTuple):
    """The task encoders found, and where the time went."""

    theta: np.ndarray  # (S, d1, K) float32
    compile_seconds: float
    search_seconds: float  # of this process; without compilation


def run(plan: Plan, data: search.Data, log_prior: np.ndarray, workdir: Workdir) -> Outcome:
    """Searches all tasks, from the last checkpoint on if there is one.

    Raises:
      UserError: a task's objective is not finite.
    """
    runner = _Runner(plan, data, log_prior)
    theta: list[np.ndarray] = []
    logging.info("compiling")
    state = runner.restore(workdir, 0)
    while int(state.step) == plan.steps and len(theta) + 1 < len(plan.batches):
        theta.append(_encoders(state))
        state = runner.restore(workdir, len(theta))
    current, reached = len(theta), int(state.step)
    # Lines of steps that the checkpoint has not seen are written again.
    workdir.truncate(lambda row: (row["batch"], row["step"]) <= (current, reached))
    total, done = plan.steps * len(plan.batches), plan.steps * current + reached
    if done:
        logging.info("going on from step %d of %d", done, total)
    runner.compile(state)
    with Progress(total, "search", done=done) as progress:
        theta.append(_encoders(runner.batch(current, state, workdir, progress)))
        for i in range(current + 1, len(plan.batches)):
            theta.append(_encoders(runner.batch(i, runner.start(i), workdir, progress)))
    return Outcome(np.concatenate(theta), runner.compile_seconds, runner.search_seconds)


def estimate_seconds(plan: Plan, data: search.Data) -> float:
    """Time of the whole search, from the measured time of one inner product of its shape."""
    space, shape = data.spaces[0], plan.shape
    rows = min(shape.train, space.x.shape[0] * space.x.shape[1])
    x = space.x.reshape(-1, space.x.shape[-1])[:rows]
    tasks = len(plan.batches[0])
    w = jnp.ones((tasks * plan.settings.n_classes, x.shape[1]), x.dtype)
    product = jax.jit(lambda w, x: w @ x.T)
    jax.block_until_ready(product(w, x))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(product(w, x))
        times.append(time.perf_counter() - start)
    # The shortest: other work on the machine only ever adds.
    one = min(times) * shape.train / rows
    count = memory.products(plan.settings, len(shape.inner)) * plan.steps
    # What is no product adds about a half on CPU cores: exponentials, the gather, the labels.
    return 1.5 * one * count * sum(map(len, plan.batches)) / tasks


class _Runner:
    """Compiled blocks for the shapes of one plan."""

    def __init__(self, plan: Plan, data: search.Data, log_prior: np.ndarray) -> None:
        self.compile_seconds = 0.0
        self.search_seconds = 0.0
        self._plan = plan
        # The last batch may be smaller; the devices have to divide every one.
        tasks = math.gcd(*map(len, plan.batches))
        self._mesh = parallel.make_mesh(tasks, data.phi1.shape[0])
        self._data = parallel.place_data(data, self._mesh)
        self._log_prior = jnp.asarray(log_prior, jnp.float32)
        self._block = memory.block_steps(
            plan.shape, plan.settings, len(plan.batches[0]), plan.log_every
        )
        self._compiled: dict[tuple, Any] = {}

    def start(self, batch: int) -> search.State:
        """The first state of a batch."""
        plan = self._plan
        tasks = jnp.asarray(plan.batches[batch], jnp.int32)
        program = functools.partial(search.init, settings=plan.settings)
        init = self._program(("init", len(tasks)), program, (plan.seed, tasks, self._data))
        began = time.perf_counter()
        state = jax.block_until_ready(init(plan.seed, tasks, self._data))
        self.search_seconds += time.perf_counter() - began
        return parallel.place_state(state, self._mesh)

    def restore(self, workdir: Workdir, batch: int) -> search.State:
        """The last saved state of a batch, or its first."""
        start = self.start(batch)
        found = workdir.latest(_name(batch), start)
        return found[1] if found else start

    def batch(
        self, batch: int, state: search.State, workdir: Workdir, progress: Progress
    ) -> search.State:
        """Runs one batch to its last step."""
        plan, step, saved, seconds = self._plan, int(state.step), time.monotonic(), 0.0
        while step < plan.steps:
            length = min(self._block, plan.steps - step)
            before = self.search_seconds
            state, info = self._call(state, length)
            seconds += self.search_seconds - before
            self._check(info, batch, step)
            step += length
            done = step == plan.steps
            if done or step % plan.log_every == 0:
                workdir.append(_row(batch, plan.batches[batch], step, info, seconds))
                seconds = 0.0
            progress.update(length, objective=float(np.mean(info.objective[-1])))
            if done or time.monotonic() - saved >= plan.checkpoint_seconds:
                workdir.save(_name(batch), step, state)
                saved = time.monotonic()
        return state

    def compile(self, state: search.State) -> None:
        """Compiles the block that the search begins with."""
        left = self._plan.steps - int(state.step)
        if left:
            self._block_program(state, min(self._block, left))

    def _call(self, state: search.State, length: int) -> tuple[search.State, search.Info]:
        program = self._block_program(state, length)
        began = time.perf_counter()
        state, info = program(*self._arguments(state))
        info = jax.device_get(info)
        self.search_seconds += time.perf_counter() - began
        return state, info

    def _arguments(self, state: search.State) -> tuple:
        return state, jnp.asarray(self._plan.seed, jnp.uint32), self._data, self._log_prior

    def _block_program(self, state: search.State, length: int) -> Any:
        program = functools.partial(search.run_steps, settings=self._plan.settings, steps=length)
        key = (state.theta.shape[0], length)
        return self._program(key, program, self._arguments(state), donate_argnums=0)

    def _program(self, key: tuple, function: Callable, arguments: tuple, **how: Any) -> Any:
        """A compiled function, from the second call on the one that is there."""
        if key not in self._compiled:
            began = time.perf_counter()
            self._compiled[key] = jax.jit(function, **how).lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - began
        return self._compiled[key]

    def _check(self, info: search.Info, batch: int, before: int) -> None:
        bad = np.argwhere(~np.isfinite(info.objective))
        if bad.size:
            step, task = bad[0]
            raise UserError(
                f"task {self._plan.batches[batch][task]} has no finite objective at step "
                f"{before + int(step) + 1}: lower search.learning_rate or inner.step_size, or "
                "raise inner.penalty; the last checkpoint is kept"
            )


def _name(batch: int) -> str:
    return f"batch_{batch:04d}"


def _encoders(state: search.State) -> np.ndarray:
    return np.asarray(jax.device_get(state.theta))


def _row(
    batch: int, tasks: Sequence[int], step: int, info: search.Info, seconds: float
) -> dict[str, Any]:
    last = {name: value[-1] for name, value in info._asdict().items()}
    row = {"batch": batch, "step": step, "tasks": list(tasks)}
    return {**row, **last, "seconds": round(seconds, 3)}
