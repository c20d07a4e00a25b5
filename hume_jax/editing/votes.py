"""Votes for classes that were merged or split by hand."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hume_jax import labelling
from hume_jax.core import aggregate
from hume_jax.editing.edits import Edits
from hume_jax.representations.arrays.kept import Array, some

# Shares of one block of rows: 4 million of 8 bytes.
_BLOCK_SHARES = 1 << 22


def apply(
    model: labelling.Model,
    arrays: Sequence[Array],
    edits: Edits,
    parts: Mapping[int, labelling.Model],
    done: Callable[[int], None] = lambda rows: None,
) -> aggregate.Vote:
    """Labels rows by the vote of a model's task encoders, and by edits of its classes.

    The shares of the votes of merged classes add up, and label, agreement and margin are those of
    the shares then. A row that is put in a split class is labelled by the model of its parts: its
    agreement is that of the class times that inside it, a part's share of all votes; its margin the
    lesser of the class's and of the part's share less the next part's.

    Args:
      model: of a finished run.
      arrays: as stored, one (n, d_j) array for each file, in the order of `Model.statistics`.
      edits: of its classes.
      parts: the model of each class that is split.
      done: called with the number of rows of each block.
    """
    tasks = labelling.encode(model.theta, arrays, model.statistics, model.kind, done)
    vote = merged_vote(model, tasks, edits)
    for c, numbers in edits.parts.items():
        rows = np.flatnonzero(vote.labels == c)
        if len(rows):
            inner = labelling.predict(parts[c], [some(array, rows) for array in arrays])
            _divide(vote, rows, inner, numbers)
    return vote


def _divide(
    vote: aggregate.Vote, rows: np.ndarray, inner: aggregate.Vote, numbers: Sequence[int]
) -> None:
    """Puts the parts of a class in its place, for the rows that are in it."""
    whole = vote.agreement[rows]
    vote.labels[rows] = np.array(numbers, np.int32)[inner.labels]
    vote.margin[rows] = np.minimum(vote.margin[rows], whole * inner.margin)
    vote.agreement[rows] = whole * inner.agreement


def merged_vote(model: labelling.Model, tasks: np.ndarray, edits: Edits) -> aggregate.Vote:
    """The vote of a model's task encoders in which the shares of merged classes add up.

    Args:
      model: of a finished run.
      tasks: (M, n) integers, labels that its task encoders gave.
      edits: of its classes.

    Returns:
      The vote; ties go to the lowest class.
    """
    if not edits.merge:
        return labelling.vote(model, tasks)
    n, k = tasks.shape[1], model.theta.shape[2]
    vote = aggregate.Vote(np.empty(n, np.int32), *np.empty((2, n), np.float32))
    block = max(1, _BLOCK_SHARES // k)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        share = labelling.shares(model, tasks[:, rows], soft=model.tables is not None)
        for first, *others in edits.merge:
            share[:, first] += share[:, others].sum(axis=1)
            share[:, others] = -math.inf
        everyone = np.arange(len(share))
        vote.labels[rows] = winner = share.argmax(axis=1)
        vote.agreement[rows] = top = share[everyone, winner]
        share[everyone, winner] = -math.inf
        vote.margin[rows] = top - share.max(axis=1)
    return vote
