"""Which tasks should vote, and how: many votes of the tasks of finished runs.

    python experiments/subset.py --hold-out=0.25 --out=runs/held_out
    python -m hume_jax.main --config=experiments/ablations.py:default,held_out \
        --config.n_tasks=100 --config.seeds="(0,1,2)" --workdir=runs/votes/tasks_100
    python experiments/votes.py runs/votes/tasks_100 --out=runs/votes/cell

The search is the same for all of them, so what differs is the vote alone: of the first tasks, of
those that a label-free score puts first, or of all; soft or of the majority; with better tasks
counted more than once. A row of the table is a vote, its spread that over the seeds of the run (or
over the runs). The agreement of the votes of two seeds and the held-out cross-entropy of a linear
model on the vote need no label. Where the run was given labels, ACC stands beside them, of its
train rows and of its test rows.

Writes OUT/table.md, table.csv and the picture table.png; what is scored is kept in OUT/scores, from
which a later run takes it.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import figures
import numpy as np
import scored
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import labelling, planning, scoring
from hume_jax.core import aggregate
from hume_jax.core.consensus import consensus, soft_vote
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.report import results
from hume_jax.representations import store

# Tasks that vote more than once: the best quarter this often, and so on down.
_COUNTED = (4, 3, 2, 1)


class Voters(NamedTuple):
    """Who votes, and how."""

    first: int = 0  # the first so many tasks, as if only they had been searched; 0: all
    select: str = "all"  # as `ensemble.select`
    share: float = 1.0  # as `ensemble.fraction`
    vote: str = "soft"  # as `ensemble.vote`
    counted: bool = False  # whether better tasks, by the objective, count more than once
    # How even a soft vote makes the classes; None: as far as the run's entropy weight says.
    evenness: float | None = None

    def name(self, n_tasks: int) -> str:
        """In words, of a run with so many tasks."""
        if self.counted:
            return f"all {n_tasks}, quarters by objective counted {', '.join(map(str, _COUNTED))}"
        if self.select != "all":
            return f"best {max(1, round(self.share * n_tasks))} by {SCORES[self.select]}"
        return f"first {self.first}" if self.first else f"all {n_tasks}"

    @property
    def how(self) -> str:
        """The vote, in words."""
        if self.evenness is None:
            return self.vote
        return f"{self.vote}, {'even classes' if self.evenness else 'classes as they come'}"


SCORES = {key: name for key, name, _ in results.LABEL_FREE}
VOTERS = (
    *(Voters(first=n) for n in (1, 4, 16, 64)),
    Voters(),
    Voters(evenness=1.0),
    Voters(evenness=0.0),
    Voters(vote="hard"),
    *(Voters(select=score, share=share) for share in (0.0, 0.1, 0.5) for score in SCORES),
    *(Voters(select=score, share=0.5, vote="hard") for score in SCORES),
    Voters(counted=True),
)
HEAD = ("tasks that vote", "vote", "agreement of the votes", "held-out CE", "train ACC", "test ACC")


# Of the train rows, and of the test rows where there are some.
Labels = tuple[np.ndarray, np.ndarray | None]


class Run(NamedTuple):
    """The tasks of one seed."""

    config: config_dict.ConfigDict
    dataset: store.Dataset  # its train rows are the searched ones
    model: labelling.Model  # with all tasks
    train: np.ndarray  # (S, n) int32 labels of the searched rows
    test: np.ndarray | None  # (S, m) int32
    scores: dict[str, np.ndarray]  # (S,) each, as `hume_jax.pipeline` has them
    agreement: np.ndarray  # (S, S)


def parse_arguments(arguments: Sequence[str], doc: str | None = __doc__) -> argparse.Namespace:
    """The command line of a script that takes finished runs; ``doc`` is the script's docstring."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of finished runs")
    parser.add_argument("--blind", action="store_true", help="leave labels unopened: no ACC")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the table")
    return parser.parse_args(arguments)


