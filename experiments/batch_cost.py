"""What a batch of tasks costs beside the same tasks one by one, on one machine in one process.

    python experiments/batch_cost.py --out=runs/batch_cost.json
    python experiments/batch_cost.py --random=5000,384,20 --out=runs/batch_cost_random.json

Times blocks of outer steps, compiled as the search compiles them, for batches of 1, 2, 4, ... tasks
on the same rows. A single run is a batch of one. Blocks of all sizes take turns, so that whatever
else the machine does falls on all of them alike; the median counts. Compilation is left out.

Prints a Markdown table: seconds of a step, of a step and task, and the share of what as many single
runs cost.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import figures
import jax
import jax.numpy as jnp
import numpy as np

from hume_jax.core import search
from hume_jax.errors import UserError


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--random", metavar="N,D,K", help="made data instead of the config's")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--block", type=int, default=5, help="outer steps of a compiled call")
    parser.add_argument("--repeats", type=int, default=5, help="timed blocks of each size")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file, .json")
    return parser.parse_args(arguments)


def random_arrays(folder: pathlib.Path, sizes: str) -> list[str]:
    """Writes two made spaces of the same noisy classes.

    Args:
      folder: where to.
      sizes: `N,D,K`, rows, columns and classes.

    Returns:
      Flags of `configs/arrays.py` that point to them.
    """
    try:
        n, columns, n_classes = map(int, sizes.split(","))
    except ValueError:
        raise UserError(f"--random={sizes} is not three numbers, N,D,K") from None
    rng = np.random.default_rng(0)
    classes = rng.integers(0, n_classes, n)
    flags = [f"--config.n_classes={n_classes}"]
    for space in ("phi1", "phi2"):
        means = rng.normal(size=(n_classes, columns))
        rows = means[classes] + rng.normal(size=(n, columns))
        np.save(folder / f"{space}.npy", rows.astype(np.float32))
        flags.append(f"--config.data.train.{space}={folder / f'{space}.npy'}")
    return flags


def problem_of(options: argparse.Namespace) -> tuple[figures.Problem, int]:
    """The search that is timed, and its seed."""
    with tempfile.TemporaryDirectory() as folder:
        spec, fields = options.config, list(options.fields)
        if options.random:
            spec = "configs/arrays.py"
            fields = [*random_arrays(pathlib.Path(folder), options.random), *fields]
        config = figures.load_config(spec, fields)
        figures.use_precision()
        return figures.build(config), config.seed


class Batch:
    """A search of some tasks that goes on by one block at a time."""

    def __init__(self, tasks: int, problem: figures.Problem, seed: int, block: int) -> None:
        """Compiles the block and runs it once."""
        init = jax.jit(search.init, static_argnames="settings")
        self._state = init(seed, jnp.arange(tasks), problem.data, settings=problem.settings)
        self._rest = (seed, problem.data, jnp.asarray(problem.log_prior))
        program = functools.partial(search.run_steps, settings=problem.settings, steps=block)
        lowered = jax.jit(program, donate_argnums=0).lower(self._state, *self._rest)
        began = time.perf_counter()
        self._program = lowered.compile()
        self.compile_seconds = time.perf_counter() - began
        self.seconds_of_block()

    def seconds_of_block(self) -> float:
        """Runs one more block."""
        began = time.perf_counter()
        self._state, info = self._program(self._state, *self._rest)
        jax.block_until_ready((self._state, info))
        return time.perf_counter() - began


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times all sizes in turns."""
    problem, seed = problem_of(options)
    batches = {}
    for size in options.sizes:
        print(f"compiling for {size} tasks", file=sys.stderr)
        batches[size] = Batch(size, problem, seed, options.block)
    seconds: dict[int, list[float]] = {size: [] for size in options.sizes}
    for i in range(options.repeats):
        print(f"timing, {i + 1} of {options.repeats}", file=sys.stderr)
        for size, batch in batches.items():
            seconds[size].append(batch.seconds_of_block() / options.block)
    settings, shards = problem.settings, problem.data.phi1.shape[0]
    return {
        "rows": problem.rows,
        "columns": [problem.data.phi1.shape[-1], *(s.x.shape[-1] for s in problem.data.spaces)],
        "n_classes": settings.n_classes,
        "subset": shards * (settings.train_rows + settings.test_rows),
        "block": options.block,
        "device": figures.device(),
        "sizes": options.sizes,
        "compile_seconds": [batch.compile_seconds for batch in batches.values()],
        "step_seconds": list(seconds.values()),
    }


def report(found: dict[str, Any]) -> str:
    """The table, a row for each size of batch."""
    medians = dict(zip(found["sizes"], map(np.median, found["step_seconds"]), strict=True))
    head = ["tasks", "step, s", "lowest", "step and task, s", "share of single runs", "compile, s"]
    rows = []
    for i, (size, median) in enumerate(medians.items()):
        share = f"{median / (size * medians[1]):.0%}" if 1 in medians else "-"
        rows.append(
            [
                str(size),
                f"{median:.4f}",
                f"{min(found['step_seconds'][i]):.4f}",
                f"{median / size:.4f}",
                share,
                f"{found['compile_seconds'][i]:.1f}",
            ]
        )
    columns = " and ".join(map(str, found["columns"]))
    return (
        f"{found['rows']} rows of {columns} columns, {found['n_classes']} classes, subsets of "
        f"{found['subset']}; {found['device']}; median of {len(found['step_seconds'][0])} blocks "
        f"of {found['block']} steps\n\n{figures.table(head, rows)}"
    )


def main(arguments: Sequence[str]) -> None:
    """Times, prints and writes."""
    options = parse_arguments(arguments)
    found = measure(options)
    figures.write_json(options.out, found)
    print(report(found))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
