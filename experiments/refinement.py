"""One more search that starts from the vote of a finished run: does it find anything better?

    python experiments/subset.py --hold-out=0.25 --out=runs/held_out
    python -m hume_jax.main --config=experiments/ablations.py:default,held_out \
        --config.seeds="(0,1,2)" --workdir=runs/ablations/tasks
    python experiments/refinement.py runs/ablations/tasks --out=runs/refinement/cell

The task encoder begins at the means of the classes that were voted for, in the rows that the
search saw, and takes all steps of a search, or as many at the rate and the temperature of its end.
A row of the table is the vote or what became of it, its spread that over the seeds of the run (or
over the runs). The agreement of two seeds, the objective and the held-out cross-entropy of a linear
model on the labels need no label. Where the run was given labels, ACC stands beside them, of its
train rows and of its test rows; `--blind` leaves them unopened.

Writes OUT/table.md, table.csv and the picture table.png.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import figures
import jax
import jax.numpy as jnp
import numpy as np
import votes

from hume_jax import labelling, planning, scoring
from hume_jax.core import aggregate, search, task_encoder
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics

HEAD = (
    "labels", "agreement of the seeds", "objective", "held-out CE", "train ACC", "test ACC",
    "same as the vote",
)  # fmt: skip

# Labels of the train rows, and of the test rows where there are some.
Labels = tuple[np.ndarray, np.ndarray | None]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of finished runs")
    parser.add_argument("--blind", action="store_true", help="leave labels unopened: no ACC")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the table")
    return parser.parse_args(arguments)


def whole(settings: search.Search) -> search.Search:
    """A search as it was configured."""
    return settings


def end(settings: search.Search) -> search.Search:
    """A search at the rate and the temperature that the configured one ends with."""
    drops = len(settings.anneal_steps)
    return settings._replace(
        anneal_steps=(),
        learning_rate=settings.learning_rate * settings.anneal_learning_rate**drops,
        temperature=settings.temperature * settings.anneal_temperature**drops,
    )


AGAIN: Mapping[str, Callable[[search.Search], search.Search]] = {
    "a whole search from it": whole,
    "the end of a search from it": end,
}


def refine(
    problem: figures.Problem, seed: int, labels: np.ndarray, settings: search.Search, steps: int
) -> np.ndarray:
    """Searches once, from a labelling.

    Args:
      problem: what the run searched.
      seed: of the run, whose splits are seen again.
      labels: (n,) of the searched rows.
      settings: of the search.
      steps: of it.

    Returns:
      (1, d1, K) float32 task encoder.
    """

    @jax.jit
    def run(data: search.Data, log_prior: jax.Array, labels: jax.Array) -> jax.Array:
        widths = tuple(space.x.shape[-1] for space in data.spaces)
        task = jnp.zeros(1, jnp.int32)
        state = search.blank(seed, task, data.phi1.shape[-1], widths, settings)
        # The inverse of `search.deal`, padding at the end.
        rows = data.phi1.swapaxes(0, 1).reshape(-1, data.phi1.shape[-1])[: len(labels)]
        theta = task_encoder.init_from_labels(
            jax.random.key(seed), rows, labels, settings.n_classes
        )
        state = state._replace(theta=theta[None])
        # Of what depends on rows, the warm start alone: the encoder is there.
        first = search.first_settings(settings)._replace(encoder_start="random")
        state = search.begin(state, seed, search.draw(seed, 0, 0, data, first), first)
        return search.run_steps(state, seed, data, log_prior, settings, steps)[0].theta

    return np.asarray(run(problem.data, problem.log_prior, jnp.asarray(labels, jnp.int32)))


def labelled(run: votes.Run, theta: np.ndarray) -> Labels:
    """Labels of a task encoder."""
    how = run.model.statistics, run.model.kind
    train, test = (
        None if split is None else labelling.encode(theta, split.phi1.arrays, *how)[0]
        for split in run.dataset
    )
    assert train is not None
    return train, test


def results_of(run: votes.Run) -> dict[str, Labels]:
    """The vote of a run and what further searches make of it, by name."""
    problem = figures.build(run.config)
    vote = votes.vote(run, votes.Voters(vote=run.config.ensemble.vote))
    found = {f"the vote of {len(run.train)} tasks": vote}
    for name, change in AGAIN.items():
        settings = change(problem.settings)
        theta = refine(problem, run.config.seed, vote[0], settings, run.config.search.steps)
        found[name] = labelled(run, theta)
    return found


def measure(runs: Sequence[votes.Run]) -> list[dict[str, Any]]:
    """Scores of the vote and of what became of it, a value a run.

    Args:
      runs: of one dataset, with equally many tasks.
    """
    found = [results_of(run) for run in runs]
    scores = [
        scoring.score_tasks(
            run.config,
            (run.dataset.train,),
            np.stack([train for train, _ in own.values()]),
            np.log(planning.class_prior(run.config)).astype(np.float32),
        )
        for run, own in zip(runs, found, strict=True)
    ]
    vote, *_ = found[0]
    measured = []
    for i, name in enumerate(found[0]):
        own = [of_run[name] for of_run in found]
        train = [labels for labels, _ in own]
        pairs = aggregate.agreement_matrix(np.stack(train), runs[0].config.n_classes)
        measured.append(
            {
                "name": name,
                "agreement": pairs[np.triu_indices(len(runs), 1)].tolist(),
                "objective": [float(score["objective"][i]) for score in scores],
                "heldout_ce": [float(score["heldout_ce"][i]) for score in scores],
                "train_acc": votes.accuracies(runs, train, 0),
                "test_acc": votes.accuracies(runs, [labels for _, labels in own], 1),
                "same": [
                    metrics.clustering_accuracy(labels, of_run[vote][0])
                    for labels, of_run in zip(train, found, strict=True)
                ],
            }
        )
    return measured


def line(found: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    return [found["name"], *(figures.spread(found[name], 4) for name in list(found)[1:])]


def draw(path: pathlib.Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Draws the held-out cross-entropy of each labelling, a dot a run and a bar for their mean."""
    lines = [
        (each["name"], each["heldout_ce"], float(np.mean(each["heldout_ce"]))) for each in found
    ]
    figures.draw_methods(path, lines, "held-out cross-entropy of a linear model, nats")


def main(arguments: Sequence[str]) -> None:
    """Reads the runs, searches once more from each, prints and writes the table."""
    options = parse_arguments(arguments)
    folders = [part for folder in options.runs for part in figures.seed_folders(folder)]
    runs = [votes.read_run(folder, blind=options.blind) for folder in folders]
    if len({run.train.shape for run in runs}) > 1:
        raise UserError("the runs differ in their number of tasks or rows: give runs of one kind")
    found = measure(runs)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(options.out / "table.png", found)
    print(figures.write_table(options.out, HEAD, [line(each) for each in found]))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
