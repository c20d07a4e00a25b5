"""The tables of the paper's poster: what was published, and what comes out here.

    python experiments/poster.py supervised --out=runs/poster
    python experiments/poster.py supervised baselines --config=experiments/datasets/imagenette.py \
        --seeds 0 1 2 --out=runs/poster

`supervised`: HUME, inductive and transductive, beside a linear classifier with labels.
`baselines`: beside SCAN and SPICE. `large_scale`: ImageNet-1k, with Twist and Self-classifier.
Without `--config` the datasets are the poster's; with it, any others. HUME runs as `python -m
hume_jax.main` on the seeds, the other methods as in `baselines.py` from as many starts, all on the
config's arrays; what is finished is taken from OUT/DATASET. Where arrays are missing, the cell says
so and the command that fills it stands below; the poster's configs find the authors' arrays once
these are unpacked here (`configs/stl10.py`). Arrays that are there but will not do are an error. A
published figure comes from another encoder and protocol than the row beside it, so the two columns
tell what a system reaches, not which method is better.

Writes a Markdown table, CSV, JSON and a picture for each: OUT/TABLE.md and so on;
TABLE_notes.md has source, commands, seeds and the machine.
"""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import baselines
import figures
import numpy as np
import pairs
from ml_collections import config_dict

from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.files import atomic_write
from hume_jax.representations.arrays import formats

SCORES = ("acc", "ari")
SOURCE = "arXiv:2311.02940, Tables 1 to 3; SCAN, SPICE, Twist and Self-classifier as reported there"
# ACC and ARI of test rows, in %.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "stl10": {
        "probe": (88.9, 77.7), "transductive": (93.2, 86.0), "inductive": (90.8, 81.2),
        "scan": (77.8, 61.3), "spice": (86.2, 73.2),
    },
    "cifar10": {
        "probe": (89.5, 79.0), "transductive": (89.2, 79.2), "inductive": (88.4, 77.6),
        "scan": (83.3, 70.5), "spice": (84.5, 70.9),
    },
    "cifar100_20": {
        "probe": (72.5, 52.6), "transductive": (56.7, 39.6), "inductive": (55.5, 37.7),
        "scan": (45.4, 29.7), "spice": (46.8, 32.1),
    },
    "imagenet": {
        "inductive": (51.1, 38.1), "scan": (39.7, 27.9), "twist": (40.6, 30.0),
        "self_classifier": (41.1, 29.5),
    },
}  # fmt: skip
TITLES = {
    "probe": "supervised, linear on phi1",
    "transductive": "HUME, transductive",
    "inductive": "HUME, inductive",
    "scan": "SCAN",
    "spice": "SPICE",
    "twist": "Twist",
    "self_classifier": "Self-classifier",
}
_HUME = ("inductive", "transductive")


class Table(NamedTuple):
    """A table of the poster."""

    datasets: tuple[str, ...]  # files of `configs/`
    methods: tuple[str, ...]  # of `TITLES`


