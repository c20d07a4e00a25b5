"""Which rows of a vote are sure enough to be taken for labelled, without a look at labels.

On the host, as `aggregate`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Thresholds by default: the loosest agreement by which the vote of one half of the tasks puts 99 %
# of the rows that the other half is sure of in the same class, in all runs that were looked at by
# `experiments/reliable.py`. An agreement of 0.8 leaves a margin of 0.6 or more; the one here counts
# where less agreement is asked for.
AGREEMENT, MARGIN = 0.8, 0.5


class Reliable(NamedTuple):
    """The rows that are taken."""

    rows: np.ndarray  # (m,) int64, class by class, the surest of each class first
    there: dict[int, int]  # sure rows of each class that has any row, taken or not
    quota: int | None  # how many of a class were to be taken; None: all

    @property
    def short(self) -> dict[int, int]:
        """Sure rows of each class that has less than the quota, or none at all."""
        least = 1 if self.quota is None else self.quota
        return {c: n for c, n in self.there.items() if n < least}


def reliable(
    labels: np.ndarray,
    agreement: np.ndarray,
    margin: np.ndarray,
    *,
    least_agreement: float = AGREEMENT,
    least_margin: float = MARGIN,
    per_class: int | None = None,
    balanced: bool = False,
) -> Reliable:
    """Picks the rows whose class is sure, the surest first: those to train with as if labelled.

    Args:
      labels: (n,) integers, the class of each row; -1 for none, such rows are never taken.
      agreement: (n,) floating from 0 to 1, share of the votes for that class.
      margin: (n,) floating from 0 to 1, by how much it is ahead of the next.
      least_agreement: that a row must have.
      least_margin: that a row must have.
      per_class: take no more of a class than this, at least 1; None: as many as there are.
      balanced: take the same number of each class: as many as the class that has the fewest sure
        rows has of them, and no more than `per_class`. Classes without one are left out.

    Returns:
      The rows, ranked in each class by margin, then agreement, then number.

    Raises:
      ValueError: arrays of different lengths, or a number out of range.
    """
    labels, agreement, margin = (np.asarray(values) for values in (labels, agreement, margin))
    if not labels.shape == agreement.shape == margin.shape or labels.ndim != 1:
        raise ValueError("labels, agreement and margin must be of one length")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class is {per_class}, it must be at least 1")
    for name, value in (("agreement", least_agreement), ("margin", least_margin)):
        if not 0 <= value <= 1:
            raise ValueError(f"the least {name} is {value}, it must be from 0 to 1")
    sure = (labels >= 0) & (agreement >= least_agreement) & (margin >= least_margin)
    rows = np.flatnonzero(sure)
    # The last key sorts first; rows that are equal in all stay in their order.
    rows = rows[np.lexsort((-agreement[rows], -margin[rows], labels[rows]))]
    counts = dict(zip(*_counted(labels[rows]), strict=True))
    there = {c: counts.get(c, 0) for c in _counted(labels[labels >= 0])[0]}
    quota = per_class
    if balanced and len(counts):
        quota = min([*counts.values(), *([] if per_class is None else [per_class])])
    if quota is not None:
        rows = rows[_rank(labels[rows]) < quota]
    return Reliable(rows, there, per_class if not balanced else quota)


def told(found: Reliable) -> str:
    """Which classes have fewer sure rows than were to be taken, in a line."""
    asked = "one" if found.quota is None else found.quota
    listed = ", ".join(f"class {c} ({n})" for c, n in found.short.items())
    noun, verb = ("class", "has") if len(found.short) == 1 else ("classes", "have")
    return f"{len(found.short)} {noun} {verb} fewer sure rows than {asked}: {listed}"


def _counted(labels: np.ndarray) -> tuple[Sequence[int], Sequence[int]]:
    """The classes that occur, ascending, and how often."""
    classes, counts = np.unique(labels, return_counts=True)
    return classes.tolist(), counts.tolist()


def _rank(labels: np.ndarray) -> np.ndarray:
    """The place of each row among those of its class, from 0, of labels in ascending order."""
    starts = np.searchsorted(labels, labels)
    rank: np.ndarray = np.arange(len(labels)) - starts
    return rank
