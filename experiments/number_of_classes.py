"""How often `hume_jax.choose_k` finds the number of classes: draws of classes, hits and misses.

    python experiments/number_of_classes.py --out=runs/number_of_classes
    python experiments/number_of_classes.py --cases imagenette5 --draws 0 1 --out=runs/some_draws
    python experiments/number_of_classes.py --baselines --out=runs/number_of_classes
    python experiments/number_of_classes.py --summary --out=runs/number_of_classes

A draw takes some classes of a dataset at random and as many rows of them for each draw of a case
(so that programs are compiled once), reduces each space to its 128 leading principal directions, as
the data inside the package was, and has `choose_k` look at a range that does not depend on the
draw. Labels choose the rows and are dropped: what `choose_k` is given are two arrays. Rows of a
Gaussian of the covariance of Imagenette's are a case too; there the right answer is none. Digits
(`sklearn.datasets.load_digits`, its pixels in the place of both spaces) stand apart: the rule was
looked at on them. It was made on other draws, 100 and above; those of the table are 0 to 4.

`--baselines` adds what k-means says on the same rows, both spaces joined: the silhouette, the gap
statistic, and the agreement of halves by our rule, with k-means in the place of the search.

Everything is kept as it comes, so it can be stopped and started again, also by several processes
that work on different cases. Writes OUT/summary.md and OUT/summary.csv.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import figures
import jax
import numpy as np
from make_quickstart_data import reduce_space
from ml_collections import config_dict

from hume_jax import choose_k
from hume_jax import config as config_lib
from hume_jax.errors import UserError
from hume_jax.evaluation import n_classes as criteria
from hume_jax.evaluation.n_classes import Measured
from hume_jax.representations import store

SOURCE = pathlib.Path("../shared/data")
SPACES = {
    "imagenette": ("effnet_lite0", "effnet_lite2"),
    "clinc150": ("minilm_l6", "paraphrase_l3"),
}
DIRECTIONS = 128
# Starts of k-means: of each number of classes, of each half, and draws of the gap's reference.
_STARTS, _GAPS = 3, 5
_SILHOUETTE_ROWS = 3000


class Case(NamedTuple):
    """Draws of one kind."""

    data: str
    classes: int  # that are drawn; 0: a Gaussian
    rows: int  # of each draw
    numbers: str  # that are looked at, as --k


CASES = {
    "imagenette3": Case("imagenette", 3, 2560, "2..20"),
    "imagenette5": Case("imagenette", 5, 3200, "2..20"),
    "imagenette7": Case("imagenette", 7, 4032, "2..20"),
    "imagenette10": Case("imagenette", 10, 4032, "2..20"),
    "clinc20": Case("clinc150", 20, 2400, "2..40"),
    "clinc50": Case("clinc150", 50, 6000, "2..80"),
    "gaussian": Case("imagenette", 0, 4032, "2..20"),
    "digits": Case("digits", 10, 1792, "2..20"),
}
# The others are no photographs or requests whose classes are to be found.
COUNTED = [name for name in CASES if name not in ("gaussian", "digits")]
METHODS = {
    "choose_k": "choose_k",
    "stability": "k-means, agreement of halves",
    "silhouette": "k-means, silhouette",
    "gap": "k-means, gap statistic",
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--draws", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--source", type=pathlib.Path, default=SOURCE, help="folder of the data")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--baselines", action="store_true", help="k-means in the place of choose_k")
    what.add_argument("--summary", action="store_true", help="only the table of what is there")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    for draw in options.draws:
        figures.check_seed(draw)
    return options


def spaces_of(case: Case, draw: int, source: pathlib.Path) -> list[np.ndarray]:
    """The two spaces of a draw, (rows, columns) float16 each."""
    rng = np.random.default_rng([draw, case.classes, case.rows])
    if case.data == "digits":
        from sklearn.datasets import load_digits

        pixels = load_digits().data[rng.permutation(1797)[: case.rows]].astype(np.float16)
        return [pixels, pixels]
    folder = source / case.data
    if not folder.is_dir():
        raise UserError(f"--source={source}: there is no {folder}")
    labels = np.load(folder / "labels_train.npy")
    classes = rng.permutation(labels.max() + 1)[: case.classes or None]
    rows = rng.permutation(np.flatnonzero(np.isin(labels, classes)))
    if len(rows) < case.rows:
        # Classes are of some different sizes.
        raise UserError(
            f"{case.data}: {len(rows)} rows of {case.classes} classes, {case.rows} wanted"
        )
    rows = np.sort(rows[: case.rows])
    files = [np.load(folder / f"{s}_train.npy", mmap_mode="r") for s in SPACES[case.data]]
    reduced = [reduce_space(f[rows], f[:1], DIRECTIONS).splits["train"] for f in files]
    return reduced if case.classes else _gaussian(reduced, rng)


def _gaussian(spaces: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of a Gaussian of the covariance of both spaces together."""
    joined = np.concatenate(spaces, axis=1).astype(np.float64)
    variances, axes = np.linalg.eigh(np.cov(joined.T))
    rows = rng.normal(size=joined.shape) * np.sqrt(np.clip(variances, 0, None)) @ axes.T
    return [part.astype(np.float16) for part in np.split(rows, [spaces[0].shape[1]], axis=1)]


