"""Self-Classifier: two views of a row are given one class, under a uniform prior of classes.

Amrani, Karlinsky & Bronstein, *Self-Supervised Classification Network*, ECCV 2022. The loss is a
cross-entropy between two views in which the target is normalised over the batch first and the
prediction over the classes, so that a single class for all is no solution (Eqs. 3 to 6).

Kept: the loss with its two temperatures, symmetric in the views, and classes of unit norm that meet
features of unit norm. Left out: the encoder's training with its projection, many classifiers of
many sizes, and multi-crop augmentation. The other view of a row is a random one of its nearest
neighbours. The rate is the one of 0.001, 0.003, 0.01 and 0.03 at which the loss ends lowest on
Imagenette's train rows, which takes no label (`experiments/baseline_settings.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines import heads
from hume_jax.baselines.method import Data, Info, step_key, task_keys


class Settings(NamedTuple):
    """Temperatures are the authors', passes those of their ablations. Static under jit."""

    n_classes: int
    row_temperature: float = 0.1  # of the prediction
    column_temperature: float = 0.05  # of the target
    passes: int = 100
    batch: int = 4096
    learning_rate: float = 0.003  # Adam's
    neighbours: int = 50  # of a row, one of which is its other view

    @property
    def length(self) -> int:
        """Number of steps: passes over the rows."""
        return self.passes


class State(NamedTuple):
    """S classifiers."""

    task: Array  # (S,) int32
    trained: heads.Trained  # of (S, d, K) float32 directions of the classes
    loss: Array  # (S,) float32, mean of the last pass
    step: Array  # () int32, passes so far


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first pass.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the classifiers.
      data: the rows, and their nearest neighbours in the first space.
      settings: of the method.
    """
    dim = data.spaces[0].shape[1]
    w = heads.linear(task_keys(seed, tasks), dim, settings.n_classes).w
    trained = heads.Trained(w, optax.adam(settings.learning_rate).init(w))
    return State(tasks, trained, jnp.full(len(tasks), jnp.inf), jnp.zeros((), jnp.int32))


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One pass over the rows."""
    x = data.spaces[0]

    def loss(w: Array, rows: Array, key: Array) -> Array:
        other = heads.random_neighbours(key, rows, data.near)
        own, near = (_cosines(w, x[r]) for r in (rows, other))
        return (_one_way(own, near, settings) + _one_way(near, own, settings)) / 2

    optimiser = optax.adam(settings.learning_rate)
    key = step_key(seed, state.step)
    trained, mean = heads.train(state.trained, key, len(x), settings.batch, optimiser, loss)
    return State(state.task, trained, mean, state.step + 1), Info(mean)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The most probable class of every row, ``(S, m)`` int32."""
    z = _cosines(state.trained.params, spaces[0])
    return jnp.argmax(z, axis=-1).astype(jnp.int32)


def score(state: State, data: Data, settings: Settings) -> Array:
    """The loss of the last pass, ``(S,)``."""
    del data, settings
    return state.loss


def _cosines(w: Array, x: Array) -> Array:
    """``(S, n, K)`` products of rows with classes of unit norm."""
    return jnp.einsum("nd,sdk->snk", x, w / jnp.linalg.norm(w, axis=1, keepdims=True))


def _one_way(target: Array, prediction: Array, settings: Settings) -> Array:
    return cross_entropy(
        target / settings.column_temperature, prediction / settings.row_temperature
    )


def cross_entropy(target: Array, prediction: Array) -> Array:
    """Eq. 6: the loss of one view by the other, under a uniform prior.

    Args:
      target: ``(S, n, K)`` logits of the one view, over their temperature.
      prediction: ``(S, n, K)`` logits of the other, over theirs.

    Returns:
      ``(S,)``: mean over rows of ``-sum_k p(k | x1) log(N / K p(x2 | k))``, the target's softmax
      taken over the batch and then scaled to sum 1 over the classes, the prediction's taken over
      the classes and then scaled to sum 1 over the batch.
    """
    n, k = target.shape[1:]
    log_t = jax.nn.log_softmax(target, axis=1)
    t = jnp.exp(log_t - jax.nn.logsumexp(log_t, axis=2, keepdims=True))
    log_p = jax.nn.log_softmax(prediction, axis=2)
    log_p -= jax.nn.logsumexp(log_p, axis=1, keepdims=True)
    return -jnp.mean(jnp.sum(t * (jnp.log(n / k) + log_p), axis=2), axis=1)
