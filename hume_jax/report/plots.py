"""Plots of a run as PNG files, through matplotlib's objects: no global figure, no display.

Two colours carry the meaning (blue for all tasks, orange for what stands out), chosen to differ
for colour-blind readers and in grey. The size suits a README: about 800 pixels wide at one to one,
stored at twice that.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from hume_jax.evaluation.n_classes import Measured, Recommendation, above_chance
from hume_jax.files import atomic_write
from hume_jax.report.results import SPLITS, best_task, compared_split, describe

_BLUE, _ORANGE, _INK, _GREY, _LIGHT = "#2f6690", "#d1611c", "#24292f", "#6e7781", "#d8dee4"
_CELLS = LinearSegmentedColormap.from_list("cells", ["#ffffff", "#a9c6de", "#2f6690", "#163a59"])
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": _INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_DOTTED, _DASHED = (0, (1, 2)), (0, (4, 3))
_DOTS_PER_INCH = 200
# Ticks at these multiples of powers of ten.
_ROUND = (1, 2, 2.5, 5, 10)
# Up to this many classes a cell shows its count, and a tick its class.
_NUMBERED_CLASSES = 30


def draw(
    folder: str | os.PathLike[str],
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Draws everything that a run has data for.

    Args:
      folder: where the files go.
      results: as in results.json.
      rows: of metrics.jsonl.

    Returns:
      The files written: ``curves.png``, ``objective.png`` and, where there are labels,
      ``confusion.png``.
    """
    folder = Path(folder)
    paths = []
    tasks = results["tasks"]
    if rows:
        paths.append(folder / "curves.png")
        prior = results.get("class_prior") or [1 / results["n_classes"]] * results["n_classes"]
        draw_curves(paths[-1], rows, prior, best=best_task(tasks, "objective"))
    split = compared_split(tasks)
    if any(task.get("objective") is not None for task in tasks):
        paths.append(folder / "objective.png")
        if split is None:
            draw_label_free(paths[-1], tasks)
        else:
            correlation = results.get("correlation", {}).get("objective_acc")
            accuracy = results["ensemble"].get(split, {}).get("acc")
            draw_objective(paths[-1], tasks, split, correlation, accuracy)
    scored = [s for s in SPLITS if "confusion" in results["ensemble"].get(s, {})]
    if scored:
        split = "test" if "test" in scored else scored[0]
        entry = results["ensemble"][split]
        paths.append(folder / "confusion.png")
        draw_confusion(paths[-1], entry["confusion"], entry.get("classes"), split, entry["acc"])
    return paths


def draw_curves(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    prior: Sequence[float],
    *,
    best: int | None = None,
) -> None:
    """Draws objective and entropy of every task against the outer step.

    Args:
      path: the PNG file.
      rows: of metrics.jsonl: ``step``, ``tasks`` and, in the same order, ``objective`` and
        ``entropy`` (nats) of each; ``learning_rate`` and ``temperature`` tell where both anneal.
      prior: (K,) share that each class should hold; its entropy is the one to reach.
      best: a task to bring out, such as the one of the lowest objective on its hard labels.
    """
    with _figure(path, 8.0, 3.3) as figure:
        left, right = figure.subplots(1, 2)
        for axes, key, name in (
            (left, "objective", "objective"),
            (right, "entropy", "entropy of the mean labels (nats)"),
        ):
            curves = _by_task(rows, key)
            axes.set(xlabel="outer step", ylabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=_ROUND))
            if key == "objective" and _spans_decades(curves):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            for task, (steps, values) in curves.items():
                if task != best:
                    axes.plot(steps, values, color=_BLUE, linewidth=0.9, alpha=0.4)
            if best in curves:
                axes.plot(*curves[best], color=_ORANGE, linewidth=1.6)
            axes.margins(x=0.02)
            for step in anneal_steps(rows):
                axes.axvline(step, color=_GREY, linewidth=0.8, linestyle=_DOTTED, zorder=0)
        shares = np.asarray(prior, np.float64)
        limit = float(-np.sum(shares * np.log(shares)))
        even = bool(np.allclose(shares, shares[0]))
        right.axhline(limit, color=_GREY, linewidth=0.8, linestyle=_DASHED, zorder=0)
        right.annotate(
            f"log {len(shares)}" if even else "of the class prior",
            (0.99, limit),
            xycoords=right.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=_GREY,
            fontsize=8.5,
        )
        low, high = right.get_ylim()
        right.set_ylim(low, max(high, limit + 0.08 * (limit - low)))
        _legend(left, best is not None, bool(anneal_steps(rows)))