def written(options: argparse.Namespace, name: str, draw: int) -> list[pathlib.Path]:
    """The arrays of a draw, written where they are not there."""
    folder = options.out / f"{name}_{draw}"
    paths = [folder / f"phi{i}.npy" for i in (1, 2)]
    if not all(path.exists() for path in paths):
        figures.make_folder(folder)
        for path, space in zip(paths, spaces_of(CASES[name], draw, options.source), strict=True):
            store.save_array(path, space)
    return paths


def config_of(paths: Sequence[pathlib.Path], draw: int) -> config_dict.ConfigDict:
    """The defaults, on the arrays of a draw."""
    config = config_lib.load("configs/arrays.py")
    with config.unlocked():
        config.data.train.phi1, config.data.train.phi2 = map(str, paths)
        config.seed = draw
    return config


def ours(options: argparse.Namespace, name: str, draw: int) -> dict[str, Any]:
    """What `choose_k` says of a draw."""
    paths = written(options, name, draw)
    numbers = choose_k.parse_numbers(CASES[name].numbers)
    found = choose_k.recommend(
        config_of(paths, draw), paths[0].parent / "choose_k", numbers=numbers
    )
    return {"choose_k": {**found._asdict(), "interval": found.interval}}


def baselines(options: argparse.Namespace, name: str, draw: int) -> dict[str, Any]:
    """What k-means says of a draw."""
    from sklearn.metrics import silhouette_score

    rows = np.concatenate([_unit(np.load(p)) for p in written(options, name, draw)], axis=1)
    first, last = choose_k.parse_numbers(CASES[name].numbers).limits
    rng = np.random.default_rng([draw, 4])
    some = rng.permutation(len(rows))[:_SILHOUETTE_ROWS]
    silhouettes, gaps, errors = {}, {}, {}
    clouds = [_box(rows, rng) for _ in range(_GAPS)]
    for k in range(first, last + 1):
        fitted = _kmeans(k, draw, _STARTS).fit(rows)
        silhouettes[k] = float(silhouette_score(rows[some], fitted.labels_[some]))
        logs = [np.log(_kmeans(k, draw, 1).fit(cloud).inertia_) for cloud in clouds]
        gaps[k] = float(np.mean(logs) - np.log(fitted.inertia_))
        errors[k] = float(np.std(logs) * np.sqrt(1 + 1 / _GAPS))
    sure = [k for k in range(first, last) if gaps[k] >= gaps[k + 1] - errors[k + 1]]
    stable = _stability(rows, choose_k.parse_numbers(CASES[name].numbers), draw)
    return {
        "silhouette": {"value": max(silhouettes, key=silhouettes.__getitem__)},
        # Tibshirani's rule; none if the gap rises to the end.
        "gap": {"value": sure[0] if sure else None},
        "stability": {"value": stable.value, "interval": stable.interval, "peak": stable.peak},
    }


