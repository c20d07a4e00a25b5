"""What to distrust of a run, told from its tasks and rows alone: no label is looked at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hume_jax.progress import count
from hume_jax.report.page import mapping
from hume_jax.report.page.folder import Run

# Below these the tasks, or a class, are weak or doubtful.
WEAK, DOUBTFUL = 0.5, 0.8
# Classes and tasks that a finding names.
_NAMED = 12
# Fewer tasks than these say little by agreeing.
_FEW_TASKS = 4
_SMALL = 20  # a class of less than 1 / (20 K) of the rows counts as collapsed


class Finding(NamedTuple):
    """Something to know before the classes are used."""

    level: str  # "warning" or "note"
    title: str
    text: str
    classes: list[int]  # to look at


def findings(run: Run) -> list[Finding]:
    """All that speaks against a run, warnings first."""
    checks = (
        _stopped,
        _tasks,
        _generalisation,
        _classes,
        _sizes,
        _same_tasks,
        _rough,
        _rows,
        _prior,
    )
    found = [finding for check in checks for finding in check(run)]
    return sorted(found, key=lambda finding: finding.level != "warning")


def class_agreement(run: Run) -> np.ndarray:
    """(K,) share of the tasks' votes that agree with the class of its searched rows, their mean."""
    return np.asarray(run.arrays["task_class"]).mean(axis=0)


def class_sizes(run: Run) -> np.ndarray:
    """(K,) searched rows of each class."""
    counts = run.arrays["counts"]
    return np.asarray(counts[: len(run.searched)].sum(axis=0))


def task_agreement(run: Run) -> float | None:
    """Share of the rows that two tasks give the same class, their mean; None of a single task."""
    matrix = run.arrays["matrix"]
    pairs = len(matrix) * (len(matrix) - 1)
    return float((matrix.sum() - np.trace(matrix)) / pairs) if pairs else None


def above_chance(run: Run) -> float | None:
    """Cross-validated accuracy of the vote, from 0 (chance) to 1."""
    accuracy = run.results["ensemble"].get("cv_accuracy")
    chance = 1 / run.n_classes
    return None if accuracy is None else float((accuracy - chance) / (1 - chance))


def _stopped(run: Run) -> list[Finding]:
    stopped = run.results.get("stopped")
    if not stopped:
        return []
    return [
        Finding(
            "warning",
            f"The search was stopped after step {stopped['steps']} of {stopped['of']}",
            "The tasks are as they were then; started again, the run goes on from there.",
            [],
        )
    ]


def _tasks(run: Run) -> list[Finding]:
    tasks = run.results["tasks"]
    found = []
    if len(tasks) < _FEW_TASKS:
        found.append(
            Finding(
                "note",
                f"Only {count(len(tasks), 'task')}",
                "Agreement between so few searches says little. More of them (n_tasks) tell the "
                "stable classes from the accidental ones.",
                [],
            )
        )
    mean = task_agreement(run)
    if mean is not None and mean < DOUBTFUL:
        found.append(
            Finding(
                "warning" if mean < WEAK else "note",
                f"Searches from different starts agree on {mean:.0%} of the rows",
                "Where they find the same classes each time, agreement is near 100%. Another "
                "number of classes, more steps or stronger representations may help.",
                [],
            )
        )
    return found


def _generalisation(run: Run) -> list[Finding]:
    above = above_chance(run)
    if above is None or above >= DOUBTFUL:
        return []
    return [
        Finding(
            "warning" if above < WEAK else "note",
            f"The labels are predicted from the other rows only {above:.0%} of the way from chance "
            "to certainty",
            "Classes that people would give are easy to tell apart in a strong representation. "
            "These are less so: there may be too many of them, or the representation does not "
            "show what sets them apart.",
            [],
        )
    ]


def _classes(run: Run) -> list[Finding]:
    agreement, sizes = class_agreement(run), class_sizes(run)
    order = np.argsort(agreement, kind="stable")
    found = []
    for level, low, high, words in (
        ("warning", -1.0, WEAK, "less than half of the tasks' votes"),
        ("note", WEAK, DOUBTFUL, "less than 80% of the tasks' votes"),
    ):
        own = [int(c) for c in order if low <= agreement[c] < high and sizes[c]]
        if own:
            found.append(
                Finding(
                    level,
                    f"{count(len(own), 'class', 'classes')} with {words}",
                    "The tasks do not find these classes alike: each may be two real classes in "
                    "one, a part of one, or a mixture. Look at their least agreed samples, and at "
                    f"the class they are confused with: {_pairs(run, own)}.",
                    own[:_NAMED],
                )
            )
    return found


