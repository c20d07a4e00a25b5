"""How many classes do the rows support? What can be told of it without labels.

The number of classes is right when it makes the search reproducible. Rows are halved at random, and
each half is searched by itself. With as many classes as there are, tasks of one half label all rows
as those of the other do; with fewer, each has to merge some classes, with more to cut some, and
which ones it takes hangs on the rows that it saw. The adjusted Rand index of two such tasks is
corrected for chance, so that it compares between numbers of classes. That stability under
resampling tells the number of clusters is due to Lange et al. (*Stability-Based Validation of
Clustering Solutions*, Neural Computation 2004) and to Tibshirani & Walther (*Cluster Validation by
Prediction Strength*, 2005).

A cloud of rows without classes is also cut reproducibly where it is widest, so what is found is
held against a reference that has the covariance of the rows and no classes, as in the gap statistic
(Tibshirani et al., *Estimating the Number of Clusters*, 2001).

Nothing here sees labels, nor files or devices: numpy, on the host.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hume_jax.core import aggregate
from hume_jax.evaluation import metrics

# Agreements that differ by less are taken for equal, and then more classes are preferred: the
# classes of a coarse labelling are often found as surely as those that they are made of.
EQUAL = 0.02
# Below this agreement of the halves there is nothing to go by, whatever its course.
_LEAST = 0.5
# Share of the reference's disagreement that what was found may have, at most.
_BELOW_REFERENCE = 0.5
# Share of the resamples that must come to the same number.
_SURE = 0.5
# Share of the resamples that the plausible numbers hold.
_PLAUSIBLE = 0.95
_RESAMPLES = 1000
# What is this far below the highest peak, or less, may yet be right: it is looked at more closely.
_HIDDEN = 0.1
# The next number of a coarse grid is by this factor larger, from where every number is taken.
_FACTOR, _DENSE_TO = 1.2, 8
# Tasks agree on a class if they share at least this much of its rows (Jaccard index). Set on two
# draws, where with the right number they agreed on all classes and with most others not.
_AGREED = 0.7


class Measured(NamedTuple):
    """What searches of one number of classes found, on R pairs of disjoint halves of the rows."""

    n_classes: int
    across: np.ndarray  # (R, M, M) float64, ARI of a task of one half with one of the other
    within: np.ndarray  # (R, 2, P) float64, ARI of the P pairs of tasks of each half
    cv_accuracy: np.ndarray  # (R, 2, M) float64, of a linear model, on the half that is held out
    used: np.ndarray  # (R, 2, M) int64, classes that hold a row
    smallest: np.ndarray  # (R, 2, M) float64, rows of the smallest class over n / K


class Recommendation(NamedTuple):
    """A number of classes, or the reason why there is none."""

    value: int | None
    plausible: tuple[int, ...]  # those that hold 95 % of the resamples, ascending
    shares: dict[int, float]  # of the resamples, of each number that some come to
    confidence: float  # share of the resamples that come to the value, or to the peak without one
    peak: int  # where the agreement of the halves peaks, recommended or not
    agreement: float  # there
    reference: float | None  # the same of rows without classes; None: not measured
    reason: str  # in words, one line

    @property
    def interval(self) -> tuple[int, int]:
        """The least and the greatest plausible number."""
        return self.plausible[0], self.plausible[-1]


def across(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """ARI of each task of one search with each of another.

    Args:
      first: (M, n) integers, labels of the same rows.
      second: (M', n) integers.

    Returns:
      (M, M') float64.
    """
    return np.array([[metrics.adjusted_rand_index(a, b) for b in second] for a in first])


def within(tasks: np.ndarray) -> np.ndarray:
    """ARI of each pair of tasks of one search: (M, n) integers -> (M (M - 1) / 2,) float64."""
    pairs = zip(*np.triu_indices(len(tasks), 1), strict=True)
    return np.array([metrics.adjusted_rand_index(tasks[i], tasks[j]) for i, j in pairs])


def above_chance(accuracy: np.ndarray, n_classes: int) -> np.ndarray:
    """Accuracy scaled so that a guess has 0: (accuracy - 1 / K) / (1 - 1 / K)."""
    return (np.asarray(accuracy) - 1 / n_classes) / (1 - 1 / n_classes)


def linear_accuracy(
    train: np.ndarray, test: np.ndarray, labels: np.ndarray, held_out: np.ndarray, penalty: float
) -> np.ndarray:
    """Accuracy of a linear model, fitted by least squares, on the held-out labels of tasks.

    One factorisation serves all tasks, whatever their number of classes.

    Args:
      train: (n, d) float64 rows, centred and scaled.
      test: (m, d) float64 rows.
      labels: (M, n) integers, of the rows it is fitted on.
      held_out: (M, m) integers, of those it is judged on.
      penalty: on the mean squared weights.

    Returns:
      (M,) float64.
    """
    train, test = (np.hstack([x, np.ones((len(x), 1))]) for x in (train, test))
    gram = train.T @ train + penalty * len(train) * np.eye(train.shape[1])
    maps = np.linalg.solve(gram, train.T)
    found = []
    for fitted, other in zip(labels, held_out, strict=True):
        one_hot = (fitted[:, None] == np.arange(fitted.max() + 1)[None]).astype(np.float64)
        found.append(np.mean((test @ (maps @ one_hot)).argmax(axis=1) == other))
    return np.array(found)


def grid(first: int, last: int) -> list[int]:
    """Numbers of classes to begin with: all up to eight, then each a fifth more than the last."""
    numbers, k = [first], first
    while k < last:
        k = k + 1 if k < _DENSE_TO else round(k * _FACTOR)
        numbers.append(min(k, last))
    return numbers


def refine(curve: Mapping[int, float], first: int, last: int) -> list[int]:
    """Numbers of classes to look at next, halfway from each high peak to its neighbours.

    Args:
      curve: agreement of the halves of each number that was looked at.
      first: the least number to look at.
      last: the greatest.

    Returns:
      None of those that were looked at; nothing once all neighbours of the peaks were.
    """
    known = sorted(curve)
    wanted = set()
    for k in set(peaks(curve)) & set(contenders(curve)):
        i = known.index(k)
        below = known[i - 1] if i else first - 1
        above = known[i + 1] if i + 1 < len(known) else last + 1
        wanted |= {k - (k - below) // 2, k + (above - k) // 2} - {k}
    return sorted(wanted)


def contenders(curve: Mapping[int, float]) -> list[int]:
    """Numbers of classes that may be right once more is known of them, ascending."""
    best = max(curve.values())
    return [k for k in sorted(curve) if curve[k] >= best - _HIDDEN]


def peaks(curve: Mapping[int, float]) -> list[int]:
    """Numbers of classes on which halves agree more than on both neighbours, ascending."""
    known = sorted(curve)
    high = [-np.inf, *(curve[k] for k in known), -np.inf]
    return [k for i, k in enumerate(known, 1) if high[i] >= high[i - 1] and high[i] > high[i + 1]]


def choose(curve: Mapping[int, float]) -> int:
    """The largest number of classes at a peak that is as high as the highest, within `EQUAL`."""
    best = max(curve.values())
    return max(k for k in peaks(curve) if curve[k] >= best - EQUAL)


def curve_of(measured: Sequence[Measured]) -> dict[int, float]:
    """Mean agreement of the halves of each number of classes."""
    return {m.n_classes: float(m.across.mean()) for m in measured}


def resampled(measured: Sequence[Measured], seed: int = 0) -> np.ndarray:
    """Mean agreement of the halves over resamples of pairs of halves and of the tasks of each.

    Args:
      measured: of each number of classes.
      seed: of the resamples.

    Returns:
      (resamples, len(measured)) float64.
    """
    rng = np.random.default_rng(seed)
    found = []
    for m in measured:
        pairs, tasks, _ = m.across.shape
        pair = rng.integers(0, pairs, (_RESAMPLES, pairs, 1, 1))
        first = rng.integers(0, tasks, (_RESAMPLES, pairs, tasks, 1))
        second = rng.integers(0, tasks, (_RESAMPLES, pairs, 1, tasks))
        found.append(m.across[pair, first, second].mean(axis=(1, 2, 3)))
    return np.stack(found, axis=1)


def recommend(
    measured: Sequence[Measured],
    reference: Measured | None = None,
    *,
    limits: tuple[int, int] | None = None,
    seed: int = 0,
) -> Recommendation:
    """Recommends a number of classes, or says why none.

    Args:
      measured: of each number of classes that was looked at, in any order.
      reference: of rows without classes, at the number that `choose` names; without it, nothing is
        held against it.
      limits: the least and the greatest number that was asked for; those of `measured` by default.
      seed: of the resamples.

    Returns:
      The recommendation.
    """
    measured = sorted(measured, key=lambda m: m.n_classes)
    curve = curve_of(measured)
    known = list(curve)
    peak = choose(curve)
    draws = resampled(measured, seed)
    chosen = np.array([choose(dict(zip(known, row, strict=True))) for row in draws])
    confidence = float(np.mean(chosen == peak))
    plausible = _plausible(chosen, peak)
    against = None if reference is None else float(reference.across.mean())
    first, last = limits or (known[0], known[-1])
    reason = _objection(curve, peak, confidence, plausible, against, first, last)
    value = None if reason else peak
    if not reason:
        spread = f"{plausible[0]}" if len(plausible) == 1 else f"{plausible[0]} to {plausible[-1]}"
        reason = (
            f"{peak} classes: tasks of disjoint halves agree most on them (ARI {curve[peak]:.3f}); "
            f"{confidence:.0%} of the resamples say so, plausible: {spread}{_gaps(known, peak)}"
        )
    numbers, counts = np.unique(chosen, return_counts=True)
    shares = dict(zip(numbers.tolist(), (counts / len(chosen)).tolist(), strict=True))
    return Recommendation(value, plausible, shares, confidence, peak, curve[peak], against, reason)


def _gaps(known: Sequence[int], peak: int) -> str:
    """Says that numbers beside the peak were not looked at, if so."""
    i = known.index(peak)
    sides = known[max(0, i - 1) : i + 2]
    missing = [f"{a + 1} to {b - 1}" for a, b in pairwise(sides) if b - a > 1]
    return f"; not looked at: {' and '.join(missing)}" if missing else ""


def _plausible(chosen: np.ndarray, peak: int) -> tuple[int, ...]:
    """The most frequent numbers that hold as large a share of the resamples, and the peak."""
    numbers, counts = np.unique(chosen, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    enough = int(np.searchsorted(np.cumsum(counts[order]) / len(chosen), _PLAUSIBLE)) + 1
    return tuple(sorted({peak, *(int(k) for k in numbers[order[:enough]])}))


def _objection(
    curve: Mapping[int, float],
    peak: int,
    confidence: float,
    plausible: Sequence[int],
    reference: float | None,
    first: int,
    last: int,
) -> str:
    """What speaks against a recommendation, '' if nothing does."""
    known, high = sorted(curve), curve[peak]
    if len(known) < 3:
        return "no recommendation: it takes three numbers of classes to tell a peak"
    if high < _LEAST:
        return (
            f"no recommendation: tasks of disjoint halves agree little whatever the number of "
            f"classes (ARI at most {max(curve.values()):.3f}, at {peak} classes)"
        )
    if reference is not None and 1 - high > _BELOW_REFERENCE * (1 - reference):
        return (
            f"no recommendation: at {peak} classes, where tasks of disjoint halves agree most (ARI "
            f"{high:.3f}), they agree hardly less on rows without any classes ({reference:.3f})"
        )
    if peak == last and peak == known[-1]:
        return (
            f"no recommendation: the agreement of disjoint halves is highest at {peak}, the "
            "greatest number that was looked at: look further"
        )
    if peak == first and peak > 2:
        return (
            f"no recommendation: the agreement of disjoint halves is highest at {peak}, the least "
            "number that was looked at: look at fewer too"
        )
    if confidence < _SURE:
        return (
            "no recommendation: disjoint halves agree about as well on "
            f"{', '.join(map(str, plausible))} classes (ARI {high:.3f} at {peak})"
        )
    return ""


def class_agreement(tasks: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """How far tasks agree on each class of their vote.

    Args:
      tasks: (S, n) integers in [0, K).
      labels: (n,) integers in [0, K), the vote.
      n_classes: K.

    Returns:
      (K,) float64, over the tasks the mean Jaccard index of a class with the one matched to it; 0
      of a class without rows.
    """
    total = np.zeros(n_classes)
    for task in tasks:
        counts = aggregate.contingency(labels, task, n_classes)
        matched = aggregate.match(labels, task, n_classes)
        shared = counts[np.arange(n_classes), matched]
        either = counts.sum(axis=1) + counts.sum(axis=0)[matched] - shared
        total += shared / np.maximum(either, 1)
    return total / len(tasks)


def unsupported(
    tasks: np.ndarray, labels: np.ndarray, n_classes: int, *, prior: np.ndarray | None = None
) -> list[str]:
    """Warns where the rows do not support as many classes, by what a run knows without labels.

    That tasks agree is no proof: searches of the same rows can cut a class in the same place.

    Args:
      tasks: (S, n) integers in [0, K), of the tasks that vote.
      labels: (n,) integers in [0, K), their vote.
      n_classes: K.
      prior: (K,) shares that the classes are expected to hold, uniform by default.

    Returns:
      Warnings, a line each.
    """
    advice = "python -m hume_jax.choose_k looks for the number that the rows support"
    counts = np.bincount(labels, minlength=n_classes)
    small = counts < aggregate.least_rows(len(labels), n_classes, prior)
    warnings = []
    if np.any(small):
        warnings.append(
            f"{np.sum(small)} of {n_classes} classes hold next to no rows (the smallest "
            f"{counts.min()} of {len(labels)}): the rows support fewer classes; {advice}"
        )
    if len(tasks) > 1:
        unlike = (class_agreement(tasks, labels, n_classes) < _AGREED) & ~small
        if np.any(unlike):
            warnings.append(
                f"tasks disagree on {np.sum(unlike)} of {n_classes} classes, whose rows they share "
                f"by less than {_AGREED:.0%}: these are hard to tell, or the rows support another "
                f"number of classes; {advice}"
            )
    return warnings
