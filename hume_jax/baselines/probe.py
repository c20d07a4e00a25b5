"""Supervised linear probe in one representation space: what a linear model gets from the labels.

Twice: as a method of this folder, many seeds at a time from rows in memory (`init`, `step`,
`predict`, `score`), and as the ceiling beside every run of the search, `probe`, which reads rows
from anywhere within a bound on memory and leaves the work to scikit-learn.

The method is the search's own inner fit, Eq. 5 of Gadetsky & Brbic, *The Pursuit of Human
Labeling*, NeurIPS 2023, on the true labels (multinomial logistic regression with a penalty on the
squared norm), as the supervised row of that paper. The constant is penalised like the rest. A step
is a fit: one for each penalty on nine tenths of the rows, then one on all of them with the penalty
of highest accuracy on the other tenth, which each seed draws anew.
"""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from hume_jax.baselines.method import Data, Info, held_out_rows, task_keys
from hume_jax.baselines.rows import Rows
from hume_jax.core import inner_fit, solvers

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


class Settings(NamedTuple):
    """Of the method. Static under jit."""

    n_classes: int
    penalties: tuple[float, ...] = PENALTIES  # from the largest down
    steps: int = 20  # Newton steps of a fit, at most
    newton_steps: int = 10  # conjugate-gradient steps in each
    # Lengths of a Newton step to choose from. The search's three do not do here: from zero, with
    # 150 classes and a penalty of 1e-6, the shortest of them, 1/9, still led away.
    lengths: int = 8
    tolerance: float = 3e-4  # norm of the gradient at which a fit stops

    @property
    def length(self) -> int:
        """Number of steps: fits."""
        return len(self.penalties) + 1


class State(NamedTuple):
    """S fits side by side."""

    task: Array  # (S,) int32
    w: Array  # (S, d + 1, K) float32, weights of rows and of the constant
    accuracy: Array  # (S, penalties) float32, on the held-out tenth
    held_out: Array  # (S, n) bool
    basis: Array  # (d + 1, d + 1) float32, principal directions of the rows and the constant
    variance: Array  # (d + 1,) float32, along each
    step: Array  # () int32, fits so far


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first fit.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the fits.
      data: the rows, and their true labels.
      settings: of the method.
    """
    x = _with_constant(data.spaces[0])
    n, dim = x.shape
    held_out = jax.vmap(lambda key: held_out_rows(key, n))(task_keys(seed, tasks))
    variance, basis = jnp.linalg.eigh(x.T @ x / n)
    w = jnp.zeros((len(tasks), dim, settings.n_classes))
    accuracy = jnp.full((len(tasks), len(settings.penalties)), -1.0)
    none = jnp.zeros((), jnp.int32)
    return State(tasks, w, accuracy, held_out, basis, jnp.maximum(variance, 0), none)


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One fit: on nine tenths of the rows or, last, on all."""
    del seed
    x = _with_constant(data.spaces[0])
    penalties = jnp.asarray(settings.penalties)
    choosing = state.step < len(penalties)
    y = jax.nn.one_hot(data.true, settings.n_classes, axis=0)

    def one(accuracy: Array, held_out: Array) -> tuple[Array, Array, Array]:
        penalty = penalties[jnp.where(choosing, state.step, jnp.argmax(accuracy))]
        rows = ~(held_out & choosing)
        scale = (state.variance + 2 * penalty) ** -0.5
        # A row of zeros does not act on the fit, which takes the mean over all.
        coordinates = (x @ state.basis) * scale[None] * rows[:, None]
        weight = jnp.mean(rows.astype(x.dtype))
        weights = penalty * scale**2 * weight
        found = solvers.minimise(
            jnp.zeros((settings.n_classes, x.shape[1]), x.dtype),
            coordinates,
            y,
            weights,
            0.0,
            steps=settings.steps,
            solver="newton",
            newton_steps=settings.newton_steps,
            lengths=settings.lengths,
            tolerance=settings.tolerance,
        )
        loss = inner_fit.loss(found.w, coordinates, y, weights)
        w = state.basis @ (found.w * scale[None]).T
        right = jnp.argmax(x @ w, axis=1) == data.true
        seen = jnp.sum(right & held_out) / jnp.maximum(jnp.sum(held_out), 1)
        return w, seen.astype(x.dtype), loss

    w, seen, loss = jax.lax.map(lambda task: one(*task), (state.accuracy, state.held_out))
    # After the last penalty there is no place any more, and nothing is written.
    accuracy = state.accuracy.at[:, state.step].set(seen, mode="drop")
    return state._replace(w=w, accuracy=accuracy, step=state.step + 1), Info(loss)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The most probable class of every row, ``(S, m)`` int32."""
    z = jnp.einsum("nd,sdk->snk", _with_constant(spaces[0]), state.w)
    return jnp.argmax(z, axis=-1).astype(jnp.int32)


def score(state: State, data: Data, settings: Settings) -> Array:
    """Less the accuracy on the held-out rows, ``(S,)``: lowest is best."""
    del data, settings
    return -jnp.max(state.accuracy, axis=1)


def _with_constant(x: Array) -> Array:
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
