"""Scores against labels that were given, as the page shows them; nothing where there are none."""

from typing import Any

import numpy as np

from hume_jax.progress import count
from hume_jax.report import results as results_lib
from hume_jax.report.page import charts
from hume_jax.report.page.folder import Run
from hume_jax.report.page.tables import Column, Table, table

# Classes up to which the whole matrix is shown.
MATRIX_CLASSES = 200
_CONFUSIONS = 20
_SCORES = ("acc", "ari", "nmi")


def shown_split(run: Run) -> str | None:
    """The split whose scores are shown in detail: test, whose rows no one searched, or else."""
    ensemble = run.results["ensemble"]
    return next((s for s in ("test", "all", "train") if "confusion" in ensemble.get(s, {})), None)


def matched(run: Run) -> dict[int, int]:
    """The label matched to each found class, on the searched rows if their labels are known."""
    ensemble = run.results["ensemble"]
    split = next((s for s in ("all", "train", "test") if "found" in ensemble.get(s, {})), None)
    if split is None:
        return {}
    entry = ensemble[split]
    pairs = zip(entry["found"], entry["classes"], strict=False)
    return {int(found): int(true) for found, true in pairs if found >= 0}


def methods(run: Run) -> Table | None:
    """Scores of the vote, of tasks and of the baselines, on every split with labels."""
    results = run.results
    splits = [s for s in results_lib.SPLITS if s in results["ensemble"]]
    if not splits:
        return None
    tasks = results["tasks"]
    entries: list[tuple[str, Any]] = [("Vote of the tasks", results["ensemble"])]
    for key, name, _ in results_lib.LABEL_FREE:
        best = results_lib.best_task(tasks, key)
        if best is not None:
            entries.append((f"Best task by {name}", tasks[best]))
    if len(tasks) > 1:
        mean = {
            split: {s: float(np.mean([t[split][s] for t in tasks])) for s in _SCORES}
            for split in splits
            if all(split in task for task in tasks)
        }
        entries.append(("Tasks, mean", mean))
    entries += [
        (name[:1].upper() + name[1:], results["baselines"][key])
        for key, name in results_lib.BASELINES.items()
        if key in results["baselines"]
    ]
    columns = [
        Column("Method"),
        *(Column(f"{s.upper()} {split}", ".4f") for split in splits for s in _SCORES),
    ]
    rows = [
        [name, *(entry.get(split, {}).get(s) for split in splits for s in _SCORES)]
        for name, entry in entries
    ]
    caption = (
        "ACC: share of rows right after the best matching of classes. ARI and NMI: likeness of the "
        "two groupings, 0 for chance. Higher is better, 1 is perfect. The probe has seen labels."
    )
    return table("scores-table", caption, columns, rows)


def _entry(run: Run) -> tuple[np.ndarray, list[str], list[str]] | None:
    """Counts, (C, M); names of the labels, and of the found classes matched to them."""
    split = shown_split(run)
    if split is None:
        return None
    entry = run.results["ensemble"][split]
    counts = np.array(entry["confusion"])
    true = [str(c) for c in entry["classes"]]
    found = [
        run.called(c) if c >= 0 else f"none for {true[i]}" for i, c in enumerate(entry["found"])
    ]
    return counts, true, found


def confusion(run: Run, data: dict[str, charts.Columns]) -> charts.Chart | None:
    """The matrix as a chart, unless there are too many classes to see anything in it."""
    entry = _entry(run)
    if entry is None or max(entry[0].shape) > MATRIX_CLASSES:
        return None
    counts, true, found = entry
    rows, columns = np.nonzero(counts)
    written = max(counts.shape) <= charts.WRITTEN_CELLS
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    data["confusion"] = {
        "row": [true[i] for i in rows],
        "column": [found[j] for j in columns],
        "rows": counts[rows, columns].tolist(),
        "share": charts.rounded(shares[rows, columns]),
    }
    right = np.trace(counts) / max(counts.sum(), 1)
    return charts.Chart(
        "confusion",
        f"Labels given against classes found, on {shown_split(run)}. On the diagonal are the rows "
        "that agree; what is off it was confused. Columns are the found classes in the order of "
        "the labels they match.",
        f"Confusion matrix of {len(true)} labels by {len(found)} classes: {right:.1%} of the rows "
        "on the diagonal. The largest confusions are in the table below.",
        charts.heatmap(
            "confusion",
            "label given",
            "class found",
            "share",
            {"row": true, "column": found},
            [
                ("row", "label", None),
                ("column", "class", None),
                ("rows", "rows", ",d"),
                ("share", "of the label", ".1%"),
            ],
            named=max(counts.shape) <= charts.NAMED_CELLS,
            written="rows" if written else None,
            slanted=bool(run.edits.names),
        ),
        "confusion",
        "svg" if written else "canvas",
    )


def true_classes(run: Run) -> Table | None:
    """Recall, precision and F1 of every label."""
    entry = _entry(run)
    if entry is None:
        return None
    counts, true, found = entry
    rows, columns = counts.sum(axis=1), counts.sum(axis=0)
    body = []
    for i, name in enumerate(true):
        recall = counts[i, i] / rows[i] if rows[i] else None
        precision = counts[i, i] / columns[i] if columns[i] else None
        f1 = 2 * counts[i, i] / (rows[i] + columns[i]) if rows[i] + columns[i] else None
        there = not found[i].startswith("none")
        body.append([name, found[i] if there else None, rows[i], recall, precision, f1])
    headings = [
        Column("Label"),
        Column("Class"),
        Column("Rows", ",d"),
        Column("Recall", ".3f", "rows of the label that are in the class"),
        Column("Precision", ".3f", "rows of the class that are of the label"),
        Column("F1", ".3f", "both in one"),
    ]
    caption = f"Scores of every label on {shown_split(run)}; higher is better."
    return table("labels-table", caption, headings, body)


def confusions(run: Run) -> Table | None:
    """The largest cells off the diagonal."""
    entry = _entry(run)
    if entry is None:
        return None
    counts, true, found = entry
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:_CONFUSIONS]
    cells = [divmod(int(i), off.shape[1]) for i in order if off.flat[i]]
    if not cells:
        return None
    rows = counts.sum(axis=1)
    matched_to = dict(enumerate(true))
    headings = [
        Column("Label"),
        Column("Found as class"),
        Column("Which matches label"),
        Column("Rows", ",d"),
        Column("Of the label", ".1%"),
    ]
    body = [
        [true[i], found[j], matched_to.get(j), off[i, j], off[i, j] / rows[i]] for i, j in cells
    ]
    return table("confusions-table", "The largest confusions.", headings, body)


def correlation(run: Run) -> str:
    """How far the label-free scores told good tasks from bad ones, in a sentence."""
    entries = [
        (name, run.results["correlation"][f"{key}_acc"])
        for key, name, _ in results_lib.LABEL_FREE
        if f"{key}_acc" in run.results["correlation"]
    ]
    if not entries:
        return ""
    texts = [f"{name} {entry['spearman']:.2f}" for name, entry in entries]
    first = entries[0][1]
    return (
        f"Rank correlation with ACC on {first['split']}, over {count(first['n'], 'task')}: "
        f"{', '.join(texts)}. The objective should be near −1, the others near 1."
    )