def draw_objective(
    path: str | os.PathLike[str],
    tasks: Sequence[Mapping[str, Any]],
    split: str,
    correlation: Mapping[str, Any] | None = None,
    ensemble_accuracy: float | None = None,
) -> None:
    """Draws the objective of each task against its ACC, which the search never saw.

    Args:
      path: the PNG file.
      tasks: entries as in results.json.
      split: the one whose ACC is shown.
      correlation: of the two as in results.json; its figures stand above the axes.
      ensemble_accuracy: ACC of the vote, shown as a line.
    """
    with _figure(path, 6.0, 4.2) as figure:
        axes = figure.subplots()
        _scatter(axes, tasks, lambda task: task.get(split, {}).get("acc"))
        axes.set(xlabel="objective (lower is better)", ylabel=f"ACC on {split}")
        if ensemble_accuracy is not None:
            axes.axhline(ensemble_accuracy, color=_ORANGE, linewidth=1.2, zorder=0)
            axes.annotate(
                f"ensemble {ensemble_accuracy:.3f}",
                (1.0, ensemble_accuracy),
                xycoords=axes.get_yaxis_transform(),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                color=_ORANGE,
                fontsize=8.5,
            )
        _frame(axes)
        if correlation:
            text = "    ".join(describe(correlation, kind) for kind in ("pearson", "spearman"))
            text = text.replace("-", "\N{MINUS SIGN}")
            axes.set_title(text, loc="left", color=_GREY, fontsize=8.5, pad=10)


def draw_label_free(path: str | os.PathLike[str], tasks: Sequence[Mapping[str, Any]]) -> None:
    """Draws the objective of each task against the two other label-free scores.

    Args:
      path: the PNG file.
      tasks: entries as in results.json.
    """
    with _figure(path, 8.0, 3.6) as figure:
        panels = figure.subplots(1, 2)
        for axes, key, name in zip(
            panels,
            ("cv_accuracy", "agreement"),
            ("cross-validated accuracy", "mean agreement with other tasks"),
            strict=True,
        ):
            _scatter(axes, tasks, lambda task, key=key: task.get(key))
            axes.set(xlabel="objective (lower is better)", ylabel=name)
            _frame(axes)


def draw_confusion(
    path: str | os.PathLike[str],
    matrix: np.ndarray | Sequence[Sequence[int]],
    classes: Sequence[Any] | None = None,
    split: str | None = None,
    accuracy: float | None = None,
) -> None:
    """Draws true classes against the found classes matched to them.

    Args:
      path: the PNG file.
      matrix: (C, M) counts, M >= C, as ``metrics.confusion_matrix`` returns them.
      classes: (C,) names of the true classes; their positions by default.
      split: named above the axes.
      accuracy: ACC, stated above the axes.
    """
    counts = np.asarray(matrix)
    n_true, n_found = counts.shape
    numbered = max(counts.shape) <= _NUMBERED_CLASSES
    names = [str(name) for name in (range(n_true) if classes is None else classes)]
    side = 4.6 if n_found <= 12 else 7.0
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with _figure(path, side * 1.15, side) as figure:
        axes = figure.subplots()
        # Errors are small beside the diagonal: a root makes them visible.
        norm = PowerNorm(1.0 if numbered else 0.5, vmin=0, vmax=1)
        image = axes.imshow(shares, cmap=_CELLS, norm=norm, interpolation="none")
        axes.set(xlabel="found class, matched", ylabel="true class")
        if numbered:
            columns = names + ["none"] * (n_found - n_true)
            turned = max(map(len, names)) > 3
            axes.set_xticks(range(n_found), columns, rotation=45 if turned else 0)
            axes.set_yticks(range(n_true), names)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right" if turned else "center")
            _number_cells(axes, counts, shares)
        else:
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(6, integer=True, steps=_ROUND))
        axes.tick_params(length=0)
        axes.spines[:].set(visible=True, color=_LIGHT)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.03)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        bar.ax.tick_params(length=0)
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        facts = [] if split is None else [f"ensemble on {split}"]
        facts += [] if accuracy is None else [f"ACC {accuracy:.3f}"]
        axes.set_title(", ".join(facts), loc="left", color=_GREY, fontsize=8.5, pad=8)


