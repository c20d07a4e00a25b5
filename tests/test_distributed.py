"""Searches of two processes, as a user types them: what they find, how they stop and go on."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import hume_jax.processes
from hume_jax.command_line import guarded
from hume_jax.errors import LostProcess, Preempted
from hume_jax.evaluation import metrics
from hume_jax.pulse import Pulse

pytestmark = pytest.mark.usefixtures("quickly_compiled")

COMMAND = [
    sys.executable,
    "-m",
    "hume_jax.main",
    "--config=configs/testing.py",
    "--noconfig.plots",
    "--noconfig.baselines",
    # Fixed numbers of steps: where they follow what is left, rounding may decide on one. So many
    # that the solves end: what they leave, while encoders move far, differs by more than rounding.
    "--config.inner.tolerance=0",
    "--config.inner.steps=6",
    "--config.inner.adjoint_steps=16",
]
# So many that a run is stopped before it is done.
LONG = "--config.search.steps=3000"


class Processes:
    """The processes of one run, each with one device."""

    def __init__(self, repository: pathlib.Path, folder: pathlib.Path, port: int, count: int):
        self._repository, self._folder, self._port, self._count = repository, folder, port, count
        self.all: list[subprocess.Popen] = []

    def start(self, *flags: str, own: Sequence[str] = (), core: bool = False) -> None:
        """Starts them; those after the first have flags of their own. On a core each if asked."""
        joined = [f"--distributed=127.0.0.1:{self._port}", f"--processes={self._count}"]
        for i in range(self._count):
            folder = f"--workdir={self._folder / 'run'}"
            several = [*joined, f"--process={i}"] if self._count > 1 else []
            with self.log(i).open("w") as log:
                self.all.append(
                    subprocess.Popen(
                        [*COMMAND, folder, *several, *flags, *(own if i else ())],
                        cwd=self._repository,
                        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                        preexec_fn=functools.partial(_bind, i) if core else None,
                    )
                )

    def log(self, number: int) -> pathlib.Path:
        return self._folder / f"{self._count}_{number}.log"

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until process 0 has logged it."""
        self.wait_until(lambda: text in self.log(0).read_text(), seconds)

    def wait_until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Until something is true, while process 0 goes on."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log(0).read_text()[-2000:]
            assert self.all[0].poll() is None, self.log(0).read_text()[-2000:]
            time.sleep(0.1)

    def end(self, *numbers: int) -> list[int]:
        """The statuses that they end with."""
        return [self.all[i].wait(120) for i in numbers or range(self._count)]


@pytest.fixture
def processes(repository, tmp_path, free_port) -> Iterator[Callable[[int], Processes]]:
    started: list[Processes] = []

    def make(count: int) -> Processes:
        started.append(Processes(repository, tmp_path, free_port, count))
        return started[-1]

    yield make
    for process in (process for run in started for process in run.all):
        process.kill()
        process.wait()


def _bind(number: int) -> None:
    """Holds this process to a core of its own, as far as there are as many."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


def labels(workdir: pathlib.Path) -> np.ndarray:
    lines = (workdir / "labels.csv").read_text().splitlines()[1:]
    return np.array([int(line.split(",")[2]) for line in lines])


def saved(workdir: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that are complete."""
    found = (workdir / "checkpoints" / "batch_0000").glob("*")
    return [int(path.name) for path in found if path.name.isdigit()]


def objectives(workdir: pathlib.Path) -> list[list[float]]:
    return [row["objective"] for row in logged(workdir)]


def logged(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(repository, tmp_path_factory) -> Callable[[int], pathlib.Path]:
    """What one process finds by itself with so many tasks."""
    found: dict[int, pathlib.Path] = {}

    def run(tasks: int) -> pathlib.Path:
        if tasks not in found:
            found[tasks] = tmp_path_factory.mktemp("alone") / "run"
            flags = [f"--workdir={found[tasks]}", f"--config.n_tasks={tasks}"]
            subprocess.run(
                [*COMMAND, *flags], cwd=repository, check=True, capture_output=True, timeout=240
            )
        return found[tasks]

    return run


@pytest.mark.parametrize(
    ("tasks", "rows"),
    [
        pytest.param(4, "memory", id="tasks"),
        pytest.param(3, "memory", id="rows", marks=pytest.mark.slow),
        pytest.param(3, "disk", id="rows from disk", marks=pytest.mark.slow),
    ],
)
def test_two_processes_find_what_one_finds(processes, alone, tmp_path, tasks, rows):
    """They share four tasks, or the rows where their number does not divide the tasks."""
    both = processes(2)
    both.start(f"--config.n_tasks={tasks}", f"--config.search.rows={rows}")
    assert both.end() == [0, 0]
    expected = alone(tasks)
    # Beside the checkpoints, one process writes what one alone writes, but for where rows are.
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in expected.iterdir()}
    np.testing.assert_allclose(objectives(tmp_path / "run"), objectives(expected), rtol=1e-4)
    assert metrics.score(labels(tmp_path / "run"), labels(expected))["acc"] >= 0.995
    assert "the search is done: process 0 scores" in both.log(1).read_text()


