"""A run stopped by `kill -9` and started again by the same command ends as if it had not been."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

STEPS = 24
COMMAND = (
    "--config=configs/testing.py",
    f"--config.search.steps={STEPS}",
    "--config.checkpoint_seconds=0",
)
# k-means, probe and plots take longer than all else.
SHORT = ("--config.baselines=false", "--config.plots=false", "--config.score.rows=200")


class Process:
    """The command in a workdir, its log in a file beside it."""

    def __init__(
        self, workdir: pathlib.Path, arguments: tuple[str, ...], cache: bool, devices: int
    ) -> None:
        self.workdir = workdir
        self._log = workdir.with_name(f"{workdir.name}-{time.monotonic_ns()}.log")
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
        if cache:
            # As `quickly_compiled` compiles, for the same devices.
            environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
            environment |= {"JAX_NUM_CPU_DEVICES": str(devices)}
        else:
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hume_jax.main", *arguments, f"--workdir={workdir}"],
                cwd=environment["PYTHONPATH"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> str:
        """Waits for the end and returns the log."""
        assert self._process.wait(timeout=400) == 0, self.log()[-3000:]
        return self.log()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Waits until something is true while the process runs."""
        end = time.monotonic() + 400
        while not condition():
            assert self._process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < end, self.log()[-3000:]
            time.sleep(0.005)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Callable[..., Process]]:
    """Starts the command; what still runs when the test ends is killed."""
    processes: list[Process] = []

    def run(name: str, *arguments: str, cache: bool = True, devices: int = 2) -> Process:
        processes.append(Process(tmp_path / name, (*COMMAND, *arguments), cache, devices))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()


def checkpoints(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that are complete."""
    folder = workdir / "checkpoints" / "batch_0000"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def state(workdir: pathlib.Path) -> dict:
    with ocp.CheckpointManager(workdir / "checkpoints" / "batch_0000") as manager:
        assert manager.latest_step() == STEPS
        return manager.restore(STEPS, args=ocp.args.StandardRestore())


def without_times(workdir: pathlib.Path) -> tuple[list[dict], dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [{k: v for k, v in json.loads(t).items() if k != "seconds"} for t in lines]
    results = json.loads((workdir / "results.json").read_text())
    del results["seconds"]
    return rows, results


def assert_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """Bit for bit, but for times."""
    jax.tree.map(np.testing.assert_array_equal, state(workdir), state(reference))
    names = ["labels.csv", "config.json", "batches.json"]
    for name in names:
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name
    (rows, results), (expected_rows, expected) = map(without_times, (workdir, reference))
    assert [row["step"] for row in rows] == list(range(2, STEPS + 1, 2))
    assert rows == expected_rows
    assert results == expected
    for name in ("model.npz", "scores.npz"):
        with np.load(workdir / name) as arrays, np.load(reference / name) as expected_arrays:
            assert arrays.files == expected_arrays.files
            for key in arrays.files:
                np.testing.assert_array_equal(arrays[key], expected_arrays[key])


@pytest.mark.slow
def test_several_seeds_killed_and_started_again(start, tmp_path):
    both = (*SHORT, "--config.seeds=(0,1)")
    start("whole", *both).end()
    run = start("killed", *both)
    run.wait_for(lambda: max(checkpoints(run.workdir), default=0) >= 2)
    run.kill()
    assert "going on from step" in start("killed", *both).end()
    jax.tree.map(np.testing.assert_array_equal, state(run.workdir), state(tmp_path / "whole"))
    for seed in ("seed_0", "seed_1"):
        labels = [tmp_path / name / seed / "labels.csv" for name in ("killed", "whole")]
        assert labels[0].read_bytes() == labels[1].read_bytes()


def test_killed_and_started_again(start, tmp_path):
    start("whole", *SHORT).end()
    run = start("killed", *SHORT)
    step, delay = random.randrange(2, STEPS // 2), random.uniform(0, 0.05)
    print(f"killed {delay:.3f} s after the first checkpoint at or after step {step}")
    run.wait_for(lambda: max(checkpoints(run.workdir), default=0) >= step)
    time.sleep(delay)
    run.kill()
    reached = checkpoints(run.workdir)[-1]
    assert 0 < reached < STEPS
    # A line that was being written when the process died.
    with (run.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"batch": 0, "step": 4')
    log = start("killed", *SHORT).end()
    assert int(re.search(r"going on from step (\d+) of 24", log)[1]) >= reached
    assert_same(run.workdir, tmp_path / "whole")


@pytest.mark.slow
def test_going_on_with_other_numbers_of_devices(start, tmp_path):
    """Four that share tasks and rows, one, two: killed between, and the labels of one."""
    start("whole", *SHORT, devices=1).end()
    mesh = ("--config.mesh.task=2", "--config.mesh.data=2")
    for devices, how, least in ((4, mesh, 4), (1, (), 12)):
        run = start("moved", *SHORT, *how, devices=devices)
        run.wait_for(lambda run=run, least=least: max(checkpoints(run.workdir), default=0) >= least)
        run.kill()
        assert checkpoints(run.workdir)[-1] < STEPS
    log = start("moved", *SHORT, devices=2).end()
    assert int(re.search(r"going on from step (\d+) of 24", log)[1]) >= 12
    found, expected = (
        (tmp_path / name / "labels.csv").read_text().splitlines() for name in ("moved", "whole")
    )
    same = [a.split(",")[:3] == b.split(",")[:3] for a, b in zip(found, expected, strict=True)]
    assert np.mean(same) >= 0.995


@pytest.mark.slow
def test_killed_at_random_moments(start, tmp_path):
    """As a user runs it: every process compiles anew; while searching, scoring and reporting."""
    start("whole", cache=False).end()
    # Seconds, at most, in which none gets so far that the next has no such moment any more.
    moments = (
        ("compiling", lambda run: "searching 4 tasks" in run.log(), 2),
        ("searching", lambda run: checkpoints(run.workdir), 1),
        ("searching on", lambda run: len(checkpoints(run.workdir)) > 1, 3),
        ("scoring", lambda run: "scoring 4 tasks" in run.log(), 0.5),
        ("baselines", lambda run: "k-means in phi1" in run.log(), 0.5),
    )
    for name, reached, longest in moments:
        run = start("killed", cache=False)
        run.wait_for(lambda run=run, reached=reached: reached(run))
        delay = random.uniform(0, longest)
        print(f"killed while {name}, after {delay:.3f} s")
        time.sleep(delay)
        run.kill()
    start("killed", cache=False).end()
    assert_same(tmp_path / "killed", tmp_path / "whole")
