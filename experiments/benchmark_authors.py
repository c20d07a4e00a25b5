"""What `benchmark.py authors`, `quality` and `turtle` time: our search beside the authors' code."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import benchmark_runs
import figures
import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations import scaling, store

TORCH = pathlib.Path(__file__).with_name("benchmark_torch.py")
OURS = pathlib.Path(__file__).with_name("benchmark_ours.py")
# Of the authors' released HUME.
SUBSETS, INNER_STEPS = 20, 300
# The reduced problem, which the released code can finish.
REDUCED = {"num_iters": 100, "num_subsets": 2, "adaptation_steps": 30}
REDUCED_ROWS = 2000
PAPER = ("--config.preset=paper", "--config.search.rows=memory")
FAST = ("--config.search.rows=memory",)
# How near to TURTLE's last accuracy is as good as there.
NEAR = 0.005
Table = tuple[list[str], list[list[str]]]


def add_options(parser: argparse.ArgumentParser, checkout: str) -> None:
    """What the three commands ask for."""
    parser.add_argument("--torch-python", required=True, help="a Python that has PyTorch")
    parser.add_argument(
        f"--{checkout}", type=pathlib.Path, required=True, help="checkout of the authors' code"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder")


def check(options: argparse.Namespace, checkout: str) -> None:
    """Raises a `UserError` if a program or folder is not there."""
    figures.check_torch(options.torch_python)
    figures.check_checkout(checkout, getattr(options, checkout))


def write_arrays(config: Any, folder: pathlib.Path, rows: int = 0) -> int:
    """Writes a dataset as all read it, float32: phi1 centred and of unit norm, phi2 centred and of
    a mean square of 1 a column.

    Args:
      config: resolved.
      folder: for phi1, phi2 and labels of train and test.
      rows: of the train split, spread over it; 0 for all.

    Returns:
      Train rows.
    """
    train, test = store.open_dataset(config.data)
    if test is None or train.labels is None or test.labels is None:
        raise UserError("give a config with train and test rows and their labels")
    folder.mkdir(parents=True, exist_ok=True)
    step = max(1, train.n // rows) if rows else 1
    take = slice(None, rows * step if rows else None, step)
    kinds: dict[str, scaling.Kind] = {"phi1": "rows", "phi2": "scale"}
    for name, kind in kinds.items():
        searched = np.asarray(getattr(train, name).arrays[0][take])
        others = np.asarray(getattr(test, name).arrays[0][:])
        stats = scaling.statistics([searched], kind=kind)
        length = searched.shape[1] ** 0.5 if kind == "scale" else 1.0
        for split, array in (("train", searched), ("test", others)):
            found = scaling.normalise(array, stats, kind)
            np.save(folder / f"{name}_{split}.npy", np.float32(length) * found)
    np.save(folder / "labels_train.npy", train.labels[take])
    np.save(folder / "labels_test.npy", test.labels)
    return len(train.labels[take])


def theirs(
    method: str, flags: dict[str, Any], classes: int, options: argparse.Namespace
) -> dict[str, Any]:
    """What `benchmark_torch.py` finds."""
    job: dict[str, Any] = {"method": method, "repository": str(getattr(options, method).resolve())}
    job |= {"arrays": str((options.out / "arrays").resolve()), "classes": classes}
    job |= {"threads": options.threads or figures.cores(), "flags": flags}
    return benchmark_runs.run(TORCH, job, options.out, options.threads, options.torch_python)


def ours(
    fields: Sequence[str],
    tasks: int,
    steps: int,
    classes: int,
    options: argparse.Namespace,
    **more: Any,
) -> dict[str, Any]:
    """What `benchmark_ours.py` finds."""
    job: dict[str, Any] = {
        "arrays": str((options.out / "arrays").resolve()),
        "classes": classes,
        "tasks": tasks,
    }
    job |= {"steps": steps, "block": 1, "products": False, "accuracies": False}
    job |= {"fields": ["--config.search.spaces=given", *fields]} | more
    return benchmark_runs.run(OURS, job, options.out, options.threads)


# ---- time of an outer step


def authors(options: argparse.Namespace) -> Table:
    """The ladder from the released code to the fast preset, each rung timed."""
    check(options, "hume")
    config = figures.load_config(options.config, options.fields)
    k = config.n_classes
    write_arrays(config, options.out / "arrays")
    flags = {"num_iters": options.iterations}
    released = float(np.median(theirs("hume", flags, k, options)["seconds"]))
    single = [*PAPER, "--config.search.subsets_per_step=1"]
    found: list[tuple[str, int, str, float, str]] = []
    whole = f"{SUBSETS} x {INNER_STEPS}"
    found.append(("authors' code", 1, whole, released, ""))
    for tasks in (1, options.paper_tasks):
        each, share = _timed(single, tasks, options.paper_steps, k, options)
        found.append(("paper preset", tasks, f"{whole} (of one subset)", SUBSETS * each, share))
    found.append(("paper preset, 1 subset", tasks, f"1 x {INNER_STEPS}", each, share))
    for tasks in (options.paper_tasks, options.fast_tasks):
        each, share = _timed(FAST, tasks, config.search.steps, k, options)
        found.append(("fast preset", tasks, "1, by the rule", each, share))
    head = ["search", "tasks", "subsets x inner steps", "s, task and outer step"]
    head += ["times faster than above", "than the authors' code", "of plain products"]
    rows = []
    for i, (name, tasks, what, seconds, share) in enumerate(found):
        above = f"{found[i - 1][3] / seconds:.3g}" if i else "-"
        rows.append(
            [name, str(tasks), what, f"{seconds:.4g}", above, f"{released / seconds:.4g}", share]
        )
    return head, rows


def _timed(
    fields: Sequence[str], tasks: int, steps: int, classes: int, options: argparse.Namespace
) -> tuple[float, str]:
    """Seconds of a task and outer step, and the share of the products' rate."""
    found = ours(fields, tasks, steps, classes, options, products=True)
    seconds = np.asarray(found["seconds"])
    share = found["step_flops"] / seconds / np.asarray(found["product_flops"])
    return float(np.mean(seconds)) / tasks, f"{np.median(share):.2f}"


