"""Workers of `benchmark.py`: processes of their own, held to some cores, not run twice."""

import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import figures

from hume_jax.errors import UserError


def run(
    worker: pathlib.Path,
    job: dict[str, Any],
    out: pathlib.Path,
    threads: int,
    python: str = sys.executable,
) -> dict[str, Any]:
    """What a worker prints as its last line, a JSON object; from OUT if it ran before.

    Args:
      worker: a script that takes a job as JSON.
      job: what it is to do.
      out: folder that keeps what it found, in `cases`.
      threads: cores that it may use, 0 for all.
      python: that runs it.

    Raises:
      UserError: it ended with an error, which it has printed; as `held_to`.
    """

    def find() -> dict[str, Any]:
        print(f"timing {job}", file=sys.stderr)
        command = [*held_to(threads), python, str(worker), json.dumps(job)]
        return answer(command, worker.name, f" for {job}")

    return kept(out, [worker.name, job, threads], find)


def kept(
    out: pathlib.Path, made_with: list[Any], find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What was found before by the same means, or is found now and then kept in `cases` of OUT."""
    key = json.dumps(made_with, sort_keys=True)
    path = out / "cases" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    before = figures.read_json(path)
    if before:
        return before["found"]
    found = find()
    figures.write_json(path, {"made_with": made_with, "found": found})
    return found


def answer(command: list[str], name: str, what: str = "") -> dict[str, Any]:
    """The JSON object that a command prints as its last line.

    Args:
      command: to run.
      name: of it, for the message.
      what: it was to do, for the message.

    Raises:
      UserError: it ended with an error, which it has printed.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{name} ended with {done.returncode}{what}, it says why above")
    return json.loads(done.stdout.splitlines()[-1])


def free_port() -> int:
    """A port that nothing listens at, for the processes of a run to meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def held_to(threads: int, first: int = 0) -> list[str]:
    """The start of a command line that runs on so many of this process's cores, from one on.

    Raises:
      UserError: there are fewer cores; nothing here holds a process to some of them.
    """
    if not threads:
        return []
    if not shutil.which("taskset"):
        raise UserError(
            "there is no taskset, which holds a process to some cores (util-linux): run it on Linux"
        )
    cores = sorted(os.sched_getaffinity(0))
    if first + threads > len(cores):
        raise UserError(f"--threads={threads}: there are {len(cores)} cores")
    return ["taskset", "--cpu-list", ",".join(map(str, cores[first : first + threads]))]
