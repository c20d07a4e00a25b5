"""SCAN: rows and their nearest neighbours get one class.

Van Gansbeke, Vandenhende, Georgoulis, Proesmans & Van Gool, *SCAN: Learning to Classify Images
without Labels*, ECCV 2020. A linear head is trained so that a row and a random one of its nearest
neighbours get the same class, and classes are of equal size (Eq. 2); then it is trained further on
the labels that it is sure of (section 2.3).

Kept: neighbours in the representation, Eq. 2 with its weight, heads, batches, optimiser and number
of passes as the authors train heads on a frozen encoder (their ImageNet settings), self-labelling
above a threshold. Left out: the moving average of the weights in self-labelling, the weights of
classes in its loss (off in those settings), the choice among 10 heads by the loss (every start is a
head, and `score` its loss), and augmented images. Neither the rows of Eq. 2 nor those of
self-labelling are augmented; the view that a sure label is taught on is a random neighbour of the
row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines import heads
from hume_jax.baselines.method import Data, Info, step_key, task_keys


class Settings(NamedTuple):
    """The authors' for heads on a frozen encoder (ImageNet-50). Static under jit."""

    n_classes: int
    entropy_weight: float = 5.0  # lambda of Eq. 2
    passes: int = 100  # of clustering
    batch: int = 512
    learning_rate: float = 5.0  # SGD's with momentum
    momentum: float = 0.9
    neighbours: int = 50  # of a row, one of which it is paired with
    threshold: float = 0.99  # probability above which a label is sure
    label_passes: int = 25  # of self-labelling, after those of clustering
    label_learning_rate: float = 0.03

    @property
    def length(self) -> int:
        """Number of steps: passes over the rows."""
        return self.passes + self.label_passes


class State(NamedTuple):
    """S heads."""

    task: Array  # (S,) int32
    trained: heads.Trained  # of heads.Linear
    loss: Array  # (S,) float32, mean of the last pass
    step: Array  # () int32, passes so far


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first pass.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the heads.
      data: the rows, and their nearest neighbours in the first space.
      settings: of the method.
    """
    dim = data.spaces[0].shape[1]
    head = heads.linear(task_keys(seed, tasks), dim, settings.n_classes)
    trained = heads.Trained(head, _optimiser(settings, settings.learning_rate).init(head))
    return State(tasks, trained, jnp.full(len(tasks), jnp.inf), jnp.zeros((), jnp.int32))


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One pass over the rows, of clustering or, after those, of self-labelling."""
    x = data.spaces[0]
    key = step_key(seed, state.step)

    def views(rows: Array, key: Array) -> tuple[Array, Array]:
        return x[rows], x[heads.random_neighbours(key, rows, data.near)]

    def cluster(trained: heads.Trained) -> tuple[heads.Trained, Array]:
        def loss(head: heads.Linear, rows: Array, key: Array) -> Array:
            own, near = (jax.nn.log_softmax(heads.logits(head, v)) for v in views(rows, key))
            return consistency(own, near) - settings.entropy_weight * entropy(own)

        optimiser = _optimiser(settings, settings.learning_rate)
        return heads.train(trained, key, len(x), settings.batch, optimiser, loss)

    def label(trained: heads.Trained) -> tuple[heads.Trained, Array]:
        def loss(head: heads.Linear, rows: Array, key: Array) -> Array:
            own, near = (heads.logits(head, v) for v in views(rows, key))
            return self_labelling(own, near, settings.threshold)

        optimiser = _optimiser(settings, settings.label_learning_rate)
        return heads.train(trained, key, len(x), settings.batch, optimiser, loss)

    # The momentum of clustering is not that of self-labelling.
    same = state.step != settings.passes
    kept = jax.tree.map(lambda leaf: leaf * same.astype(leaf.dtype), state.trained.optimiser)
    trained = state.trained._replace(optimiser=kept)
    trained, loss = jax.lax.cond(state.step < settings.passes, cluster, label, trained)
    return State(state.task, trained, loss, state.step + 1), Info(loss)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The most probable class of every row, ``(S, m)`` int32."""
    z = heads.logits(state.trained.params, spaces[0])
    return jnp.argmax(z, axis=-1).astype(jnp.int32)


def score(state: State, data: Data, settings: Settings) -> Array:
    """Eq. 2 over all rows and all of their neighbours, ``(S,)``; the authors choose heads by it."""
    log_p = jax.nn.log_softmax(heads.logits(state.trained.params, data.spaces[0]))

    def add(total: Array, neighbour: Array) -> tuple[Array, None]:
        return total + consistency(log_p, log_p[:, neighbour]), None

    total, _ = jax.lax.scan(add, jnp.zeros(len(log_p)), data.near.T)
    return total / data.near.shape[1] - settings.entropy_weight * entropy(log_p)


def consistency(own: Array, near: Array) -> Array:
    """First term of Eq. 2: mean of ``-log <p(x), p(neighbour)>``.

    Args:
      own: ``(S, n, K)`` logarithms of the probabilities of rows.
      near: ``(S, n, K)`` of a neighbour of each.

    Returns:
      ``(S,)``.
    """
    return -jnp.mean(jax.nn.logsumexp(own + near, axis=-1), axis=-1)


def entropy(log_p: Array) -> Array:
    """Entropy of the mean of probabilities, given as logarithms ``(S, n, K)``: ``(S,)`` in nats."""
    # The logarithm of an empty class has no derivative; the authors stop at the same number.
    mean = jnp.maximum(jnp.mean(jnp.exp(log_p), axis=1), 1e-8)
    return -jnp.sum(mean * jnp.log(mean), axis=-1)


def self_labelling(own: Array, near: Array, threshold: float) -> Array:
    """Mean cross-entropy of another view on the labels that a head is sure of.

    Args:
      own: ``(S, n, K)`` logits of rows.
      near: ``(S, n, K)`` logits of another view of each.
      threshold: rows below this probability take no part.

    Returns:
      ``(S,)``, zero where no row takes part.
    """
    p = jax.lax.stop_gradient(jax.nn.softmax(own))
    sure = jnp.max(p, axis=-1) > threshold
    log_p = jax.nn.log_softmax(near)
    picked = jnp.take_along_axis(log_p, jnp.argmax(p, axis=-1)[..., None], axis=-1)[..., 0]
    return -jnp.sum(sure * picked, axis=1) / jnp.maximum(jnp.sum(sure, axis=1), 1)


def _optimiser(settings: Settings, learning_rate: float) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, settings.momentum)
