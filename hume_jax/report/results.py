"""results.json, labels.csv and the table on the terminal, from plain data.

Scores against true labels are absent, not null, where no labels were given. In a split's scores,
the rows of ``confusion`` and the entries of ``recall`` follow the true labels in ascending order
(``classes``, stated once, with the ensemble); column c of ``confusion`` is the found class that was
matched to true class c, and further columns are found classes without a partner. ``found`` has the
number of each column in labels.csv, -1 where a true class has no partner.
"""

import csv
import io
import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hume_jax.evaluation import metrics
from hume_jax.files import atomic_write
from hume_jax.progress import count, duration

# Splits in the order in which they are shown; "all" is the union that a transductive run searches.
SPLITS = ("train", "test", "all")
# Label-free scores of a task: key, name, whether a high one is good.
LABEL_FREE = (
    ("objective", "objective", False),
    ("cv_accuracy", "cv accuracy", True),
    ("agreement", "agreement", True),
)
_SCORES = ("acc", "ari", "nmi")
BASELINES = {
    "kmeans_phi1": "k-means, phi1",
    "kmeans_phi2": "k-means, phi2",
    "probe_phi1": "supervised probe, phi1",
    "probe_phi2": "supervised probe, phi2",
}
# K^2 numbers a task and split: beyond this many classes only the ensemble's are kept.
_TASK_CONFUSION_CLASSES = 200
# The summary fits a terminal of 80 columns and 24 lines: more seeds than these are summed up.
_COLUMNS = 80
_SHOWN_SEEDS = 14


def score_splits(
    predicted: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray | None],
    detail: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores one labelling on every split that has labels.

    Args:
      predicted: found classes of each split, (n,) integers.
      true: true labels of each split, (n,) integers; None or no entry where there are none.
      detail: None for the three scores alone; "task" adds recall and confusion matrix (the matrix
        for at most 200 classes); "ensemble" adds recall, confusion matrix and the classes of its
        rows and columns.

    Returns:
      For each split with labels ``acc``, ``ari``, ``nmi`` and what ``detail`` asks for.
    """
    scores: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        found, labels = predicted.get(split), true.get(split)
        if found is None or labels is None:
            continue
        entry: dict[str, Any] = dict(metrics.score(found, labels))
        if detail is not None:
            confusion = metrics.confusion_matrix(found, labels)
            entry["recall"] = metrics.recall_of(confusion.matrix)
            if detail == "ensemble" or max(confusion.matrix.shape) <= _TASK_CONFUSION_CLASSES:
                entry["confusion"] = confusion.matrix
            if detail == "ensemble":
                entry["classes"], entry["found"] = confusion.classes, confusion.predicted
        scores[split] = entry
    return scores


def correlations(
    tasks: Sequence[Mapping[str, Any]], split: str | None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Correlates each label-free score with ACC over the tasks.

    Args:
      tasks: entries as in results.json.
      split: the one whose ACC is taken; None if there is none, which gives no entries.
      seed: of the bootstrap.

    Returns:
      ``objective_acc``, ``cv_accuracy_acc`` and ``agreement_acc`` as ``metrics.correlation`` gives
      them, each over the tasks that `comparable` gives; an entry is absent where a score is
      missing or constant.
    """
    result: dict[str, dict[str, Any]] = {}
    for key, _, _ in LABEL_FREE:
        points = [
            (tasks[i][key], tasks[i][split]["acc"])
            for i in comparable(tasks, key)
            if split is not None and split in tasks[i]
        ]
        if points:
            scores, accuracies = np.array(points, np.float64).T
            found = metrics.correlation(scores, accuracies, seed)
            if found is not None:
                result[f"{key}_acc"] = {"split": split, **found}
    return result


def assemble(
    *,
    version: str,
    config_hash: str,
    setting: str,
    n_classes: int,
    ensemble: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, Any] | None = None,
    correlation: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float],
    device: str,
    versions: Mapping[str, str],
    **added: Any,
) -> dict[str, Any]:
    """Puts results.json together; its keys are a contract, keys are only added.

    Args:
      version: of hume_jax.
      config_hash: of the resolved config.
      setting: "inductive" or "transductive".
      n_classes: K.
      ensemble: scores by split, from ``score_splits``, and what else describes the vote.
      tasks: one entry a task: ``seed``, ``objective``, ``cv_accuracy``, ``n_classes_used``, further
        label-free scores, and scores by split.
      baselines: ``kmeans_phi1``, ``kmeans_phi2``, ``probe_phi1``, ``probe_phi2``; scores by split.
      correlation: from ``correlations``.
      seconds: ``total``, ``compile``, ``search``, ``score`` of this process; ``resumed`` where an
        earlier one did part of the work.
      device: in words.
      versions: of the packages that compute.
      **added: further keys.

    Returns:
      Plain numbers, strings, lists and dicts. None and numbers that are not finite are left out.
    """
    return _plain(
        {
            "version": version,
            "config_hash": config_hash,
            "setting": setting,
            "n_classes": n_classes,
            "ensemble": ensemble,
            "tasks": tasks,
            "baselines": baselines or {},
            "correlation": correlation or {},
            "seconds": seconds,
            "device": device,
            "versions": versions,
            **added,
        }
    )