def draw_methods(
    path: str | os.PathLike[str], found: Sequence[tuple[str, Sequence[float], float]], label: str
) -> None:
    """Draws a line a method: a dot for each of its starts, and a bar for what stands for them.

    Args:
      path: of the PNG file.
      found: name, values of the starts and the value of the vote or choice, of each method.
      label: of the axis.
    """
    width = 5 + 0.08 * max(len(name) for name, _, _ in found)
    figure = Figure(figsize=(width, 0.9 + 0.3 * len(found)), layout="constrained")
    axes = figure.subplots()
    for y, (_, values, chosen) in enumerate(found):
        axes.plot(values, [y] * len(values), "o", color=_BLUE, alpha=0.5, markersize=5)
        axes.plot([chosen], [y], "|", color=_ORANGE, markersize=14, markeredgewidth=2.5)
    axes.set_yticks(range(len(found)), [name for name, _, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=_LIGHT, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    write_png(path, figure)


def write_png(path: str | os.PathLike[str], figure: Figure) -> None:
    """Writes a figure whole or not at all."""
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file, pil_kwargs={"compress_level": 9})


def draw_numbers_of_classes(
    path: str | os.PathLike[str],
    measured: Sequence[Measured],
    reference: Measured,
    found: Recommendation,
) -> None:
    """Draws each label-free criterion against the number of classes.

    A dot is a task or a pair of tasks, the line their mean; the last panel shows on which numbers
    the resamples fall.

    Args:
      path: the PNG file.
      measured: of each number, ascending.
      reference: of rows without classes.
      found: what was recommended.
    """
    numbers = [m.n_classes for m in measured]
    panels: list[tuple[str, Callable[[Measured], np.ndarray]]] = [
        ("agreement of disjoint halves (ARI)", lambda m: m.across),
        ("agreement within a half (ARI)", lambda m: m.within),
        ("CV accuracy above chance", lambda m: above_chance(m.cv_accuracy, m.n_classes)),
        ("classes in use, share of K", lambda m: m.used / m.n_classes),
        ("smallest class (1: n / K rows)", lambda m: m.smallest),
    ]
    with _figure(path, 9.5, 5.4) as figure:
        grid = figure.subplots(2, 3, sharex=True).ravel()
        for axes, (name, values) in zip(grid, panels, strict=False):
            each = [np.ravel(values(m)) for m in measured]
            x = np.repeat(numbers, [len(v) for v in each])
            axes.plot(x, np.concatenate(each), "o", color=_BLUE, alpha=0.15, markersize=3)
            axes.plot(numbers, [v.mean() for v in each], color=_BLUE, linewidth=1.4)
            axes.set_ylabel(name)
            axes.set_ylim(min(0.0, *(v.min() for v in each)) - 0.02, 1.04)
        grid[5].vlines(list(found.shares), 0, list(found.shares.values()), _BLUE, linewidth=3)
        grid[5].set_ylabel("share of the resamples")
        grid[5].set_ylim(-0.02, 1.04)
        for axes in grid:
            if found.value:
                axes.axvline(found.value, color=_ORANGE, linewidth=1.2, zorder=0)
            _number_axis(axes, numbers[-1])
            _frame(axes)
        _mark_reference(grid[0], reference)
        title = f"{found.value} classes" if found.value else "no recommendation"
        grid[0].set_title(title, loc="left")
        for axes in grid[3:]:
            axes.set_xlabel("number of classes K")


def _number_axis(axes: Axes, last: int) -> None:
    """Numbers of classes, by their logarithm where there are many."""
    if last <= 20:
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        return
    axes.set_xscale("log")
    ticks = [d * 10**e for e in range(6) for d in (1, 2, 5) if 2 <= d * 10**e <= last]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _mark_reference(axes: Axes, reference: Measured) -> None:
    height = reference.across.mean()
    axes.plot([reference.n_classes], [height], "x", color=_GREY, markersize=7)
    right = 2 * reference.n_classes > sum(axes.get_xlim())
    axes.annotate(
        "rows without classes",
        (reference.n_classes, height),
        xytext=(-7 if right else 7, -3),
        textcoords="offset points",
        ha="right" if right else "left",
        color=_GREY,
        fontsize=8,
    )


def _scatter(axes: Axes, tasks: Sequence[Mapping[str, Any]], score: Any) -> None:
    """Marks each task at its objective and score; collapsed ones hollow, with a legend."""
    points = [
        (task["objective"], score(task), bool(task.get("collapsed")))
        for task in tasks
        if task.get("objective") is not None and score(task) is not None
    ]
    for lost, face, name in ((False, _BLUE, "task"), (True, "none", "collapsed task")):
        chosen = [(x, y) for x, y, collapsed in points if collapsed is lost]
        if chosen:
            objective, scores = np.array(chosen).T
            axes.scatter(
                objective,
                scores,
                s=34,
                facecolor=face,
                edgecolor=_BLUE,
                alpha=0.8,
                linewidth=1.0,
                label=name,
            )
    if any(collapsed for *_, collapsed in points):
        axes.legend(frameon=False, fontsize=8.5, loc="best", handletextpad=0.2)
    axes.grid(color=_LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=_ROUND))


