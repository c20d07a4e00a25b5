"""Which labelling generalises better in phi2: the given one, or the one that was found?

    python experiments/real_data.py --config=experiments/datasets/clinc150.py --out=runs/clinc150
    python experiments/given_labels.py runs/clinc150/*/ --penalties 1e-4 1e-5 \
        --out=runs/clinc150/given.json

Takes the workdirs of finished runs on data with labels, and scores the given labels and the vote of
the ensemble as tasks are scored. Where the given labels have the lower objective, a better search
could find them; where the found ones have it, the objective itself prefers another labelling, and
no search for its minimum ends at the given one.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import figures
import numpy as np
from ml_collections import config_dict

from hume_jax import planning, scoring
from hume_jax.errors import UserError
from hume_jax.report import results
from hume_jax.representations import store

NAMES = ("given", "found")
SCORES = ("objective", "heldout_ce", "cv_accuracy")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of finished runs")
    parser.add_argument(
        "--penalties",
        type=float,
        nargs="+",
        help="lambda of the fits that score (default: score.penalty of the run)",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file, .json")
    return parser.parse_args(arguments)


def compare(folder: pathlib.Path, penalties: Sequence[float] | None) -> dict[str, Any]:
    """Scores both labellings of a run.

    Returns:
      For each penalty (as text) and each of `NAMES` the `SCORES`.
    """
    for name in ("config.json", "labels.csv"):
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}: give the workdirs of finished runs")
    config = config_dict.ConfigDict(figures.read_json(folder / "config.json"))
    # Runs that were made before there was a choice have no such field.
    spaces = config.search.get("spaces", "given")
    dataset = store.search_spaces(store.open_dataset(config.data), spaces)
    splits = store.search_splits(dataset, config.setting)
    given = [split.labels for split in splits if split.labels is not None]
    if len(given) < len(splits):
        raise UserError(f"{folder}: the run was given no labels of the rows it searched")
    classes, numbers = np.unique(np.concatenate(given), return_inverse=True)
    if len(classes) > config.n_classes:
        raise UserError(f"{folder}: {len(classes)} classes given, {config.n_classes} searched")
    tasks = np.stack([numbers, _found(folder, config.setting)]).astype(np.int32)
    log_prior = np.log(planning.class_prior(config))
    figures_at = {}
    for penalty in penalties or (config.score.penalty,):
        config.score.penalty = penalty
        scores = scoring.score_tasks(config, splits, tasks, log_prior)
        figures_at[f"{penalty:g}"] = {
            name: {score: float(scores[score][i]) for score in SCORES}
            for i, name in enumerate(NAMES)
        }
    return figures_at


def _found(folder: pathlib.Path, setting: str) -> np.ndarray:
    """The vote on the searched rows; rows of broken images are none, and have no label."""
    searched = ("train",) if setting == "inductive" else ("train", "test")
    path = folder / "labels.csv"
    labels = np.concatenate([results.read_labels(path, split) for split in searched])
    return labels[labels >= 0]


def main(arguments: Sequence[str]) -> None:
    """Reads the runs, prints and writes the figures."""
    options = parse_arguments(arguments)
    runs = {folder.resolve().name: compare(folder, options.penalties) for folder in options.runs}
    figures.write_json(options.out, runs)
    rows = [
        [run, penalty, name, *(f"{entry[score]:.3f}" for score in SCORES)]
        for run, at in runs.items()
        for penalty, names in at.items()
        for name, entry in names.items()
    ]
    print(figures.table(["run", "lambda", "labels", "objective", "held-out CE", "cv ACC"], rows))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
