"""The soft vote: each task's class stands for several classes, as far as the others say so.

A majority vote takes every class of a task for one class of the ensemble. Where there are many
classes, searches end with some of them in pieces or two in one, and such a class then votes for the
wrong one with full weight. Here the class ``j`` of task ``m`` gives class ``c`` the share

    P(c | j, m) = (rows that task m has in j and the consensus in c) / (rows that task m has in j)

of its vote, the labels of all rows follow from the votes, and the shares from the labels, in turns:
annotators whose errors are estimated from their agreement (Dawid & Skene, Applied Statistics 1979),
with the mean of the annotators in place of a product that would take them for independent. One
weight for each class makes the mean vote follow the class prior, as closely as is asked.

The labels to begin with may leave a class without rows that the tasks do use: classes of different
tasks are matched one to one, and two of theirs fell upon one. `fill_empty` gives such a class the
rows that belong together most and with their class least.

On the host, as `aggregate`, whose vote it starts from.
"""

from typing import NamedTuple

import numpy as np

from hume_jax.core.aggregate import Vote, class_counts, classes_used

# Added to each count, so that a class of a task without rows votes for all classes alike.
_SMOOTHING = 1e-2
# Weights of the classes: turns until the mean vote follows the prior.
_BALANCING = 50
# Rows that may begin a class that has none, and rows that are asked which of them they would join.
_CANDIDATES = 256
_ASKED = 1 << 14
# Shares of one block of rows: 4 million of 8 bytes; and of the rows that weights are found on.
_BLOCK_SHARES = 1 << 22
_BALANCED_SHARES = 1 << 26


class Consensus(NamedTuple):
    """A soft vote of M tasks."""

    tables: np.ndarray  # (M, K, K) float32, share of the vote of a task's class (rows) for each
    weights: np.ndarray  # (K,) float64, of the classes
    vote: Vote  # of the rows it was found on
    rounds: int  # turns until no label changed


def consensus(
    tasks: np.ndarray,
    start: np.ndarray,
    n_classes: int,
    *,
    evenness: float = 1.0,
    prior: np.ndarray | None = None,
    rounds: int = 30,
) -> Consensus:
    """Lets tasks vote softly, from the labels of another vote.

    Args:
      tasks: (M, n) integers in [0, K), in any class numbers of their own.
      start: (n,) integers in [0, K), the labels to begin with; their numbers are kept, and classes
        without rows filled where tasks use more.
      n_classes: K.
      evenness: from 0, classes hold as many rows as come, to 1, as many as the prior says; see
        `evenness_of`.
      prior: (K,) shares of the classes in any order, the largest for the class that is largest in
        each turn; uniform by default.
      rounds: at most this many turns.

    Returns:
      The consensus.
    """
    labels = fill_empty(tasks, np.asarray(start, np.int64), n_classes)
    weights = np.ones(n_classes)
    done = 0
    while True:
        done += 1
        tables = vote_tables(tasks, labels, n_classes)
        if evenness > 0:
            sizes = np.bincount(labels, minlength=n_classes)
            weights = _balance(tasks, tables, sizes > 0, evenness, _targets(sizes, prior))
        result = soft_vote(tasks, tables, weights)
        if done == rounds or np.array_equal(result.labels, labels):
            return Consensus(tables, weights, result, done)
        labels = result.labels.astype(np.int64)


def evenness_of(entropy_weight: float) -> float:
    """How even the vote makes the classes where the objective weighs their divergence with eta.

    The vote is a transport of rows to classes at the cost -log(share), with an entropy of weight
    1. If the sizes of the classes may differ from the prior's at the price of eta times their KL
    divergence, the weights that even them out are taken to the power eta / (1 + eta) in each turn
    (Chizat et al., *Scaling Algorithms for Unbalanced Optimal Transport Problems*, 2018).

    Args:
      entropy_weight: eta of Eq. 7, not negative.
    """
    return entropy_weight / (1 + entropy_weight)


