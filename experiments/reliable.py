"""How right the surest rows of a run are, against all of its rows, by several thresholds.

    python -m hume_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
    python experiments/reliable.py runs/quickstart --out=runs/reliable

Without a label: how large a part of the rows is taken, and how many of them another vote has in the
same class, if half of the tasks vote and the rows are those that the other half is sure of. Where
the run was given labels, ACC (by the one matching of classes of all rows) stands beside it, and how
many rows would be taken of each class if all were to have the same number.

Writes OUT/table.md.
"""

import argparse
import functools
import pathlib
from typing import Any

import numpy as np

from hume_jax import labelling, prediction
from hume_jax.core import aggregate, consensus, selection
from hume_jax.editing import table
from hume_jax.errors import UserError
from hume_jax.report import tables
from hume_jax.representations import store

AGREEMENT = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MARGIN = (0.0, 0.5, 0.8)
HEADINGS = (
    "agreement",
    "margin",
    "rows",
    "same class by the other half",
    "ACC",
    "balanced, rows of each of so many classes",
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/reliable"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [f"**{pathlib.Path(run).name}**\n\n{of_run(run)}\n" for run in args.runs]
    (args.out / "table.md").write_text("\n".join(texts))
    print("\n".join(texts))


def of_run(place: str) -> str:
    """The table of a run, as Markdown."""
    run = prediction.open_run(place)
    dataset = store.open_files(run.config["data"])
    found = table.read(pathlib.Path(place) / "labels.csv")["train"]
    rows = found.labels >= 0
    vote = aggregate.Vote(found.labels[rows], found.agreement[rows], found.margin[rows])
    halves = _halves(run, dataset)
    right = _right(vote.labels, dataset.train.labels)
    lines = [
        [f"{agreement:g}", f"{margin:g}", *_cells(vote, halves, right, agreement, margin)]
        for agreement in AGREEMENT
        for margin in MARGIN
        # A lower margin than this cannot be, so the row would be another one's.
        if not margin or margin > 2 * agreement - 1
    ]
    return tables.table(HEADINGS, lines)


def _cells(
    vote: aggregate.Vote, halves: Any, right: np.ndarray | None, agreement: float, margin: float
) -> list[str]:
    pick = functools.partial(selection.reliable, least_agreement=agreement, least_margin=margin)
    taken = pick(*vote).rows
    same = []
    for one, other in (halves, halves[::-1]):
        sure = pick(*one).rows
        order = aggregate.match(
            other.labels, one.labels, int(max(h.labels.max() for h in halves)) + 1
        )
        same.append(np.mean(order[other.labels[sure]] == one.labels[sure]) if len(sure) else np.nan)
    even = pick(*vote, balanced=True)
    return [
        f"{len(taken) / len(vote.labels):.3f}",
        f"{np.mean(same):.4f}",
        "-" if right is None or not len(taken) else f"{np.mean(right[taken]):.4f}",
        f"{even.quota or 0} of {sum(map(bool, even.there.values()))}",
    ]


def _halves(run: prediction.Run, dataset: store.Dataset) -> tuple[aggregate.Vote, aggregate.Vote]:
    """The votes of the tasks with even and with odd numbers."""
    searched = store.search_spaces(dataset, run.config["search"]["spaces"]).train
    model = run.model
    tasks = labelling.encode(model.theta, searched.phi1.arrays, model.statistics, model.kind)
    k = model.theta.shape[2]
    if len(tasks) < 4:
        raise UserError(f"{run.place} has {len(tasks)} tasks that vote, it takes 4 to halve them")

    def vote(half: np.ndarray) -> aggregate.Vote:
        ensemble = aggregate.ensemble(half, k, np.arange(len(half)))
        if model.tables is None:
            return ensemble.vote
        aligned = aggregate.relabel(half, ensemble.permutations)
        evenness = consensus.evenness_of(run.config["search"]["entropy_weight"])
        return consensus.consensus(aligned, ensemble.vote.labels, k, evenness=evenness).vote

    return vote(tasks[::2]), vote(tasks[1::2])


def _right(labels: np.ndarray, true: np.ndarray | None) -> np.ndarray | None:
    """Which rows have the label matched to their class, by the best matching over all rows."""
    if true is None:
        return None
    k = int(max(labels.max(), true.max())) + 1
    return np.asarray(aggregate.match(labels, true, k)[labels] == true)


if __name__ == "__main__":
    main()
