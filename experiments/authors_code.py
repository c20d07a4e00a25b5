"""Our TURTLE, TEMI and SCAN beside their authors' released code, on the same rows and neighbours.

    python experiments/authors_code.py --config=experiments/datasets/imagenette.py \
        --torch-python=PATH --turtle=CHECKOUT --temi=CHECKOUT --scan=CHECKOUT \
        --set turtle.steps=300 turtle_warm.steps=300 --out=runs/authors_code

CHECKOUT is a clone of github.com/mlbio-epfl/turtle, github.com/HHU-MMBS/TEMI-official-BMVC2023 or
github.com/wvangansbeke/Unsupervised-Classification; PATH is a Python with PyTorch, SciPy,
scikit-learn, Pillow and tqdm. Methods whose checkout is not given are left out. Their values are
those of their commands (`authors_torch.py`): TEMI 100 passes at a batch of 1,024, SCAN the stage of
Eq. 2; TURTLE takes as many steps as ours, from cold and from warm starts. Heads of TEMI are trained
one by one, for together they share the weights of pairs and are one draw. Both see centred rows of
unit norm, scaled to a mean square of 1 a column for TURTLE and TEMI. Labels are read for the scores
alone.

TURTLE's warm starts hold nothing random beyond where they begin, if a batch is all rows. So ours is
run from where theirs began too, and the share of the test rows that get the same label tells
whether both are one method.

Writes table.md, table.csv, table.json and a picture, table.png, with a dot a start and a bar for
their mean; what is finished is taken from OUT. Starts differ much where a method has many local
minima: the interval of the difference (Welch's, over the starts) says what it is worth.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from typing import Any

import baselines
import figures
import jax.numpy as jnp
import numpy as np
import pairs
import scipy.stats
from jax import Array

from hume_jax.baselines import running, turtle
from hume_jax.baselines.heads import Linear
from hume_jax.baselines.method import Data
from hume_jax.baselines.methods import METHODS, neighbours_of
from hume_jax.baselines.neighbours import neighbours
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics

# Whose checkout a method is run from.
CHECKOUTS = {"scan": ("scan",), "temi": ("temi",), "turtle": ("turtle", "turtle_warm")}
WORKER = pathlib.Path(__file__).with_name("authors_torch.py")
# Passes of the authors' settings; TURTLE takes ours.
_PASSES = {"temi": 100, "scan": 100}
_SCALED = ("temi", "turtle", "turtle_warm")
# Whose starts are runs of their own.
_APART = ("temi",)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--torch-python", required=True, help="a Python that has PyTorch")
    for name in CHECKOUTS:
        parser.add_argument(f"--{name}", type=pathlib.Path, help="checkout of the authors' code")
    every = [method for methods in CHECKOUTS.values() for method in methods]
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--spaces", choices=("phi1", "both"), default="phi1", help="of TURTLE")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="METHOD.FIELD=VALUE", help="settings of ours"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    baselines.check(options.starts, options.seed, options.set)
    figures.check_torch(options.torch_python)
    options.exchanged, options.at_a_time = False, None
    return options


def jobs(options: argparse.Namespace) -> list[tuple[baselines.Job, pathlib.Path]]:
    """The methods asked for whose checkout is given.

    Raises:
      UserError: none of them is, or one is not there.
    """
    found = []
    for name, methods in CHECKOUTS.items():
        checkout = getattr(options, name)
        if checkout:
            figures.check_checkout(name, checkout)
            spaces = options.spaces if name == "turtle" else "phi1"
            asked = [method for method in methods if method in options.methods]
            found += [(baselines.Job(method, spaces), checkout) for method in asked]
    if not found:
        raise UserError(
            "nothing to compare: give the checkouts of --methods by --turtle, --temi or --scan"
        )
    return found


def theirs(
    job: baselines.Job, checkout: pathlib.Path, pair: pairs.Pair, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Runs the authors' code; labels (S, n) of the test rows, scores (S,) and seconds.

    Raises:
      UserError: it ended with an error, which it has printed, or what is stored was made with
        other settings.
    """
    settings: Any = baselines.settings_of(job.method, pair.n_classes, options.set)
    steps = _PASSES.get(job.method, settings.length)
    made_with = {
        "config": [options.config, *options.fields],
        "data": pair.made_of,
        "neighbours": neighbours_of(settings),
        "starts": options.starts,
        "seed": options.seed,
        "steps": steps,
        "commit": commit(checkout),
        "worker": hashlib.sha256(WORKER.read_bytes()).hexdigest(),
        **({"apart": True} if job.method in _APART else {}),
    }
    text = json.dumps(made_with, sort_keys=True)
    return baselines.stored_or_made(
        options.out / f"theirs-{job.name}-{options.starts}.npz",
        text,
        lambda: {**_run_theirs(job, checkout, pair, steps, options), "settings": text},
    )