def read_runs(options: argparse.Namespace) -> list[Run]:
    """The tasks of the runs that a command line names, a run a seed.

    Raises:
      UserError: one of them will not do, see `read_run`, or they differ in more than their seeds.
    """
    folders = [part for folder in options.runs for part in figures.seed_folders(folder)]
    runs = [read_run(folder, blind=options.blind) for folder in folders]
    for run, folder in zip(runs, folders, strict=True):
        if (named := _other(run, runs[0])) is not None:
            raise UserError(
                f"{folder} and {folders[0]} differ in {named}: give runs of one kind, which differ "
                "in their seeds alone"
            )
    return runs


def _other(one: Run, first: Run) -> str | None:
    """What tells the kinds of two runs apart, if anything does."""
    if one.train.shape != first.train.shape:
        return "their number of tasks or rows"
    ours, theirs = (
        config_lib.flatten(json.loads(run.config.to_json_best_effort())) for run in (one, first)
    )
    told = (*figures.PARTS, "data.train.phi", "data.test.phi")
    return next((f for f in theirs if f.startswith(told) and ours.get(f) != theirs[f]), None)


def read_run(folder: pathlib.Path, *, blind: bool = False) -> Run:
    """The tasks of a finished run of one seed.

    Args:
      folder: its workdir.
      blind: whether labels stay unopened.

    Raises:
      UserError: it is not finished, or has not kept all of its tasks.
    """
    if not (folder / "results.json").exists():
        raise UserError(f"{folder} has no results.json: give the workdirs of finished runs")
    config = figures.stored_config(folder)
    figures.use_precision()
    if config.ensemble.select != "all" or config.setting != "inductive":
        raise UserError(
            f"{folder}: a run with ensemble.select={config.ensemble.select} and the setting "
            f"{config.setting}, where one with 'all', which keeps every task, and 'inductive' is "
            "needed"
        )
    if blind:
        config.data.train.labels = config.data.test.labels = ""
    dataset = store.search_spaces(store.open_dataset(config.data), config.search.spaces)
    with np.load(folder / "model.npz", allow_pickle=False) as arrays:
        model = labelling.from_arrays(dict(arrays))
    with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
        scores = dict(arrays)
    train, test = encoded(dataset, model.theta, model)
    agreement = aggregate.agreement_matrix(train, config.n_classes)
    prior = planning.class_prior(config)
    scores["agreement"] = aggregate.mean_agreement(agreement)
    scores["collapsed"] = aggregate.collapsed(train, config.n_classes, prior)
    return Run(config, dataset, model, train, test, scores, agreement)


def encoded(
    dataset: store.Dataset, theta: np.ndarray, model: labelling.Model
) -> tuple[np.ndarray, np.ndarray | None]:
    """(S, n) and (S, m) labels of task encoders that read rows as those of a model do."""
    train, test = (
        None
        if split is None
        else labelling.encode(theta, split.phi1.arrays, model.statistics, model.kind)
        for split in dataset
    )
    assert train is not None
    return train, test


