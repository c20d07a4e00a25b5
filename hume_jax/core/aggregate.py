"""From many tasks to one labelling: matching, agreement, majority vote.

A task is a labelling of the same ``n`` rows into ``K`` classes whose numbers mean nothing: two
tasks that differ by a permutation of the classes are the same. Everything here is label-free and
runs once at the end of a search, on the host: numpy, and the Hungarian algorithm from scipy, which
jax depends on anyway.

The results do not depend on how a task numbers its classes. Where several assignments are equally
good, the choice is made on classes renumbered by first appearance (``by_appearance``), which is
the same for every numbering of one task.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

# Below this many classes the plain assignment takes less time than thinning it out.
_THIN_FROM = 128
# Counters of one block of the vote: 4 million of 8 bytes.
_BLOCK_COUNTERS = 1 << 22


class Vote(NamedTuple):
    """A majority vote."""

    labels: np.ndarray  # (n,) int32, the class with the most votes, ties to the lowest class
    agreement: np.ndarray  # (n,) float32, share of the votes that the winner got, 0 to 1
    margin: np.ndarray  # (n,) float32, share of the winner minus share of the runner-up


class Ensemble(NamedTuple):
    """Tasks brought to common class numbers, and their vote."""

    members: np.ndarray  # (M,) int64, the tasks that vote
    reference: int  # the member that agrees most with the others; it starts the alignment
    permutations: np.ndarray  # (M, K) int64, class of a member -> class of the ensemble
    vote: Vote  # over the members
    member_agreement: np.ndarray  # (M,) float64, share of rows where a member equals the vote
    rounds: int  # alignments to the vote until nothing changed


def contingency(a: np.ndarray, b: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts how often each pair of classes meets.

    Args:
      a: (n,) integers in [0, K).
      b: (n,) integers in [0, K).
      n_classes: K.

    Returns:
      (K, K) int64; entry (i, j) is the number of rows with class i in ``a`` and j in ``b``.
    """
    pairs = np.asarray(a, np.int64) * n_classes + b
    return np.bincount(pairs, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def match(source: np.ndarray, target: np.ndarray, n_classes: int) -> np.ndarray:
    """Finds the classes of ``target`` that the classes of ``source`` stand for (Hungarian).

    Args:
      source: (n,) integers in [0, K).
      target: (n,) integers in [0, K).
      n_classes: K.

    Returns:
      (K,) int64 permutation; ``permutation[source]`` equals ``target`` on as many rows as any
      permutation can.
    """
    to_source = by_appearance(source, n_classes)
    to_target = by_appearance(target, n_classes)
    matched = _match_counts(contingency(to_source[source], to_target[target], n_classes))
    return np.argsort(to_target)[matched[to_source]]


def by_appearance(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Renumbers classes by the first row that holds them; unused ones follow in their order.

    Args:
      labels: (n,) integers in [0, K).
      n_classes: K.

    Returns:
      (K,) int64 permutation, old class -> new class.
    """
    labels = np.asarray(labels)
    first = np.full(n_classes, labels.size, np.int64)
    # Of repeated indices numpy keeps the last assignment: written backwards, the first row stays.
    first[labels[::-1]] = np.arange(labels.size - 1, -1, -1)
    permutation = np.empty(n_classes, np.int64)
    permutation[np.argsort(first, kind="stable")] = np.arange(n_classes)
    return permutation


def agreement_matrix(tasks: np.ndarray, n_classes: int) -> np.ndarray:
    """Measures how far each pair of tasks is the same labelling.

    Args:
      tasks: (S, n) integers in [0, K).
      n_classes: K.

    Returns:
      (S, S) float64, symmetric with ones on the diagonal: the share of rows on which two tasks are
      equal after the best matching of their classes.
    """
    tasks = _checked(tasks, n_classes)
    n_tasks, n = tasks.shape
    agreement = np.eye(n_tasks)
    everyone = np.arange(n_classes)
    for i in range(n_tasks):
        offset = tasks[i] * n_classes
        for j in range(i):
            counts = np.bincount(offset + tasks[j], minlength=n_classes * n_classes)
            counts = counts.reshape(n_classes, n_classes)
            matched = counts[everyone, _match_counts(counts)].sum()
            agreement[i, j] = agreement[j, i] = matched / n
    return agreement


def mean_agreement(agreement: np.ndarray) -> np.ndarray:
    """Averages a task's agreement with the others, a score that needs no labels.

    Args:
      agreement: (S, S) as ``agreement_matrix`` returns it.

    Returns:
      (S,) float64; 1 for a task that is alone.
    """
    n_tasks = len(agreement)
    if n_tasks == 1:
        return np.ones(1)
    return (agreement.sum(axis=1) - np.diag(agreement)) / (n_tasks - 1)


def align(tasks: np.ndarray, n_classes: int, reference: int) -> np.ndarray:
    """Matches the classes of every task to those of one of them.

    Args:
      tasks: (S, n) integers in [0, K).
      n_classes: K.
      reference: the task whose class numbers are kept.

    Returns:
      (S, K) int64, class of a task -> class of the reference.
    """
    tasks = _checked(tasks, n_classes)
    target = tasks[reference]
    permutations = np.stack([match(task, target, n_classes) for task in tasks])
    # Exact for used classes already; this also fixes the numbers of classes without a row.
    permutations[reference] = np.arange(n_classes)
    return permutations


def relabel(tasks: np.ndarray, permutations: np.ndarray) -> np.ndarray:
    """Renumbers the classes of each task: (S, n) labels, (S, K) permutations -> (S, n)."""
    return np.take_along_axis(permutations, np.asarray(tasks, np.int64), axis=1)


def vote(aligned: np.ndarray, n_classes: int, weights: np.ndarray | None = None) -> Vote:
    """Takes the majority of aligned tasks for every row.

    Args:
      aligned: (S, n) integers in [0, K), with common class numbers.
      n_classes: K, at least 2.
      weights: (S,) the votes of each task, not negative; one each by default.

    Returns:
      The vote; ties go to the lowest class.

    Raises:
      ValueError: on labels outside [0, K) or on weights of a wrong shape, sign or sum.
    """
    aligned = _checked(aligned, n_classes)
    n_tasks, n = aligned.shape
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        if weights.shape != (n_tasks,) or weights.min() < 0 or not 0 < weights.sum() < np.inf:
            raise ValueError(
                f"weights must be {n_tasks} finite numbers, none negative and not all zero"
            )
    total = n_tasks if weights is None else weights.sum()
    labels = np.empty(n, np.int32)
    agreement = np.empty(n, np.float32)
    margin = np.empty(n, np.float32)
    block = max(1, _BLOCK_COUNTERS // n_classes)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        tally = _tally(aligned[:, rows], n_classes, weights)
        everyone = np.arange(len(tally))
        winner = tally.argmax(axis=1)
        top = tally[everyone, winner]
        tally[everyone, winner] = -1
        labels[rows] = winner
        agreement[rows] = top / total
        margin[rows] = (top - tally.max(axis=1)) / total
    return Vote(labels, agreement, margin)


def shares(aligned: np.ndarray, n_classes: int) -> np.ndarray:
    """The share of the tasks that have a row in each class.

    Args:
      aligned: (S, n) integers in [0, K), with common class numbers.
      n_classes: K.

    Returns:
      (n, K) float64, sums of 1.
    """
    return _tally(_checked(aligned, n_classes), n_classes, None) / len(aligned)


def ensemble(
    tasks: np.ndarray,
    n_classes: int,
    members: Sequence[int] | np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    agreement: np.ndarray | None = None,
    rounds: int = 10,
) -> Ensemble:
    """Aligns tasks and lets them vote.

    The members are aligned to the one that agrees most with the others, and then to their own vote
    until that changes nothing. Each such round raises the rows on which members equal the vote, or
    ends the search. Classes of the result are numbered by their first row in the reference, so the
    whole result is the same whatever numbers the tasks use for their classes.

    Args:
      tasks: (S, n) integers in [0, K).
      n_classes: K.
      members: (M,) the tasks that vote, all by default.
      weights: (M,) the votes of each member; one each by default.
      agreement: (S, S) ``agreement_matrix`` of all tasks if it is known already.
      rounds: at most this many alignments to the vote.

    Returns:
      The ensemble.

    Raises:
      ValueError: on labels outside [0, K), no members, or bad weights.
    """
    tasks = _checked(tasks, n_classes)
    chosen = np.arange(len(tasks)) if members is None else np.asarray(members, np.int64)
    if chosen.ndim != 1 or chosen.size == 0:
        raise ValueError("an ensemble needs at least one member")
    voters = tasks[chosen]
    if agreement is None:
        agreement = agreement_matrix(voters, n_classes)
    else:
        agreement = agreement[np.ix_(chosen, chosen)]
    reference = int(mean_agreement(agreement).argmax())
    names = by_appearance(voters[reference], n_classes)
    permutations = names[align(voters, n_classes, reference)]
    result = vote(relabel(voters, permutations), n_classes, weights)
    score = _equal_rows(voters, permutations, result.labels, weights)
    done = 0
    while done < rounds:
        done += 1
        trial = np.stack([match(voter, result.labels, n_classes) for voter in voters])
        trial_vote = vote(relabel(voters, trial), n_classes, weights)
        trial_score = _equal_rows(voters, trial, trial_vote.labels, weights)
        # Equally good alignments exist; without a gain a change would only go round in circles.
        if trial_score <= score:
            break
        permutations, result, score = trial, trial_vote, trial_score
    equal = (relabel(voters, permutations) == result.labels).mean(axis=1)
    return Ensemble(chosen, int(chosen[reference]), permutations, result, equal, done)


def class_counts(tasks: np.ndarray, n_classes: int) -> np.ndarray:
    """Counts the rows of each class: (S, n) labels -> (S, K) int64."""
    tasks = _checked(tasks, n_classes)
    return np.stack([np.bincount(task, minlength=n_classes) for task in tasks])


def mean_sizes(tasks: np.ndarray, n_classes: int) -> np.ndarray:
    """Sizes of the classes as tasks find them: the largest of each task, the next, and so on.

    Args:
      tasks: (S, n) integers in [0, K).
      n_classes: K.

    Returns:
      (K,) float64, descending, sum 1: means over the tasks. None is below a twentieth of 1 / K, so
      that a prior of them leaves every class possible.
    """
    counts = np.sort(class_counts(tasks, n_classes), axis=1)[:, ::-1]
    shares = np.maximum(counts.mean(axis=0) / np.shape(tasks)[1], least_rows(1, n_classes))
    return shares / shares.sum()


def classes_used(labels: np.ndarray, n_classes: int, smallest: float = 1) -> int:
    """Counts the classes that hold at least ``smallest`` rows of one task.

    Args:
      labels: (n,) integers in [0, K).
      n_classes: K.
      smallest: rows that a class must hold to be counted.

    Returns:
      The number of such classes.
    """
    return int((class_counts(labels[None], n_classes)[0] >= smallest).sum())


def least_rows(n: int, n_classes: int, prior: Sequence[float] | np.ndarray | None = None) -> float:
    """Rows below which a class counts as lost: a twentieth of those that the smallest should hold.

    Args:
      n: rows in all.
      n_classes: K.
      prior: (K,) probabilities of the classes, uniform by default.
    """
    least = 1.0 / n_classes if prior is None else float(np.min(prior))
    return n * least / 20


def collapsed(
    tasks: np.ndarray, n_classes: int, prior: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """Marks tasks that lost a class: one below a twentieth of the rows that it should hold.

    Under the uniform prior that is n / (20 K) rows. Under another one it is a twentieth of the
    least probable class, compared with the smallest class of the task.

    Args:
      tasks: (S, n) integers in [0, K).
      n_classes: K.
      prior: (K,) probabilities of the classes, uniform by default.

    Returns:
      (S,) bool.
    """
    least = least_rows(np.shape(tasks)[1], n_classes, prior)
    return class_counts(tasks, n_classes).min(axis=1) < least


def rank(
    scores: np.ndarray,
    tiers: np.ndarray | None = None,
    *,
    highest_first: bool = False,
    ties: np.ndarray | None = None,
) -> np.ndarray:
    """Orders tasks by a label-free score, within tiers that the score cannot lift a task out of.

    Args:
      scores: (S,) such as the objective (lowest first) or the mean agreement (highest first). Not
        a number ranks last among its kind.
      tiers: (S,) bool or integers, the lowest come first: whether a task is collapsed, or for
        cross-validated accuracy, which fewer classes raise, the number of unused classes.
      highest_first: whether high scores are good.
      ties: (S,) what decides between equal scores, lowest first.

    Returns:
      (S,) int64, tasks from best to worst; equal ones in their order.
    """
    keys = np.asarray(scores, np.float64)
    keys = np.where(np.isnan(keys), np.inf, -keys if highest_first else keys)
    same = np.zeros(len(keys), int)
    return np.lexsort((same if ties is None else ties, keys, same if tiers is None else tiers))


def duplicates(agreement: np.ndarray, threshold: float = 0.999) -> list[list[int]]:
    """Groups tasks that found the same labelling.

    Args:
      agreement: (S, S) as ``agreement_matrix`` returns it.
      threshold: two tasks that agree on at least this share of the rows are the same.

    Returns:
      Groups of two or more tasks linked by such pairs, sorted.
    """
    same = np.asarray(agreement) >= threshold
    group = np.arange(len(same))
    for i, j in np.argwhere(np.triu(same, 1)):
        group[group == group[j]] = group[i]
    members = [np.flatnonzero(group == g).tolist() for g in dict.fromkeys(group.tolist())]
    return sorted(m for m in members if len(m) > 1)


def _checked(tasks: np.ndarray, n_classes: int) -> np.ndarray:
    """Returns (S, n) int64 labels after checking their shape and range."""
    tasks = np.asarray(tasks)
    if tasks.ndim != 2 or tasks.size == 0 or not np.issubdtype(tasks.dtype, np.integer):
        raise ValueError(
            f"tasks must be a non-empty (S, n) integer array, got {tasks.dtype} {tasks.shape}"
        )
    if tasks.min() < 0 or tasks.max() >= n_classes:
        raise ValueError(
            f"task labels run from {tasks.min()} to {tasks.max()}, outside [0, {n_classes})"
        )
    return tasks.astype(np.int64, copy=False)


def _match_counts(counts: np.ndarray) -> np.ndarray:
    """Assigns a column to each row of (K, K) counts so that the sum is largest: (K,) int64."""
    if len(counts) < _THIN_FROM:
        return linear_sum_assignment(counts, maximize=True)[1]
    matched = np.full(len(counts), -1, np.int64)
    rows = columns = np.arange(len(counts))
    while len(rows) >= _THIN_FROM:
        sure, partner = _certain_pairs(counts)
        matched[rows[sure]] = columns[partner[sure]]
        # A pass costs about as much as the assignment saves on a twentieth of its rows.
        few = 20 * sure.sum() < len(rows)
        rows = rows[~sure]
        left = np.ones(len(columns), bool)
        left[partner[sure]] = False
        columns = columns[left]
        counts = counts[np.ix_(~sure, left)]
        if few:
            break
    matched[rows] = columns[linear_sum_assignment(counts, maximize=True)[1]]
    return matched


def _certain_pairs(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds pairs that belong to a best assignment, whatever the rest is.

    An entry is certain if it is at least the sum of the second largest entry of its row and that of
    its column: whoever gave the pair up would win at most those two (counts are not negative).

    Returns:
      (K,) bool for the rows that have such a pair, (K,) int64 the column of each row's largest.
    """
    best = counts.argmax(axis=1)
    largest = counts[np.arange(len(counts)), best]
    top = np.flatnonzero(largest == counts.max(axis=0)[best])
    # Two rows with equal claims on one column: neither is certain.
    top = top[np.bincount(best[top], minlength=len(counts))[best[top]] == 1]
    rest = counts.copy()
    rest[top, best[top]] = -1
    second = rest.max(axis=1)[top] + rest.max(axis=0)[best[top]]
    sure = np.zeros(len(counts), bool)
    sure[top] = largest[top] >= second
    return sure, best


def _tally(aligned: np.ndarray, n_classes: int, weights: np.ndarray | None) -> np.ndarray:
    """Sums the votes: (S, n) labels, (S,) weights -> (n, K) int64 or float64."""
    n_tasks, n = aligned.shape
    cells = (aligned + np.arange(n) * n_classes).ravel()
    votes = None if weights is None else np.repeat(weights, n)
    return np.bincount(cells, weights=votes, minlength=n * n_classes).reshape(n, n_classes)


def _equal_rows(
    voters: np.ndarray, permutations: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
) -> float:
    """Counts the votes that went to the winners, over all rows."""
    equal = (relabel(voters, permutations) == labels).sum(axis=1)
    return float(equal.sum() if weights is None else equal @ weights)
