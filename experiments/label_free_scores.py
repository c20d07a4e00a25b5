"""How well the label-free scores of tasks tell which task is accurate.

    python experiments/real_data.py --out=runs/imagenette32 -- --config.n_tasks=32
    python experiments/label_free_scores.py runs/imagenette32/*/ --out=runs/label_free.json

Takes the workdirs of finished runs (32 tasks or more make the intervals useful; each seed of a run
of several is one; a folder without a results.json is an error) and prints a Markdown table, a row
for each run and score:

* Pearson's and Spearman's correlation of the score with ACC over the tasks, with bootstrap 95 %
  intervals. The objective should be low and the other two high for an accurate task.
* the standard deviation of ACC over the tasks: where it is small there is little to tell apart, and
  a weak correlation says little.
* the ACC lost by taking the task of the best score instead of the most accurate one.

Cross-validated accuracy is compared between tasks of the same number of used classes alone (fewer
classes are easier to predict): the tasks that use the most. The column `tasks` says how many.

Beside OUT.json it writes OUT.md, OUT.csv and OUT.png, where each task is a point: the figure
"objective against agreement with human labels" of the paper, with the other scores beside it.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import figures
import numpy as np
from matplotlib.figure import Figure

from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.report import results

# Where ACC spreads more than this, the objective's correlation with it should be at most -0.7.
SPREAD = 0.02


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of finished runs")
    parser.add_argument("--split", choices=results.SPLITS, default="train", help="whose ACC")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file, .json")
    return parser.parse_args(arguments)


def study(tasks: Sequence[dict[str, Any]], split: str) -> dict[str, dict[str, Any]]:
    """Compares every label-free score with ACC.

    Args:
      tasks: entries of a results.json.
      split: whose ACC.

    Returns:
      For each score `n`, `correlation` (as `metrics.correlation`, None where one side is constant),
      `acc_of_best` of the task that the score puts first, and `lost` against the most accurate.
    """
    found = {}
    accuracy = np.array([task[split]["acc"] for task in tasks])
    for score, _, _ in results.LABEL_FREE:
        compared = results.comparable(tasks, score)
        values = np.array([tasks[i][score] for i in compared])
        best = results.best_task(tasks, score)
        if best is None:
            continue
        found[score] = {
            "n": len(compared),
            "correlation": metrics.correlation(values, accuracy[compared]),
            "acc_of_best": float(accuracy[best]),
            "lost": float(accuracy.max() - accuracy[best]),
        }
    return found


def read_run(folder: pathlib.Path, split: str) -> dict[str, Any]:
    """Studies one finished run."""
    summary = figures.read_json(folder / "results.json")
    if not summary:
        raise UserError(f"{folder} has no results.json: give the workdirs of finished runs")
    tasks = summary["tasks"]
    if any(split not in task for task in tasks):
        raise UserError(f"{folder}: no scores on {split}, the run was given no labels of it")
    accuracy = [task[split]["acc"] for task in tasks]
    return {
        "split": split,
        "tasks": len(tasks),
        "acc_mean": float(np.mean(accuracy)),
        "acc_sd": float(np.std(accuracy, ddof=1)) if len(tasks) > 1 else 0.0,
        "acc_best": max(accuracy),
        "acc_ensemble": summary["ensemble"][split]["acc"],
        "scores": study(tasks, split),
        "points": {
            "acc": accuracy,
            **{name: [task[name] for task in tasks] for name, _, _ in results.LABEL_FREE},
        },
    }


def cells(runs: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The table, a row for each run and score: its head and its rows."""
    names = {key: name for key, name, _ in results.LABEL_FREE}
    head = ["run", "score", "tasks", "Pearson [95 %]", "Spearman [95 %]", "ACC mean ± sd"]
    head += ["ACC of the best", "ACC of the best-scored", "lost"]
    rows = []
    for run, figure in runs.items():
        for score, entry in figure["scores"].items():
            rows.append(
                [
                    run,
                    names[score],
                    str(entry["n"]),
                    *(_correlation(entry["correlation"], k) for k in ("pearson", "spearman")),
                    f"{figure['acc_mean']:.3f} ± {figure['acc_sd']:.3f}",
                    f"{figure['acc_best']:.3f}",
                    f"{entry['acc_of_best']:.3f}",
                    f"{entry['lost']:.3f}",
                ]
            )
    return head, rows


def draw(path: pathlib.Path, runs: dict[str, dict[str, Any]]) -> None:
    """Draws ACC against each score, a row of panels a run.

    Args:
      path: of the PNG file.
      runs: as `read_run` returns them, by name.
    """
    figure = Figure(figsize=(9.5, 2.9 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), len(results.LABEL_FREE), squeeze=False, sharey="row")
    for panels, (run, found) in zip(grid, runs.items(), strict=True):
        points = found["points"]
        for axes, (score, name, _) in zip(panels, results.LABEL_FREE, strict=True):
            axes.plot(points[score], points["acc"], "o", color="#2f6690", alpha=0.5, markersize=5)
            axes.set_xlabel(name)
            # Long numbers would run into each other.
            axes.locator_params(axis="x", nbins=5)
            axes.grid(color="#d8dee4", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            entry = found["scores"].get(score, {}).get("correlation")
            if entry:
                axes.set_title(results.describe(entry, "pearson"), fontsize=9)
        panels[0].set_ylabel(f"{run}\nACC on {found['split']} rows")
    figures.write_png(path, figure)


def _correlation(entry: dict[str, Any] | None, kind: str) -> str:
    return results.describe(entry, kind).partition(" ")[2] if entry else "-"


def _name(folder: pathlib.Path) -> str:
    """A run's name; seeds of one run are told apart from those of another."""
    of_seed = folder.name.startswith("seed_")
    return f"{folder.parent.name}, {folder.name}" if of_seed else folder.name


def verdict(runs: dict[str, dict[str, Any]]) -> str:
    """Says of each run whether the objective ranks tasks well enough."""
    lines = []
    for run, figure in runs.items():
        entry = figure["scores"].get("objective")
        varies = figure["acc_sd"] > SPREAD
        if entry is None:
            lines.append(f"{run}: no task has an objective")
        elif varies and entry["correlation"]:
            good = entry["correlation"]["pearson"] <= -0.7
            lines.append(f"{run}: Pearson {'at most' if good else 'above'} -0.7 (objective)")
        else:
            why = "too few tasks differ" if varies else f"ACC hardly varies (sd at most {SPREAD})"
            less = "less" if entry["lost"] < 0.01 else "not less"
            lines.append(f"{run}: {why}, {less} than 0.01 lost by the objective's choice")
    return "\n".join(f"* {line}" for line in lines)


def main(arguments: Sequence[str]) -> None:
    """Reads the runs, prints and writes the figures."""
    options = parse_arguments(arguments)
    folders = [part.resolve() for folder in options.runs for part in figures.seed_folders(folder)]
    runs = {_name(folder): read_run(folder, options.split) for folder in folders}
    if len(runs) < len(folders):
        raise UserError("two of the runs have the same name; rename a folder")
    figures.write_json(options.out, runs)
    text = figures.write_table(options.out.parent, *cells(runs), name=options.out.stem)
    draw(options.out.with_suffix(".png"), runs)
    print(f"ACC on {options.split}\n\n{text}\n\n{verdict(runs)}")


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