def test_sigterm_stops_all_at_one_step_and_one_process_goes_on(processes, tmp_path):
    flags = [LONG, "--config.checkpoint_seconds=0", "--config.log_every=50"]
    both = processes(2)
    both.start(*flags)
    # Checkpoints that were written before change nothing about it.
    both.wait_until(lambda: saved(tmp_path / "run"))
    both.all[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert both.end() == [Preempted.STATUS] * 2
    assert time.monotonic() - began < 30
    said = {both.log(i).read_text().splitlines()[-1] for i in range(2)}
    (line,) = said
    assert line.startswith("stopped by SIGTERM after step ")
    step = int(line.split()[5])
    assert max(saved(tmp_path / "run")) == step
    # On another number of devices, and stopped once more.
    one = processes(1)
    one.start(*flags)
    one.wait_for(f"going on from step {step} of 3000")
    one.wait_for("steps/s")
    one.all[0].send_signal(signal.SIGTERM)
    assert one.end() == [Preempted.STATUS]
    assert int(one.log(0).read_text().splitlines()[-1].split()[5]) > step
    steps = [row["step"] for row in logged(tmp_path / "run")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("when", ["before the search", "after the last step"])
def test_sigterm_where_no_step_comes_after_it(processes, tmp_path, when):
    """Twice, as some schedulers do; the second finds them on their way out."""
    both = processes(2)
    if when == "before the search":
        both.start(LONG)
        both.wait_for("workdir: ")
    else:
        both.start("--config.search.steps=8", "--config.search.anneal_steps=()")
        both.wait_for("search 8/8")
    both.all[1].send_signal(signal.SIGTERM)
    time.sleep(1)
    if both.all[1].poll() is None:
        both.all[1].send_signal(signal.SIGTERM)
    assert both.end() == [Preempted.STATUS] * 2
    said = [both.log(i).read_text() for i in range(2)]
    assert all("\nstopped by SIGTERM" in text for text in said), said
    assert not (tmp_path / "run" / "scores.npz").exists()


@pytest.mark.slow
def test_sums_over_shared_rows_never_wait_for_each_other(processes, tmp_path):
    """Two second spaces are summed over the processes, neither after the other, by one thread each.

    Were one process at the one sum while the other is at the other, both would wait for ever.
    """
    both = processes(2)
    flags = ["--config.search.spaces=both", "--config.mesh.data=2", "--config.search.steps=100"]
    both.start(*flags, "--config.log_every=20", "--config.score.steps=1", core=True)
    assert both.end() == [0, 0]
    assert len(logged(tmp_path / "run")) == 5


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_with_a_line(processes, tmp_path, victim):
    both = processes(2)
    both.start(LONG, "--config.checkpoint_seconds=0")
    both.wait_until(lambda: saved(tmp_path / "run"))
    both.all[victim].kill()
    began = time.monotonic()
    assert both.end(1 - victim) == [2]
    assert time.monotonic() - began < 60
    last = both.log(1 - victim).read_text().splitlines()[-1]
    assert last.startswith("error: ")
    assert "of this run has gone" in last
    assert "what is on disk is kept, the same commands" in last
    one = processes(1)
    one.start(LONG)
    one.wait_for("going on from step ")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_ends_the_other(processes, victim, monkeypatch):
    """Its connections stay open, so only that it gives no sign of life tells."""
    # It would keep the lock of what tests share, for longer than others wait, if it had it.
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    both = processes(2)
    both.start(LONG)
    both.wait_for("search 2/3000")
    both.all[victim].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert both.end(1 - victim) == [2]
    assert time.monotonic() - began < 60
    said = both.log(1 - victim).read_text()
    assert f"error: process {victim} of this run has gone, it gave no sign" in said


JOINED = """
import errno, os, signal, sys, time
from hume_jax import command_line, errors, joining, preemption, processes, pulse
processes._LEAVE_SECONDS = 1
pulse._EVERY, pulse._LONGEST = 0.5, 4
number = int(sys.argv[2])
both = joining.start(f"127.0.0.1:{sys.argv[1]}", 2, number)
both.share(None)
if sys.argv[3] == "parted":
    both.part()
    os.abort()
endings = {
    "no room": OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl"),
    "mistake": errors.UserError("the bucket does not answer"),
    "interrupted": KeyboardInterrupt(),
    "broken": ZeroDivisionError(),
}
def told(argv):
    with preemption.ending(both):
        if number == 0 and sys.argv[3] == "told, others wait":
            os.kill(os.getpid(), signal.SIGTERM)
        with both.together():
            if number == 0 and sys.argv[3] != "told, others are done":
                os.kill(os.getpid(), signal.SIGTERM)
            elif number == 0:
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGTERM)
            while sys.argv[3] == "told, others work":
                sum(range(1000))
            while sys.argv[3] == "told, others are deaf":
                try:
                    time.sleep(1000)
                except errors.Preempted:
                    pass
        both.share("nobody comes to this")
def work(argv):
    if sys.argv[3].startswith("told"):
        told(argv)
    if number == 0 and sys.argv[3] == "killed":
        os.kill(os.getpid(), 9)
    if number == 0 or sys.argv[3] == "mistake":
        raise endings[sys.argv[3]]
    while True:  # neither asks for the other
        sum(range(1000))
command_line.guarded(work)([])
"""


def joined(repository: pathlib.Path, port: int, when: str) -> tuple[list[int], list[str]]:
    """The statuses of two processes that have met, and what they say."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", JOINED, str(port), str(i), when],
            cwd=repository,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    return [process.returncode for process in both], said


@pytest.mark.parametrize("when", ["killed", "parted"])
def test_where_jax_aborts_a_process_a_line_says_why(repository, free_port, when):
    """JAX sees that process 0 was killed before any computation fails; apart, none is missed."""
    statuses, said = joined(repository, free_port, when)
    if when == "killed":
        assert statuses == [-signal.SIGKILL, 2]
        last = said[1].splitlines()[-1]
        assert last.startswith("error: JAX ended this process, the lines above say why: ")
        assert "most likely another process of this run has gone: what is on disk is kept" in last
    else:
        assert statuses == [-signal.SIGABRT] * 2
        assert not any("error: " in text for text in said)


@pytest.mark.parametrize(
    ("when", "status", "last"),
    [
        ("no room", 2, "error: cannot write to run/metrics.jsonl: No space left on device; make"),
        ("interrupted", 130, "KeyboardInterrupt"),
        ("broken", 1, "ZeroDivisionError"),
    ],
)
def test_a_process_that_ends_by_itself_keeps_no_other_waiting(
    repository, free_port, when, status, last
):
    statuses, said = joined(repository, free_port, when)
    assert statuses == [status, 2]
    assert said[0].splitlines()[-1].startswith(last)
    assert "another process of this run has gone" in said[1].splitlines()[-1]


def test_processes_that_end_together_say_each_why(repository, free_port):
    statuses, said = joined(repository, free_port, "mistake")
    assert statuses == [2, 2]
    for text in said:
        assert text.splitlines()[-1] == "error: the bucket does not answer"


@pytest.mark.parametrize("others", ["work", "are done", "wait", "are deaf"])
def test_sigterm_to_one_before_they_search_ends_all(repository, free_port, others):
    """At work of their own, waiting at the end of it, or for one that ends before it, or deaf."""
    statuses, said = joined(repository, free_port, f"told, others {others}")
    assert statuses == [Preempted.STATUS] * 2, said
    for text in said:
        # Not always the last: a thread of JAX's may still say that a connection has gone.
        assert "\nstopped by SIGTERM; what was finished is kept" in f"\n{text}"


@pytest.mark.parametrize("stopping", [True, False])
def test_what_others_find_out_while_all_end_is_no_failure(monkeypatch, capsys, stopping):
    def work(argv):
        raise LostProcess("another process has gone")

    def ended(status):
        raise SystemExit(status)

    monkeypatch.setattr(hume_jax.processes, "stopping", lambda: stopping)
    monkeypatch.setattr(hume_jax.processes, "leave", ended)
    monkeypatch.setattr(LostProcess, "end", lambda error: ended(2))
    with pytest.raises(SystemExit) as end:
        guarded(work)([])
    assert end.value.code == (Preempted.STATUS if stopping else 2)
    assert capsys.readouterr().err.startswith("stopped by SIGTERM;" if stopping else "")


WAITING = """
import signal, sys
# As in a terminal: work in the background ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from hume_jax import joining
joining._GONE_SECONDS = 1
joining._RETRY_SECONDS = 0.2
joining._PATIENCE = int(sys.argv[3]) if len(sys.argv) > 3 else 300
joining.start(f"127.0.0.1:{sys.argv[1]}", 3, int(sys.argv[2]))
"""


def test_process_0_to_which_nobody_comes(repository, free_port):
    command = [sys.executable, "-c", WAITING, str(free_port), "0", "2"]
    ended = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: not all processes of this run came within 2 s")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_process_0_goes_while_others_are_waited_for(repository, free_port, number):
    """The third never comes. Ctrl-C and SIGTERM are not kept until it does."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, str(free_port), str(i)],
            cwd=repository,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            both[1].wait(6)
        both[0].send_signal(number)
        expected = Preempted.STATUS if number == signal.SIGTERM else -number
        assert both[0].wait(10) == expected
        said = both[1].communicate(timeout=30)[1].splitlines()[-1]
        assert both[1].returncode == 2
        assert said.startswith(f"error: process 0 at 127.0.0.1:{free_port} has gone while all")
    finally:
        for process in both:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("--config.seed=1", "process 1 has --config.seed 1, process 0 has 0: "),
        ("--config.log_every=3", "process 1 has --config.log_every 3, process 0 has 2: "),
        ("--processes=3", "process 1 has --processes 3, process 0 has 2: "),
    ],
)
def test_processes_of_different_commands(processes, tmp_path, own, said):
    both = processes(2)
    both.start(own=[own])
    assert both.end() == [2, 2]
    assert f"error: {said}start all of them with the same command" in both.log(0).read_text()
    assert not (tmp_path / "run").exists()


