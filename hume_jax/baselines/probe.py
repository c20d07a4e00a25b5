"""Supervised linear probe in one representation space: what a linear model gets from the labels."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from hume_jax.baselines.rows import Rows

# In units of a space whose centred rows have unit mean squared norm, as the inner fit's lambda.
# Chosen on held-out rows of the training split: 1e-4 to 1e-5 on photographs (d = 1,280, 10
# classes), 1e-5 to 1e-6 on sentences (d = 384, 150 classes).
PENALTIES = (1e-3, 1e-4, 1e-5, 1e-6)
# One for each penalty, and the last on all rows.
FITS = len(PENALTIES) + 1
_STEPS = 300
_TOLERANCE = 1e-4
_BLOCK = 4096
# Matrices of a row for each fitted row and a column for each class that a fit holds at a time:
# logits, probabilities, their gradient.
_FIT_MATRICES = 3


class Probe(NamedTuple):
    """Predictions of a probe, and how it was chosen."""

    labels: np.ndarray  # (m,) int64, predicted true labels of the test rows
    penalty: float  # the lambda chosen
    # Of the penalty chosen, on the held-out tenth of the training rows; None if nothing was chosen.
    held_out_accuracy: float | None


def probe(
    train: Rows,
    train_labels: np.ndarray,
    test: Rows,
    seed: int = 0,
    *,
    penalties: tuple[float, ...] = PENALTIES,
    max_rows: int = 100_000,
    max_bytes: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> Probe:
    """Fits multinomial logistic regression on the training labels and predicts the test rows.

    Minimises mean CE + lambda/2 |W|^2 with an unpenalised bias (scikit-learn, L-BFGS, float32).
    Rows are centred and scaled by one number, by training statistics; lambda is the one of the
    highest accuracy on a random tenth of the training rows (the larger of equal ones), and the
    final fit is on all of them.

    Args:
      train: (n, d) floating, may be memory-mapped.
      train_labels: (n,) integers, any values.
      test: (m, d) floating.
      seed: of the held-out tenth, and of the rows drawn if there are too many.
      penalties: the values of lambda to choose from.
      max_rows: the fit takes at most this many training rows, drawn at random.
      max_bytes: memory that these rows and the fits may take; there are fewer rows then, and fewer
        fits at a time. None for no bound.
      done: called after each fit; there are `FITS`, fewer where there is nothing to choose.

    Returns:
      The predictions and the choice.
    """
    fits = min(len(penalties), os.cpu_count() or 1)
    if max_bytes is not None:
        max_rows, fits = _bounded(train, train_labels, max_rows, fits, max_bytes)
    drawn = np.random.default_rng(seed).permutation(len(train))[:max_rows]
    # In the order of the file, which is read faster so; it may be by class, the tenth is not.
    rows = np.sort(drawn)
    held_out = np.isin(rows, drawn[: len(drawn) // 10])
    x = np.asarray(train[rows], np.float32)
    y = np.asarray(train_labels)[rows].astype(np.int64)
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x -= mean
    # Columns of about unit variance: L-BFGS starts from an identity Hessian.
    scale = float(np.sqrt(np.mean(np.square(x), dtype=np.float64))) or 1.0
    x /= scale
    if len(np.unique(y)) == 1:
        return Probe(np.full(len(test), y[0]), max(penalties), None)
    # One BLAS thread a fit, the fits side by side: the products have few columns, and where other
    # work shares the cores two threads were five times slower than one.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # Stopping at the last step is good enough: the penalty is chosen by held-out accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        penalty, accuracy = _choose(x, y, held_out, sorted(penalties, reverse=True), fits, done)
        model = _fit(x, y, penalty)
        done()
    blocks = [
        model.predict((np.asarray(test[start : start + _BLOCK], np.float32) - mean) / scale)
        for start in range(0, len(test), _BLOCK)
    ]
    return Probe(np.concatenate(blocks), penalty, accuracy)


def _bounded(
    train: Rows, labels: np.ndarray, max_rows: int, fits: int, max_bytes: int
) -> tuple[int, int]:
    """Rows to fit on, and fits at a time, that a bound on memory leaves."""
    # The rows, and once more the parts of them that a fit sees and that it is judged on.
    rows_each = 4 * 2 * train.shape[1]
    fit_each = 4 * _FIT_MATRICES * len(np.unique(labels))
    rows = min(max_rows, len(train), max(10, max_bytes // (rows_each + fit_each)))
    return rows, max(1, min(fits, (max_bytes // rows - rows_each) // fit_each))


def _choose(
    x: np.ndarray,
    y: np.ndarray,
    held_out: np.ndarray,
    penalties: list[float],
    fits: int,
    done: Callable[[], None],
) -> tuple[float, float | None]:
    """Returns the penalty of the highest accuracy on the held-out rows, and that accuracy."""
    if not held_out.any() or len(np.unique(y[~held_out])) == 1:
        return penalties[len(penalties) // 2], None
    fit_x, fit_y = x[~held_out], y[~held_out]
    test_x, test_y = x[held_out], y[held_out]

    def accuracy(penalty: float) -> float:
        return float((_fit(fit_x, fit_y, penalty).predict(test_x) == test_y).mean())

    with ThreadPoolExecutor(fits) as pool:
        scores = []
        for score in pool.map(accuracy, penalties):
            scores.append(score)
            done()
    best = int(np.argmax(scores))
    return penalties[best], scores[best]


def _fit(x: np.ndarray, y: np.ndarray, penalty: float) -> LogisticRegression:
    """Fits rows of unit variance a column; the penalty is for rows of unit mean squared norm."""
    # The sum over rows and 1/2 |W|^2, for W on columns that are larger by sqrt(d).
    inverse = 1.0 / (len(x) * x.shape[1] * penalty)
    return LogisticRegression(C=inverse, max_iter=_STEPS, tol=_TOLERANCE).fit(x, y)
