"""One more search that starts from the vote of a finished run: does it find anything better?

    python experiments/subset.py --hold-out=0.25 --out=runs/held_out
    python -m hume_jax.main --config=experiments/ablations.py:default,held_out \
        --config.seeds="(0,1,2)" --workdir=runs/refinement/tasks
    python experiments/refinement.py runs/refinement/tasks --out=runs/refinement/cell

The task encoder begins at the means of the classes that were voted for, in the rows that the
search saw, and takes all steps of a search, or as many at the rate and the temperature of its end.
A row of the table is the vote or what became of it, its spread that over the seeds of the run (or
over the runs). The agreement of two seeds, the objective and the held-out cross-entropy of a linear
model on the labels need no label. Where the run was given labels, ACC stands beside them, of its
train rows and of its test rows; `--blind` leaves them unopened.

Writes OUT/table.md, table.csv and the picture table.png; what is searched and scored is kept in
OUT/encoders and OUT/scores, from which a later run takes it.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import figures
import jax
import jax.numpy as jnp
import numpy as np
import scored
import votes
from ml_collections import config_dict

from hume_jax.core import search, task_encoder
from hume_jax.evaluation import metrics

HEAD = (
    "labels", "agreement of the seeds", "objective", "held-out CE", "train ACC", "test ACC",
    "same as the vote",
)  # fmt: skip
FIELDS = ("agreement", "objective", "heldout_ce", "train_acc", "test_acc", "same")


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
    found = jnp.asarray(labels, jnp.int32)
    theta = _search(np.uint32(seed), found, problem.data, problem.log_prior, settings, steps)
    return np.asarray(theta)


@functools.partial(jax.jit, static_argnames=("settings", "steps"))
def _search(
    seed: jax.Array,
    labels: jax.Array,
    data: search.Data,
    log_prior: jax.Array,
    settings: search.Search,
    steps: int,
) -> jax.Array:
    widths = tuple(space.x.shape[-1] for space in data.spaces)
    task = jnp.zeros(1, jnp.int32)
    state = search.blank(seed, task, data.phi1.shape[-1], widths, settings)
    # The inverse of `search.deal`, padding at the end.
    rows = data.phi1.swapaxes(0, 1).reshape(-1, data.phi1.shape[-1])[: len(labels)]
    theta = task_encoder.init_from_labels(jax.random.key(seed), rows, labels, settings.n_classes)
    state = state._replace(theta=theta[None])
    # Of what depends on rows, the warm start alone: the encoder is there.
    first = search.first_settings(settings)._replace(encoder_start="random")
    state = search.begin(state, seed, search.draw(seed, 0, 0, data, first), first)
    return search.run_steps(state, seed, data, log_prior, settings, steps)[0].theta


def labelled(run: votes.Run, theta: np.ndarray) -> votes.Labels:
    """Labels of one task encoder, (1, d1, K)."""
    train, test = votes.encoded(run.dataset, theta, run.model)
    return train[0], None if test is None else test[0]


def results_of(run: votes.Run, folder: pathlib.Path) -> dict[str, votes.Labels]:
    """The vote of a run and what further searches make of it, by name; encoders are kept."""
    problem = functools.cache(lambda: figures.build(run.config))
    vote = votes.vote(run, votes.Voters(vote=run.config.ensemble.vote))
    found = {f"the vote of {len(run.train)} tasks": vote}
    for name, change in AGAIN.items():

        def make(change: Callable[[search.Search], search.Search] = change) -> dict[str, Any]:
            settings, steps = change(problem().settings), run.config.search.steps
            return {"theta": refine(problem(), run.config.seed, vote[0], settings, steps)}

        given = {"search": name, "config": _unlabelled(run.config)}
        arrays = scored.kept(folder / "encoders", given, run.dataset.train, vote[0], make)
        found[name] = labelled(run, arrays["theta"])
    return found


def _unlabelled(config: config_dict.ConfigDict) -> dict[str, Any]:
    """A config but for its labels, of which a search does not depend."""
    values: dict[str, Any] = json.loads(config.to_json_best_effort())
    for split in ("train", "test"):
        del values["data"][split]["labels"]
    return values


def measure(runs: Sequence[votes.Run], folder: pathlib.Path) -> dict[str, dict[str, list[float]]]:
    """Scores of the vote and of what became of it, by name, a value a run.

    Args:
      runs: of one dataset, with equally many tasks.
      folder: where encoders and scores are kept.
    """
    found = [results_of(run, folder) for run in runs]
    names = list(found[0])
    scores = votes.judged(runs, [list(of_run.values()) for of_run in found], folder)
    same = [
        [metrics.clustering_accuracy(of_run[name][0], of_run[names[0]][0]) for of_run in found]
        for name in names
    ]
    return {
        name: {**each, "same": to_vote}
        for name, each, to_vote in zip(names, scores, same, strict=True)
    }


def line(name: str, found: Mapping[str, Sequence[float]]) -> list[str]:
    """A row of the table."""
    return [name, *(figures.spread(found[field], 4) for field in FIELDS)]


def main(arguments: Sequence[str]) -> None:
    """Reads the runs, searches once more from each, prints and writes the table."""
    options = votes.parse_arguments(arguments, __doc__)
    figures.make_folder(options.out)
    found = measure(votes.read_runs(options), options.out)
    votes.draw(options.out / "table.png", list(found), list(found.values()))
    rows = [line(name, scores) for name, scores in found.items()]
    print(figures.write_table(options.out, HEAD, rows))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
