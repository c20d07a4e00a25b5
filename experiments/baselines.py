"""All baselines on one pair of spaces, by one protocol: every start by itself, and their vote.

    python experiments/baselines.py --config=experiments/datasets/imagenette.py --out=runs/baselines
    python experiments/baselines.py --methods kmeans turtle --spaces joined both --starts=64 \
        --set turtle.steps=300 --out=runs/baselines64

Each method of `hume_jax/baselines` runs from `--starts` random starts in one program, on centred
train rows of unit norm, and labels the test rows. The table shows the single starts (mean ±
standard deviation), the one that the method's own label-free score would choose, and two votes as
HUME's tasks vote: of all starts, and of the half that is best by the method's own score. Labels are
read for the scores; the supervised methods alone are given those of train rows.

A method that is finished has its labels in `OUT/METHOD-SPACES.npz` and is taken from there. With
`--at-a-time=8` eight starts run at a time, which takes less memory, and those that are finished are
kept in `OUT/METHOD-SPACES-starts-0-7.npz` until all are. Starts do not depend on each other, so the
labels are the same but for rounding. Writes table.md, table.csv and table.png beside them.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import figures
import jax.numpy as jnp
import numpy as np
import pairs

from hume_jax.baselines import running
from hume_jax.baselines.method import Data
from hume_jax.baselines.methods import METHODS, neighbours_of
from hume_jax.baselines.neighbours import neighbours
from hume_jax.core import aggregate
from hume_jax.core.consensus import consensus, soft_vote
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.files import atomic_write
from hume_jax.progress import Progress

SPACES = ("phi1", "phi2", "joined", "both")
SCORES = ("acc", "ari", "nmi")
_SECONDS = ("neighbours", "compile", "run")
# Settings that the config or the method's name decides.
_GIVEN = ("n_classes", "spherical", "warm")
# Endings of the names of settings that count what there must be some of, and of shares.
_COUNTS = (
    "batch", "bottleneck", "hidden", "lengths", "look", "neighbours", "newton_steps", "inner_steps",
    "repeats", "starts",
)  # fmt: skip
_SHARES = ("momentum", "reliable", "share", "threshold")


class Job(NamedTuple):
    """A method on some spaces."""

    method: str
    spaces: str

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.method}-{self.spaces}"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=["phi1", "joined", "both"])
    parser.add_argument("--exchanged", action="store_true", help="exchange phi1 and phi2")
    parser.add_argument("--starts", type=int, default=5, help="random starts of each method")
    parser.add_argument("--at-a-time", type=int, help="starts that run together; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="METHOD.FIELD=VALUE", help="settings of methods"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    check(options.starts, options.seed, options.set)
    if options.at_a_time is not None and options.at_a_time < 1:
        raise UserError(f"--at-a-time={options.at_a_time}: it must be at least 1")
    if options.at_a_time and getattr(settings_of("temi", 2, options.set), "together", False):
        raise UserError("--at-a-time: heads of temi.together=1 share weights and run all at once")
    return options


def check(starts: int, seed: int, changes: Sequence[str]) -> None:
    """Checks starts, their seed and settings before any method runs.

    Raises:
      UserError: no start, a seed out of range, or a setting of any method that will not do.
    """
    if starts < 1:
        raise UserError(f"--starts={starts}: it must be at least 1")
    figures.check_seed(seed)
    for method in METHODS:
        settings_of(method, 2, changes)


def jobs(options: argparse.Namespace) -> list[Job]:
    """The methods asked for, on those of the spaces that they take.

    Raises:
      UserError: none of them takes any of the spaces.
    """
    found = []
    for name in options.methods:
        for spaces in options.spaces:
            if spaces != "both" or METHODS[name].spaces == "several":
                found.append(Job(name, spaces))
    if not found:
        several = [name for name, entry in METHODS.items() if entry.spaces == "several"]
        raise UserError(f"--spaces both: of the methods, {', '.join(several)} take two spaces")
    return found


def settings_of(method: str, n_classes: int, changes: Sequence[str]) -> running.Settings:
    """A method's settings, with those that were set on the command line.

    Raises:
      UserError: no such method or field, one that is not for `--set`, or a value that is not of
        the field's type or out of its range.
    """
    settings: Any = METHODS[method].settings(n_classes)
    for change in changes:
        name, _, value = change.partition("=")
        owner, _, field = name.partition(".")
        if owner not in METHODS:
            raise UserError(f"--set {change}: no method is called {owner!r}")
        if owner != method:
            continue
        kind = type(getattr(settings, field, None))
        if field not in settings._fields or kind not in (int, float, bool):
            raise UserError(f"--set {change}: {owner} has no number called {field!r}")
        try:
            settings = settings._replace(**{field: kind(int(value) if kind is bool else value)})
        except ValueError as error:
            raise UserError(f"--set {change}: {error}") from error
        _check_setting(change, field, getattr(settings, field), settings.length)
    return settings


def _check_setting(change: str, field: str, value: float, length: int) -> None:
    if field in _GIVEN:
        raise UserError(f"--set {change}: the config or the method's name decides {field}")
    least = 1 if field.endswith(_COUNTS) or length < 1 else 0
    # Nothing holds of nan.
    if not least <= value < float("inf"):
        raise UserError(f"--set {change}: it must be at least {least}, and finite")
    if field.endswith("temperature") and value == 0:
        raise UserError(f"--set {change}: a temperature must be above 0")
    if field.endswith(_SHARES) and value > 1:
        raise UserError(f"--set {change}: it is a share, and must be at most 1")


def run(job: Job, pair: pairs.Pair, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a method from all starts.

    Returns:
      Arrays for an .npz file: labels (S, n) int32 of each split, its own score (S,) float32,
      seconds of the neighbours, of compilation and of the rest, the steps taken, and the settings.
    """
    entry = METHODS[job.method]
    spaces = pairs.choose(pair, "train", job.spaces)
    settings = settings_of(job.method, pair.n_classes, options.set)
    began = time.perf_counter()
    # Of two spaces the one is the other view of a row.
    near = _neighbours(spaces, neighbours_of(settings) if len(spaces) == 1 else 0)
    searched = time.perf_counter() - began
    true = None
    if entry.supervised:
        true = jnp.asarray(np.unique(pair.labels["train"], return_inverse=True)[1], jnp.int32)
    data = Data(tuple(map(jnp.asarray, spaces)), near, true)
    text = made_with(job, pair, options)
    make = functools.partial(_from, job=job, pair=pair, data=data, options=options)
    found = _in_parts(job, text, options, make)
    found["seconds"] = np.asarray([searched, *found["seconds"]])
    return {**found, "settings": np.asarray(text)}