def _frame(axes: Axes) -> None:
    """Keeps axes of nearly equal values from showing rounding, and shares below 1."""
    low, high = axes.get_xlim()
    centre, half = (low + high) / 2, (high - low) / 2
    half = max(half, 0.01 * abs(centre))
    axes.set_xlim(centre - half, centre + half)
    low, high = axes.get_ylim()
    centre, half = (low + high) / 2, max((high - low) / 2, 0.01)
    axes.set_ylim(centre - half, min(centre + half, 1 + 0.05 * half))


def _number_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    size = 8.0 if max(counts.shape) <= 12 else 150 / max(counts.shape)
    for i, j in np.argwhere(counts > 0):
        axes.text(
            j,
            i,
            str(counts[i, j]),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if shares[i, j] > 0.5 else _INK,
        )


def _by_task(
    rows: Sequence[Mapping[str, Any]], key: str
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Collects one quantity by task: steps and values, (L,) each."""
    points: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        for task, value in zip(row["tasks"], row[key], strict=True):
            number = np.nan if value is None else float(value)
            points.setdefault(task, []).append((row["step"], number))
    curves = {}
    for task, pairs in points.items():
        steps, values = np.array(pairs, np.float64).T
        order = np.argsort(steps, kind="stable")
        curves[task] = steps[order], values[order]
    return curves


def _spans_decades(curves: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> bool:
    values = np.concatenate([values for _, values in curves.values()])
    values = values[np.isfinite(values)]
    return bool(values.size) and bool(values.min() > 0) and values.max() > 10 * values.min()


def anneal_steps(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Finds the last logged steps before learning rate or temperature drop, in the first batch."""
    first = [row for row in rows if row.get("batch", 0) == rows[0].get("batch", 0)]
    first.sort(key=lambda row: row["step"])
    keys = ("learning_rate", "temperature")
    return [
        before["step"]
        for before, after in zip(first, first[1:], strict=False)
        if any(key in after and after[key] < 0.999 * before.get(key, 0) for key in keys)
    ]


def _legend(axes: Axes, best: bool, anneals: bool) -> None:
    axes.plot([], [], color=_BLUE, alpha=0.6, linewidth=1.2, label="tasks")
    if best:
        axes.plot([], [], color=_ORANGE, linewidth=1.6, label="best on hard labels")
    if anneals:
        axes.plot([], [], color=_GREY, linewidth=0.8, linestyle=_DOTTED, label="rate, T lowered")
    # Above the axes, where no curve runs.
    axes.legend(
        fontsize=8.5,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncol=3,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.4,
        columnspacing=1.2,
    )


@contextmanager
def _figure(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Figure]:
    """Gives a figure of that many inches and saves it, whole or not at all."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        yield figure
        with atomic_write(path) as file:
            # No version of matplotlib inside: equal figures are equal files.
            canvas.print_png(file, metadata={"Software": None})
