"""What the page needs of a run's rows and tasks, before they are gone: report.npz."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hume_jax.core import aggregate
from hume_jax.report.page import mapping

# Points of the map. With more rows a sample of them is drawn, class by class.
MAP_ROWS = 20_000
# Rows of a class and split that the sample holds at least, if there are as many.
_LEAST_OF_CLASS = 5
# Rows kept for each class, of the most agreed and of the least agreed ones.
PICKS = 12
# Pairs of near-duplicates that are kept; all are counted.
_PAIRS = 200


class Part(NamedTuple):
    """A split of a run, its labels and how its rows are read."""

    rows: np.ndarray  # (n,) int64 numbers in the files
    files: int  # rows of the files, with those that were left out
    tasks: np.ndarray  # (S, n) int32, each task in its own class numbers
    vote: aggregate.Vote  # (n,) each
    true: np.ndarray | None  # (n,) int64, for people alone
    # (m,) positions, ascending -> (m, d) float32 as the task encoders read them
    read: Callable[[np.ndarray], np.ndarray]


def gather(
    parts: Mapping[str, Part], searched: Sequence[str], n_classes: int, agreement: np.ndarray
) -> dict[str, np.ndarray]:
    """Collects what the page shows, small whatever the number of rows.

    Args:
      parts: `train` and, if it is there, `test`.
      searched: which of them were.
      n_classes: K.
      agreement: (S, S) of the tasks, see `aggregate.agreement_matrix`.

    Returns:
      Named arrays for report.npz; splits are numbered in the order of ``splits``:
        splits: (P,) names.
        rows, files: (P,) rows of each, and of its files, with those that were left out.
        counts, agreement, unsure: (P, K) rows of each class, their mean agreement, and how many
          have less than half of the votes.
        matrix: (S, S), as given.
        task_class: (S, K) share of the searched rows of a class that a task puts there too.
        other, other_share: (K,) class that the tasks mostly confuse each with, and the share of
          all votes of its rows that goes there; -1 and 0 for none.
        map_split, map_row, map_label, map_second, map_agreement, map_true: (m,) of the sampled
          rows; second is the class next in the tasks' favour, -1 for none.
        map_x, map_y: (m,) float32; map_share: (2,) share of the variance along both axes.
        pair_a, pair_b, pair_similarity: (p,) near-duplicates among the sampled rows, numbered in
          the sample; pair_count, pair_apart: how many there are, and how many of different class.
        pick_split, pick_row, pick_second, pick_agreement, pick_true: (K, 2, PICKS) most and least
          agreed rows of each class, row -1 for none.
      The true labels are absent where there are none.
    """
    labels = np.concatenate([parts[name].vote.labels for name in searched])
    tasks = np.concatenate([parts[name].tasks for name in searched], axis=1)
    orders, task_class, confusion = _aligned(tasks, labels, n_classes)
    names = list(parts)
    split, position = _numbered([len(part.rows) for part in parts.values()])
    every = _Rows(list(parts.values()), split, position, orders, n_classes)
    label, sure = every.values("labels"), every.values("agreement")
    sample = _stratified(split * n_classes + label, MAP_ROWS)
    picked = _picks(label, sure, every.values("margin"), n_classes)
    points = mapping.draw(every.read, sample)
    a, b, similarity = mapping.near_duplicates(every.read, sample, points)
    apart = label[sample[a]] != label[sample[b]]
    first = np.lexsort((-similarity, ~apart))[:_PAIRS]
    other, other_share = _others(confusion)
    return {
        "splits": np.array(names),
        "rows": np.array([len(part.rows) for part in parts.values()]),
        "files": np.array([part.files for part in parts.values()]),
        **_by_class(split, label, sure, len(names), n_classes),
        "matrix": agreement,
        "task_class": task_class.astype(np.float32),
        "other": other,
        "other_share": other_share,
        **every.table("map", sample),
        "map_x": points.x[:, 0],
        "map_y": points.x[:, 1],
        "map_share": points.share[:2],
        "pair_a": a[first],
        "pair_b": b[first],
        "pair_similarity": similarity[first],
        "pair_count": np.array(len(a)),
        "pair_apart": np.array(np.count_nonzero(apart)),
        **every.table("pick", picked),
    }


class _Rows:
    """All rows of all splits, stacked."""

    def __init__(
        self,
        parts: Sequence[Part],
        split: np.ndarray,
        position: np.ndarray,
        orders: np.ndarray,
        n_classes: int,
    ) -> None:
        self._parts, self._split, self._position = parts, split, position
        self._orders, self._k = orders, n_classes

    def values(self, field: str) -> np.ndarray:
        """(n,) of a field of the votes."""
        return np.concatenate([getattr(part.vote, field) for part in self._parts])

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """(m, d) float32 rows by ascending number."""
        of, at = self._split[numbers], self._position[numbers]
        return np.concatenate([p.read(at[of == i]) for i, p in enumerate(self._parts)])

    def table(self, prefix: str, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """What is shown of rows; number -1 stands for none."""
        flat = numbers.reshape(-1)
        there = flat >= 0
        empty = np.full(flat.shape, -1)
        kept = {name: empty.copy() for name in ("split", "row", "label", "second", "true")}
        sure = np.zeros(flat.shape, np.float32)
        kept["split"][there] = self._split[flat[there]]
        for i, part in enumerate(self._parts):
            here = there & (kept["split"] == i)
            at = self._position[flat[here]]
            kept["row"][here] = part.rows[at]
            kept["label"][here] = part.vote.labels[at]
            kept["second"][here] = self._second(part, at)
            sure[here] = part.vote.agreement[at]
            if part.true is not None:
                kept["true"][here] = part.true[at]
        if all(part.true is None for part in self._parts):
            del kept["true"]
        found = {f"{prefix}_{name}": value.reshape(numbers.shape) for name, value in kept.items()}
        return {**found, f"{prefix}_agreement": sure.reshape(numbers.shape)}

    def _second(self, part: Part, at: np.ndarray) -> np.ndarray:
        """The class, other than its own, that most tasks give a row; -1 where all agree."""
        voted = aggregate.relabel(part.tasks[:, at], self._orders)
        found = np.empty(len(at), np.int64)
        for start in range(0, len(at), 4096):
            block = slice(start, start + 4096)
            rows = np.arange(len(at[block]))
            tally = np.zeros((len(rows), self._k), np.int32)
            for task in voted[:, block]:
                tally[rows, task] += 1
            tally[rows, part.vote.labels[at[block]]] = 0
            best = tally.argmax(axis=1)
            found[block] = np.where(tally[rows, best] > 0, best, -1)
        return found


def _numbered(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Split and position in it of every row of stacked splits."""
    split = np.repeat(np.arange(len(lengths)), lengths)
    return split, np.concatenate([np.arange(length) for length in lengths])


