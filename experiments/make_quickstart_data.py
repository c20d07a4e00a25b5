"""Writes the small real dataset that ships inside the package (`hume_jax/data/quickstart`).

Takes random rows of two representation spaces of the same photographs, reduces each space to its
leading principal directions and stores the result as float16. Labels play no part in choosing rows
or directions; they are copied only so that a run can be scored.

    python experiments/make_quickstart_data.py --source=../shared/data/imagenette

The source folder holds `effnet_lite{0,2}_{train,test}.npy`, `labels_{train,test}.npy` and
`classes.txt`. The choice of rows is exactly reproducible; the values are so up to the last float16
bit, which depends on the linear algebra library.
"""

import argparse
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from sklearn import cluster, linear_model

from hume_jax.evaluation import metrics

PACKAGE_DATA = pathlib.Path(__file__).resolve().parents[1] / "hume_jax" / "data" / "quickstart"
SPACES = {"phi1": "effnet_lite0", "phi2": "effnet_lite2"}
SPLITS = ("train", "test")
MAX_BYTES = 4_000_000

README = """\
# The quickstart dataset

{n_train:,} train and {n_test:,} test photographs of ten kinds of things, each described by two
encoders in {directions} numbers.

| file | what |
|---|---|
| `phi1_{{train,test}}.npy` | float16 (n, {directions}): EfficientNet-Lite0 |
| `phi2_{{train,test}}.npy` | float16 (n, {directions}): EfficientNet-Lite2 |
| `labels_{{train,test}}.npy` | int64 (n,): the classes below, counted from 0; only for scoring |

Classes: {classes}.

## Where it comes from

The photographs are Imagenette 2, a public subset of ten ImageNet classes; its validation part is
`test` here. They belong to ImageNet (non-commercial research use) and are not included: these are
features, the pooled last convolution of the two networks (1,280 columns, published ImageNet
weights) at 160 px. {n_train:,} of {source_train:,} train rows and {n_test:,} of {source_test:,}
test rows were drawn at random (seed {seed}), not stratified by class, and are stored in random
order. Each space was centred with the mean of the drawn train rows and projected on their
{directions} leading principal directions; these keep {variance_phi1:.1%} (phi1) and
{variance_phi2:.1%} (phi2) of the variance. Labels were not used.

**Both networks were trained with ImageNet's labels, these ten classes among them.** So this data
is good for exercising the method on something real, and not for a claim that nothing supervised
went in.

## What it still carries

Measured by the script that wrote it, on rows scaled to unit norm:

| space | k-means on train, ACC | logistic regression, ACC on test |
|---|---|---|
| phi1 | {kmeans_phi1:.2f} | {probe_phi1:.3f} |
| phi2 | {kmeans_phi2:.2f} | {probe_phi2:.3f} |

k-means: lowest inertia of 10 starts. Logistic regression: fitted on the train labels, C = 10.
Written by

    {command}
"""


class Reduced(NamedTuple):
    """One space, reduced."""

    splits: dict[str, np.ndarray]  # split -> (n, directions) float16
    variance: float  # share of the drawn train rows' variance that is kept


