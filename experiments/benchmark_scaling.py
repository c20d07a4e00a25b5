"""What `benchmark.py scaling` runs: processes of one core each, and devices of one process."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import benchmark_runs
import numpy as np

from hume_jax.errors import UserError

WORKER = pathlib.Path(__file__).with_name("benchmark_process.py")
Table = tuple[list[str], list[list[str]]]


def run(case: dict[str, Any], options: argparse.Namespace) -> Table:
    """Times all numbers of processes and of devices; a row for each."""
    found = [_kept(case, n, 1, options) for n in options.processes if n > 1]
    found += [_kept(case, 1, n, options) for n in options.devices if n > 1]
    return rows_of(found)


def _kept(
    case: dict[str, Any], processes: int, devices: int, options: argparse.Namespace
) -> dict[str, Any]:
    """What so many processes of so many devices each find, from OUT or run now."""

    def find() -> dict[str, Any]:
        print(f"timing {processes} processes of {devices} devices", file=sys.stderr)
        return _launched(case, processes, devices)

    return benchmark_runs.kept(options.out, [case, processes, devices], find)


def _launched(case: dict[str, Any], processes: int, devices: int) -> dict[str, Any]:
    """Runs the processes, each on a core of its own where there are several.

    Raises:
      UserError: there are fewer cores, or a process ended with an error.
    """
    port = benchmark_runs.free_port()
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    held = [benchmark_runs.held_to(1, i) if processes > 1 else [] for i in range(processes)]
    workers: list[subprocess.Popen[str]] = []
    try:
        for index, prefix in enumerate(held):
            job = {"case": case, "processes": processes, "index": index, "port": port}
            command = [*prefix, sys.executable, str(WORKER), json.dumps(job)]
            workers.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            )
        printed = [worker.communicate()[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    if any(worker.returncode for worker in workers):
        raise UserError(f"{WORKER.name} ended with an error, it says which above")
    return json.loads(printed[0].splitlines()[-1])


def rows_of(found: list[dict[str, Any]]) -> Table:
    """Head and rows: how many times faster, beside plain products without any exchange."""
    head = ["processes", "devices", "step alone, s", "tasks shared", "rows shared"]
    head += ["plain products", "tasks shared / products", "each with the tasks of one"]
    rows = []
    for one in found:
        alone = np.asarray(one["alone"])
        machine = np.asarray(one["product_together"]) / np.asarray(one["product_alone"])
        tasks, rows_shared = (alone / np.asarray(one[name]) for name in ("tasks", "rows"))
        weak = alone / np.asarray(one["weak"])
        several = one["processes"] > 1
        rows.append(
            [
                str(one["processes"]),
                str(one["devices"]),
                f"{np.median(alone):.4g}",
                _times(tasks),
                _times(rows_shared),
                _times(machine) if several else "-",
                _times(tasks / machine) if several else "-",
                _times(weak),
            ]
        )
    return head, rows


def _times(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