def over_seeds(
    runs: Sequence[Mapping[str, Any]], seeds: Sequence[int], config_hash: str
) -> dict[str, Any]:
    """Sums up runs that differ in their seed alone.

    Args:
      runs: as ``assemble`` returns them.
      seeds: of each.
      config_hash: of the config that has all of them.

    Returns:
      ``runs``: seed, scores of the ensemble and its agreement; ``ensemble``: for every split mean
      and standard deviation of each score over the seeds.
    """
    first = runs[0]
    splits = [split for split in SPLITS if split in first["ensemble"]]
    entries = [
        {
            "seed": seed,
            "folder": f"seed_{seed}",
            "agreement": run["ensemble"]["agreement"],
            **{s: {score: run["ensemble"][s][score] for score in _SCORES} for s in splits},
        }
        for seed, run in zip(seeds, runs, strict=True)
    ]
    spread = {
        split: {
            score: {"mean": float(np.mean(values)), "deviation": _deviation(values)}
            for score in _SCORES
            for values in [[entry[split][score] for entry in entries]]
        }
        for split in splits
    }
    kept = ("version", "setting", "n_classes", "device", "versions")
    seconds = {
        name: float(sum(run["seconds"].get(name, 0.0) for run in runs))
        for name in ("total", "compile", "search", "score")
    }
    return _plain(
        {
            **{name: first[name] for name in kept if name in first},
            "config_hash": config_hash,
            "ensemble": spread,
            "runs": entries,
            "seconds": seconds,
        }
    )


def seeds_table(results: Mapping[str, Any]) -> str:
    """Formats what ``over_seeds`` returns for the terminal: a line a seed, then their spread."""
    splits, runs = list(results["ensemble"]), results["runs"]
    lines = [f"{results['setting']}, {results['n_classes']} classes, {len(runs)} seeds", ""]
    columns = [[r[s][score] for r in runs] for s in splits for score in _SCORES]
    # Without labels, how far tasks agree is all there is.
    columns = columns or [[r["agreement"] for r in runs]]
    measures: list[tuple[str, Any]] = [("mean", np.mean), ("standard deviation", _deviation)]
    if len(runs) > _SHOWN_SEEDS:
        measures = [("lowest", np.min), ("highest", np.max), *measures]
        rows = []
    else:
        rows = [
            (f"seed {r['seed']}", list(v))
            for r, v in zip(runs, zip(*columns, strict=True), strict=True)
        ]
    rows += [(name, [float(measure(column)) for column in columns]) for name, measure in measures]
    width = max(len(name) for name, _ in rows)
    if not splits:
        cells = [f"{name:<{width}}  {_cell(values[0]):>9}" for name, values in rows]
        return "\n".join([*lines, f"{'':<{width}}  agreement", *cells])
    lines += _heads(width, splits)
    for name, values in rows:
        groups = [values[i : i + len(_SCORES)] for i in range(0, len(values), len(_SCORES))]
        lines.append(f"{name:<{width}}" + _groups(groups))
    return "\n".join(lines)


def _heads(width: int, splits: Sequence[str]) -> list[str]:
    """The two lines above a table: splits, and scores in each."""
    gap, cell = _layout(len(splits))
    over = "".join(f"{gap}{split:^{cell * len(_SCORES)}}" for split in splits)
    return [
        (" " * width + over).rstrip(),
        " " * width + _groups([[s.upper() for s in _SCORES]] * len(splits)),
    ]


def _groups(groups: Sequence[Sequence[Any]]) -> str:
    """The scores of each split, as a part of a line."""
    gap, cell = _layout(len(groups))
    texts = ([_cell(value) for value in each] for each in groups)
    # The sign of an ARI just below 0 takes the place of its first digit where there is no other.
    return "".join(
        gap + "".join(f"{t if len(t) < cell else t.replace('-0', '-'):>{cell}}" for t in each)
        for each in texts
    )


def _layout(splits: int) -> tuple[str, int]:
    """What stands between splits, and how wide a score is: three splits fit in 80 columns too."""
    return ("  ", 7) if splits < 3 else (" ", 6)


