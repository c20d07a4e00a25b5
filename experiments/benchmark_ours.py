"""Our search on arrays of a folder, timed: a worker of `benchmark.py`.

    python experiments/benchmark_ours.py '{"arrays": "FOLDER", "classes": 10, "tasks": 4, ...}'

Searches in blocks of outer steps and notes, after each, the seconds of all steps so far, and, if it
is asked to, the ACC of the vote on the test rows; what that takes is not counted. Prints it as the
last line, with the labels of every task and of the vote, the operations that the steps need, and
the rate of plain products of the inner fit's shapes, timed in turns with the blocks.
"""

import functools
import json
import pathlib
import sys
import time
from typing import Any

import benchmark_case
import figures
import jax
import jax.numpy as jnp
import numpy as np

from hume_jax import compiling, labelling, rows, work
from hume_jax.core import aggregate, search
from hume_jax.evaluation import metrics
from hume_jax.representations import store
from hume_jax.representations.prepared import first_space

# Blocks from one timing of plain products to the next.
_PRODUCTS_EVERY = 10


def fields_of(job: dict[str, Any]) -> list[str]:
    """Flags of `configs/arrays.py`."""
    arrays = pathlib.Path(job["arrays"])
    flags = [f"--config.n_classes={job['classes']}", f"--config.n_tasks={job['tasks']}"]
    for split in ("train", "test"):
        for name in ("phi1", "phi2", "labels"):
            path = arrays / f"{name}_{split}.npy"
            if path.exists():
                flags.append(f"--config.data.{split}.{name}={path}")
    return [*flags, *job["fields"]]


class Labeller:
    """Labels of tasks, and their vote."""

    def __init__(self, config: Any) -> None:
        self.dataset = store.search_spaces(store.open_dataset(config.data), config.search.spaces)
        splits = store.search_splits(self.dataset, config.setting)
        self.kind = rows.kind(config)
        self.statistics, _ = first_space(splits, self.kind)
        self.k = config.n_classes

    def tasks(self, theta: np.ndarray, split: str) -> np.ndarray:
        """(S, n) labels of a split."""
        arrays = getattr(self.dataset, split).phi1.arrays
        return labelling.encode(theta, arrays, self.statistics, self.kind)

    def vote(self, theta: np.ndarray, split: str) -> np.ndarray:
        """(n,) labels of the majority of the tasks, aligned on the train rows."""
        found = aggregate.ensemble(self.tasks(theta, "train"), self.k, np.arange(len(theta)))
        own = self.tasks(theta, split)[found.members]
        return aggregate.vote(aggregate.relabel(own, found.permutations), self.k).labels

    def accuracy(self, theta: np.ndarray) -> float:
        """ACC of the vote on the test rows."""
        test = self.dataset.test
        assert test is not None
        assert test.labels is not None
        return float(metrics.clustering_accuracy(self.vote(theta, "test"), test.labels))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the job."""
    figures.use_precision()
    config = figures.load_config("configs/arrays.py", fields_of(job))
    problem, tasks = figures.build(config), job["tasks"]
    shape = figures.shape_of(problem)
    labeller = Labeller(config)
    arguments = (jnp.uint32(config.seed), problem.data, jnp.asarray(problem.log_prior))
    began = time.perf_counter()
    init = functools.partial(search.init, settings=problem.settings)
    numbers = jnp.arange(tasks)
    start = jax.jit(init).lower(arguments[0], numbers, problem.data).compile(compiling.options())
    program = functools.partial(search.run_steps, settings=problem.settings, steps=job["block"])
    shapes = jax.eval_shape(init, arguments[0], numbers, problem.data)
    lowered = jax.jit(program, donate_argnums=0).lower(shapes, *arguments)
    block = lowered.compile(compiling.options())
    compiled = time.perf_counter() - began
    products = benchmark_case.products_of(problem, shape, tasks)
    benchmark_case.seconds_of(products.run)
    began = time.perf_counter()
    state = jax.block_until_ready(start(arguments[0], numbers, problem.data))
    marks, accuracies = [time.perf_counter() - began], []
    rates: list[float] = []
    for i in range(job["steps"] // job["block"]):
        if job["products"]:
            # As long as a step: now and then, the last rate stands for those between.
            new = i % _PRODUCTS_EVERY == 0
            rate = products.flops / benchmark_case.seconds_of(products.run) if new else rates[-1]
            rates.append(rate)
        began = time.perf_counter()
        state, _info = jax.block_until_ready(block(state, *arguments))
        marks.append(marks[-1] + time.perf_counter() - began)
        if job["accuracies"]:
            theta = np.asarray(state.theta)
            accuracies.append((marks[-1], labeller.accuracy(theta)))
    theta = np.asarray(state.theta)
    return {
        "start_seconds": marks[0],
        "seconds": np.diff(marks).tolist(),
        "compile_seconds": compiled,
        "accuracies": accuracies,
        "product_flops": rates,
        "step_flops": work.step_flops(shape, problem.settings, tasks),
        "labels": labeller.tasks(theta, "train").tolist(),
        "vote": labeller.vote(theta, "train").tolist(),
        "device": figures.device(),
    }


def main(text: str) -> None:
    """Runs the job of a JSON text."""
    print(json.dumps(measure(json.loads(text))))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1])