# ---- quality against time


def judge(labels: np.ndarray, phi2: np.ndarray, classes: int, folds: int = 5) -> float:
    """Cross-validated log loss of hard labels by scikit-learn's logistic regression, nats."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import KFold

    chances = np.full((len(labels), classes), 1e-12)
    for train, test in KFold(folds, shuffle=True, random_state=0).split(phi2):
        present = np.unique(labels[train])
        if len(present) == 1:
            chances[test, present[0]] = 1
            continue
        model = LogisticRegression(C=0.1, max_iter=2000).fit(phi2[train], labels[train])
        chances[np.ix_(test, present)] = model.predict_proba(phi2[test])
    chances /= chances.sum(axis=1, keepdims=True)
    return float(log_loss(labels, chances, labels=np.arange(classes)))


def quality(options: argparse.Namespace) -> Table:
    """Labels of a reduced problem by one outside judge, and what they took."""
    check(options, "hume")
    config = figures.load_config(options.config, options.fields)
    k = config.n_classes
    rows = write_arrays(config, options.out / "arrays", options.rows)
    steps, subsets = REDUCED["num_iters"], REDUCED["num_subsets"]
    runs = [
        theirs("hume", {**REDUCED, "subset_size": rows, "seed": seed}, k, options)
        for seed in range(options.seeds)
    ]
    seconds = float(np.mean([np.sum(run["seconds"]) for run in runs]))
    found = [("authors' code", seconds, 0.0, [run["labels"] for run in runs])]
    reduced = [*PAPER, f"--config.search.subset_size={rows}", f"--config.search.steps={steps}"]
    reduced += [f"--config.search.subsets_per_step={subsets}"]
    reduced += [f"--config.inner.steps={REDUCED['adaptation_steps']}"]
    moved = [*reduced, "--config.encoder.coordinates=matrix"]
    fast = config.search.steps
    for name, fields, tasks, length in (
        ("paper preset", reduced, options.seeds, steps),
        ("paper preset, the matrix moved", moved, options.seeds, steps),
        ("fast preset", FAST, options.seeds, fast),
        (f"fast preset, vote of {options.tasks}", FAST, options.tasks, fast),
    ):
        run = ours(fields, tasks, length, k, options)
        vote = "vote" in name
        took = run["start_seconds"] + float(np.sum(run["seconds"]))
        labels = [run["vote"]] if vote else run["labels"]
        found.append((name, took if vote else took / tasks, run["compile_seconds"], labels))
    return _judged(found, options.out / "arrays", k)


def _judged(
    found: Sequence[tuple[str, float, float, list]], arrays: pathlib.Path, classes: int
) -> Table:
    from hume_jax.evaluation import metrics

    phi2, true = np.load(arrays / "phi2_train.npy"), np.load(arrays / "labels_train.npy")
    head = ["search", "s a labelling", "compile, s", "log loss", "entropy", "ACC"]
    rows = []
    for name, seconds, compiled, labelled in found:
        each = []
        for labels in map(np.asarray, labelled):
            shares = np.bincount(labels, minlength=classes) / len(labels)
            entropy = float(-np.sum(shares * np.log(np.where(shares > 0, shares, 1))))
            each.append(
                [
                    judge(labels, phi2, classes),
                    entropy,
                    metrics.clustering_accuracy(labels, true),
                ]
            )
        mean, spread = np.mean(each, axis=0), np.std(each, axis=0, ddof=1 if len(each) > 1 else 0)
        cells = [f"{m:.4f} ± {s:.4f}" for m, s in zip(mean, spread, strict=True)]
        rows.append([name, f"{seconds:.3g}", f"{compiled:.1f}" if compiled else "-", *cells])
    return head, rows


# ---- time to an accuracy


def turtle(options: argparse.Namespace) -> Table:
    """Seconds until the test ACC is near that of TURTLE's last step."""
    check(options, "turtle")
    config = figures.load_config(options.config, options.fields)
    k = config.n_classes
    write_arrays(config, options.out / "arrays")
    run = theirs("turtle", {"T": options.iterations, "seed": options.seed}, k, options)
    target = run["accuracies"][-1][1] - NEAR
    curves = {f"TURTLE, authors' code, {options.iterations} steps": (run["accuracies"], 0.0)}
    fields = ["--config.search.spaces=both", *FAST, f"--config.seed={options.seed}"]
    for tasks in options.tasks:
        mine = ours(fields, tasks, config.search.steps, k, options, block=2, accuracies=True)
        name = f"HUME, {tasks} tasks" if tasks > 1 else "HUME, 1 task"
        curves[name] = (mine["accuracies"], mine["compile_seconds"])
    draw(options.out / "turtle.png", {name: curve for name, (curve, _) in curves.items()}, target)
    head = ["search", "last ACC", f"s to {target:.4f}", "with compilation", "s in all"]
    rows = []
    for name, (curve, compiled) in curves.items():
        at = next((seconds for seconds, acc in curve if acc >= target), float("nan"))
        last, acc = curve[-1]
        rows.append([name, f"{acc:.4f}", f"{at:.1f}", f"{at + compiled:.1f}", f"{last:.1f}"])
    return head, rows


def draw(path: pathlib.Path, curves: dict[str, Sequence[Sequence[float]]], target: float) -> None:
    """ACC against seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    panel = figure.subplots()
    colours = ("#8a8a8a", "#2f6690", "#d1611c", "#3a7d44")
    for (name, curve), colour in zip(curves.items(), colours, strict=False):
        seconds, accuracies = zip(*curve, strict=True)
        panel.plot(seconds, accuracies, color=colour, label=name)
    panel.axhline(target, color="black", linewidth=0.8, linestyle=":")
    panel.set(xscale="log", xlabel="seconds, without compilation", ylabel="test ACC")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="lower right")
    figures.write_png(path, figure)