def test_sigterm_while_process_0_is_waited_for(repository, free_port, tmp_path):
    several = [f"--distributed=127.0.0.1:{free_port}", "--processes=2", "--process=1"]
    log = tmp_path / "log"
    with log.open("w") as stream:
        command = [*COMMAND, f"--workdir={tmp_path / 'run'}", *several]
        process = subprocess.Popen(command, cwd=repository, stderr=stream)
    try:
        end = time.monotonic() + 60
        while "waiting for process 0" not in log.read_text():
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == Preempted.STATUS
        assert log.read_text().splitlines()[-1].startswith("stopped by SIGTERM")
    finally:
        process.kill()
        process.wait()


# ---- signs of life


class Store:
    """What processes share, in one process."""

    def __init__(self):
        self.values: dict[str, str] = {}
        self.answers = True
        self.hangs = threading.Event()
        self.hangs.set()

    def key_value_set(self, key, value, allow_overwrite):
        assert allow_overwrite
        self.hangs.wait()
        if not self.answers:
            raise RuntimeError("UNAVAILABLE")
        self.values[key] = value

    def key_value_try_get(self, key):
        if key not in self.values:
            raise ValueError("NOT_FOUND")
        return self.values[key]


@pytest.fixture
def pulses(monkeypatch) -> Iterator[tuple[Store, list[Pulse], list[str]]]:
    monkeypatch.setattr("hume_jax.pulse._EVERY", 0.02)
    monkeypatch.setattr("hume_jax.pulse._PATIENCE", 0.5)
    store, ended = Store(), []
    both = [Pulse(i, 2, lambda: store, ended.append) for i in range(2)]
    for pulse in both:
        pulse.start()
    yield store, both, ended
    for pulse in both:
        pulse.stop()
        pulse.join()


