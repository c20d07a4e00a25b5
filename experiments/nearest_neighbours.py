"""Exact nearest neighbours by three ways, on one machine.

    python experiments/nearest_neighbours.py --out=runs/nearest_neighbours

Made rows of unit norm. The ways take turns, so that whatever else the machine does falls on all of
them alike; the median counts. `faiss` is `hume_jax.baselines.neighbours`, by a flat index; `jax`
takes products and `jax.lax.top_k` by blocks of rows, its first call, which compiles, left out;
`scikit-learn` is brute force. Checks that all find the same.

Writes table.md and table.csv, seconds of all rows and the share of scikit-learn's, and
seconds.json, every repeat of every way.
"""

import argparse
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import figures
import jax
import jax.numpy as jnp
import numpy as np

from hume_jax.baselines.neighbours import neighbours
from hume_jax.errors import UserError

# Cosines that are held at a time.
_BLOCK_BYTES = 2**27


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--count", type=int, default=50, help="neighbours of each row")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    if not 0 < options.count < options.rows:
        raise UserError(f"--count={options.count}: it must be between 1 and one less than --rows")
    for name in ("columns", "repeats"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)}: it must be at least 1")
    return options


def ways() -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """From rows and a count to (n, count) numbers of rows, in any order within a row."""
    return {"faiss": neighbours, "jax": _by_blocks, "scikit-learn": _scikit_learn}


def _scikit_learn(x: np.ndarray, count: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(x)
    # Without an argument, a row is not its own neighbour.
    return found.kneighbors(return_distance=False)


def _by_blocks(x: np.ndarray, count: int) -> np.ndarray:
    n = len(x)
    size = min(n, _BLOCK_BYTES // (4 * n))
    rows = jnp.asarray(x)
    # The last block reaches back, so that all have one shape.
    starts = [min(start, n - size) for start in range(0, n, size)]
    found = np.empty((n, count), np.int32)
    for start in starts:
        found[start : start + size] = _block(rows, jnp.int32(start), size=size, count=count)
    return found


@functools.partial(jax.jit, static_argnames=("size", "count"))
def _block(x: jax.Array, start: jax.Array, *, size: int, count: int) -> jax.Array:
    cosines = jax.lax.dynamic_slice_in_dim(x, start, size) @ x.T
    own = start + jnp.arange(size)
    return jax.lax.top_k(cosines.at[jnp.arange(size), own].set(-jnp.inf), count)[1]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times all ways in turns."""
    x = np.random.default_rng(0).normal(size=(options.rows, options.columns)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    _by_blocks(x, options.count)
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
        "same": {name: float(np.mean(found == sets["faiss"])) for name, found in sets.items()},
    }


def write(found: dict[str, Any], folder: pathlib.Path) -> str:
    """Writes seconds and table, a row for each way; returns the table under what was measured."""
    figures.write_json(folder / "seconds.json", found)
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
        f"{found['device']}\n\n{figures.write_table(folder, head, rows)}"
    )


def main(arguments: Sequence[str]) -> None:
    """Times, prints and writes."""
    options = parse_arguments(arguments)
    print(write(measure(options), options.out))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
