"""What coarser products of the inner fit, and rows held in fewer bits, do to a search.

    python experiments/precision.py --out=runs/precision
    python experiments/precision.py --out=runs/precision_quickstart --config=configs/quickstart.py \
        --seeds 0 1 2

For each precision and storage: cosine of the search's hypergradient to the converged one, as
`hypergradient_accuracy.py` has it, inner and adjoint steps of a step on average, and ACC of runs of
several seeds. Lower precisions are emulated where the device has none (`coarse_products.py`); on
one that has them, `--device=own` takes its own. Each row is a process of its own; rows that OUT
holds are not run anew. Fields behind a lone -- hold for all rows.
"""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import benchmark_runs
import coarse_products
import figures
import hypergradient_accuracy
import numpy as np

from hume_jax import pipeline

# Name, precision, device whose products they are, storage.
CASES: dict[str, tuple[str, str, str]] = {
    "highest": ("highest", "", "float32"),
    "high, TPU": ("high", "tpu", "float32"),
    "high or default, GPU": ("default", "gpu", "float32"),
    "default, TPU": ("default", "tpu", "float32"),
    "highest, bfloat16 rows": ("highest", "", "bfloat16"),
    "default, TPU, bfloat16 rows": ("default", "tpu", "bfloat16"),
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", choices=("emulated", "own"), default="emulated")
    parser.add_argument("--case", choices=tuple(CASES), help="this row alone, in this process")
    return parser.parse_args(arguments)


def fields_of(name: str, options: argparse.Namespace) -> list[str]:
    """Flags of a row."""
    precision, _, storage = CASES[name]
    return [
        *options.fields,
        f"--config.precision={precision}",
        f"--config.search.storage={storage}",
        "--config.search.rows=memory",
        "--noconfig.baselines",
        "--noconfig.plots",
    ]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Cosines and ACC of a row, in this process."""
    folder = options.out / name.replace(", ", "_").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    fields = fields_of(name, options)
    device = CASES[name][1]
    emulate = device and options.device == "emulated"
    with coarse_products.emulated(device) if emulate else contextlib.nullcontext():
        cosines = folder / "hypergradient.json"
        command = [f"--config={options.config}", f"--out={cosines}", "--", *fields]
        hypergradient_accuracy.main(command)
        seeds = [*fields, f"--config.seeds=({','.join(map(str, options.seeds))},)"]
        results = pipeline.run(figures.load_config(options.config, seeds), folder / "run")
    points = json.loads(cosines.read_text(encoding="utf-8"))
    return {
        "cosines": [c for point in points["points"].values() for c in point["cosine"]],
        "products": points["products"],
        "acc": results["ensemble"]["test"]["acc"],
    }


def run_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row, from OUT or else from a process of its own."""
    command = [sys.executable, __file__, f"--config={options.config}", f"--out={options.out}"]
    command += [f"--device={options.device}", f"--case={name}", "--seeds"]
    command += [*map(str, options.seeds), "--", *options.fields]

    def find() -> dict[str, Any]:
        print(name, file=sys.stderr)
        return benchmark_runs.answer(command, name)

    made_with = [options.config, fields_of(name, options), options.seeds, options.device, name]
    return benchmark_runs.kept(options.out, made_with, find)


def rows_of(found: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = ["precision", "cosine: lowest", "median", "products a step", "test ACC"]
    rows = []
    for name, one in found.items():
        acc = one["acc"]
        rows.append(
            [
                name,
                f"{np.min(one['cosines']):.5f}",
                f"{np.median(one['cosines']):.5f}",
                f"{one['products']:.1f}",
                f"{acc['mean']:.4f} ± {acc['deviation']:.4f}",
            ]
        )
    return head, rows


def main(arguments: Sequence[str]) -> None:
    """Runs the rows that are missing, prints and writes all."""
    options = parse_arguments(arguments)
    if options.case:
        print(json.dumps(measure(options.case, options)))
        return
    found = {name: run_case(name, options) for name in CASES}
    table = figures.write_table(options.out, *rows_of(found), name="precision")
    print(f"{figures.device()}, {len(options.seeds)} seeds\n\n{table}")


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
