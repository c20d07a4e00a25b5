"""The page of one run: what is on it, put together from its folder."""

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hume_jax.config import flatten
from hume_jax.progress import count, duration
from hume_jax.report import results as results_lib
from hume_jax.report.page import charts, distrust, edited, scores
from hume_jax.report.page.charts import Chart
from hume_jax.report.page.folder import Run
from hume_jax.report.page.inlined import Inlined, picks
from hume_jax.report.page.tables import Column, Table, table

# What a page may take, in bytes, of up to 20,000 rows.
MOST_BYTES = 5_000_000
# Pairs of rows that are listed.
_PAIRS = 50
# Classes up to which the samples of each are open at first.
_OPEN_CLASSES = 12


class Tile(NamedTuple):
    """A figure in large type."""

    value: str
    name: str
    text: str


class Sample(NamedTuple):
    """A row of a class."""

    name: str
    row: str
    agreement: str
    second: str  # the class next in favour, '' for none
    label: str  # its true class, where that is another than the one matched to this class
    image: str


class ClassView(NamedTuple):
    """A class and the rows that are shown of it."""

    number: int
    name: str
    facts: str
    most: list[Sample]
    least: list[Sample]


def page(run: Run, samples: Inlined) -> str:
    """Draws the page of a run.

    Args:
      run: finished.
      samples: what is known of its rows.

    Returns:
      HTML that asks for nothing else.
    """
    data: dict[str, charts.Columns] = {}
    drawn = [
        _sizes(run, data),
        *_maps(run, samples, data),
        _curves(run, data),
        *_objective(run, data),
        _agreement(run, data),
        scores.confusion(run, data),
    ]
    figures = [chart for chart in drawn if chart is not None]
    return render(
        "run.html.j2",
        figures,
        data,
        run=run,
        samples=samples,
        lead=_lead(run),
        tiles=_tiles(run),
        findings=distrust.findings(run),
        pairs=_pair_table(run, samples),
        facts=_facts(run),
        config=_config(run),
        charts={figure.name: figure for figure in figures},
        class_table=_class_table(run),
        edits=edited.note(run),
        edited_table=edited.classes(run),
        classes=_class_views(run, samples),
        open_classes=run.n_classes <= _OPEN_CLASSES,
        task_table=_task_table(run),
        score_table=scores.methods(run),
        true_table=scores.true_classes(run),
        confusions=scores.confusions(run),
        correlation=scores.correlation(run),
        scored=scores.shown_split(run),
        is_sample=distrust.is_sample(run),
        n_classes=run.n_classes,
        legend=run.n_classes <= charts.LEGEND_CLASSES,
    )