def test_processes_that_live_hear_each_other(pulses):
    store, both, ended = pulses
    time.sleep(1)
    assert not ended
    assert all(pulse.is_alive() for pulse in both)
    assert len(store.values) == 2


def test_a_process_that_beats_no_more_has_gone(pulses):
    _, both, ended = pulses
    time.sleep(0.2)
    both[1].stop()
    both[0].join(5)
    (message,) = ended
    assert message.startswith("process 1 of this run has gone, it gave no sign of life for")


def test_what_one_is_told_the_others_hear(pulses):
    store, both, ended = pulses
    heard = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: heard.set())
    try:
        time.sleep(0.2)
        assert not any(pulse.stopping for pulse in both)
        both[0].stop_all()
        assert heard.wait(5)
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert all(pulse.stopping for pulse in both)
    assert all(value.endswith(" stop") for value in store.values.values())
    assert not ended


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_without_the_store_process_0_has_gone(pulses, how):
    store, both, ended = pulses
    time.sleep(0.2)
    if how == "hangs":
        store.hangs.clear()
    store.answers = False
    end = time.monotonic() + 5
    while not ended:
        assert time.monotonic() < end
        time.sleep(0.02)
    store.hangs.set()
    (message,) = ended
    assert message.startswith("process 0 of this run has gone")


def test_once_they_have_parted_nobody_is_missed(monkeypatch):
    monkeypatch.setattr("hume_jax.pulse._EVERY", 0.01)
    ended: list[str] = []
    pulse = Pulse(0, 2, lambda: None, ended.append)
    pulse.start()
    pulse.join(5)
    assert not pulse.is_alive()
    assert not ended
