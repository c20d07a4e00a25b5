"""How well a linear model generalises on what each method found, and on the labels people gave.

    python experiments/labels_generalization.py --config=experiments/datasets/clinc150.py \
        --keep=docs/labels/clinc150 --out=runs/generalization_clinc150

HUME looks for the labelling of lowest objective: the cross-entropy of a linear model on held-out
rows, plus the penalty of unequal classes. Here every labelling of the test rows that `comparison.py
--keep` left in a folder is scored so, by cross-validation in all spaces of the config (the
label-free scores of `hume_jax.main`), and so are the given labels. A method whose labels generalise
as well as those has found another grouping that data of this kind cannot tell from it; one whose
labels generalise worse has not searched well enough. Votes and supervised methods alone; single
starts are left out.

Two columns tell how classes are missed: given ones *in pieces*, of which no found class holds half,
and found ones *of two*, which hold half of two given classes or more.

Writes OUT/table.md, table.csv, table.json and table.png, ACC against cross-validated accuracy;
what is scored is kept in OUT/scores, from which a later run takes it.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import figures
import kept as kept_labels
import numpy as np
import scored
from kept import Row
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hume_jax.baselines.methods import METHODS
from hume_jax.core import aggregate
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.representations import store

GIVEN = "given labels"
HEAD = (
    "method", "spaces", "what", "objective", "held-out CE", "cross-validated accuracy",
    "classes used", "entropy of sizes", "in pieces", "of two", "test ACC",
)  # fmt: skip


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--keep", type=pathlib.Path, required=True, help="folder of kept labels")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the table")
    return parser.parse_args(arguments)


def compared(folder: pathlib.Path, given: np.ndarray, n_classes: int) -> list[Row]:
    """Votes and supervised methods of a folder, and the given labels last.

    Args:
      folder: of `comparison.py --keep`.
      given: (n,) labels of the test rows, from 0.
      n_classes: K.

    Raises:
      UserError: it holds no such row, or rows of another dataset.
    """
    supervised = {entry.title for entry in METHODS.values() if entry.supervised}
    rows = [r for r in kept_labels.read(folder) if "vote" in r.what or r.method in supervised]
    if not rows:
        raise UserError(f"{folder} holds no votes: comparison.py --keep writes them there")
    rows.sort(key=kept_labels.place)
    rows.append(Row(GIVEN, "", "", ("given",), given[None], (0.0,)))
    kept_labels.check_rows(rows, len(given), n_classes)
    return rows


def judge(rows: Sequence[Row], scores: dict[str, np.ndarray], k: int) -> list[dict[str, Any]]:
    """Scores of each row, a value a labelling.

    Args:
      rows: as `compared` returns them.
      scores: (G,) each, of the labelings of all rows in their order.
      k: number of classes.
    """
    given = rows[-1].labels[0]
    ends = np.cumsum([len(row.labels) for row in rows])
    found: list[dict[str, Any]] = []
    for row, own in zip(rows, np.split(np.arange(ends[-1]), ends[:-1]), strict=True):
        halves = [missed_classes(labels, given) for labels in row.labels]
        found.append(
            {
                "method": row.method,
                "spaces": row.spaces,
                "what": row.what,
                "objective": scores["objective"][own].tolist(),
                "heldout_ce": scores["heldout_ce"][own].tolist(),
                "cv_accuracy": scores["cv_accuracy"][own].tolist(),
                "used": (aggregate.class_counts(row.labels, k) > 0).sum(axis=1).tolist(),
                "entropy": (scores["entropy"][own] / np.log(k)).tolist(),
                "in_pieces": [missed[0] for missed in halves],
                "of_two": [missed[1] for missed in halves],
                "acc": [metrics.clustering_accuracy(labels, given) for labels in row.labels],
            }
        )
    return found


def missed_classes(labels: np.ndarray, given: np.ndarray) -> tuple[int, int]:
    """Given classes of which no found class holds half, and found ones that hold half of several.

    Args:
      labels: (n,) integers, found.
      given: (n,) integers.
    """
    matrix = metrics.confusion_matrix(labels, given).matrix
    half = 2 * matrix >= matrix.sum(axis=1, keepdims=True)
    return int((~half.any(axis=1)).sum()), int((half.sum(axis=0) > 1).sum())


def line(found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    return [
        *(found[name] or "-" for name in ("method", "spaces", "what")),
        *(figures.spread(found[name]) for name in ("objective", "heldout_ce", "cv_accuracy")),
        f"{np.mean(found['used']):.0f}",
        figures.spread(found["entropy"]),
        *(figures.spread(found[name], 0) for name in ("in_pieces", "of_two")),
        figures.spread(found["acc"]),
    ]


def draw(path: pathlib.Path, found: Sequence[dict[str, Any]]) -> None:
    """Draws ACC against cross-validated accuracy, a point a labelling; a line for the given.

    Colors are of methods, shapes of spaces.
    """
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    *rows, given = found
    methods, spaces = (list(dict.fromkeys(row[name] for row in rows)) for name in HEAD[:2])
    # More methods than colors: the others are hollow.
    looks: dict[str, dict[str, Any]] = {
        method: {
            "markeredgecolor": f"C{i % 10}",
            "markerfacecolor": f"C{i}" if i < 10 else "none",
        }
        for i, method in enumerate(methods)
    }
    marks = {name: "o^sDv"[i % 5] for i, name in enumerate(spaces)}
    for row in rows:
        look = looks[row["method"]]
        axes.plot(row["cv_accuracy"], row["acc"], marks[row["spaces"]], **look)
    line = axes.axvline(given["cv_accuracy"][0], color="#d1611c", linewidth=1, label=GIVEN)
    handles = [Line2D([], [], marker="o", label=name, **look) for name, look in looks.items()]
    handles += [Line2D([], [], marker=m, color="#57606a", label=n) for n, m in marks.items()]
    for handle in handles:
        handle.set_linestyle("none")
    axes.set_xlabel("cross-validated accuracy of a linear model, mean over the spaces")
    axes.set_ylabel("ACC on test rows")
    axes.grid(color="#d8dee4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=[*handles, line], loc="outside right upper", fontsize="small", frameon=False
    )
    figures.write_png(path, figure)


def main(arguments: Sequence[str]) -> None:
    """Scores, prints and writes."""
    options = parse_arguments(arguments)
    figures.make_folder(options.out)
    config = figures.load_config(options.config, options.fields)
    dataset = store.search_spaces(store.open_dataset(config.data), "both")
    if dataset.test is None or dataset.test.labels is None:
        raise UserError("data.test.phi1, phi2 and labels are needed for the scores")
    given = np.unique(dataset.test.labels, return_inverse=True)[1]
    rows = compared(options.keep, given, config.n_classes)
    labels = np.concatenate([row.labels for row in rows])
    scores = scored.scores(options.out, config, dataset.test, labels)
    found = judge(rows, scores, config.n_classes)
    figures.write_json(options.out / "table.json", {"rows": found})
    draw(options.out / "table.png", found)
    print(figures.write_table(options.out, HEAD, [line(each) for each in found]))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