def _run_theirs(
    job: baselines.Job,
    checkout: pathlib.Path,
    pair: pairs.Pair,
    steps: int,
    options: argparse.Namespace,
) -> dict[str, np.ndarray]:
    """Runs the authors' code in PyTorch's Python, and reads what it found."""
    with tempfile.TemporaryDirectory() as folder:
        settings = baselines.settings_of(job.method, pair.n_classes, options.set)
        _write_arrays(pathlib.Path(folder), job, pair, neighbours_of(settings))
        result = pathlib.Path(folder) / "found.npz"
        command = [
            options.torch_python, str(WORKER), job.method, f"--repository={checkout.resolve()}",
            f"--arrays={folder}", f"--classes={pair.n_classes}", f"--steps={steps}",
            f"--threads={os.cpu_count()}", f"--out={result}",
        ]  # fmt: skip
        runs = [(options.starts, options.seed)]
        if job.method in _APART:
            runs = [(1, options.seed + start) for start in range(options.starts)]
        parts = [
            _run_worker([*command, f"--starts={starts}", f"--seed={seed}"], job, result)
            for starts, seed in runs
        ]
    if len(parts) == 1:
        return parts[0]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in ("test", "score")}
    return {**joined, "seconds": np.sum([part["seconds"] for part in parts])}


def _run_worker(
    command: Sequence[str], job: baselines.Job, result: pathlib.Path
) -> dict[str, np.ndarray]:
    try:
        subprocess.run(command, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise UserError(f"the authors' code of {job.method} did not run: {error}") from error
    with np.load(result, allow_pickle=False) as found:
        return dict(found)


def _write_arrays(folder: pathlib.Path, job: baselines.Job, pair: pairs.Pair, count: int) -> None:
    """Writes what the worker reads: the rows and, if there are any, `count` neighbours of each."""
    for split in pairs.SPLITS:
        for i, rows in enumerate(pairs.choose(pair, split, job.spaces)):
            scale = np.float32(rows.shape[1] ** 0.5 if job.method in _SCALED else 1)
            np.save(folder / f"space{i}_{split}.npy", rows * scale)
    if count:
        near = neighbours(pairs.choose(pair, "train", job.spaces)[0], count)
        np.save(folder / "neighbours.npy", np.asarray(near))


def commit(checkout: pathlib.Path) -> str:
    """The commit of a checkout, '?' where it is no clone; 'and changes' where files differ."""
    # Below a folder of another repository that one's would be given.
    if not (checkout / ".git").exists():
        return "?"
    head, status = (
        subprocess.run(
            ["git", "-C", str(checkout), *asked], capture_output=True, text=True, check=False
        ).stdout.strip()
        for asked in (
            ("rev-parse", "--short", "HEAD"),
            ("status", "--porcelain", "--untracked-files=no"),
        )
    )
    return f"{head} and changes" if status else head


def from_their_starts(
    job: baselines.Job, pair: pairs.Pair, begun: dict[str, np.ndarray], settings: turtle.Settings
) -> np.ndarray:
    """Labels (S, n) of the test rows by our TURTLE from given starts, all steps of it.

    Args:
      job: TURTLE from warm starts.
      pair: the rows.
      begun: ``v{i}`` (S, d, K), ``length{i}`` (S, K) and ``b{i}`` (S, K) of the encoder in space i,
        ``w{i}`` and ``c{i}`` of the linear model there.
      settings: of TURTLE.
    """
    spaces = pairs.choose(pair, "train", job.spaces)

    def in_each_space(*names: str) -> list[list[Array]]:
        return [[jnp.asarray(begun[f"{name}{i}"]) for name in names] for i in range(len(spaces))]

    encoders = tuple(turtle.Encoder(*each) for each in in_each_space("v", "length", "b"))
    models = tuple(Linear(*each) for each in in_each_space("w", "c"))

    def init(seed: Array | int, tasks: Array, data: Data, settings: turtle.Settings) -> Any:
        return turtle.init(seed, tasks, data, settings)._replace(encoders=encoders, models=models)

    method = types.SimpleNamespace(init=init, step=turtle.step)
    fitted = running.fit(
        method,
        settings._replace(patience=0),
        Data(tuple(map(jnp.asarray, spaces))),
        np.arange(len(begun["v0"])),
        0,
    )
    return running.predict(turtle, fitted.state, pairs.choose(pair, "test", job.spaces))


def same_labels(
    job: baselines.Job,
    pair: pairs.Pair,
    other: dict[str, np.ndarray],
    options: argparse.Namespace,
) -> list[float]:
    """Share of the test rows that ours, from each of their starts, labels as theirs does.

    Empty where their steps have something random: other methods, or batches of some rows.
    """
    settings: Any = baselines.settings_of(job.method, pair.n_classes, options.set)
    rows = len(pairs.choose(pair, "train", job.spaces)[0])
    if "v0" not in other or rows > settings.batch:
        return []
    # Of ours beside what theirs was made with.
    text = json.dumps([str(other["settings"]), baselines.made_with(job, pair, options)])
    found = baselines.stored_or_made(
        options.out / f"from-theirs-{job.name}-{options.starts}.npz",
        text,
        lambda: {"test": from_their_starts(job, pair, other, settings), "settings": text},
    )
    return np.mean(found["test"] == other["test"], axis=1).tolist()


HEAD = (
    "method", "spaces", "starts", "commit", "theirs, test ACC", "ours, test ACC", "ours - theirs",
    "95 %", "theirs, lowest loss", "ours, lowest loss", "same labels from their starts",
    "seconds, theirs", "seconds, ours",
)  # fmt: skip


def judge(
    job: baselines.Job, true: np.ndarray, own: dict[str, Any], other: dict[str, Any]
) -> dict[str, Any]:
    """Accuracies of both."""
    acc = {
        who: [metrics.score(labels, true)["acc"] for labels in arrays["test"]]
        for who, arrays in (("ours", own), ("theirs", other))
    }
    # TURTLE's script keeps no loss.
    chosen = {
        who: acc[who][baselines.best(arrays["score"])]
        for who, arrays in (("ours", own), ("theirs", other))
        if np.any(arrays["score"])
    }
    return {
        "method": METHODS[job.method].title,
        "spaces": job.spaces,
        "starts": len(acc["ours"]),
        "commit": json.loads(str(other["settings"]))["commit"],
        "acc": acc,
        "chosen": chosen,
        "seconds": {"ours": float(own["seconds"].sum()), "theirs": float(other["seconds"])},
    }


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str]:
    """Mean difference, and Welch's 95 % interval of it over the starts ('-' of less than two)."""
    mean = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return f"{mean:+.3f}", "-"
    parts = np.array([np.var(each, ddof=1) / len(each) for each in (ours, theirs)])
    half = 0.0
    # Equal starts of both have no spread, and no degrees of freedom.
    if parts.any():
        freedom = parts.sum() ** 2 / np.sum(parts**2 / [len(ours) - 1, len(theirs) - 1])
        half = float(scipy.stats.t.ppf(0.975, freedom) * parts.sum() ** 0.5)
    return f"{mean:+.3f}", f"{mean - half:+.3f} to {mean + half:+.3f}"


