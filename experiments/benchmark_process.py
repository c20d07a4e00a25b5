"""One of the processes of `benchmark.py scaling`, or a process with several devices.

    python experiments/benchmark_process.py '{"processes": 2, "index": 0, "port": 1234, ...}'

What is compared takes turns within one run, since a machine is not as fast all the time: steps on
one device of process 0, plain products in all processes at once, steps of all devices together,
with the tasks or the rows shared, and as many tasks on each device as one had alone. Process 0
prints the seconds and rates as its last line.
"""

import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import benchmark_case
import figures
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from hume_jax import compiling, parallel
from hume_jax.core import search


def steps_on(mesh: Mesh, problem: figures.Problem, tasks: int, block: int) -> Callable[[], float]:
    """Seconds of an outer step on a mesh, each time it is called."""
    placed = (
        parallel.place_data(problem.data, mesh),
        *parallel.place_everywhere((np.uint32(0), np.asarray(problem.log_prior, np.float32)), mesh),
    )
    data, seed, log_prior = placed
    init = functools.partial(search.init, settings=problem.settings)
    shapes = jax.eval_shape(init, seed, jnp.arange(tasks), data)
    where = parallel.by_task(shapes, mesh)
    numbers = parallel.place_everywhere(np.arange(tasks, dtype=np.int32), mesh)
    # Waited for: programs that exchange something must not run beside another that does.
    state = jax.block_until_ready(jax.jit(init, out_shardings=where)(seed, numbers, data))
    program = functools.partial(search.run_steps, settings=problem.settings, steps=block)
    jitted = jax.jit(program, donate_argnums=0, out_shardings=(where, None))
    compiled = jitted.lower(state, seed, data, log_prior).compile(compiling.options())
    held = [state]
    # Processes are not equally long at compiling, and the others wait for half a minute alone.
    together()

    def run() -> float:
        began = time.perf_counter()
        held[0], info = compiled(held[0], seed, data, log_prior)
        jax.block_until_ready((held[0], info))
        return (time.perf_counter() - began) / block

    run()
    return run


def together() -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("turn")


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Takes turns."""
    case = benchmark_case.case_of(job["case"])
    problem, shape = benchmark_case.problem_of(case)
    tasks, count = case.tasks, jax.device_count()
    shards = problem.data.phi1.shape[0]
    alone = steps_on(parallel.own_mesh(), problem, tasks, case.block)
    joint = {
        "tasks": steps_on(parallel.make_mesh(tasks, shards), problem, tasks, case.block),
        "rows": steps_on(parallel.make_mesh(1, shards), problem, tasks, case.block),
        "weak": steps_on(
            parallel.make_mesh(count * tasks, shards), problem, count * tasks, case.block
        ),
    }
    products = benchmark_case.products_of(problem, shape, tasks)
    found: dict[str, list[float]] = {"alone": [], "product_alone": [], "product_each": []}
    found |= {name: [] for name in joint}
    first = jax.process_index() == 0
    for _ in range(case.repeats):
        together()
        if first:
            found["alone"].append(alone())
            found["product_alone"].append(products.flops / benchmark_case.seconds_of(products.run))
        together()
        found["product_each"].append(products.flops / benchmark_case.seconds_of(products.run))
        for name, run in joint.items():
            together()
            found[name].append(run())
    rates = np.asarray(found.pop("product_each"), np.float32)
    # Of a round, the rates of all processes.
    every = multihost_utils.process_allgather(rates) if jax.process_count() > 1 else rates[None]
    return {
        **found,
        "product_together": np.sum(np.asarray(every, np.float64), axis=0).tolist(),
        "devices": count,
        "processes": jax.process_count(),
        "device": figures.device(),
    }


def main(text: str) -> None:
    """Runs the job of a JSON text."""
    job = json.loads(text)
    try:
        if job["processes"] > 1:
            address = f"127.0.0.1:{job['port']}"
            jax.distributed.initialize(address, job["processes"], job["index"])
            together()
        print(json.dumps(measure(job)), flush=True)
    except Exception:  # noqa: BLE001  (whatever it is, the others must hear of it)
        traceback.print_exc()
        # At once: JAX would wait for the others, which wait for this one.
        os._exit(1)


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1])