def to_json(results: Mapping[str, Any]) -> str:
    """Formats results for people too: a field a line, a row of numbers on one line."""
    return _format(_plain(results), "") + "\n"


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes results.json, whole or not at all."""
    with atomic_write(path) as file:
        file.write(to_json(results).encode())


def to_csv(
    splits: Mapping[str, Sequence[np.ndarray]],
    images: Mapping[str, Sequence[str]] | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
    classes: Mapping[int, str] | None = None,
) -> str:
    """Formats labels.csv, the same bytes for the same labels.

    Args:
      splits: for each split ``(labels, agreement, margin)``, such as a ``Vote``: (n,) integers, -1
        for none, and twice (n,) floating from 0 to 1.
      images: the name of each row's image, for splits whose images are known.
      texts: the text of each row, for splits whose texts are known.
      classes: names of classes, of those that have one.

    Returns:
      A header and one line a row, numbered from 0 in each split; a column ``name`` if any class has
      one, ``image`` if any split has names of images, ``sample`` if any has texts.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["index", "split", "label", *(["name"] if classes else []), "agreement", "margin"]
    added = {name: of for name, of in (("image", images), ("sample", texts)) if of}
    writer.writerow([*header, *added])
    for split, (labels, agreement, margin) in splits.items():
        columns = [np.asarray(column).tolist() for column in (labels, agreement, margin)]
        more = [of.get(split) or [""] * len(columns[0]) for of in added.values()]
        for i, (label, share, gap, *names) in enumerate(zip(*columns, *more, strict=True)):
            name = [classes.get(label, "")] if classes else []
            writer.writerow([i, split, label, *name, f"{share:.6f}", f"{gap:.6f}", *names])
    return text.getvalue()


def read_labels(path: str | os.PathLike[str], split: str) -> np.ndarray:
    """Reads the labels of a split back from labels.csv.

    Returns:
      ``(n,)`` int64, -1 for none; empty where the file has no row of the split.
    """
    with open(path, newline="", encoding="utf-8") as file:
        labels = [int(row["label"]) for row in csv.DictReader(file) if row["split"] == split]
    return np.array(labels, np.int64)


def compared_split(tasks: Sequence[Mapping[str, Any]]) -> str | None:
    """Names the split on which the tasks' ACC is compared with their label-free scores.

    What was searched: the union of a transductive run, else train; test where only its labels are
    known. None without labels.
    """
    there = (s for s in ("all", "train", "test") if any(s in task for task in tasks))
    return next(there, None)


def comparable(tasks: Sequence[Mapping[str, Any]], key: str) -> list[int]:
    """Picks the tasks between which a label-free score may be compared.

    All that have it; for cross-validated accuracy those with the largest number of used classes
    alone, since fewer classes are easier to predict.

    Args:
      tasks: entries as in results.json.
      key: one of ``LABEL_FREE``.
    """
    scored = [i for i, task in enumerate(tasks) if task.get(key) is not None]
    if key != "cv_accuracy":
        return scored
    most = max((tasks[i].get("n_classes_used", 0) for i in scored), default=0)
    return [i for i in scored if tasks[i].get("n_classes_used", 0) == most]


def best_task(tasks: Sequence[Mapping[str, Any]], key: str) -> int | None:
    """Picks a task by one label-free score, as a user without labels would.

    Collapsed tasks are passed over if there are others; of equal scores the lower objective counts.

    Args:
      tasks: entries as in results.json.
      key: one of ``LABEL_FREE``.

    Returns:
      The task's index; None where no task has the score.
    """
    highest = {name: high for name, _, high in LABEL_FREE}[key]
    scored = comparable(tasks, key)
    sound = [i for i in scored if not tasks[i].get("collapsed")] or scored
    if not sound:
        return None
    return min(
        sound,
        key=lambda i: (-tasks[i][key] if highest else tasks[i][key], tasks[i].get("objective", 0)),
    )


def table(results: Mapping[str, Any]) -> str:
    """Formats the results for the terminal.

    Args:
      results: as ``assemble`` returns them.

    Returns:
      Lines of text: scores by split where there are labels, the label-free scores
      otherwise; then the correlations.
    """
    splits = [split for split in SPLITS if split in results["ensemble"]]
    lines = [_headline(results), ""]
    lines += _score_lines(results, splits) if splits else _label_free_lines(results["tasks"])
    notes = _correlation_lines(results["correlation"])
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _headline(results: Mapping[str, Any]) -> str:
    tasks = results["tasks"]
    parts = [f"{results['setting']}, {results['n_classes']} classes, {count(len(tasks), 'task')}"]
    lost = sum(bool(task.get("collapsed")) for task in tasks)
    if lost:
        parts.append(f"{lost} collapsed")
    same = sum(len(group) for group in results.get("duplicates", []))
    if same:
        parts.append(f"{same} the same as another")
    if "total" in results["seconds"]:
        restarted = " since the restart" if results["seconds"].get("resumed") else ""
        parts.append(f"{duration(results['seconds']['total'])}{restarted} on {results['device']}")
    return textwrap.fill(", ".join(parts), _COLUMNS, break_on_hyphens=False)


