"""Accuracy, time and memory of the search on a real dataset, by what it does with its two spaces.

    python experiments/real_data.py --config=experiments/datasets/imagenette.py --seeds 0 1 2 \
        --out=runs/imagenette
    python experiments/real_data.py --config=experiments/datasets/clinc150.py --out=runs/clinc150

The task encoder is linear in both spaces (the default, `joined`) or in one of them (`forward` and
`reversed`, the paper's setting). Each run is the command a user would type, `python -m
hume_jax.main`, in a process of its own; flags of the config stand behind a lone `--`:

    python experiments/real_data.py --out=runs/imagenette32 -- --config.n_tasks=32

Prints three Markdown tables and writes them, with CSV files beside them: `OUT/scores.md`, the
ensemble's scores (mean ± standard deviation over seeds), `OUT/baselines.md`, k-means and the
supervised probe in each space, and `OUT/costs.md`, seconds and peak memory. The same figures are in
`OUT/runs.json`, the runs themselves in `OUT/NAME/`. Started again with the same command, finished
runs are taken from there and an interrupted one goes on; its seconds are then those of the last
process alone, which the table says.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import figures
import numpy as np
import pairs
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax.errors import UserError

SCORES = ("acc", "ari", "nmi")
DIRECTIONS = ("joined", "forward", "reversed")
SECONDS = ("total", "compile", "search", "score")
Cells = tuple[list[str], list[list[str]]]  # head and rows of a table
# Units of the peak that the system reports: bytes on macOS, KiB elsewhere.
MEMORY_UNIT = 1 if sys.platform == "darwin" else 1024


class Run(NamedTuple):
    """One run to be made."""

    name: str
    direction: str  # of `DIRECTIONS`
    phi1: str  # name of the space that the labelling is linear in, but for 'joined'
    phi2: str
    seed: int
    flags: tuple[str, ...]  # of `hume_jax.main`, but for the workdir
    config_hash: str  # of what these flags resolve to


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--directions",
        choices=DIRECTIONS,
        default=DIRECTIONS,
        nargs="+",
        help="joined: search.spaces=both; forward: the encoder in phi1, the inner fit in phi2; "
        "reversed: these exchanged",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs")
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> list[Run]:
    """The runs that were asked for.

    Raises:
      UserError: a mistake in the config, or no labels to score with.
    """
    config = figures.load_config(options.config, options.fields)
    if not (config.data.train.labels and config.data.test.labels):
        raise UserError("data.train.labels and data.test.labels are needed for the scores")
    names = pairs.space_names(config.data.train.phi1, config.data.train.phi2)
    runs = []
    for direction in options.directions:
        phi1, phi2 = names[::-1] if direction == "reversed" else names
        between = "+" if direction == "joined" else "-"
        spaces = "both" if direction == "joined" else "given"
        own = _exchange(config) if direction == "reversed" else ()
        own = (*own, f"--config.search.spaces={spaces}")
        for seed in options.seeds:
            fields = (*options.fields, *own, f"--config.seed={seed}")
            its_config = figures.load_config(options.config, fields)
            runs.append(
                Run(
                    f"{phi1}{between}{phi2}-seed{seed}",
                    direction,
                    phi1,
                    phi2,
                    seed,
                    (f"--config={options.config}", *fields),
                    config_lib.config_hash(its_config),
                )
            )
    return runs


def _exchange(config: config_dict.ConfigDict) -> tuple[str, ...]:
    """Flags that exchange phi1 and phi2, and what they are encoded by."""
    return tuple(
        f"--config.{part}.{field}={values[other]}"
        for part, values in (
            ("data.train", config.data.train),
            ("data.test", config.data.test),
            ("encode", config.encode),
        )
        for field, other in (("phi1", "phi2"), ("phi2", "phi1"))
    )


def measure(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs one search in a process of its own.

    Returns:
      What is kept of it in runs.json.
    """
    resumed = (workdir / "config.json").exists()
    command = [sys.executable, "-m", "hume_jax.main", *run.flags, f"--workdir={workdir}"]
    began = time.perf_counter()
    # Its table goes where its log goes, so that what this script prints can be piped on.
    process = subprocess.Popen(command, stdout=2)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{run.name} ended with status {process.returncode}, see above")
    return {
        **run._asdict(),
        "wall_seconds": time.perf_counter() - began,
        "peak_bytes": usage.ru_maxrss * MEMORY_UNIT,
        "resumed": resumed,
        **summarise(figures.read_json(workdir / "results.json")),
    }


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    """What the tables show of a results.json."""
    tasks, ensemble = results["tasks"], results["ensemble"]
    return {
        "ensemble": {split: _scores(ensemble[split]) for split in ("train", "test")},
        "tasks": {
            split: {
                score: [task[split][score] for task in tasks if split in task] for score in SCORES
            }
            for split in ("train", "test")
        },
        "baselines": {
            method: {split: _scores(entry) for split, entry in splits.items()}
            for method, splits in results["baselines"].items()
        },
        "n_classes": results["n_classes"],
        "classes_used": {
            "ensemble": int(np.count_nonzero(ensemble["class_counts"])),
            "tasks": [task["n_classes_used"] for task in tasks],
        },
        "collapsed": len(results.get("collapsed", [])),
        "seconds": {name: results["seconds"][name] for name in SECONDS},
        "device": results["device"],
    }