def fill_empty(tasks: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Labels that use as many classes as half of the tasks do, or more.

    Two rows are as similar as the share of tasks that have them in one class. A class without rows
    gets those that are more similar to one row than to their own class in the mean: of some rows,
    drawn with a chance that grows as they differ from their class, the one for which these gain
    most.

    Args:
      tasks: (M, n) integers in [0, K).
      labels: (n,) integers in [0, K).
      n_classes: K.

    Returns:
      (n,) integers; the same labels where no class is missing.
    """
    missing = np.flatnonzero(np.bincount(labels, minlength=n_classes) == 0)
    if not len(missing):
        return labels
    used = np.median((class_counts(tasks, n_classes) > 0).sum(axis=1))
    rng = np.random.default_rng(0)
    asked = slice(None, None, -(-len(labels) // _ASKED))
    for empty in missing:
        if classes_used(labels, n_classes) >= used:
            break
        own = _similarity(tasks, labels, n_classes)
        strange = 1 - own + 1e-9
        candidates = rng.choice(
            len(labels), min(_CANDIDATES, len(labels)), replace=False, p=strange / strange.sum()
        )
        some, theirs = tasks[:, asked], own[asked]
        gains = [np.maximum(_to_row(some, tasks[:, row]) - theirs, 0).sum() for row in candidates]
        best = candidates[int(np.argmax(gains))]
        labels = np.where(_to_row(tasks, tasks[:, best]) > own, empty, labels)
    return labels


def _similarity(tasks: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Mean similarity of each row to the rows of its class, itself among them: (n,) float64."""
    total = np.zeros(len(labels))
    for task in tasks:
        total += _counts(task, labels, n_classes)[task, labels]
    sizes = np.bincount(labels, minlength=n_classes)
    return total / len(tasks) / sizes[labels]


def _to_row(tasks: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Similarity of rows (M, n) to one row (M,): (n,) float64."""
    similarity: np.ndarray = np.mean(tasks == row[:, None], axis=0)
    return similarity


def _counts(task: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """How many rows a task has in one class and the labels in another: (K, K) integers."""
    pairs = np.asarray(task, np.int64) * n_classes + labels
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def vote_tables(tasks: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Shares of the vote of each class of each task: (M, K, K) float32, sums of 1 over the last.

    Args:
      tasks: (M, n) integers in [0, K).
      labels: (n,) integers in [0, K).
      n_classes: K.
    """
    tables = np.empty((len(tasks), n_classes, n_classes), np.float32)
    for table, task in zip(tables, tasks, strict=True):
        smooth = _counts(task, labels, n_classes) + _SMOOTHING
        table[:] = smooth / smooth.sum(axis=1, keepdims=True)
    return tables


def soft_vote(tasks: np.ndarray, tables: np.ndarray, weights: np.ndarray) -> Vote:
    """The vote of tasks by their tables.

    Args:
      tasks: (M, n) integers in [0, K).
      tables: (M, K, K) as `vote_tables` returns them.
      weights: (K,) positive, of the classes.

    Returns:
      The vote; ties go to the lowest class. Agreement and margin are of the weighted shares.
    """
    n, k = tasks.shape[1], len(weights)
    labels = np.empty(n, np.int32)
    agreement, margin = np.empty(n, np.float32), np.empty(n, np.float32)
    for rows in _blocks(n, k):
        share = shares(tasks[:, rows], tables, weights)
        everyone = np.arange(len(share))
        winner = share.argmax(axis=1)
        top = share[everyone, winner]
        share[everyone, winner] = -1
        labels[rows], agreement[rows] = winner, top
        margin[rows] = top - share.max(axis=1)
    return Vote(labels, agreement, margin)


def shares(tasks: np.ndarray, tables: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted shares that a soft vote decides by: (n, K) float64, sums of 1.

    Args:
      tasks: (M, n) integers in [0, K).
      tables: (M, K, K) as `vote_tables` returns them.
      weights: (K,) positive, of the classes.
    """
    share = _mean_vote(tasks, tables) * weights
    share /= share.sum(axis=1, keepdims=True)
    return share


def _mean_vote(tasks: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Mean vote of each row before the classes are weighted, (n, K) float64."""
    total = np.zeros((tasks.shape[1], tables.shape[2]))
    for task, table in zip(tasks, tables, strict=True):
        total += table[task]
    return total / len(tables)


def _targets(sizes: np.ndarray, prior: np.ndarray | None) -> np.ndarray:
    """The share that each class should hold: (K,), the prior in the order of the sizes."""
    if prior is None:
        return np.full(len(sizes), 1 / len(sizes))
    order = np.argsort(-sizes, kind="stable")
    targets = np.empty(len(sizes))
    targets[order] = np.sort(prior)[::-1]
    return targets


def _balance(
    tasks: np.ndarray,
    tables: np.ndarray,
    used: np.ndarray,
    evenness: float,
    targets: np.ndarray,
) -> np.ndarray:
    """Weights under which the mean vote over the rows is as near to the targets as asked.

    With an evenness of 1 it is about these, between the classes that are used. A class that nobody
    uses keeps the weight 1, by which it stays empty.
    """
    n, k = tasks.shape[1], tables.shape[2]
    # Every second row or fewer, where there are very many.
    share = _mean_vote(tasks[:, :: -(-n * k // _BALANCED_SHARES)], tables).astype(np.float32)
    share = share[:, used]
    aim = (len(share) * targets[used] / targets[used].sum()).astype(np.float32)
    weights: np.ndarray = np.ones(share.shape[1], np.float32)
    for _ in range(_BALANCING):
        # In turns: each row's votes add up to one, each class gets as many as it should.
        rows = 1 / (share @ weights)
        weights = (aim / (rows @ share)) ** np.float32(evenness)
    found = np.ones(k)
    found[used] = weights / weights.mean()
    return found


def _blocks(n: int, n_classes: int) -> list[slice]:
    size = max(1, _BLOCK_SHARES // n_classes)
    return [slice(start, start + size) for start in range(0, n, size)]