def chosen(run: Run, who: Voters) -> np.ndarray:
    """(M,) numbers of the tasks that vote; one that counts more than once is there as often."""
    n_tasks = len(run.train)
    if who.first:
        return np.arange(who.first)
    if who.counted:
        order = aggregate.rank(run.scores["objective"], run.scores["collapsed"])
        often = np.repeat(_COUNTED, -(-n_tasks // len(_COUNTED)))[:n_tasks]
        return np.sort(np.repeat(order, often))
    config = config_dict.ConfigDict(run.config)
    config.ensemble.select, config.ensemble.fraction = who.select, who.share
    return scoring.voters(config, run.train, run.scores)


def vote(run: Run, who: Voters) -> Labels:
    """(n,) and (m,) labels of the train and test rows by a vote."""
    k = run.config.n_classes
    voting = aggregate.ensemble(run.train, k, chosen(run, who), agreement=run.agreement)

    def named(tasks: np.ndarray) -> np.ndarray:
        return aggregate.relabel(tasks[voting.members], voting.permutations)

    train, test = named(run.train), None if run.test is None else named(run.test)
    if who.vote == "hard":
        return voting.vote.labels, None if test is None else aggregate.vote(test, k).labels
    evenness = planning.evenness(run.config) if who.evenness is None else who.evenness
    soft = consensus(train, voting.vote.labels, k, evenness=evenness)
    if test is None:
        return soft.vote.labels, None
    return soft.vote.labels, soft_vote(test, soft.tables, soft.weights).labels


def measure(runs: Sequence[Run], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Scores of each of `VOTERS` that the runs have tasks for, a value a run.

    Args:
      runs: of one dataset, with equally many tasks.
      folder: where scores are kept.
    """
    fitting = [who for who in VOTERS if who.first < len(runs[0].train)]
    found = judged(runs, [[vote(run, who) for who in fitting] for run in runs], folder)
    return [{"who": who, **scores} for who, scores in zip(fitting, found, strict=True)]


def judged(
    runs: Sequence[Run], labels: Sequence[Sequence[Labels]], folder: pathlib.Path
) -> list[dict[str, list[float]]]:
    """Scores of several labellings of each run, a value a run (of the agreement, a pair of runs).

    Args:
      runs: of one dataset.
      labels: of each run, the same kinds of labellings in the same order.
      folder: where scores are kept.
    """
    scores = [
        scored.scores(
            folder, run.config, run.dataset.train, np.stack([train for train, _ in of_run])
        )
        for run, of_run in zip(runs, labels, strict=True)
    ]
    found = []
    for i, own in enumerate(zip(*labels, strict=True)):
        pairs = aggregate.agreement_matrix(np.stack([t for t, _ in own]), runs[0].config.n_classes)
        found.append(
            {
                "agreement": pairs[np.triu_indices(len(runs), 1)].tolist(),
                **{
                    name: [float(score[name][i]) for score in scores]
                    for name in ("objective", "heldout_ce")
                },
                **{
                    f"{split}_acc": _accuracies(runs, [each[j] for each in own], j)
                    for j, split in enumerate(store.Dataset._fields)
                },
            }
        )
    return found


def _accuracies(runs: Sequence[Run], votes: Sequence[np.ndarray | None], split: int) -> list[float]:
    """ACC of each run, of those that were given labels."""
    return [
        metrics.clustering_accuracy(labels, rows.labels)
        for run, labels in zip(runs, votes, strict=True)
        if labels is not None and (rows := run.dataset[split]) and rows.labels is not None
    ]


def line(found: Mapping[str, Any], n_tasks: int) -> list[str]:
    """A row of the table."""
    who = found["who"]
    return [
        who.name(n_tasks),
        who.how,
        *(
            figures.spread(found[name], 4)
            for name in ("agreement", "heldout_ce", "train_acc", "test_acc")
        ),
    ]


def draw(path: pathlib.Path, names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> None:
    """Draws the held-out cross-entropy of each labelling, a dot a run and a bar for their mean."""
    lines = [
        (name, each["heldout_ce"], float(np.mean(each["heldout_ce"])))
        for name, each in zip(names, found, strict=True)
    ]
    figures.draw_methods(
        path, lines, "held-out cross-entropy of a linear model on the labels, nats"
    )


def main(arguments: Sequence[str]) -> None:
    """Reads the runs, takes the votes, prints and writes the table."""
    options = parse_arguments(arguments)
    runs = read_runs(options)
    n_tasks = len(runs[0].train)
    figures.make_folder(options.out)
    found = measure(runs, options.out)
    names = [f"{each['who'].name(n_tasks)}, {each['who'].how}" for each in found]
    draw(options.out / "table.png", names, found)
    print(figures.write_table(options.out, HEAD, [line(each, n_tasks) for each in found]))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
