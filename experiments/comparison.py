"""HUME beside every method of a dataset, with intervals of the differences: who wins, by how much.

    python experiments/comparison.py --config=experiments/datasets/imagenette.py \
        --hume runs/hume/imagenette runs/hume/imagenette_forward \
        --baselines runs/baselines_imagenette_64 --out=runs/comparison_imagenette
    python experiments/comparison.py --keep=docs/labels/imagenette --out=runs/comparison_imagenette

Takes finished work alone and runs no method: workdirs of `hume_jax.main`, of one seed or several,
and folders of `baselines.py`; without them, what `--keep` holds. With it the labels of the test
rows are kept in that folder, and rows kept earlier stand in the table too. The first row, HUME in
the spaces of the config where it is there, is what the others are compared with. A method stands
there three times: by its single starts, by the vote of all of them, and by that of the half which
its own label-free score prefers. HUME's vote is that of its run. Seconds are those of a vote: of
all tasks of a seed of HUME, of all starts of another method.

The difference in ACC to the first row has a 95 % interval of a paired bootstrap: test rows are
drawn with replacement, the same for both methods, and seeds (or starts) of each of the two by
itself. Which found class stands for which given one stays as it is on all rows.

Writes OUT/table.md, table.csv, table.json and table.png, and summary.md with the first row between
the best of the others.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import baselines
import figures
import kept as kept_labels
import numpy as np
import pairs
from kept import Row
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax.baselines.methods import METHODS
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.report import results

RESAMPLES = 2000
_SECONDS = ("compile", "search", "score")
HEAD = (
    "method", "spaces", "what", "test ACC", "test ARI", "test NMI", "ACC, first row minus this",
    "95 %", "seconds",
)  # fmt: skip


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--hume", type=pathlib.Path, nargs="*", default=[], help="workdirs")
    parser.add_argument("--baselines", type=pathlib.Path, nargs="*", default=[], help="folders")
    parser.add_argument("--keep", type=pathlib.Path, help="folder of the labels that are kept")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the table")
    options = parser.parse_args(arguments)
    figures.check_seed(options.seed)
    return options


def of_hume(workdir: pathlib.Path, usual: config_dict.ConfigDict) -> Row:
    """The votes of a finished run.

    Args:
      workdir: of `hume_jax.main`.
      usual: the dataset's config; settings that differ from it are named.

    Raises:
      UserError: it is not finished, or has no test rows.
    """
    config = figures.read_json(workdir / "config.json")
    seeds = (config or {}).get("seeds", ())
    folders = [workdir / f"seed_{seed}" for seed in seeds] or [workdir]
    if not config or not all((folder / "results.json").exists() for folder in folders):
        raise UserError(f"{workdir} has no results.json: give the workdirs of finished runs")
    found = [figures.read_json(folder / "results.json") for folder in folders]
    kept = {part: config[part] for part in figures.PARTS if part in config}
    return Row(
        kept_labels.HUME,
        searched(config),
        f"votes of {len(found[0]['tasks'])} tasks{changed_fields(kept, usual)}",
        tuple(f"seed {seed}" for seed in seeds or [config["seed"]]),
        np.stack([_test_labels(folder / "labels.csv") for folder in folders]),
        tuple(_seconds(each["seconds"]) for each in found),
        json.dumps(kept, sort_keys=True),
    )


def searched(config: Mapping[str, Any]) -> str:
    """The spaces of a search of HUME, as the table names them."""
    data = config["data"]["train"]
    names = pairs.space_names(data["phi1"], data["phi2"])
    return {
        "given": " → ".join(names),
        # The same search in either order.
        "both": " and ".join(sorted(names)),
        "first": names[0],
        "second": names[1],
    }[config["search"].get("spaces", "given")]


def _seconds(found: dict[str, Any]) -> float:
    """Of one vote; of a run that went on after a stop no one knows, for it times its last part."""
    return np.nan if "resumed" in found else float(sum(found[part] for part in _SECONDS))


def changed_fields(kept: Mapping[str, Any], usual: config_dict.ConfigDict) -> str:
    """Settings of a run that are not the dataset's usual ones; spaces are named by themselves."""
    ours = config_lib.flatten(
        {part: json.loads(usual.to_json_best_effort())[part] for part in kept}
    )
    return "".join(
        f", {name}={value}"
        for name, value in config_lib.flatten(kept).items()
        if name != "search.spaces" and value != ours.get(name)
    )


def _test_labels(path: pathlib.Path) -> np.ndarray:
    labels = results.read_labels(path, "test")
    if not len(labels):
        raise UserError(f"{path} has no test rows: the run was given none")
    # -1: an image that could not be read, whose row is no part of the arrays.
    return labels[labels >= 0]


