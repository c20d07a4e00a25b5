"""Two runs side by side."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hume_jax.editing import table as label_files
from hume_jax.evaluation import metrics
from hume_jax.progress import count, duration
from hume_jax.report.page import charts, distrust, folder, html, scores
from hume_jax.report.page.charts import Chart
from hume_jax.report.page.folder import Run
from hume_jax.report.page.tables import Column, Table, table

# Fields that follow from others, or say where files lie.
_HIDDEN = ("presets.",)


class Side(NamedTuple):
    """One of the two."""

    letter: str  # A or B
    run: Run
    labels: dict[str, np.ndarray]  # of each split, (n,), -1 for none
    data: dict[str, list[str]]  # data.json
    path: Path


class Pair(NamedTuple):
    """Two runs, and the rows that both label."""

    a: Side
    b: Side
    # (n, 2) labels of the rows of all splits that are the same in both; None where none are.
    both: np.ndarray | None
    splits: list[str]  # these splits
    why: str  # how it is known that rows are the same, or why they are not


def open_pair(first: str, second: str) -> Pair:
    """Opens two finished runs.

    Args:
      first: folder of run A.
      second: folder of run B.

    Raises:
      UserError: one of them is no finished run.
    """
    a, b = (_side(letter, place) for letter, place in (("A", first), ("B", second)))
    same, why = _same_rows(a, b)
    if not same:
        return Pair(a, b, None, [], why)
    if a.run.n_classes != b.run.n_classes:
        why += (
            " The numbers of classes differ, so that not all rows can be alike: NMI and where the "
            "classes of A are in B say more."
        )
    columns = [np.concatenate([side.labels[split] for split in same]) for side in (a, b)]
    both = np.stack(columns, axis=1)
    return Pair(a, b, both[(both >= 0).all(axis=1)], same, why)


def page(pair: Pair) -> str:
    """Draws the page of two runs."""
    a, b = pair.a, pair.b
    data: dict[str, charts.Columns] = {}
    drawn = [_sizes(pair, data), _curves(pair, data), _overlap(pair, data)]
    figures = [chart for chart in drawn if chart is not None]
    return html.render(
        "compare.html.j2",
        figures,
        data,
        pair=pair,
        about=about,
        title=f"{a.run.name} and {b.run.name}" if a.run.name != b.run.name else a.run.place,
        tiles=_tiles(pair),
        charts={figure.name: figure for figure in figures},
        score_table=_scores(pair),
        match_table=_matches(pair),
        difference=_difference(pair),
    )


def _side(letter: str, place: str) -> Side:
    opened = folder.open_run(place)
    file = opened.path / "data.json"
    data = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    tables = label_files.read(opened.path / label_files.LABELS)
    labels = {split: own.labels for split, own in tables.items()}
    return Side(letter, opened.run, labels, data, opened.path)


def _same_rows(a: Side, b: Side) -> tuple[list[str], str]:
    """The splits whose rows are taken for the same, and why."""
    splits = [s for s in a.labels if len(a.labels[s]) == len(b.labels.get(s, ()))]
    if not splits:
        return [], "The runs have different numbers of rows, so their labels cannot be compared."
    known = [split for split in splits if _known_same(a, b, split)]
    if known:
        which = " and ".join(known)
        return known, f"The {which} rows are the same: both runs read one of the same files."
    which = " and ".join(splits)
    return splits, (
        f"Both runs have as many {which} rows, but no file in common: their rows are taken to be "
        "the same samples in the same order, which nothing here proves."
    )


def _known_same(a: Side, b: Side, split: str) -> bool:
    """Whether an array or the labels of the split are those of the other run."""
    digests = [
        {d for field, own in side.data.items() if field.startswith(f"data.{split}.") for d in own}
        for side in (a, b)
    ]
    return bool(digests[0] & digests[1])


def _tiles(pair: Pair) -> list[html.Tile]:
    if pair.both is None:
        return []
    x, y = pair.both.T
    found = metrics.score(x, y)
    meaning = {
        "acc": "Rows that both runs give the same class, after the best matching of classes. "
        "Higher means that they found the same.",
        "ari": "Adjusted Rand index: pairs of rows that both put together or both apart, 0 for "
        "chance and 1 for the same grouping.",
        "nmi": "Normalised mutual information: how much one grouping tells of the other, 0 for "
        "nothing and 1 for all.",
    }
    names = {"acc": "of rows alike", "ari": "ARI", "nmi": "NMI"}
    forms = {"acc": ".1%", "ari": ".3f", "nmi": ".3f"}
    return [html.Tile(format(found[key], forms[key]), names[key], meaning[key]) for key in names]


def _scores(pair: Pair) -> Table:
    """All that is measured of both, a line a figure."""

    def column(run: Run) -> dict[str, float | None]:
        tasks, ensemble = run.results["tasks"], run.results["ensemble"]
        found: dict[str, float | None] = {
            "Classes asked for": run.n_classes,
            "Classes in use": int(np.count_nonzero(distrust.class_sizes(run))),
            "Rows searched": int(distrust.class_sizes(run).sum()),
            "Tasks": len(tasks),
            "Objective of the vote (lower is better)": ensemble.get("objective"),
            "CV accuracy of the vote (higher is better)": ensemble.get("cv_accuracy"),
            "Agreement of the tasks (higher is better)": distrust.task_agreement(run),
            "Smallest class": int(distrust.class_sizes(run).min()),
            "Largest class": int(distrust.class_sizes(run).max()),
            "Warnings": sum(f.level == "warning" for f in distrust.findings(run)),
            "Seconds": run.results["seconds"]["total"],
        }
        for split in ("train", "test", "all"):
            for key in ("acc", "ari", "nmi"):
                if split in ensemble:
                    found[f"{key.upper()} on {split} (higher is better)"] = ensemble[split][key]
        return found

    a, b = column(pair.a.run), column(pair.b.run)
    rows = [[name, _short(a.get(name)), _short(b.get(name))] for name in {**a, **b}]
    headings = [Column("Figure"), Column("A", "s"), Column("B", "s")]
    return table("scores-table", "Figures of both runs.", headings, rows)


def _short(value: float | None) -> str | None:
    if value is None or isinstance(value, int):
        return None if value is None else f"{value:,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4f}"


def _matches(pair: Pair) -> Table | None:
    """Each class of A with the class of B matched to it."""
    if pair.both is None:
        return None
    x, y = pair.both.T
    # A's classes take the part of the true ones.
    confusion = metrics.confusion_matrix(y, x)
    counts, own, other = confusion.matrix, confusion.classes, confusion.predicted
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    numbers = _numbers(confusion)
    mostly = counts.argmax(axis=1)
    body = []
    for i, c in enumerate(own):
        there = other[i] >= 0
        union = rows[i] + columns[i] - counts[i, i]
        body.append(
            [
                int(c),
                int(rows[i]),
                int(other[i]) if there else None,
                int(columns[i]) if there else None,
                float(counts[i, i] / union) if there and union else None,
                numbers[mostly[i]],
                float(counts[i, mostly[i]] / max(rows[i], 1)),
            ]
        )
    headings = [
        Column("Class of A", "d"),
        Column("Rows in A", ",d"),
        Column("Matched in B", "d"),
        Column("Rows in B", ",d"),
        Column("Overlap", ".3f", "rows in both, of those in either; higher is more alike"),
        Column("Mostly in B's", "d"),
        Column("Share there", ".1%", "rows of the class of A that are in that class of B"),
    ]
    caption = (
        "Classes of A with the classes of B matched to them, one to one. Overlap: rows in both, of "
        "those in either; 1 is the same class. Mostly: where most rows of a class of A are in B."
    )
    return table("match-table", caption, headings, body)


def _difference(pair: Pair) -> Table | None:
    """The fields of the configs that differ."""
    from hume_jax.config import flatten

    a, b = (flatten(side.run.config) for side in (pair.a, pair.b))
    rows = [
        [name, _field(a, name), _field(b, name)]
        for name in sorted(a.keys() | b.keys())
        if _field(a, name) != _field(b, name) and not name.startswith(_HIDDEN)
    ]
    if not rows:
        return None
    headings = [Column("Field"), Column("A"), Column("B")]
    return table("config-table", "Fields of the configs that differ.", headings, rows)


def _field(flat: dict[str, Any], name: str) -> str:
    return json.dumps(flat[name]) if name in flat else "absent"


# ---- charts


def _sizes(pair: Pair, data: dict[str, charts.Columns]) -> Chart:
    columns: charts.Columns = {"run": [], "rank": [], "class": [], "share": []}
    for side in (pair.a, pair.b):
        sizes = distrust.class_sizes(side.run)
        order = np.argsort(-sizes, kind="stable")
        columns["run"] += [side.letter] * len(order)
        columns["rank"] += list(range(1, len(order) + 1))
        columns["class"] += order.tolist()
        columns["share"] += charts.rounded(sizes[order] / max(sizes.sum(), 1), 5)
    data["sizes"] = columns
    return Chart(
        "sizes",
        "Share of the searched rows that each class holds, the largest first. Flat lines are "
        "classes of equal size.",
        "Lines of the classes' shares in run A and run B, by rank.",
        charts.two_lines("sizes", ("rank", "rank of the class"), ("share", "share of rows"), ".1%"),
        "sizes",
    )


def _curves(pair: Pair, data: dict[str, charts.Columns]) -> Chart | None:
    columns: charts.Columns = {"run": [], "step": [], "value": []}
    for side in (pair.a, pair.b):
        by_step: dict[int, list[float]] = {}
        for row in side.run.metrics:
            by_step.setdefault(row["step"], []).extend(v for v in row["objective"] if v is not None)
        for step in sorted(by_step):
            if by_step[step]:
                columns["run"].append(side.letter)
                columns["step"].append(step)
                columns["value"].append(round(float(np.median(by_step[step])), 5))
    if not columns["step"]:
        return None
    data["curves"] = columns
    return Chart(
        "curves",
        "Objective of the median task while it was searched. Lower is better, but only runs with "
        "the same number of classes, spaces and entropy weight compare.",
        f"Lines of the objective in both runs over {max(columns['step'])} steps.",
        charts.two_lines(
            "curves", ("step", "step of the search"), ("value", "objective, median"), ".4f"
        ),
        "curves",
    )


def _overlap(pair: Pair, data: dict[str, charts.Columns]) -> Chart | None:
    if pair.both is None or max(pair.a.run.n_classes, pair.b.run.n_classes) > scores.MATRIX_CLASSES:
        return None
    x, y = pair.both.T
    confusion = metrics.confusion_matrix(y, x)
    counts = confusion.matrix
    own = [str(c) for c in confusion.classes]
    other = [
        str(n) if n is not None else f"none for {own[i]}" for i, n in enumerate(_numbers(confusion))
    ]
    # Columns that only pad the matrix are left out.
    shown = [name for name, c in zip(other, confusion.predicted, strict=True) if c >= 0]
    rows, columns = np.nonzero(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    data["overlap"] = {
        "row": [own[i] for i in rows],
        "column": [other[j] for j in columns],
        "rows": counts[rows, columns].tolist(),
        "share": charts.rounded(shares[rows, columns]),
    }
    few = max(counts.shape) <= charts.WRITTEN_CELLS
    return Chart(
        "overlap",
        "Where the rows of each class of A are in B. A row with one strong cell is a class that B "
        "has whole, a column with several is a class of B that A divides.",
        f"Matrix of {len(own)} classes of A by {len(other)} of B. The matched classes are in the "
        "table below.",
        charts.heatmap(
            "overlap",
            "class of A",
            "class of B",
            "share",
            {"row": _order(counts, own), "column": shown},
            [
                ("row", "class of A", None),
                ("column", "class of B", None),
                ("rows", "rows", ",d"),
                ("share", "of the class of A", ".1%"),
            ],
            named=max(counts.shape) <= charts.NAMED_CELLS,
            written="rows" if few else None,
        ),
        "overlap",
        "svg" if few else "canvas",
    )


def _numbers(confusion: metrics.Confusion) -> list[int | None]:
    """The class of B that each column is of, None of a column that only pads the matrix."""
    return [int(c) if c >= 0 else None for c in confusion.predicted]


def _order(counts: np.ndarray, names: list[str]) -> list[str]:
    """Names of the rows: along the diagonal, or those of a column together where A has more."""
    if counts.shape[0] <= counts.shape[1] - np.count_nonzero(counts.sum(axis=0) == 0):
        return names
    return [names[i] for i in np.argsort(counts.argmax(axis=1), kind="stable")]


def about(run: Run) -> list[tuple[str, str]]:
    """What a run was, in a few lines."""
    return [
        ("Folder", run.place),
        ("Classes", str(run.n_classes)),
        ("Tasks", count(len(run.results["tasks"]), "task")),
        ("phi1", html.paths(run.config["data"]["train"]["phi1"])),
        ("phi2", html.paths(run.config["data"]["train"]["phi2"])),
        ("Time", f"{duration(run.results['seconds']['total'])} on {run.results['device']}"),
    ]
