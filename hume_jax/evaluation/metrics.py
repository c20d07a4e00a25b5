"""Scores of a labelling against the true labels, which nothing that searches may see.

Predicted classes are numbered arbitrarily, so every score here is the same for any numbering of
them; clustering accuracy and what builds on it match them to the true classes first (Hungarian).
True labels may be any integers: the classes are the values that occur.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment


class Confusion(NamedTuple):
    """Counts of true against predicted classes, the predicted ones in the order of the true."""

    matrix: np.ndarray  # (C, M) int64, M >= C; column c holds the class matched to true class c
    classes: np.ndarray  # (C,) int64, true labels, ascending
    predicted: np.ndarray  # (M,) int64, predicted label of each column, -1 where there is none


def confusion_matrix(predicted: np.ndarray, true: np.ndarray) -> Confusion:
    """Counts true against predicted classes after matching the two.

    The matching maximises the rows on the diagonal. Predicted classes beyond the number of true
    ones stand in columns after the others, the largest first; if there are fewer, the columns of
    the true classes left without a partner are zero.

    Args:
      predicted: (n,) integers, not negative.
      true: (n,) integers.

    Returns:
      The counts and what rows and columns stand for.

    Raises:
      ValueError: on shapes that differ or are not (n,) with n >= 1, or on types but integers.
    """
    counts, used, classes = _counts(predicted, true)
    n_true = len(classes)
    columns = np.full(max(counts.shape), -1, np.int64)
    rows, matched = linear_sum_assignment(counts, maximize=True)
    columns[rows] = matched
    extra = np.setdiff1d(np.arange(len(used)), matched)
    extra = extra[np.argsort(-counts.sum(axis=0)[extra], kind="stable")]
    columns[n_true : n_true + len(extra)] = extra
    there = columns >= 0
    matrix = np.where(there, counts[:, columns], 0)
    return Confusion(matrix, classes, np.where(there, used[columns], -1))


def clustering_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Computes the share of rows that the best matching of the classes gets right (ACC).

    Args:
      predicted: (n,) integers.
      true: (n,) integers; their number of classes may differ from that of the predicted ones.

    Returns:
      A fraction from 0 to 1. Rows of classes without a partner count as wrong.

    Raises:
      ValueError: as ``confusion_matrix``.
    """
    counts, _, _ = _counts(predicted, true)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum())


def per_class_recall(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Computes for each true class the share of its rows that the matched class holds.

    Args:
      predicted: (n,) integers, not negative.
      true: (n,) integers with C different values.

    Returns:
      (C,) float64, true labels ascending. Their mean, weighted by the class sizes, is ACC.

    Raises:
      ValueError: as ``confusion_matrix``.
    """
    return recall_of(confusion_matrix(predicted, true).matrix)


def recall_of(matrix: np.ndarray) -> np.ndarray:
    """Computes the recall of each class, (C,) float64, from a matched (C, M) count matrix."""
    return np.diagonal(matrix) / matrix.sum(axis=1)


def adjusted_rand_index(predicted: np.ndarray, true: np.ndarray) -> float:
    """Computes the Rand index corrected for chance (Hubert & Arabie 1985).

    Args:
      predicted: (n,) integers.
      true: (n,) integers.

    Returns:
      At most 1, for equal partitions; about 0 for unrelated ones; it can be negative.

    Raises:
      ValueError: as ``confusion_matrix``.
    """
    counts, _, _ = _counts(predicted, true)
    return _adjusted_rand_index(counts)


def normalised_mutual_information(predicted: np.ndarray, true: np.ndarray) -> float:
    """Computes the mutual information over the arithmetic mean of the two entropies.

    Args:
      predicted: (n,) integers.
      true: (n,) integers.

    Returns:
      A fraction from 0 to 1; 1 if both put all rows into one class.

    Raises:
      ValueError: as ``confusion_matrix``.
    """
    counts, _, _ = _counts(predicted, true)
    return _normalised_mutual_information(counts)


def score(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Computes the three scores that are reported everywhere.

    Args:
      predicted: (n,) integers.
      true: (n,) integers.

    Returns:
      ``acc`` (clustering accuracy), ``ari`` and ``nmi``.

    Raises:
      ValueError: as ``confusion_matrix``.
    """
    counts, _, _ = _counts(predicted, true)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "acc": float(matched / counts.sum()),
        "ari": _adjusted_rand_index(counts),
        "nmi": _normalised_mutual_information(counts),
    }