def of_baselines(folder: pathlib.Path, pair: pairs.Pair) -> list[Row]:
    """The methods of a folder: their single starts, and their votes.

    Raises:
      UserError: it holds no result, or one of other rows or another number of classes.
    """
    # In the order of the methods, not of their file names.
    order = [baselines.Job(name, spaces).name for name in METHODS for spaces in baselines.SPACES]
    waiting = {part for name in order for part in baselines.parts(folder, name)}
    paths = [path for path in folder.glob("*.npz") if path not in waiting]
    if not paths:
        raise UserError(f"{folder} has no results of baselines.py")
    rows = []
    for path in paths:
        if path.stem not in order:
            raise UserError(
                f"{path} is no result of baselines.py: leave such files out of {folder}"
            )
    for path in sorted(paths, key=lambda p: order.index(p.stem)):
        name, _, spaces = path.stem.rpartition("-")
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        made = json.loads(str(arrays["settings"]))
        data = baselines.data_of(name, pair)
        # What was kept before it was told has no such field.
        if made.pop("data", data) != data or arrays["test"].max() >= pair.n_classes:
            raise UserError(
                f"{path} was made of other rows or labels, or for another number of classes, than "
                "the config has: give --baselines that were run with the same --config"
            )
        names = pair.names[::-1] if made.get("exchanged") else pair.names
        starts = len(arrays["test"])
        row = Row(
            METHODS[name].title,
            _space_names((names[0], names[1]), spaces),
            f"{starts} single starts{changed_settings(name, made['settings'], path)}",
            tuple(f"start {task}" for task in range(starts)),
            arrays["test"],
            (float(arrays["seconds"].sum()),),
            json.dumps(made, sort_keys=True),
        )
        rows.append(row)
        if not METHODS[name].supervised and len(row.labels) > 1:
            rows += _votes(row, arrays, pair)
    return rows


def _votes(row: Row, arrays: dict[str, Any], pair: pairs.Pair) -> list[Row]:
    """The vote of all starts of a row, and that of the half which its own score prefers."""
    starts = len(row.labels)
    half = baselines.better_half(arrays["score"])
    made_with = json.dumps({**json.loads(row.made_with), "evenness": pair.evenness}, sort_keys=True)
    found = []
    for members, whose in ((np.arange(starts), ""), (half, f"the best {len(half)} of ")):
        found.append(
            row._replace(
                what=row.what.replace(f"{starts} single", f"vote of {whose}{starts}"),
                names=("vote",),
                labels=baselines.vote(arrays, members, pair.n_classes, pair.evenness)[None],
                made_with=made_with,
            )
        )
    return found


def changed_settings(method: str, asked: Mapping[str, Any], where: pathlib.Path) -> str:
    """What a row says of settings that are not a method's own: of its length, the length alone.

    Args:
      method: by its key in `METHODS`.
      asked: its settings.
      where: the file that has them.

    Raises:
      UserError: the method has other settings by now.
    """
    default: Any = METHODS[method].settings(2)
    gone = set(asked) - set(default._fields)
    if gone:
        raise UserError(
            f"{where} was made when {method} had the settings {', '.join(sorted(gone))}: run it "
            "again"
        )
    usual = json.loads(json.dumps(default._asdict()))
    changed = {
        name: value for name, value in asked.items() if name != "n_classes" and value != usual[name]
    }
    length = default._replace(**changed).length
    text = f", {length} of {default.length} steps" if length != default.length else ""
    return text + "".join(
        f", {name}={value}"
        for name, value in changed.items()
        if default._replace(**{name: value}).length == default.length
    )


def _space_names(names: tuple[str, str], spaces: str) -> str:
    phi1, phi2 = names
    both = {"joined": f"{phi1}+{phi2}", "both": f"{phi1} and {phi2}"}
    return {"phi1": phi1, "phi2": phi2, **both}[spaces]


def correct(row: Row, true: np.ndarray) -> np.ndarray:
    """Which test rows each labelling gets right, by the best matching: (G, n) bool."""
    return np.stack([_right(labels, true) for labels in row.labels])


def _right(labels: np.ndarray, true: np.ndarray) -> np.ndarray:
    found = metrics.confusion_matrix(labels, true)
    # -1 where a true class has no partner, which no label is.
    right: np.ndarray = found.predicted[np.searchsorted(found.classes, true)] == labels
    return right


