"""Settings of the baselines by their own losses: which value of a field a method itself prefers.

    python experiments/baseline_settings.py --out=runs/baseline_settings \
        --grid twist.learning_rate=0.001,0.003,0.01,0.03 spice.turns=20,40

Where frozen features need other values than a method's paper has, they are chosen without a label:
the value at which the method's own score, its loss at the end, is lowest in the mean over the
starts. Where that is the same for all values, as SPICE's is taken before its last stage, the value
at which the starts agree most. No label is opened, and none is needed. What decided is in bold. The
other settings are the method's, or what `--set` says.

What is finished has its labels in `OUT/METHOD-SPACES-FIELD=VALUE.npz` and is taken from there.
Writes table.md, table.csv and a picture METHOD.FIELD.png of each grid, of what decided.
"""

import argparse
import copy
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import baselines
import figures
import numpy as np
import pairs

from hume_jax.baselines.methods import METHODS
from hume_jax.core import aggregate
from hume_jax.errors import UserError

OWN, AGREEMENT = "own score", "agreement of the starts"
HEAD = ("method", "field", "value", "starts", OWN, AGREEMENT, "seconds")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument(
        "--grid", nargs="+", required=True, metavar="METHOD.FIELD=VALUE,...", help="values to try"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="METHOD.FIELD=VALUE", help="what the others are at"
    )
    parser.add_argument("--spaces", choices=baselines.SPACES, default="phi1")
    parser.add_argument("--exchanged", action="store_true", help="exchange phi1 and phi2")
    parser.add_argument("--starts", type=int, default=5, help="random starts of each value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    options.at_a_time = None
    baselines.check(options.starts, options.seed, options.set)
    return options


def values_of(grid: str, spaces: str) -> tuple[baselines.Job, str, list[str]]:
    """Method, field and values of one `METHOD.FIELD=VALUE,...`.

    Raises:
      UserError: it is not of that form, or the method takes labels.
    """
    name, _, values = grid.partition("=")
    method, _, field = name.partition(".")
    if not (field and values):
        raise UserError(f"--grid {grid}: it is not of the form METHOD.FIELD=VALUE,...")
    if method not in METHODS or METHODS[method].supervised:
        unsupervised = [name for name, entry in METHODS.items() if not entry.supervised]
        raise UserError(f"--grid {grid}: there are the methods {', '.join(unsupervised)}")
    return baselines.Job(method, spaces), field, values.split(",")


def tried(
    job: baselines.Job, setting: str, pair: pairs.Pair, options: argparse.Namespace
) -> dict[str, Any]:
    """What a method found with one value, stored or made now.

    Raises:
      UserError: what is stored was made with other settings.
    """
    own = copy.copy(options)
    own.set = [*options.set, f"{job.method}.{setting}"]
    return baselines.stored_or_made(
        options.out / f"{job.name}-{setting}.npz",
        baselines.made_with(job, pair, own),
        functools.partial(baselines.run, job, pair, own),
    )


class Value(NamedTuple):
    """What decides for a value, and its line of the table."""

    scores: np.ndarray  # (T,) own, of the starts
    agreements: np.ndarray  # (T,) of each start with the others; nan of one start
    cells: list[str]


def value_of(job: baselines.Job, field: str, value: str, arrays: dict[str, Any], k: int) -> Value:
    """Reads what a method found with a value; k classes."""
    tasks, scores = arrays["train"], arrays["score"].astype(float)
    agreements = np.full(len(tasks), np.nan)
    if len(tasks) > 1:
        agreements = aggregate.mean_agreement(aggregate.agreement_matrix(tasks, k))
    agrees = f"{float(np.mean(agreements)):.4f}" if len(tasks) > 1 else "-"
    score = figures.spread(scores.tolist(), 4)
    took = f"{float(np.sum(arrays['seconds'])):.0f}"
    cells = [METHODS[job.method].title, field, value, str(len(tasks)), score, agrees, took]
    return Value(scores, agreements, cells)


def choose(values: Sequence[Value]) -> str:
    """Sets in bold what decides: the lowest score, the highest agreement where scores are equal.

    Returns:
      The column of the table that decides.
    """
    # A value at which a start diverged is never better.
    column, keys = OWN, [np.nan_to_num(np.mean(v.scores), nan=np.inf) for v in values]
    if len(keys) > 1 and min(keys) == max(keys):
        column, keys = AGREEMENT, [-np.mean(value.agreements) for value in values]
    place = HEAD.index(column)
    for value, key in zip(values, keys, strict=True):
        if key == min(keys):
            value.cells[place] = f"**{value.cells[place]}**"
    return column


def draw(
    path: pathlib.Path, method: str, field: str, values: Sequence[tuple[str, Value]], column: str
) -> None:
    """Draws what decides of each value, a dot a start and a bar for their mean."""
    lines = []
    for name, value in values:
        each = value.scores if column == OWN else value.agreements
        lines.append((f"{field} = {name}", each.tolist(), float(np.mean(each))))
    better = "lower" if column == OWN else "higher"
    label = f"{column} of {METHODS[method].title} ({better} is better)"
    figures.draw_methods(path, lines, label)


def main(arguments: Sequence[str]) -> None:
    """Tries all values, then prints and writes the table."""
    options = parse_arguments(arguments)
    asked = [values_of(grid, options.spaces) for grid in options.grid]
    for job, field, values in asked:
        for value in values:
            baselines.settings_of(job.method, 2, [f"{job.method}.{field}={value}"])
    config = figures.load_config(options.config, options.fields)
    figures.use_precision()
    pair = pairs.load(config, exchanged=options.exchanged, labels=False)
    figures.make_folder(options.out)
    rows = []
    for job, field, values in asked:
        found = []
        for value in values:
            arrays = tried(job, f"{field}={value}", pair, options)
            found.append(value_of(job, field, value, arrays, pair.n_classes))
        column, path = choose(found), options.out / f"{job.method}.{field}.png"
        draw(path, job.method, field, list(zip(values, found, strict=True)), column)
        rows += [value.cells for value in found]
    print(figures.write_table(options.out, HEAD, rows))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
