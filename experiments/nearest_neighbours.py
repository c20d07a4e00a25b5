"""Exact nearest neighbours: products by blocks here, beside what libraries do, on one machine.

    python experiments/nearest_neighbours.py --out=runs/nearest_neighbours.json

Made rows of unit norm. The ways take turns, so that whatever else the machine does falls on all of
them alike; the median counts. `jax` is `hume_jax.baselines.neighbours`, its first call, which
compiles, left out; `scikit-learn` is brute force by the same products; `faiss` is its flat index,
where the package is installed. Checks that all find the same.

Prints a Markdown table: seconds of all rows, and the share of scikit-learn's.
"""

import argparse
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import figures
import numpy as np

from hume_jax.baselines.neighbours import neighbours
from hume_jax.errors import UserError


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--count", type=int, default=50, help="neighbours of each row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file, .json")
    options = parser.parse_args(arguments)
    if not 0 < options.count < options.rows:
        raise UserError(f"--count={options.count}: it must be between 1 and one less than --rows")
    return options


def ways() -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """From rows and a count to (n, count) numbers of rows, in any order within a row."""

    def scikit_learn(x: np.ndarray, count: int) -> np.ndarray:
        from sklearn.neighbors import NearestNeighbors

        found = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(x)
        # Without an argument, a row is not its own neighbour.
        return found.kneighbors(return_distance=False)

    found: dict[str, Callable[[np.ndarray, int], np.ndarray]]
    found = {"jax": neighbours, "scikit-learn": scikit_learn}
    try:
        import faiss
    except ImportError:
        return found

    def flat(x: np.ndarray, count: int) -> np.ndarray:
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        return index.search(x, count + 1)[1][:, 1:]

    return {**found, "faiss": flat}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times all ways in turns."""
    x = np.random.default_rng(0).normal(size=(options.rows, options.columns)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    neighbours(x, options.count)
    seconds: dict[str, list[float]] = {name: [] for name in ways()}
    sets: dict[str, np.ndarray] = {}
    for i in range(options.repeats):
        print(f"timing, {i + 1} of {options.repeats}", file=sys.stderr)
        for name, way in ways().items():
            began = time.perf_counter()
            sets[name] = np.sort(way(x, options.count), axis=1)
            seconds[name].append(time.perf_counter() - began)
    return {
        "rows": options.rows,
        "columns": options.columns,
        "count": options.count,
        "device": figures.device(),
        "seconds": seconds,
        # Rounding decides between cosines that are equal but for the last digits.
        "same": {name: float(np.mean(found == sets["jax"])) for name, found in sets.items()},
    }


def report(found: dict[str, Any]) -> str:
    """The table, a row for each way."""
    medians = {name: float(np.median(values)) for name, values in found["seconds"].items()}
    rows = [
        [
            name,
            f"{median:.2f}",
            f"{min(found['seconds'][name]):.2f}",
            f"{median / medians['scikit-learn']:.2f}",
            f"{found['same'][name]:.4f}",
        ]
        for name, median in medians.items()
    ]
    head = ["way", "seconds, median", "lowest", "of scikit-learn's", "same neighbours"]
    return (
        f"{found['count']} neighbours of {found['rows']} rows of {found['columns']} columns; "
        f"{found['device']}\n\n{figures.table(head, rows)}"
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