def render(
    template: str, figures: Sequence[Chart], data: Mapping[str, charts.Columns], **context: Any
) -> str:
    """Fills a template, with styles, scripts, charts and their data in the page itself."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hume_jax.report.page", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [
        {"name": c.name, "spec": c.spec, "data": c.data, "renderer": c.renderer} for c in figures
    ]
    content = json.dumps(
        {"charts": drawn, "data": data}, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return environment.get_template(template).render(
        **context,
        style=_asset("style.css"),
        script=_asset("script.js"),
        library=_library(),
        # The only way out of a script element.
        content=content.replace("<", "\\u003c"),
    )


def _asset(name: str) -> str:
    assets = importlib.resources.files("hume_jax.report.page") / "assets"
    return (assets / name).read_text(encoding="utf-8")


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and vega-embed, 0.9 MB of JavaScript."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise ValueError("the charts' library cannot stand in a page as it is")
    return bundle


def _lead(run: Run) -> str:
    searched = int(distrust.class_sizes(run).sum())
    tasks = run.results["tasks"]
    members = run.results["ensemble"].get("members", tasks)
    voted = "which voted" if len(members) == len(tasks) else f"of which {len(members)} voted"
    return (
        f"{run.n_classes} classes were looked for in {searched:,} rows without labels, by "
        f"{count(len(tasks), 'search', 'searches')} from different starts (tasks), {voted}."
    )


def _tiles(run: Run) -> list[Tile]:
    results, k = run.results, run.n_classes
    tiles = []
    accuracy = results["ensemble"].get("cv_accuracy")
    if accuracy is not None:
        tiles.append(
            Tile(
                f"{accuracy:.1%}",
                "predictable",
                "Of rows held out, a linear model gives so many the class that was found for them. "
                f"Higher is better, guessing gives {1 / k:.1%}.",
            )
        )
    if (mean := distrust.task_agreement(run)) is not None:
        tiles.append(
            Tile(
                f"{mean:.1%}",
                "agreement of the tasks",
                "Two searches from different starts give so many rows the same class, on average. "
                "Higher is better: what is found each time is in the data.",
            )
        )
    rows, unsure = int(run.arrays["counts"].sum()), int(run.arrays["unsure"].sum())
    tiles.append(
        Tile(
            f"{1 - unsure / max(rows, 1):.1%}",
            "rows with a majority",
            "So many rows have more than half of the votes for their class. Higher is better.",
        )
    )
    used = int(np.count_nonzero(distrust.class_sizes(run)))
    tiles.append(Tile(f"{used} of {k}", "classes in use", "Classes that hold at least one row."))
    split = scores.shown_split(run)
    if split is not None:
        tiles.append(
            Tile(
                f"{results['ensemble'][split]['acc']:.1%}",
                f"right on {split}",
                "Rows whose class is the one of the labels given, after the best matching. The "
                "search never saw these labels.",
            )
        )
    return tiles


def _facts(run: Run) -> list[tuple[str, str]]:
    config, results = run.config, run.results
    rows = dict(zip(run.splits, run.arrays["rows"].tolist(), strict=True))
    counted = ", ".join(f"{n:,} {name}" for name, n in rows.items())
    spaces = {
        "given": "labels linear in phi1, judged in phi2",
        "both": "labels linear in phi1 and phi2 joined, judged in each",
        "first": "labels linear in phi1, judged in it",
        "second": "labels linear in phi2, judged in it",
    }[config["search"]["spaces"]]
    seconds = results["seconds"]
    again = " since it was started again" if seconds.get("resumed") else ""
    return [
        ("Rows", f"{counted}; searched: {' and '.join(run.searched)} ({results['setting']})"),
        ("phi1", paths(config["data"]["train"]["phi1"])),
        ("phi2", paths(config["data"]["train"]["phi2"])),
        ("Spaces", f"{config['search']['spaces']}: {spaces}"),
        ("Tasks", f"{len(results['tasks'])} of {config['search']['steps']} steps each"),
        ("Vote", f"{results['ensemble'].get('vote', 'hard')} vote of the tasks"),
        ("Preset and seed", f"{config['preset']}, {config['seed']}"),
        ("Time", f"{duration(seconds['total'])}{again} on {results['device']}"),
        ("Folder", run.place),
        ("Version", f"hume_jax {results['version']}, config {results['config_hash'][:8]}"),
    ]


def paths(value: str | Sequence[str]) -> str:
    """One path, or several, in a line."""
    return value if isinstance(value, str) else ", ".join(value)


def _config(run: Run) -> str:
    flat = flatten(run.config)
    return "\n".join(f"{name} = {json.dumps(flat[name])}" for name in sorted(flat))


# ---- charts


def _sizes(run: Run, data: dict[str, charts.Columns]) -> Chart:
    sizes, agreement = distrust.class_sizes(run), distrust.class_agreement(run)
    order = np.argsort(-sizes, kind="stable")
    data["sizes"] = {
        "class": [run.called(c) for c in order] if _named_axis(run) else order.tolist(),
        "order": list(range(len(order))),
        "rows": sizes[order].tolist(),
        "agreement": charts.rounded(agreement[order]),
    }
    expected = None if run.config["class_prior"] else float(sizes.sum() / run.n_classes)
    return Chart(
        "sizes",
        "Searched rows of each class. The dashed line is where all would be of equal size."
        if expected
        else "Searched rows of each class.",
        f"Bars: from {sizes.max():,} rows in the largest class to {sizes.min():,} in the smallest. "
        "The same numbers are in the table of classes below.",
        charts.sizes("sizes", expected, slanted=_named_axis(run)),
        "sizes",
    )


def _named_axis(run: Run) -> bool:
    """Whether names of classes stand on an axis."""
    return bool(run.edits.names) and run.n_classes <= charts.NAMED_CELLS


def _maps(run: Run, samples: Inlined, data: dict[str, charts.Columns]) -> list[Chart]:
    arrays = run.arrays
    split, rows = arrays["map_split"].tolist(), arrays["map_row"].tolist()
    # Both directions by one scale, so that distances keep their proportion.
    scale = max(float(np.abs([arrays["map_x"], arrays["map_y"]]).max()), 1e-12)
    columns: charts.Columns = {
        "x": charts.rounded(arrays["map_x"] / scale),
        "y": charts.rounded(arrays["map_y"] / scale),
        "class": arrays["map_label"].tolist(),
        "second": arrays["map_second"].tolist(),
        "agreement": charts.rounded(arrays["map_agreement"]),
        "row": rows,
        # Numbers that stand for names.
        "split": {"names": run.splits, "numbers": split},
    }
    hints = [("class", "class"), ("second", "next"), ("split", "split"), ("row", "row")]
    if samples.names:
        columns["sample"] = [
            samples.hover((run.splits[i], row)) for i, row in zip(split, rows, strict=True)
        ]
        hints.insert(0, ("sample", "text" if samples.kind == "texts" else "image"))
    if "map_true" in arrays:
        columns["true"] = arrays["map_true"].tolist()
        hints.append(("true", "label given"))
    data["points"] = columns
    total, shown = int(arrays["rows"].sum()), len(rows)
    which = (
        f"A sample of {shown:,} of the {total:,} rows, drawn class by class."
        if distrust.is_sample(run)
        else f"All {total:,} rows."
    )
    share = float(np.sum(arrays["map_share"]))
    caption = (
        f"{which} Rows that are alike lie near each other, as far as two directions can show: "
        f"these two hold {share:.0%} of the variance, so classes that overlap here may be well "
        "apart. Point at a sample to see which it is."
    )
    label = (
        f"Scatter plot of {shown:,} samples in the first two principal directions, coloured by "
        "{}. What it shows of each class is in the table of classes."
    )
    return [
        Chart(
            f"map-{colour}",
            caption,
            label.format(colour),
            charts.points("points", run.n_classes, colour, hints, run.called_all),
            "points",
            "canvas",
        )
        for colour in ("class", "agreement")
    ]


def _curves(run: Run, data: dict[str, charts.Columns]) -> Chart | None:
    rows = [
        (task, row["step"], value)
        for row in run.metrics
        for task, value in zip(row["tasks"], row["objective"], strict=True)
        if value is not None
    ]
    if not rows:
        return None
    tasks, steps, values = map(list, zip(*rows, strict=True))
    data["curves"] = {"task": tasks, "step": steps, "value": charts.rounded(values, 4)}
    positive = min(values) > 0
    best = _best_task(run)
    return Chart(
        "curves",
        "The objective of each task while it was searched: how badly a linear model predicts the "
        "labels of rows held out, and how unequal the classes are. Lower is better; lines that are "
        "flat at the end have settled."
        + (" The thick line is the task that is best in the end." if best is not None else ""),
        f"Lines of {count(len(set(tasks)), 'task')} over {max(steps)} steps; the lowest ends at "
        f"{min(v for _, s, v in rows if s == max(steps)):.3f}.",
        charts.curves("curves", positive and max(values) > 10 * min(values), _anneals(run), best),
        "curves",
        "svg" if len(rows) < charts.PIXELS_FROM else "canvas",
    )


def _best_task(run: Run) -> int | None:
    """The number, in metrics.jsonl, of the task with the lowest objective on its hard labels."""
    best = results_lib.best_task(run.results["tasks"], "objective")
    return None if best is None else int(run.results["tasks"][best]["seed"])


def _anneals(run: Run) -> list[float]:
    from hume_jax.report.plots import anneal_steps

    return anneal_steps(run.metrics) if run.metrics else []


def _objective(run: Run, data: dict[str, charts.Columns]) -> list[Chart]:
    tasks = run.results["tasks"]
    split = results_lib.compared_split(tasks)
    columns: charts.Columns = {
        "task": [t["seed"] for t in tasks],
        "objective": charts.rounded([t.get("objective") for t in tasks], 5),
        "collapsed": ["collapsed" if t.get("collapsed") else "sound" for t in tasks],
    }
    pairs = []
    if split is not None:
        columns["acc"] = charts.rounded([t.get(split, {}).get("acc") for t in tasks], 5)
        title, line = f"ACC on {split}", run.results["ensemble"].get(split, {}).get("acc")
        pairs.append(("acc", title, line))
    columns["agreement"] = charts.rounded([t.get("agreement") for t in tasks], 5)
    pairs.append(("agreement", "agreement with the others", None))
    data["tasks"] = columns
    captions = {
        "acc": "Each task by its objective (lower is better) and by the share of labels it gets "
        "right (higher is better). If points fall from left to right, the objective tells good "
        "tasks from bad ones without labels. The dashed line is the vote.",
        "agreement": "Each task by its objective (lower is better) and by how far the others agree "
        "with it (higher is better). Both are known without labels; tasks that are good by both "
        "lie at the upper left.",
    }
    return [
        Chart(
            f"objective-{field}",
            captions[field],
            f"Scatter plot of {count(len(tasks), 'task')}: objective against {title}. The same "
            "numbers are in the table of tasks.",
            charts.tasks("tasks", title, field, columns, line),
            "tasks",
        )
        for field, title, line in pairs
    ]


def _agreement(run: Run, data: dict[str, charts.Columns]) -> Chart | None:
    matrix = run.arrays["matrix"]
    if len(matrix) < 2:
        return None
    numbers = [task["seed"] for task in run.results["tasks"]]
    order = np.argsort(-matrix.mean(axis=1), kind="stable")
    names = [numbers[i] for i in order]
    shown = matrix[np.ix_(order, order)]
    side = len(names)
    data["agreement"] = {
        "row": [name for name in names for _ in range(side)],
        "column": names * side,
        "share": charts.rounded(shown),
    }
    apart = shown[~np.eye(side, dtype=bool)]
    # Ten shades between what is there, not between 0 and 1.
    low = float(np.floor(apart.min() * 10) / 10) if apart.min() < 1 else 0.9
    return Chart(
        "agreement",
        "Share of rows that two tasks give the same class; tasks that agree most come first. "
        "Higher is better. Groups of tasks that agree among themselves alone have found different "
        "answers.",
        f"Matrix of {side} by {side} tasks: agreement from {apart.min():.2f} to {apart.max():.2f}.",
        charts.heatmap(
            "agreement",
            "task",
            "task",
            "share",
            {"row": names, "column": names},
            [("row", "task", None), ("column", "task", None), ("share", "agreement", ".3f")],
            low=min(low, 0.9),
            named=side <= charts.NAMED_CELLS,
        ),
        "agreement",
        "svg" if side * side < charts.PIXELS_FROM else "canvas",
    )


# ---- tables and samples


def _class_table(run: Run) -> Table:
    arrays, agreement = run.arrays, distrust.class_agreement(run)
    sizes = distrust.class_sizes(run)
    matched = scores.matched(run)
    columns = [
        Column("Class", "d"),
        *([Column("Name")] if run.edits.names else []),
        *(Column(f"{name.capitalize()} rows", ",d") for name in run.splits),
        Column("Agreement", ".3f", "share of the tasks' votes for it; higher is better"),
        Column("Weakest task", ".3f", "least share of its rows that a task puts together"),
        Column("Unsure", ".1%", "rows without half of the votes; lower is better"),
        Column("Confused with", "d"),
        Column("Votes lost", ".1%", "share of the votes that go to that class"),
        *([Column("Label", "", "label matched to it")] if matched else []),
    ]
    rows = []
    for c in range(run.n_classes):
        own = int(arrays["counts"][:, c].sum())
        other = int(arrays["other"][c])
        there = bool(sizes[c])
        rows.append(
            [
                c,
                *([run.edits.name_of_found(c) or None] if run.edits.names else []),
                *arrays["counts"][:, c].tolist(),
                float(agreement[c]) if there else None,
                float(arrays["task_class"][:, c].min()) if there else None,
                float(arrays["unsure"][:, c].sum() / own) if own else None,
                run.called(other) if other >= 0 else None,
                float(arrays["other_share"][c]) if other >= 0 else None,
                *([matched.get(c)] if matched else []),
            ]
        )
    return table(
        "classes-table",
        "Classes. Agreement: how far the tasks find this class alike; higher is better.",
        columns,
        rows,
        links=True,
    )


def _pair_table(run: Run, samples: Inlined) -> Table | None:
    """The nearest pairs of rows, those of different classes first."""
    arrays, names = run.arrays, run.splits
    if not len(arrays["pair_a"]):
        return None

    def row(i: int) -> list[Any]:
        key = names[arrays["map_split"][i]], int(arrays["map_row"][i])
        text = samples.hover(key)
        return [
            f"{key[0]} {key[1]}{': ' if text else ''}{text}",
            run.called(int(arrays["map_label"][i])),
        ]

    columns = (arrays[f"pair_{name}"].tolist() for name in ("a", "b", "similarity"))
    pairs = list(zip(*columns, strict=True))[:_PAIRS]
    rows = [[*row(a), *row(b), similarity] for a, b, similarity in pairs]
    headings = [
        Column("Row"),
        Column("Class", "d"),
        Column("Is nearly"),
        Column("Its class", "d"),
        Column("Cosine", ".4f"),
    ]
    which = "" if len(rows) == int(arrays["pair_count"]) else f"the first {len(rows)}, "
    caption = f"Rows that are nearly the same: {which}those of different classes on top."
    return table("pairs-table", caption, headings, rows)


def _task_table(run: Run) -> Table:
    split = results_lib.compared_split(run.results["tasks"])
    columns = [
        Column("Task", "d"),
        Column("Objective", ".4f", "lower is better"),
        Column("Held-out loss", ".4f", "lower is better"),
        Column("CV accuracy", ".4f", "higher is better"),
        Column("Agreement", ".4f", "with the other tasks; higher is better"),
        Column("Classes", "d", "in use"),
        Column("State"),
        *([Column(f"ACC {split}", ".4f", "higher is better")] if split else []),
    ]
    keys = ("objective", "heldout_ce", "cv_accuracy", "agreement", "n_classes_used")
    rows = [
        [
            task["seed"],
            *(task.get(key) for key in keys),
            "collapsed" if task.get("collapsed") else "sound",
            *([task.get(split, {}).get("acc")] if split else []),
        ]
        for task in run.results["tasks"]
    ]
    return table("tasks-table", "Tasks, each a search from a start of its own.", columns, rows)


def _class_views(run: Run, samples: Inlined) -> list[ClassView]:
    arrays, shown = run.arrays, picks(run, samples.shown)
    flat = {
        name: arrays[f"pick_{name}"].reshape(-1)
        for name in ("split", "row", "second", "agreement", "true")
        if f"pick_{name}" in arrays
    }
    agreement, counts = distrust.class_agreement(run), arrays["counts"].sum(axis=0)
    matched = scores.matched(run)

    def sample(c: int, i: int) -> Sample:
        split, row = run.splits[flat["split"][i]], int(flat["row"][i])
        true = int(flat["true"][i]) if "true" in flat else -1
        return Sample(
            samples.names.get((split, row), ""),
            f"{split} row {row}",
            f"{flat['agreement'][i]:.2f}",
            run.called(second) if (second := int(flat["second"][i])) >= 0 else "",
            str(true) if true >= 0 and matched.get(c) != true else "",
            samples.thumbnails.get((split, row), ""),
        )

    views = []
    for c in range(run.n_classes):
        most, least = ([sample(c, i) for i in part if i >= 0] for part in shown[c])
        facts = [f"{counts[c]:,} rows", f"agreement {agreement[c]:.2f}"]
        if c in matched:
            facts.append(f"label {matched[c]}")
        name = run.edits.name_of_found(c)
        views.append(ClassView(c, name, ", ".join(facts if counts[c] else ["empty"]), most, least))
    return views