_SMALL = ("stl10", "cifar10", "cifar100_20")
TABLES = {
    "supervised": Table(_SMALL, ("probe", "transductive", "inductive")),
    "baselines": Table(_SMALL, ("transductive", "inductive", "scan", "spice")),
    "large_scale": Table(("imagenet",), ("inductive", "scan", "twist", "self_classifier")),
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--config", nargs="+", default=[], help="configs of other datasets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="METHOD.FIELD=VALUE", help="settings of methods"
    )
    parser.add_argument(
        "--field", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of every config"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    # These are HUME's seeds; the starts of the other methods are of seed 0.
    baselines.check(len(options.seeds), 0, options.set)
    for seed in options.seeds:
        figures.check_seed(seed)
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError(f"--seeds {' '.join(map(str, options.seeds))}: one is given twice")
    return options


def commands(spec: str, methods: Sequence[str], options: argparse.Namespace) -> list[list[str]]:
    """What fills the cells of a dataset: a command for each run of HUME, and one for the others."""
    name = dataset_name(spec)
    fields = [f"--config.{field}" for field in options.field]
    seeds = ",".join(map(str, options.seeds)) + ","
    found = []
    for setting in (method for method in methods if method in _HUME):
        variant = f"{spec}{',' if ':' in spec else ':'}{setting}"
        found.append(
            ["-m", "hume_jax.main", f"--config={variant}", *fields, f"--config.seeds=({seeds})",
             "--noconfig.baselines", f"--workdir={options.out / name / setting}"]
        )  # fmt: skip
    others = [method for method in methods if method not in _HUME]
    if others:
        set_ = ["--set", *options.set] if options.set else []
        found.append(
            ["experiments/baselines.py", f"--config={spec}",
             "--spaces", "phi1", "--methods", *others, f"--starts={len(options.seeds)}", *set_,
             f"--out={options.out / name / 'baselines'}", *(["--", *fields] if fields else [])]
        )  # fmt: skip
    return found


def dataset_name(spec: str) -> str:
    """A dataset's name, from the file of its config and the variant: a folder of its own."""
    file, _, variant = spec.partition(":")
    return "-".join([pathlib.Path(file).stem, *re.findall(r"[\w.=+]+", variant)])


def ours(
    spec: str, method: str, true: np.ndarray, options: argparse.Namespace
) -> dict[str, list[float]]:
    """ACC and ARI of test rows, in %, of every seed or start of a finished run.

    Args:
      spec: config of the dataset.
      method: of `TITLES`.
      true: (n,) labels of the test rows.
      options: of the command line.
    """
    folder = options.out / dataset_name(spec)
    if method in _HUME:
        files = [folder / method / f"seed_{seed}" / "results.json" for seed in options.seeds]
        scores = [figures.read_json(file)["ensemble"]["test"] for file in files]
    else:
        with np.load(folder / "baselines" / f"{method}-phi1.npz", allow_pickle=False) as stored:
            scores = [metrics.score(labels, true) for labels in stored["test"]]
    return {score: [100 * each[score] for each in scores] for score in SCORES}


def lacks_arrays(config: config_dict.ConfigDict) -> bool:
    """Whether representations are not named, or any file that is named is not there."""
    for split in pairs.SPLITS:
        for field, value in config.data[split].items():
            paths = [value] if isinstance(value, str) else value
            if field in ("phi1", "phi2") and not any(paths):
                return True
            if any(path and not formats.locate(path)[0].exists() for path in paths):
                return True
    return False


def collect(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs what is missing of a table; its cells, by dataset and method."""
    table = TABLES[name]
    specs = options.config or [f"configs/{dataset}.py" for dataset in table.datasets]
    cells: dict[str, Any] = {}
    for spec in specs:
        config = figures.load_config(spec, [f"--config.{field}" for field in options.field])
        asked = commands(spec, table.methods, options)
        why, found = "", {}
        try:
            true = pairs.open_splits(config)[1]["test"]
        except UserError as error:
            # What is there but will not do is no missing array.
            if not lacks_arrays(config):
                raise
            why = f"{error}."
        else:
            for command in asked:
                # Its table goes where its log goes: what this script prints can be piped on.
                done = subprocess.run([sys.executable, *command], stdout=2, check=False)
                if done.returncode:
                    raise UserError(f"`{shlex.join(['python', *command])}` failed, see above")
            found = {method: ours(spec, method, true, options) for method in table.methods}
        cells[dataset_name(spec)] = {
            "why": why,
            "commands": [shlex.join(["python", *command]) for command in asked],
            "ours": found,
            "published": published(spec),
        }
    return cells


def published(spec: str) -> dict[str, tuple[float, float]]:
    """What the poster has for a config: nothing where a variant takes other representations."""
    file, _, variant = spec.partition(":")
    names = [part for part in variant.split(",") if part]
    same = all(name.startswith(("preset=", "source=", "phi2=dino")) for name in names)
    return PUBLISHED.get(pathlib.Path(file).stem, {}) if same else {}


def write(name: str, cells: dict[str, Any], options: argparse.Namespace) -> str:
    """Writes a table's files; returns the Markdown with the notes that stand below it."""
    head = ["ACC / ARI, %"]
    head += [f"{dataset}, {who}" for dataset in cells for who in ("published", "ours")]
    rows = []
    for method in TABLES[name].methods:
        row = [TITLES[method]]
        for cell in cells.values():
            theirs = cell["published"].get(method)
            row.append(" / ".join(f"{value:.1f}" for value in theirs) if theirs else "-")
            found = cell["ours"].get(method)
            row.append(
                " / ".join(figures.spread(found[score], 1) for score in SCORES)
                if found
                else "not run: arrays needed"
            )
        rows.append(row)
    figures.write_json(options.out / f"{name}.json", cells)
    text = figures.write_table(options.out, head, rows, name)
    bar = "bar: published, " if any(cell["published"] for cell in cells.values()) else ""
    figures.draw_methods(
        options.out / f"{name}.png",
        [
            (
                f"{dataset}: {TITLES[method]}",
                cell["ours"].get(method, {}).get("acc", []),
                cell["published"].get(method, (np.nan,))[0],
            )
            for dataset, cell in cells.items()
            for method in TABLES[name].methods
        ],
        f"ACC on test rows, %; {bar}dots: ours, a seed or start each",
    )
    notes = "\n".join(_notes(cells, options))
    with atomic_write(options.out / f"{name}_notes.md") as file:
        file.write(f"{notes}\n".encode())
    return f"{text}\n\n{notes}"


def _notes(cells: dict[str, Any], options: argparse.Namespace) -> Iterator[str]:
    """Where the figures come from: a source, commands, seeds, the machine."""
    if any(cell["published"] for cell in cells.values()):
        yield f"Published: {SOURCE}."
    seeds = " ".join(map(str, options.seeds))
    yield f"Ours: seeds {seeds} of HUME, as many starts of the others; {figures.device()}."
    for dataset, cell in cells.items():
        how = f"was not run: {cell['why']} The commands:" if cell["why"] else "is made by"
        yield f"\n{dataset} {how}\n"
        yield from (f"    {command}" for command in cell["commands"])


def main(arguments: Sequence[str]) -> None:
    """Runs, writes and prints the tables asked for."""
    options = parse_arguments(arguments)
    figures.make_folder(options.out)
    for name in options.tables:
        print(write(name, collect(name, options), options), end="\n\n")


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
