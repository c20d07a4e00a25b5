"""How soon a run of two processes ends when one of them is asked to, killed, or hangs.

    python experiments/ending.py --out=runs/ending

Starts two processes of a search that would go on for long, one core each, and once a checkpoint is
on disk does to one of them what a scheduler, a crash or a frozen machine would: SIGTERM, SIGKILL,
SIGSTOP. Writes a table of the seconds until the processes that are left have ended, their exit
status, and what the last line of their log says; the highest of `--repeats` is what to count on.
"""

import argparse
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import NamedTuple

import benchmark_runs
import figures

from hume_jax.errors import UserError

# What is done to which process.
CASES = {
    "process 1 is sent SIGTERM": (signal.SIGTERM, 1),
    "process 0 is killed": (signal.SIGKILL, 0),
    "process 1 is killed": (signal.SIGKILL, 1),
    "process 0 hangs": (signal.SIGSTOP, 0),
    "process 1 hangs": (signal.SIGSTOP, 1),
}
# More than any case lasts.
FIELDS = ("--config.search.steps=1000000", "--config.checkpoint_seconds=0")
# Seconds until a search has begun, and until a process that should end is given up.
_BEGUN, _ENDED = 300, 180
# Characters of the last line that the table has.
_SAID = 90


class Ending(NamedTuple):
    """How the processes that are left end."""

    seconds: float
    statuses: tuple[int, ...]
    line: str  # the last one that the first of them logged


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, "configs/quickstart.py")
    parser.add_argument("--cases", nargs="+", default=list(CASES), metavar="CASE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Runs the cases and prints the table."""
    options = parse_arguments(arguments)
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        raise UserError(f"--cases: there is no {unknown[0]!r}, there are {', '.join(CASES)}")
    figures.check_repeats(options.repeats)
    if figures.cores() < 2:
        raise UserError("two processes need a core each, there is one")
    figures.make_folder(options.out)
    rows = []
    for name in options.cases:
        found = [end(options, *CASES[name]) for _ in range(options.repeats)]
        rows.append(row(name, found))
    head = ["what happens", "ended after, s", "exit status", "the last line"]
    print(f"{figures.device()}\n\n{figures.write_table(options.out, head, rows, name='ending')}")


def row(name: str, found: Sequence[Ending]) -> list[str]:
    """Of one case: the lowest and the highest time, all statuses, the first line."""
    seconds = sorted(ending.seconds for ending in found)
    statuses = sorted({str(status) for ending in found for status in ending.statuses})
    line = textwrap.shorten(found[0].line, _SAID, placeholder=" ...")
    return [name, f"{seconds[0]:.1f} to {seconds[-1]:.1f}", ", ".join(statuses), line]


def end(options: argparse.Namespace, what: signal.Signals, victim: int) -> Ending:
    """Runs two processes until one meets its fate.

    Raises:
      UserError: they do not begin, or do not end.
    """
    folder = options.out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    processes: list[subprocess.Popen[bytes]] = []
    # One that was asked to end does so too; of one that was killed or hangs nothing is expected.
    left = [i for i in range(2) if what == signal.SIGTERM or i != victim]
    try:
        start(processes, folder, options)
        wait_for_checkpoint(folder, processes)
        processes[victim].send_signal(what)
        began = time.monotonic()
        statuses = tuple(processes[i].wait(_ENDED) for i in left)
        seconds = time.monotonic() - began
    except subprocess.TimeoutExpired as error:
        raise UserError(f"a process goes on {_ENDED} s after the other got {what.name}") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    *_, line = ["", *log(folder, left[0]).read_text().splitlines()]
    return Ending(seconds, statuses, line)


def start(
    processes: list[subprocess.Popen[bytes]], folder: pathlib.Path, options: argparse.Namespace
) -> None:
    """Starts both processes, on a core each, and adds them to a list as they are."""
    port = benchmark_runs.free_port()
    command = [sys.executable, "-m", "hume_jax.main", f"--config={options.config}"]
    command += [f"--workdir={folder / 'workdir'}", f"--distributed=127.0.0.1:{port}"]
    command += ["--processes=2", *FIELDS, *options.fields]
    for i in range(2):
        with log(folder, i).open("wb") as file:
            own = [*benchmark_runs.held_to(1, i), *command, f"--process={i}"]
            processes.append(subprocess.Popen(own, stdout=file, stderr=subprocess.STDOUT))


def log(folder: pathlib.Path, process: int) -> pathlib.Path:
    """Where a process tells what it does."""
    return folder / f"process_{process}.log"


def wait_for_checkpoint(folder: pathlib.Path, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until the search is under way.

    Raises:
      UserError: a process ends before, or it takes too long.
    """
    limit = time.monotonic() + _BEGUN
    while not [p for p in folder.glob("workdir/checkpoints/*/*") if p.name.isdigit()]:
        ended = [i for i, process in enumerate(processes) if process.poll() is not None]
        if ended or time.monotonic() > limit:
            raise UserError(f"the search does not begin: see {log(folder, (ended or [0])[0])}")
        time.sleep(0.1)


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