def _aligned(
    tasks: np.ndarray, labels: np.ndarray, n_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matches every task to the vote.

    Returns:
      (S, K) class of a task -> class of the vote; (S, K) share of each class's rows that a task
      puts there too; (K, K) share of all votes of class i's rows that go to class j.
    """
    orders = np.stack([aggregate.match(task, labels, n_classes) for task in tasks])
    rows = np.maximum(np.bincount(labels, minlength=n_classes), 1)
    shares = np.empty(orders.shape)
    total = np.zeros((n_classes, n_classes))
    for i, (task, order) in enumerate(zip(tasks, orders, strict=True)):
        counts = aggregate.contingency(labels, order[task], n_classes)
        shares[i] = np.diag(counts) / rows
        total += counts
    return orders, shares, total / (rows[:, None] * len(tasks))


def _others(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    apart = confusion - np.diag(np.diag(confusion))
    other = apart.argmax(axis=1)
    share = apart[np.arange(len(apart)), other]
    return np.where(share > 0, other, -1), share


def _by_class(
    split: np.ndarray, label: np.ndarray, sure: np.ndarray, n_splits: int, n_classes: int
) -> dict[str, np.ndarray]:
    """Rows, mean agreement and unsure rows of each class in each split, (P, K) each."""
    cell = split * n_classes + label
    shape, size = (n_splits, n_classes), n_splits * n_classes
    counts = np.bincount(cell, minlength=size)
    total = np.bincount(cell, weights=sure, minlength=size)
    unsure = np.bincount(cell[sure < 0.5], minlength=size)
    return {
        "counts": counts.reshape(shape),
        "agreement": (total / np.maximum(counts, 1)).reshape(shape),
        "unsure": unsure.reshape(shape),
    }


def _stratified(stratum: np.ndarray, most: int) -> np.ndarray:
    """Draws rows, from each stratum its share but a few at least: ascending row numbers."""
    n = len(stratum)
    if n <= most:
        return np.arange(n)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(n)
    counts = np.bincount(stratum)
    # Of every stratum the floor of its share; few are raised to the least, which all others pay.
    floor = min(_LEAST_OF_CLASS, most // int(np.count_nonzero(counts)))
    least = np.minimum(counts, floor)
    room = most - least.sum()
    wanted = least + ((counts - least) * room) // max(1, (counts - least).sum())
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    rank = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < wanted[stratum[order]]])


def _picks(label: np.ndarray, sure: np.ndarray, margin: np.ndarray, n_classes: int) -> np.ndarray:
    """(K, 2, PICKS) row numbers of the most and the least agreed rows of each class, -1 for none.

    Ties, of which there are many where few tasks vote, are broken at random, so that the rows shown
    are not the first of the files. No row is in both.
    """
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(label)), -margin, -sure, label))
    counts = np.bincount(label, minlength=n_classes)
    ends = np.cumsum(counts)
    picked = np.full((n_classes, 2, PICKS), -1)
    for c in range(n_classes):
        own = order[ends[c] - counts[c] : ends[c]]
        top = own[: min(PICKS, (len(own) + 1) // 2)]
        low = own[::-1][: min(PICKS, len(own) // 2)]
        picked[c, 0, : len(top)], picked[c, 1, : len(low)] = top, low
    return picked
