"""One case of `benchmark.py`, in a process of its own: so that peaks of memory are its own.

    python experiments/benchmark_case.py '{"rows": 5000, "columns": [1280, 1280], ...}'

Takes the fields of `Case` as JSON and prints what `measure` returns as the last line.
"""

import functools
import json
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import figures
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hume_jax import compiling, memory, work
from hume_jax.core import inner_fit, search


class Case(NamedTuple):
    """What is timed: blocks of outer steps on made data."""

    rows: int  # of a subset
    columns: tuple[int, int]  # of phi1 and phi2
    n_classes: int
    tasks: int
    fields: tuple[str, ...] = ()  # of the config
    block: int = 3  # outer steps of a compiled call
    repeats: int = 7  # at most, see `_ENOUGH`


# Seconds of a case after which three blocks will do.
_ENOUGH = 60


def case_of(given: dict[str, Any]) -> Case:
    """A case from what JSON holds of it."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return Case(**fields)


class Products(NamedTuple):
    """The two products that an inner gradient takes, of all tasks, one after the other."""

    run: Callable[[], Array]  # v -> v x^T x, again and again in one program
    flops: float  # of a run


def write_arrays(folder: pathlib.Path, case: Case) -> list[str]:
    """Writes two made spaces of the same noisy classes, twice as many rows as a subset has.

    Returns:
      Flags of `configs/arrays.py` that point to them.
    """
    rng = np.random.default_rng(0)
    classes = rng.integers(0, case.n_classes, 2 * case.rows)
    flags = [f"--config.n_classes={case.n_classes}", f"--config.n_tasks={case.tasks}"]
    for space, columns in zip(("phi1", "phi2"), case.columns, strict=True):
        means = rng.standard_normal((case.n_classes, columns), np.float32)
        # As noisy as leaves most labels soft.
        noise = rng.standard_normal((len(classes), columns), np.float32)
        np.save(folder / f"{space}.npy", means[classes] + np.float32(columns**0.25) * noise)
        flags.append(f"--config.data.train.{space}={folder / f'{space}.npy'}")
    return flags


def problem_of(case: Case) -> tuple[figures.Problem, memory.Shape]:
    """The search that is timed, and its sizes."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"--config.search.subset_size={case.rows}", "--config.search.spaces=given"]
        flags = [*write_arrays(pathlib.Path(folder), case), *given, *case.fields]
        config = figures.load_config("configs/arrays.py", flags)
        figures.use_precision()
        problem = figures.build(config)
    return problem, figures.shape_of(problem)


def products_of(problem: figures.Problem, shape: memory.Shape, tasks: int) -> Products:
    """Plain products of the shapes that the inner fit has, as many as a step takes of them."""
    size = tasks * problem.settings.n_classes
    rows = problem.data.spaces[0].x.reshape(-1, shape.inner[0])[: shape.train]
    v = jax.random.normal(jax.random.key(0), (size, rows.shape[1]))
    pairs = work.inner_products(problem.settings) // 2

    def chain(v: Array, x: Array) -> Array:
        # Scaled, so that no number grows or fades.
        return jax.lax.fori_loop(0, pairs, lambda _, v: (v @ x.T) @ x * (1 / len(x)), v)

    program = jax.jit(chain).lower(v, rows).compile(compiling.options())
    return Products(lambda: program(v, rows), pairs * 2 * 2.0 * size * rows.size)


def seconds_of(function: Callable[[], Any]) -> float:
    """Of one call."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def directions_seconds(columns: int, repeats: int = 3) -> float:
    """Of the eigendecomposition that finds the directions of phi2, once a run; the median."""
    made = np.random.default_rng(0).standard_normal((2 * columns, columns))
    gram = made.T @ made / len(made)
    found = functools.partial(inner_fit.coordinates, gram, penalty=1e-3)
    return float(np.median([seconds_of(found) for _ in range(repeats)]))


def measure(case: Case) -> dict[str, Any]:
    """Times steps and plain products in turns."""
    problem, shape = problem_of(case)
    arguments = (jnp.uint32(0), problem.data, jnp.asarray(problem.log_prior))
    init = jax.jit(search.init, static_argnames="settings")
    state = init(0, jnp.arange(case.tasks), problem.data, settings=problem.settings)
    program = functools.partial(search.run_steps, settings=problem.settings, steps=case.block)
    lowered = jax.jit(program, donate_argnums=0).lower(state, *arguments)
    began = time.perf_counter()
    block = lowered.compile(compiling.options())
    compiled = time.perf_counter() - began
    products = products_of(problem, shape, case.tasks)
    steps: list[float] = []
    rates: list[float] = []
    start = time.perf_counter()
    for i in range(case.repeats + 1):
        if len(steps) >= 3 and time.perf_counter() - start > _ENOUGH:
            break
        plain = seconds_of(products.run)
        began = time.perf_counter()
        state, info = jax.block_until_ready(block(state, *arguments))
        took = (time.perf_counter() - began) / case.block
        # The first time around, memory is touched for the first time.
        if i:
            rates.append(products.flops / plain)
            steps.append(took)
    taken = block.memory_analysis()
    return {
        "device": figures.device(),
        "shape": shape._asdict(),
        "step_seconds": steps,
        "product_flops": rates,
        "step_flops": work.step_flops(shape, problem.settings, case.tasks),
        "step_bytes": work.step_bytes(shape, problem.settings, case.tasks),
        "inner_products": work.inner_products(problem.settings),
        "compile_seconds": compiled,
        "directions_seconds": directions_seconds(case.columns[1] + 1),
        "program_bytes": {
            name: getattr(taken, f"{name}_size_in_bytes")
            for name in ("argument", "output", "alias", "temp")
        },
        "planned_bytes": memory.search_bytes(shape, problem.settings, case.tasks),
        "peak_bytes": peak_bytes(),
        "objective": float(jnp.mean(info.objective[-1])),
    }


def peak_bytes() -> int:
    """The most memory in use so far: of the accelerator, or resident of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(text: str) -> None:
    """Measures the case of a JSON text."""
    print(json.dumps(measure(case_of(json.loads(text)))))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1])