def _pairs(run: Run, classes: Sequence[int]) -> str:
    other, share = run.arrays["other"], run.arrays["other_share"]
    texts = [
        f"class {run.called(c)} with {run.called(int(other[c]))} ({share[c]:.0%} of its votes)"
        for c in classes[:4]
        if other[c] >= 0
    ]
    if len(classes) > len(texts):
        texts.append("and so on")
    return "; ".join(texts)


def _sizes(run: Run) -> list[Finding]:
    sizes = class_sizes(run)
    k = run.n_classes
    empty = np.flatnonzero(sizes == 0)
    small = np.flatnonzero((sizes > 0) & (sizes < sizes.sum() / (_SMALL * k)))
    found = []
    if len(empty):
        found.append(
            Finding(
                "warning",
                f"{count(len(empty), 'class', 'classes')} of {k} without a row",
                "The data support fewer classes than were asked for.",
                empty[:_NAMED].tolist(),
            )
        )
    if len(small):
        found.append(
            Finding(
                "note",
                f"{count(len(small), 'class', 'classes')} much smaller than the others",
                f"They hold less than a {_SMALL}th of an equal share of the rows.",
                small[:_NAMED].tolist(),
            )
        )
    return found


def _same_tasks(run: Run) -> list[Finding]:
    results, found = run.results, []
    collapsed, dropped = results.get("collapsed", []), results.get("dropped", {})
    total = len(results["tasks"]) + len(dropped)
    if collapsed:
        found.append(
            Finding(
                "warning" if len(collapsed) > total / 4 else "note",
                f"{len(collapsed)} of {count(total, 'task')} collapsed",
                "A class of theirs holds hardly a row, so they found fewer classes than asked for: "
                f"{_numbers(collapsed)}.",
                [],
            )
        )
    if dropped:
        steps = ", ".join(f"task {task} at step {step}" for task, step in dropped.items())
        found.append(
            Finding(
                "warning" if len(dropped) > total / 4 else "note",
                f"{len(dropped)} of {count(total, 'task')} were dropped",
                f"Their numbers were no longer finite, and they do not vote: {steps}.",
                [],
            )
        )
    if same := results.get("duplicates", []):
        groups = "; ".join(_numbers(group) for group in same[:4])
        found.append(
            Finding(
                "note",
                f"{count(len(same), 'group')} of tasks that found the very same labels",
                "They are one opinion that is counted several times, which makes agreement look "
                f"better than it is: {groups}{'; …' if len(same) > 4 else ''}.",
                [],
            )
        )
    return found


def _rough(run: Run) -> list[Finding]:
    tolerance = run.config["score"]["tolerance"]
    rough = [i for i, t in enumerate(run.results["tasks"]) if t.get("residual", 0) > tolerance]
    if not rough:
        return []
    return [
        Finding(
            "note",
            f"The scores of {count(len(rough), 'task')} are rough",
            "The fits behind them ended before they were exact (score.steps, score.tolerance): "
            f"{_numbers(rough)}.",
            [],
        )
    ]


def _rows(run: Run) -> list[Finding]:
    pairs, apart = int(run.arrays["pair_count"]), int(run.arrays["pair_apart"])
    if not pairs:
        return []
    which = "sampled rows" if is_sample(run) else "rows"
    return [
        Finding(
            "warning" if apart > pairs / 4 else "note",
            f"{count(pairs, 'pair')} of {which} are nearly the same",
            f"Cosine {mapping.SAME} or more between a row and its nearest one. Copies count twice "
            "in every figure here, and copies across train and test make test scores look better. "
            + (f"Of the pairs, {apart} lie in different classes." if apart else ""),
            [],
        )
    ]


def _prior(run: Run) -> list[Finding]:
    if run.config["class_prior"]:
        return []
    sizes = class_sizes(run)
    return [
        Finding(
            "note",
            "Classes were expected to be of equal size",
            f"The search was told so; what it found has {sizes.min():,} to {sizes.max():,} rows a "
            "class. Where real classes differ much, a large one may have been split and small ones "
            "merged.",
            [],
        )
    ]


def is_sample(run: Run) -> bool:
    """Whether the map shows some of the rows alone."""
    return len(run.arrays["map_row"]) < int(run.arrays["rows"].sum())


def _numbers(tasks: Sequence[int]) -> str:
    shown = ", ".join(map(str, tasks[:_NAMED]))
    return f"{'task' if len(tasks) == 1 else 'tasks'} {shown}{', …' if len(tasks) > _NAMED else ''}"
