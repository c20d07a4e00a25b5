"""The objective of HUME (Eq. 7) for one task on one random split."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hume_jax.core import inner_fit, task_encoder
from hume_jax.core.effort import Effort
from hume_jax.core.inner_fit import InnerFit, Residuals, Watch


class InnerSpace(NamedTuple):
    """One second representation on one split, in the coordinates of the inner fit."""

    train: Array  # (n_train, r) float32
    test: Array  # (n_test, r) float32
    penalty: Array  # (r,) float32
    step: Array  # () float32, step size of the inner solver


class Subset(NamedTuple):
    """A random split that all tasks of a batch share."""

    phi1_train: Array  # (n_train, d1) float32
    phi1_test: Array  # (n_test, d1) float32
    spaces: tuple[InnerSpace, ...]


class Terms(NamedTuple):
    """What `objective` is made of, and the inner solutions to start the next fit from."""

    heldout_ce: Array  # () mean_test CE(W* phi2, labels), averaged over second spaces
    divergence: Array  # () KL(mean label || prior)
    entropy: Array  # () H(mean label)
    residuals: tuple[Residuals, ...]  # of the inner fit in each second space
    solutions: tuple[Array, ...]  # (K, r) float32 for each second space


def objective(
    theta: Array,
    starts: tuple[Array, ...],
    subset: Subset,
    temperature: Array | float,
    log_prior: Array,
    entropy_weight: float,
    settings: InnerFit,
    labels: str = "sparsemax",
    effort: Effort | None = None,
    watches: tuple[Watch, ...] | None = None,
    shards: int = 1,
) -> tuple[Array, Terms]:
    """Eq. 7 for one task encoder on one split.

    ``mean_test CE(W*(theta) phi2, tau_theta) + eta KL(mean_x tau_theta || prior)``. For the uniform
    prior the second term is ``eta (log K - H(mean_x tau_theta))``: Eq. 7 up to a constant. The mean
    runs over the train and the test part together, as in the authors' code. Several second spaces
    are averaged.

    Args:
      theta: ``(d1, K)`` with orthonormal columns.
      starts: ``(K, r)`` start of the inner fit in each second space.
      subset: the split.
      temperature: T.
      log_prior: ``(K,)`` log of the class prior, in any order, see `label_entropy`.
      entropy_weight: eta.
      settings: of the inner fit.
      labels: the kind of `task_encoder.labels`.
      effort: see `inner_fit.fit`.
      watches: one for the inner fit in each second space, see there.
      shards: virtual shards that the split has equally many rows of.

    Returns:
      The scalar objective and its `Terms`.
    """
    with jax.named_scope("labels"):
        y_train, y_test = task_encoder.labels_of(
            theta, (subset.phi1_train, subset.phi1_test), temperature, labels, shards
        )
    heldout, residuals, solutions = [], [], []
    for i, (space, start) in enumerate(zip(subset.spaces, starts, strict=True)):
        watch = watches[i] if watches else None
        w, left = inner_fit.fit(
            y_train, space.train, space.penalty, start, space.step, settings, effort, watch
        )
        with jax.named_scope("held_out"):
            heldout.append(inner_fit.cross_entropy(w, space.test, y_test))
        residuals.append(left)
        solutions.append(w)
    n = y_train.shape[1] + y_test.shape[1]
    mean_label = (jnp.sum(y_train, axis=1) + jnp.sum(y_test, axis=1)) / n
    entropy, divergence = label_entropy(mean_label, log_prior)
    heldout_ce = jnp.mean(jnp.stack(heldout))
    value = heldout_ce + entropy_weight * divergence
    return value, Terms(heldout_ce, divergence, entropy, tuple(residuals), tuple(solutions))


def label_entropy(mean_label: Array, log_prior: Array) -> tuple[Array, Array]:
    """Entropy of a label distribution and its divergence ``KL(mean_label || prior)``.

    Nobody knows which class of a task is which of the prior's, so of all orders of the prior that
    of the least divergence counts: the largest share is held against the largest, and so on.

    Args:
      mean_label: ``(K,)`` on the simplex; zeros are allowed, their gradient included.
      log_prior: ``(K,)``, in any order.
    """
    inside = mean_label > 0
    log_mean = jnp.log(jnp.where(inside, mean_label, 1))
    entropy = -jnp.sum(mean_label * log_mean)
    rank = jnp.argsort(jnp.argsort(jax.lax.stop_gradient(mean_label)))
    matched = jnp.sort(log_prior)[rank]
    return entropy, -entropy - jnp.sum(mean_label * matched)