def correlation(
    x: np.ndarray, y: np.ndarray, seed: int = 0, *, resamples: int = 2000
) -> dict[str, float | int | list[float]] | None:
    """Correlates two scores over tasks, with percentile bootstrap intervals.

    Tasks are drawn with replacement; draws in which one side is constant have no correlation and
    are left out.

    Args:
      x: (S,) a score, such as the objective.
      y: (S,) another, such as ACC. Tasks with a score that is not finite are left out.
      seed: of the bootstrap.
      resamples: number of draws.

    Returns:
      ``pearson`` and ``spearman`` with their 95 % intervals ``pearson_interval`` and
      ``spearman_interval`` ([low, high]) and the number of tasks ``n``; None if fewer than three
      tasks are left or one side is constant.

    Raises:
      ValueError: on shapes that differ or are not (S,).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"scores must be two (S,) arrays, got {x.shape} and {y.shape}")
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    n = len(x)
    if n < 3 or _constant(x[None])[0] or _constant(y[None])[0]:
        return None
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    result: dict[str, float | int | list[float]] = {}
    for name, change in (("pearson", _as_is), ("spearman", _ranks)):
        result[name] = float(_pearson(change(x[None]), change(y[None]))[0])
        drawn_x, drawn_y = x[draws], y[draws]
        varied = ~(_constant(drawn_x) | _constant(drawn_y))
        drawn = _pearson(change(drawn_x[varied]), change(drawn_y[varied]))
        if len(drawn):
            result[f"{name}_interval"] = np.percentile(drawn, [2.5, 97.5]).tolist()
    result["n"] = n
    return result


def _counts(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts (true classes, predicted classes) and returns both kinds' values, ascending."""
    predicted, true = np.asarray(predicted), np.asarray(true)
    if predicted.ndim != 1 or predicted.shape != true.shape or predicted.size == 0:
        raise ValueError(
            f"labels must be two (n,) arrays, n >= 1, got {predicted.shape} and {true.shape}"
        )
    for labels in (predicted, true):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers, got {labels.dtype}")
    used, columns = np.unique(predicted, return_inverse=True)
    classes, rows = np.unique(true, return_inverse=True)
    shape = len(classes), len(used)
    counts = np.bincount(rows * len(used) + columns, minlength=shape[0] * shape[1])
    return counts.reshape(shape), used, classes


def _adjusted_rand_index(counts: np.ndarray) -> float:
    pairs = _pairs(counts)
    in_true, in_predicted = _pairs(counts.sum(axis=1)), _pairs(counts.sum(axis=0))
    expected = in_true * in_predicted / max(_pairs(counts.sum()), 1.0)
    highest = (in_true + in_predicted) / 2
    # One class each, or one row a class each: the same partition.
    return 1.0 if highest == expected else float((pairs - expected) / (highest - expected))


def _pairs(sizes: np.ndarray) -> float:
    """Counts the pairs of rows within groups; in float64, which products of n^2 need."""
    sizes = np.asarray(sizes, np.float64)
    return float((sizes * (sizes - 1) / 2).sum())


def _normalised_mutual_information(counts: np.ndarray) -> float:
    n = counts.sum()
    in_true, in_predicted = counts.sum(axis=1), counts.sum(axis=0)
    mean_entropy = (_entropy(in_true) + _entropy(in_predicted)) / 2
    if mean_entropy == 0:
        return 1.0
    rows, columns = counts.nonzero()
    joint = counts[rows, columns]
    ratio = np.log(joint) + np.log(n) - np.log(in_true[rows]) - np.log(in_predicted[columns])
    return float(np.clip((joint / n * ratio).sum() / mean_entropy, 0.0, 1.0))


def _entropy(sizes: np.ndarray) -> float:
    """Computes the entropy, in nats, of groups that each hold at least one row."""
    shares = sizes / sizes.sum()
    # A single group gives -0.0; the sum of it with another entropy must compare equal to zero.
    return abs(float((shares * np.log(shares)).sum()))


def _constant(rows: np.ndarray) -> np.ndarray:
    """Marks the rows of (B, S) whose values differ by rounding at most: (B,) bool."""
    return np.ptp(rows, axis=1) <= 1e-12 * np.abs(rows).max(axis=1)


def _as_is(rows: np.ndarray) -> np.ndarray:
    return rows


def _ranks(rows: np.ndarray) -> np.ndarray:
    # Half a second to import, for the end of a run alone.
    from scipy.stats import rankdata

    return rankdata(rows, axis=1)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlates the rows of (B, S) with those of (B, S): (B,) float64."""
    # Scaled to one first, so that squares of very small or large scores stay in range.
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    x = x / np.abs(x).max(axis=1, keepdims=True)
    y = y / np.abs(y).max(axis=1, keepdims=True)
    covariance = (x * y).sum(axis=1)
    return np.clip(covariance / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)), -1.0, 1.0)