def _in_parts(
    job: Job, settings: str, options: argparse.Namespace, make: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Arrays of all starts, made a part of them at a time; parts are stored until all are there."""
    starts = np.arange(options.starts)
    each = options.at_a_time or len(starts)
    if each >= len(starts):
        return make(starts)
    parts = []
    for part in np.split(starts, starts[each::each]):
        name = f"starts-{part[0]}-{part[-1]}"
        text = f"{settings}, {name}"
        labelled = functools.partial(_with_settings, text, make, part)
        parts.append(stored_or_made(options.out / f"{job.name}-{name}.npz", text, labelled))
    found = {
        name: np.concatenate([part[name] for part in parts]) for name in (*pairs.SPLITS, "score")
    }
    found["seconds"] = np.sum([part["seconds"] for part in parts], axis=0)
    found["steps"] = np.max([part["steps"] for part in parts])
    return found


def parts(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Files of the starts of a job that are finished while others are not."""
    return list(folder.glob(f"{name}-starts-*.npz"))


def _with_settings(
    text: str, make: Callable[[np.ndarray], dict[str, Any]], starts: np.ndarray
) -> dict[str, Any]:
    return {**make(starts), "settings": np.asarray(text)}


def _from(
    starts: np.ndarray, job: Job, pair: pairs.Pair, data: Data, options: argparse.Namespace
) -> dict[str, Any]:
    """Labels of each split, scores, seconds of compilation and of the rest, and steps."""
    module = METHODS[job.method].module
    settings = settings_of(job.method, pair.n_classes, options.set)
    name = job.name if len(starts) == options.starts else f"{job.name}, start {starts[0]} on"
    with Progress(settings.length, name) as progress:
        fitted = running.fit(
            module,
            settings,
            data,
            starts,
            options.seed,
            done=lambda steps, loss: progress.update(steps, loss=loss),
        )
    found: dict[str, Any] = {
        split: running.predict(module, fitted.state, pairs.choose(pair, split, job.spaces))
        for split in pairs.SPLITS
    }
    found["score"] = running.score(module, settings, fitted.state, data)
    found["seconds"] = np.asarray([fitted.compile_seconds, fitted.seconds])
    return {**found, "steps": np.asarray(fitted.steps)}


def _neighbours(spaces: Sequence[np.ndarray], count: int) -> Any:
    """Neighbours in the first of the spaces, if the method looks at any."""
    if not count:
        return None
    with Progress(len(spaces[0]), f"{count} neighbours", unit="rows") as progress:
        return jnp.asarray(neighbours(spaces[0], count, done=progress.update))


def made_with(job: Job, pair: pairs.Pair, options: argparse.Namespace) -> str:
    """What a stored result must have been made with and of, as text."""
    values = settings_of(job.method, 1, options.set)._asdict()
    asked = {"starts": options.starts, "seed": options.seed, "exchanged": options.exchanged}
    given = {"config": [options.config, *options.fields], "data": data_of(job.method, pair)}
    return json.dumps({**given, **asked, "settings": values}, sort_keys=True)


def data_of(method: str, pair: pairs.Pair) -> dict[str, Any]:
    """What the labels that a method finds follow from: `Pair.made_of`, and labels it is given."""
    if not METHODS[method].supervised:
        return pair.made_of
    # Of all labels: a few that were put right are not among the 256 rows of an array's digest.
    digest = hashlib.sha256(np.ascontiguousarray(pair.labels["train"]).tobytes()).hexdigest()
    return {**pair.made_of, "labels": digest}


def stored_or_made(
    path: pathlib.Path, settings: str, make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The arrays of a file, which is written first where it is not there.

    Args:
      path: of the .npz file.
      settings: as `made_with` gives them; the arrays hold them under that name.
      make: makes the arrays.

    Raises:
      UserError: the file was made with other settings, or of other rows or labels.
    """
    if not path.exists():
        arrays = make()
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    if str(arrays["settings"]) != settings:
        raise UserError(
            f"{path} was made with other settings, or of other rows or labels: delete it or give "
            "another --out"
        )
    return arrays


def results(
    asked: Sequence[Job], options: argparse.Namespace
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Every job's arrays: those that are stored, and those made now, which are stored.

    Raises:
      UserError: what is stored was made with other settings, or a supervised method is asked for
        where labels have more classes than are searched for.
    """
    config = figures.load_config(options.config, options.fields)
    figures.use_precision()
    pair = pairs.load(config, exchanged=options.exchanged)
    supervised = [job.method for job in asked if METHODS[job.method].supervised]
    given = len(np.unique(pair.labels["train"]))
    if supervised and given > pair.n_classes:
        raise UserError(
            f"n_classes={pair.n_classes}, the train labels have {given} classes: leave out "
            f"{' and '.join(supervised)}, or set --config.n_classes={given}"
        )
    figures.make_folder(options.out)
    for job in asked:
        arrays = stored_or_made(
            options.out / f"{job.name}.npz",
            made_with(job, pair, options),
            functools.partial(run, job, pair, options),
        )
        for part in parts(options.out, job.name):
            part.unlink()
        yield (
            job,
            {
                **arrays,
                "true": pair.labels["test"],
                "K": np.asarray(pair.n_classes),
                "evenness": np.asarray(pair.evenness),
            },
        )


def judge(job: Job, arrays: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a method, on the test rows."""
    entry, tasks, true, k = METHODS[job.method], arrays["test"], arrays["true"], int(arrays["K"])
    single = [metrics.score(task, true) for task in tasks]
    found: dict[str, Any] = {
        "method": entry.title,
        "spaces": job.spaces,
        "single": {score: [each[score] for each in single] for score in SCORES},
        "chosen": single[best(arrays["score"])],
        "seconds": dict(zip(_SECONDS, arrays["seconds"].tolist(), strict=True)),
        "steps": int(arrays["steps"]),
        "starts": len(tasks),
    }
    if not entry.supervised and len(tasks) > 1:
        evenness = float(arrays["evenness"])
        for name, members in (
            ("vote_all", np.arange(len(tasks))),
            ("vote_own", better_half(arrays["score"])),
        ):
            found[name] = metrics.score(vote(arrays, members, k, evenness), true)
    return found


def best(scores: np.ndarray) -> int:
    """Number of the start whose own score (S,) is lowest; what has diverged is never better."""
    return int(np.argsort(scores, kind="stable")[0])


def better_half(scores: np.ndarray) -> np.ndarray:
    """Numbers of the half of the starts, rounded down, whose own scores (S,) are lowest."""
    order = np.argsort(scores, kind="stable")
    return np.sort(order[: max(1, len(order) // 2)])


def vote(arrays: dict[str, Any], members: np.ndarray, k: int, evenness: float) -> np.ndarray:
    """Labels of the test rows (n,) by the soft vote that HUME's tasks take, found on train rows.

    Args:
      arrays: a stored result of an unsupervised method.
      members: numbers of the starts that vote.
      k: number of classes.
      evenness: of the classes of the vote, see `core.consensus`.
    """
    ensemble = aggregate.ensemble(arrays["train"], k, members)
    tasks, test = (
        aggregate.relabel(arrays[split][members], ensemble.permutations) for split in pairs.SPLITS
    )
    found = consensus(tasks, ensemble.vote.labels, k, evenness=evenness)
    return soft_vote(test, found.tables, found.weights).labels


HEAD = (
    "method", "spaces", "starts", "single, test ACC", "lowest to highest", "by own score",
    "vote of all", "vote of the better half", "ARI of that", "NMI of that", "seconds",
    "compile, s",
)  # fmt: skip


def row(found: dict[str, Any]) -> list[str]:
    """A method's line."""
    single, seconds = found["single"]["acc"], found["seconds"]
    last = found.get("vote_own", found["chosen"])
    return [
        found["method"],
        found["spaces"],
        str(found["starts"]),
        figures.spread(single),
        f"{min(single):.3f} to {max(single):.3f}",
        f"{found['chosen']['acc']:.3f}",
        *(f"{found[v]['acc']:.3f}" if v in found else "-" for v in ("vote_all", "vote_own")),
        f"{last['ari']:.3f}",
        f"{last['nmi']:.3f}",
        f"{seconds['neighbours'] + seconds['run']:.1f}",
        f"{seconds['compile']:.1f}",
    ]


def main(arguments: Sequence[str]) -> None:
    """Runs what is missing, then writes and prints the table."""
    options = parse_arguments(arguments)
    found = [judge(job, arrays) for job, arrays in list(results(jobs(options), options))]
    figures.write_json(
        options.out / "table.json", {f"{f['method']}, {f['spaces']}": f for f in found}
    )
    figures.draw_methods(
        options.out / "table.png",
        [
            (
                f"{f['method']}, {f['spaces']}",
                f["single"]["acc"],
                f.get("vote_own", f["chosen"])["acc"],
            )
            for f in found
        ],
        "ACC on test rows; dots: single starts, bar: their vote",
    )
    print(figures.write_table(options.out, HEAD, [row(each) for each in found]))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