def _kmeans(k: int, seed: int, starts: int) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=starts, random_state=seed)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    rows = rows - rows.mean(axis=0)[None]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _box(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uniform rows in the box of the principal directions of others."""
    _, axes = np.linalg.eigh(np.cov(rows.T))
    turned = rows @ axes
    box = rng.uniform(turned.min(axis=0), turned.max(axis=0), turned.shape)
    return (box @ axes.T).astype(np.float32)


def _stability(rows: np.ndarray, numbers: choose_k.Numbers, seed: int) -> criteria.Recommendation:
    """Our rule on k-means of halves, without the rows of no classes."""
    measured: dict[int, Measured] = {}
    wanted: Sequence[int] = numbers.first
    while wanted:
        measured |= {k: _halves(rows, k, seed) for k in wanted}
        curve = criteria.curve_of(list(measured.values()))
        wanted = criteria.refine(curve, *numbers.limits)
    return criteria.recommend(list(measured.values()), limits=numbers.limits, seed=seed)


def _halves(rows: np.ndarray, k: int, seed: int) -> Measured:
    sizes = choose_k.Sizes()
    found = []
    for pair in range(sizes.pairs):
        order = np.random.default_rng([seed, 2, pair]).permutation(len(rows))
        tasks = [
            np.stack([_kmeans(k, i, 1).fit(rows[half]).predict(rows) for i in range(sizes.tasks)])
            for half in np.array_split(order, 2)
        ]
        found.append(criteria.across(*tasks))
    blank = np.zeros((sizes.pairs, 2, 1))
    return Measured(k, np.stack(found), blank, blank, blank, blank)


def kept(path: pathlib.Path, make: Callable[[], dict[str, Any]]) -> None:
    """Writes a result, unless it is there."""
    if not path.exists():
        figures.write_json(path, make())


def summary(options: argparse.Namespace) -> str:
    """The table of all results that are there, a row a case and method."""
    head = ["case", "classes", "looked at", "method", "draws", "hits", "within 1", "none"]
    head += ["numbers found", "95 % range holds the truth"]
    rows, totals = [], {method: [0, 0, 0, 0, 0, 0] for method in METHODS}
    for name, case in CASES.items():
        for method, title in METHODS.items():
            read = (_read(options.out, name, draw, method) for draw in options.draws)
            found = [result for result in read if result is not None]
            if not found:
                continue
            counts = _counts(found, case.classes)
            if name in COUNTED:
                totals[method] = [a + b for a, b in zip(totals[method], counts, strict=True)]
            values = ", ".join(str(r.get("value", "none")) for r in found)
            truth = str(case.classes) if case.classes else "none"
            rows.append([name, truth, case.numbers, title, *_cells(counts, values)])
    for method, counts in totals.items():
        if counts[0]:
            rows.append(["all but gaussian and digits", "", "", METHODS[method], *_cells(counts)])
    figures.make_folder(options.out)
    return figures.write_table(options.out, head, rows, name="summary")


def _read(out: pathlib.Path, name: str, draw: int, method: str) -> dict[str, Any] | None:
    file = "choose_k.json" if method == "choose_k" else "baselines.json"
    return figures.read_json(out / f"{name}_{draw}" / file).get(method)


def _counts(found: Sequence[dict[str, Any]], truth: int) -> list[int]:
    """Draws, hits, within one, none, and of those with a range, draws and ranges that hold it."""
    # No number is left out of the file.
    values = [r.get("value") for r in found]
    ranges = [r["interval"] for r in found if "interval" in r and "value" in r]
    return [
        len(found),
        sum((v or 0) == truth for v in values),
        sum(abs((v or 0) - truth) <= 1 for v in values),
        sum(v is None for v in values),
        len(ranges),
        sum(low <= truth <= high for low, high in ranges),
    ]


def _cells(counts: Sequence[int], values: str = "") -> list[str]:
    *plain, ranges, holding = counts
    return [*map(str, plain), values, f"{holding} of {ranges}" if ranges else "-"]


def main(arguments: Sequence[str]) -> None:
    """Looks at every draw, prints and writes the table."""
    options = parse_arguments(arguments)
    figures.make_folder(options.out)
    jax.config.update("jax_compilation_cache_dir", str((options.out / "compiled").resolve()))
    file, look = ("baselines.json", baselines) if options.baselines else ("choose_k.json", ours)
    for draw in () if options.summary else options.draws:
        for name in options.cases:
            path = options.out / f"{name}_{draw}" / file
            kept(path, functools.partial(look, options, name, draw))
    print(summary(options))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