def line(found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    acc, chosen = found["acc"], found["chosen"]
    return [
        *(str(found[field]) for field in ("method", "spaces", "starts", "commit")),
        figures.spread(acc["theirs"]),
        figures.spread(acc["ours"]),
        *difference(acc["ours"], acc["theirs"]),
        *(f"{chosen[who]:.3f}" if who in chosen else "-" for who in ("theirs", "ours")),
        figures.spread(found["same"]) if found["same"] else "-",
        *(f"{found['seconds'][who]:.0f}" for who in ("theirs", "ours")),
    ]


def draw(path: pathlib.Path, found: Sequence[dict[str, Any]]) -> None:
    """Draws the accuracies of both, a dot a start and a bar for their mean."""
    lines = [
        (f"{each['method']}, {who}", each["acc"][who], float(np.mean(each["acc"][who])))
        for each in found
        for who in ("theirs", "ours")
    ]
    figures.draw_methods(path, lines, "ACC on test rows")


def main(arguments: Sequence[str]) -> None:
    """Runs what is missing, then writes and prints the table."""
    options = parse_arguments(arguments)
    asked = jobs(options)
    pair = pairs.load(figures.load_config(options.config, options.fields))
    figures.make_folder(options.out)
    others = [theirs(job, checkout, pair, options) for job, checkout in asked]
    own = list(baselines.results([job for job, _ in asked], options))
    found = [
        judge(job, arrays["true"], arrays, other) | {"same": same_labels(job, pair, other, options)}
        for (job, arrays), other in zip(own, others, strict=True)
    ]
    figures.write_json(options.out / "table.json", {"rows": found})
    draw(options.out / "table.png", found)
    print(figures.write_table(options.out, HEAD, [line(each) for each in found]))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