def draw_rows(n_source: int, n_wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Row numbers drawn without replacement, in random order."""
    if n_wanted > n_source:
        raise SystemExit(f"error: {n_wanted} rows wanted, the source has {n_source}; ask for fewer")
    return rng.permutation(n_source)[:n_wanted]


def reduce_space(train: np.ndarray, test: np.ndarray, directions: int) -> Reduced:
    """Projects both splits on the leading principal directions of the train rows.

    Args:
      train: (n, d) rows that mean and directions are fitted on.
      test: (m, d) rows that are projected only.
      directions: how many directions are kept, at most d.

    Returns:
      The projections and the share of variance that they keep.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    centred = train.astype(np.float64) - mean
    variances, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :directions]
    # The sign of an eigenvector is arbitrary; fixing it keeps the files equal between machines.
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(directions)])
    splits = {
        "train": (centred @ axes).astype(np.float16),
        "test": ((test.astype(np.float64) - mean) @ axes).astype(np.float16),
    }
    return Reduced(splits, float(variances[::-1][:directions].sum() / variances.sum()))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """(n, d) rows in float32, scaled to unit norm."""
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(space: Reduced, labels: dict[str, np.ndarray], seed: int) -> tuple[float, float]:
    """Floor and ceiling of one space: k-means without labels, logistic regression with."""
    rows = {split: unit_rows(values) for split, values in space.splits.items()}
    n_classes = len(np.unique(labels["train"]))
    found = cluster.KMeans(n_classes, n_init=10, random_state=seed).fit_predict(rows["train"])
    probe = linear_model.LogisticRegression(C=10.0, max_iter=1000)
    probe.fit(rows["train"], labels["train"])
    return (
        metrics.clustering_accuracy(found, labels["train"]),
        float(probe.score(rows["test"], labels["test"])),
    )


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=pathlib.Path, required=True, help="folder of the features")
    parser.add_argument("--output", type=pathlib.Path, default=PACKAGE_DATA)
    parser.add_argument("--train_rows", type=int, default=6000)
    parser.add_argument("--test_rows", type=int, default=1600)
    parser.add_argument("--directions", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Draws, reduces, measures and writes."""
    options = parse_arguments(arguments)
    wanted = {"train": options.train_rows, "test": options.test_rows}
    rng = np.random.default_rng(options.seed)
    facts: dict[str, object] = {}
    labels, rows = {}, {}
    for split in SPLITS:
        source_labels = np.load(options.source / f"labels_{split}.npy")
        rows[split] = draw_rows(len(source_labels), wanted[split], rng)
        labels[split] = source_labels[rows[split]].astype(np.int64)
        facts[f"source_{split}"] = len(source_labels)

    arrays = {f"labels_{split}": labels[split] for split in SPLITS}
    for name, encoder in SPACES.items():
        source = {s: np.load(options.source / f"{encoder}_{s}.npy", mmap_mode="r") for s in SPLITS}
        train, test = (source[split][rows[split]] for split in SPLITS)
        space = reduce_space(train, test, options.directions)
        arrays |= {f"{name}_{split}": values for split, values in space.splits.items()}
        kmeans, probe = measure(space, labels, options.seed)
        facts |= {f"variance_{name}": space.variance}
        facts |= {f"kmeans_{name}": kmeans, f"probe_{name}": probe}
        print(f"{name} ({encoder}): variance kept {space.variance:.4f}", end=", ")
        print(f"k-means ACC {kmeans:.4f} (train), logistic regression ACC {probe:.4f} (test)")

    write(options, arrays, facts)


def write(
    options: argparse.Namespace, arrays: dict[str, np.ndarray], facts: dict[str, object]
) -> None:
    """Writes arrays and README; refuses a dataset that is too large to ship."""
    n_bytes = sum(array.nbytes for array in arrays.values())
    if n_bytes > MAX_BYTES:
        raise SystemExit(
            f"error: {n_bytes:,} bytes are more than {MAX_BYTES:,}; ask for fewer rows"
        )
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise SystemExit("error: a value does not fit float16; check the source")
    options.output.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        path = options.output / f"{name}.npy"
        np.save(path, array)
        print(f"{path.name}: {array.shape} {array.dtype}, {path.stat().st_size:,} bytes")
    readme = README.format(
        n_train=len(arrays["labels_train"]),
        n_test=len(arrays["labels_test"]),
        directions=options.directions,
        seed=options.seed,
        classes=", ".join((options.source / "classes.txt").read_text().split("\n")).strip(", "),
        command=f"python experiments/make_quickstart_data.py --source={options.source}",
        **facts,
    )
    (options.output / "README.md").write_text(readme)
    print(f"total: {sum(p.stat().st_size for p in options.output.glob('*.npy')):,} bytes of arrays")


if __name__ == "__main__":
    main(sys.argv[1:])