def difference(
    ours: np.ndarray, theirs: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Mean difference in ACC and its 95 % interval, by a paired bootstrap.

    Args:
      ours: (G, n) bool.
      theirs: (H, n) bool, of the same rows.
      seed: of the draws.
      resamples: how many.
    """
    rng = np.random.default_rng(seed)
    n = ours.shape[1]
    drawn = []
    for _ in range(resamples):
        # How often each row is drawn stands for the rows themselves.
        weight = np.bincount(rng.integers(n, size=n), minlength=n) / n
        means = [
            (part[rng.integers(len(part), size=len(part))].mean(axis=0) * weight).sum()
            for part in (ours, theirs)
        ]
        drawn.append(means[0] - means[1])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(ours.mean() - theirs.mean()), float(low), float(high)


def judge(rows: Sequence[Row], true: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Scores of every row, and its difference to the first."""
    right = [correct(row, true) for row in rows]
    found: list[dict[str, Any]] = []
    for row, own in zip(rows, right, strict=True):
        scores = [metrics.score(labels, true) for labels in row.labels]
        entry = {**row._asdict(), **{s: [each[s] for each in scores] for s in baselines.SCORES}}
        del entry["labels"], entry["made_with"]
        entry["seconds"] = [known for known in row.seconds if np.isfinite(known)]
        if row.method == kept_labels.HUME:
            seeds = len(row.names)
            entry["what"] += f", {seeds} seeds" if seeds > 1 else f", {row.names[0]}"
        if found:
            entry["difference"] = difference(right[0], own, seed)
        found.append(entry)
    return found


def line(entry: dict[str, Any]) -> list[str]:
    """A row of the table."""
    mean, low, high = entry.get("difference", (0, 0, 0))
    known = "difference" in entry
    return [
        entry["method"],
        entry["spaces"],
        entry["what"],
        *(figures.spread(entry[score], 4) for score in baselines.SCORES),
        f"{mean:+.4f}" if known else "-",
        f"{low:+.4f} to {high:+.4f}" if known else "-",
        f"{np.mean(entry['seconds']):.0f}" if entry["seconds"] else "-",
    ]


def _of_kmeans(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of k-means, plain and spherical."""
    titles = {METHODS[name].title for name in ("kmeans", "spherical_kmeans")}
    return [row for row in found if row["method"] in titles]


def closed(found: Sequence[dict[str, Any]], names: tuple[str, str]) -> list[str]:
    """How much of the way from the best k-means row to the supervised probe the first row goes.

    Args:
      found: as `judge` gives it.
      names: of the two spaces.

    Returns:
      A line for the rows of one space, and one for those of both joined, where there are any.
    """
    lines = []
    for where, alone in (("one space", True), ("both spaces", False)):
        rows = [f for f in found if (f["spaces"] in names) == alone]
        floors = _of_kmeans(rows)
        ceilings = [f for f in rows if f["method"] == METHODS["probe"].title]
        if not (floors and ceilings):
            continue
        low, high = (max(float(np.mean(f["acc"])) for f in part) for part in (floors, ceilings))
        if high > low:
            share = (np.mean(found[0]["acc"]) - low) / (high - low)
            lines.append(
                f"The first row closes {share:.1%} of the gap between the best k-means row of "
                f"{where} ({low:.4f}) and the best probe there ({high:.4f})."
            )
    return lines


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of k-means, the best of the others, the first row, and the best with labels."""
    supervised = {entry.title for entry in METHODS.values() if entry.supervised}

    def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [max(rows, key=lambda row: float(np.mean(row["acc"])))] if rows else []

    floors = _of_kmeans(found)
    ceilings = [row for row in found if row["method"] in supervised]
    others = [
        row
        for row in found
        if row["method"] != found[0]["method"] and row not in floors and row not in ceilings
    ]
    return [*best(floors), *best(others), found[0], *best(ceilings)]


def main(arguments: Sequence[str]) -> None:
    """Reads what there is, then writes and prints the table."""
    options = parse_arguments(arguments)
    figures.make_folder(options.out)
    config = figures.load_config(options.config, options.fields)
    pair = pairs.load(config)
    # Workdirs of one seed each are one row.
    rows = kept_labels.merge(of_hume(workdir, config) for workdir in options.hume)
    rows += [row for folder in options.baselines for row in of_baselines(folder, pair)]
    true = np.unique(pair.labels["test"], return_inverse=True)[1]
    # Nothing is kept that cannot stand in the table.
    kept_labels.check_rows(rows, len(true), pair.n_classes)
    if options.keep:
        for row in rows:
            kept_labels.write(options.keep, row)
        rows = kept_labels.read(options.keep)
        kept_labels.check_rows(rows, len(true), pair.n_classes)
    # HUME as the dataset's config has it stands first.
    usual = (kept_labels.HUME, searched(config))
    rows = sorted(rows, key=lambda row: ((row.method, row.spaces) != usual, kept_labels.place(row)))
    if not rows:
        raise UserError("nothing to compare: give --hume, --baselines or --keep")
    found = judge(rows, true, options.seed)
    shares = closed(found, pair.names)
    figures.write_json(options.out / "table.json", {"rows": found, "closed": shares})
    figures.draw_methods(
        options.out / "table.png",
        [
            (f"{f['method']}, {f['spaces']}: {f['what']}", f["acc"], float(np.mean(f["acc"])))
            for f in found
        ],
        "ACC on test rows; dots: seeds or starts, bar: their mean",
    )
    print(figures.write_table(options.out, HEAD, [line(entry) for entry in found]))
    short = [line(entry)[: HEAD.index("test NMI") + 1] for entry in summary(found)]
    figures.write_table(options.out, HEAD[: len(short[0])], short, "summary")
    for share in shares:
        print(f"\n{share}")


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
