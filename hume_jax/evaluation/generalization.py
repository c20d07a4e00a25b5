"""The label-free score of finished tasks: how well a linear model in phi2 generalises on them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hume_jax.core import inner_fit, solvers
from hume_jax.core.objective import label_entropy

# Conjugate-gradient steps in each Newton step of a fit.
_NEWTON_STEPS = 10
# Lengths of a Newton step to choose from. Fits on hard labels with little penalty go far from where
# the loss is nearly quadratic, and have to end at the solution whatever it takes.
_LENGTHS = 8


class Generalization(NamedTuple):
    """Scores of S tasks on their hard labels, so that temperature does not enter."""

    objective: Array  # (S,) float32, heldout_ce + eta KL(label histogram || prior)
    heldout_ce: Array  # (S,) float32, nats, mean over the folds
    cv_accuracy: Array  # (S,) float32, share of held-out rows predicted right
    entropy: Array  # (S,) float32, nats, of the label histogram
    residual: Array  # (S,) float32, largest inner gradient norm over the folds


def folds(n: int, count: int, rows: int, seed: int) -> np.ndarray:
    """Random disjoint folds of equal size.

    Args:
      n: number of rows to draw from.
      count: number of folds; fewer where there are fewer rows.
      rows: at most this many rows are used.
      seed: of the draw.

    Returns:
      ``(count, min(n, rows) // count)`` int32 row numbers; the remainder is left out.
    """
    count = min(count, n, rows)
    size = min(n, rows) // count
    order = np.random.default_rng(seed).permutation(n)[: size * count]
    return order.reshape(count, size).astype(np.int32)


def score(
    tasks: Array,
    x: Array,
    penalty: Array,
    rows: Array,
    log_prior: Array,
    *,
    entropy_weight: float,
    steps: int,
    tolerance: float,
    done: Callable[[], None] = lambda: None,
) -> Generalization:
    """Cross-validates a linear model in the second representation on found labels.

    The folds are the same for all tasks, and every fit runs until its residual is below
    ``tolerance``. The objective is that of Eq. 7 with these folds as its splits.

    Args:
      tasks: ``(S, n)`` int32 hard labels below K.
      x: ``(n, r)`` rows in the coordinates of the inner fit.
      penalty: ``(r,)``.
      rows: ``(folds, size)`` row numbers, see `folds`.
      log_prior: ``(K,)``.
      entropy_weight: eta.
      steps: bound on the Newton steps of a fit.
      tolerance: residual, the norm of the inner gradient, at which a fit ends.
      done: called after each fold.

    Returns:
      `Generalization`.
    """
    n_classes = log_prior.shape[0]
    # Each fold starts from the solution of the one before it: the solution that it is taken to is
    # unique, and near.
    solutions = jnp.zeros((tasks.shape[0], n_classes, x.shape[1]), x.dtype)
    found = []
    for fold in range(rows.shape[0]):
        solutions, values = _score_fold(
            solutions, tasks, x, penalty, rows, jnp.int32(fold), steps=steps, tolerance=tolerance
        )
        found.append(jax.block_until_ready(values))
        done()
    return _summary(tasks, found, log_prior, entropy_weight)


@jax.jit
def _summary(
    tasks: Array, found: list[tuple[Array, Array, Array]], log_prior: Array, entropy_weight: float
) -> Generalization:
    """Scores from the CE, accuracy and residual of each fold, (S,) each."""
    ce, right, residual = (jnp.stack(values) for values in zip(*found, strict=True))
    n_classes = log_prior.shape[0]
    histogram = jax.vmap(lambda t: jnp.bincount(t, length=n_classes) / t.shape[0])(tasks)
    entropy, divergence = jax.vmap(label_entropy, (0, None))(histogram, log_prior)
    heldout_ce = jnp.mean(ce, axis=0)
    return Generalization(
        heldout_ce + entropy_weight * divergence,
        heldout_ce,
        jnp.mean(right, axis=0),
        entropy,
        jnp.max(residual, axis=0),
    )


@functools.partial(jax.jit, static_argnames=("steps", "tolerance"))
def _score_fold(
    starts: Array,
    tasks: Array,
    x: Array,
    penalty: Array,
    rows: Array,
    fold: Array,
    *,
    steps: int,
    tolerance: float,
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Fits all tasks on the rows outside a fold: the solutions; CE, accuracy and residual, (S,)."""
    n_folds = rows.shape[0]
    test = rows[fold]
    train = rows[(fold + 1 + jnp.arange(n_folds - 1)) % n_folds].reshape(-1)
    x_train, x_test = x[train], x[test]

    def one_task(labels: Array, start: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        one_hot = functools.partial(jax.nn.one_hot, num_classes=start.shape[0], axis=0)
        found = solvers.minimise(
            start,
            x_train,
            one_hot(labels[train], dtype=x.dtype),
            penalty,
            0.0,
            steps=steps,
            solver="newton",
            newton_steps=_NEWTON_STEPS,
            lengths=_LENGTHS,
            tolerance=tolerance,
        )
        w = found.w
        right = jnp.argmax(w @ x_test.T, axis=0) == labels[test]
        ce = inner_fit.cross_entropy(w, x_test, one_hot(labels[test], dtype=x.dtype))
        return w, (ce, jnp.mean(right), found.residual)

    return jax.vmap(one_task)(tasks, starts)