def _scores(entry: dict[str, Any]) -> dict[str, float]:
    return {score: entry[score] for score in SCORES}


def scores_table(runs: Sequence[dict[str, Any]]) -> Cells:
    """The ensemble and the single tasks, a row for each direction."""
    head = ["spaces", "seeds", "test ACC", "test ARI", "test NMI", "train ACC"]
    head += ["single tasks, train ACC", "ensemble's classes", "a task's", "collapsed tasks"]
    rows = []
    for direction, group in _by_direction(runs):
        test = [figures.spread([r["ensemble"]["test"][s] for r in group]) for s in SCORES]
        used = [r["classes_used"] for r in group]
        rows.append(
            [
                direction,
                str(len(group)),
                *test,
                figures.spread([r["ensemble"]["train"]["acc"] for r in group]),
                figures.spread([float(np.mean(r["tasks"]["train"]["acc"])) for r in group]),
                f"{_mean([u['ensemble'] for u in used])} of {group[0]['n_classes']}",
                _mean([n for u in used for n in u["tasks"]]),
                f"{sum(r['collapsed'] for r in group)} of {sum(len(u['tasks']) for u in used)}",
            ]
        )
    return head, rows


def baselines_table(runs: Sequence[dict[str, Any]]) -> Cells:
    """k-means and the probe in each space, on the test rows, over the seeds."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for run in runs:
        for method in ("kmeans", "probe"):
            for field in ("phi1", "phi2"):
                entry = run["baselines"].get(f"{method}_{field}", {}).get("test")
                if entry:
                    # The same in both directions: counted once for each seed.
                    found.setdefault((method, run[field]), {}).setdefault(run["seed"], entry)
    names = {"kmeans": "k-means", "probe": "supervised probe"}
    rows = [
        [names[method], space]
        + [figures.spread([entry[score] for entry in seeds.values()]) for score in SCORES]
        for (method, space), seeds in sorted(found.items())
    ]
    return ["method", "space", "test ACC", "test ARI", "test NMI"], rows


def costs_table(runs: Sequence[dict[str, Any]]) -> Cells:
    """Seconds and memory, a row for each direction."""
    head = ["spaces", *(f"{name}, s" for name in SECONDS), "whole process, s", "peak, GiB"]
    rows = []
    for direction, group in _by_direction(runs):
        note = " (went on after a stop)" if any(r["resumed"] for r in group) else ""
        rows.append(
            [
                direction + note,
                *(figures.spread([r["seconds"][name] for r in group], 1) for name in SECONDS),
                figures.spread([r["wall_seconds"] for r in group], 1),
                f"{max(r['peak_bytes'] for r in group) / 2**30:.2f}",
            ]
        )
    return head, rows


def _by_direction(runs: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        between = "and" if run["direction"] == "joined" else "→"
        groups.setdefault(f"{run['phi1']} {between} {run['phi2']}", []).append(run)
    return list(groups.items())


def _mean(values: Sequence[int]) -> str:
    return f"{np.mean(values):.4g}"


def report(runs: Sequence[dict[str, Any]], folder: pathlib.Path) -> str:
    """All tables, which are written too, and what they were measured on."""
    tasks = sorted({len(run["classes_used"]["tasks"]) for run in runs})
    devices = sorted({run["device"] for run in runs})
    lines = [f"{' and '.join(map(str, tasks))} tasks a run, on {' and '.join(devices)}."]
    tables = {"scores": scores_table}
    if any(run["baselines"] for run in runs):
        tables["baselines"] = baselines_table
    tables["costs"] = costs_table
    for name, cells in tables.items():
        lines.append(figures.write_table(folder, *cells(runs), name=name))
    return "\n\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Makes the runs that are missing, then prints all that were asked for."""
    options = parse_arguments(arguments)
    path = options.out / "runs.json"
    done = figures.read_json(path)
    asked = plan(options)
    figures.make_folder(options.out)
    for run in asked:
        if run.name not in done:
            print(f"{run.name}: {' '.join(run.flags)}", file=sys.stderr)
            done[run.name] = measure(run, options.out / run.name)
            figures.write_json(path, done)
        elif done[run.name]["config_hash"] != run.config_hash:
            raise UserError(f"{path} has {run.name} of another config: give another --out")
    print(report([done[run.name] for run in asked], options.out))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