def _score_lines(results: Mapping[str, Any], splits: Sequence[str]) -> list[str]:
    """Formats methods against scores; a dash stands where a method has none."""
    tasks = results["tasks"]
    members = results["ensemble"].get("members")
    voters = f", {len(members)}/{len(tasks)}" if members else ""
    rows: list[tuple[str, Mapping[str, Any]]] = [(f"HUME ensemble{voters}", results["ensemble"])]
    for key, name, _ in LABEL_FREE:
        index = best_task(tasks, key)
        if index is not None:
            rows.append((f"best task, {name}", tasks[index]))
    if len(tasks) > 1:
        rows.append(("tasks, mean", _over_tasks(tasks, splits, np.mean)))
        rows.append(("tasks, std. deviation", _over_tasks(tasks, splits, _deviation)))
    rows += [
        (name, results["baselines"][key])
        for key, name in BASELINES.items()
        if key in results["baselines"]
    ]
    width = max(len(name) for name, _ in rows)
    lines = _heads(width, splits)
    for name, entry in rows:
        scores = [[entry.get(split, {}).get(score) for score in _SCORES] for split in splits]
        lines.append(f"{name:<{width}}" + _groups(scores))
    return lines


def _label_free_lines(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for key, name, _ in LABEL_FREE:
        index = best_task(tasks, key)
        if index is not None:
            rows.append((f"best task, {name}", tasks[index]))
    keys = [key for key, _, _ in LABEL_FREE] + ["n_classes_used"]
    if len(tasks) > 1:
        for name, measure in (("mean", np.mean), ("std. deviation", _deviation)):
            values = {key: [t[key] for t in tasks if t.get(key) is not None] for key in keys}
            rows.append(
                (f"tasks, {name}", {key: float(measure(v)) for key, v in values.items() if v})
            )
    width = max((len(name) for name, _ in rows), default=0)
    heads = [name for _, name, _ in LABEL_FREE] + ["classes"]
    lines = [" " * width + "".join(f"{head:>13}" for head in heads)]
    for name, entry in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{_cell(entry.get(key)):>13}" for key in keys))
    return lines


def _correlation_lines(correlation: Mapping[str, Any]) -> list[str]:
    entries = [(name, correlation.get(f"{key}_acc")) for key, name, _ in LABEL_FREE]
    there = [(name, entry) for name, entry in entries if entry]
    if not there:
        return []
    first = there[0][1]
    lines = [f"correlation with ACC on {first['split']} over {count(first['n'], 'task')}:"]
    for name, entry in there:
        figures = "   ".join(describe(entry, kind) for kind in ("pearson", "spearman"))
        lines.append(f"  {name:<13}{figures}")
    return lines


def describe(entry: Mapping[str, Any], kind: str) -> str:
    """Formats one correlation with its interval: ``Pearson -0.90 [-0.96, -0.75]``."""
    text = f"{kind.capitalize()} {entry[kind]:.2f}"
    interval = entry.get(f"{kind}_interval")
    return text + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _over_tasks(
    tasks: Sequence[Mapping[str, Any]], splits: Sequence[str], measure: Any
) -> dict[str, dict[str, float]]:
    scored = {split: [task[split] for task in tasks if split in task] for split in splits}
    return {
        split: {score: float(measure([entry[score] for entry in entries])) for score in _SCORES}
        for split, entries in scored.items()
        if entries
    }


def _deviation(values: Sequence[float]) -> float:
    """Computes the standard deviation of a sample."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Turns arrays into lists; leaves out what is None or not finite, null in a list."""
    if isinstance(value, Mapping):
        plain = {str(key): _plain(entry) for key, entry in value.items()}
        return {key: entry for key, entry in plain.items() if entry is not None}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _format(value: Any, indent: str) -> str:
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        fields = (f"{deeper}{json.dumps(k)}: {_format(v, deeper)}" for k, v in value.items())
        return "{\n" + ",\n".join(fields) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(entry, (list, dict)) for entry in value):
        return "[\n" + ",\n".join(deeper + _format(v, deeper) for v in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
