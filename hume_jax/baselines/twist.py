"""TWIST: the class distributions of two views are equal, sharp, and diverse over the rows.

Wang, Kong, Zhang, Liu & Li, *Self-Supervised Learning by Estimating Twin Class Distributions*,
arXiv:2110.07402. The loss (Eq. 4 there) is the symmetric divergence of the twin distributions, plus
the mean entropy of a row's distribution, less the entropy of the mean distribution; logits pass a
batch normalisation without scale and shift before the softmax.

Kept: the loss with the weights of the authors' code (github.com/bytedance/TWIST, 03a7105) and the
normalisation of the logits. Left out: the encoder's training, its projection of three layers, the
augmented and multi-crop views and the self-labelling of the last passes. The other view of a row is
a random one of its nearest neighbours where there is one space. Where there are two, each has a
head of its own, the views are the row in the one and the row in the other, and the mean of both
distributions labels a row. Heads are linear and see the rows 100 times, an encoder 800 or more. The
authors' rate belongs to an encoder; that of Adam here is the one of 0.001, 0.003, 0.01 and 0.03 at
which the loss ends lowest on Imagenette's train rows, which takes no label
(`experiments/baseline_settings.py`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines import heads
from hume_jax.baselines.method import Data, Info, step_key, task_keys

# Of the variance, as in the authors' layer.
_EPSILON = 1e-5


class Settings(NamedTuple):
    """Weights are the authors'. Static under jit."""

    n_classes: int
    sharpness_weight: float = 1.0
    diversity_weight: float = 1.0
    passes: int = 100
    batch: int = 2048
    learning_rate: float = 0.003  # Adam's
    neighbours: int = 50  # of a row, one of which is its other view where there is one space

    @property
    def length(self) -> int:
        """Number of steps: passes over the rows."""
        return self.passes


class State(NamedTuple):
    """S heads in each space."""

    task: Array  # (S,) int32
    trained: heads.Trained  # of a tuple of heads.Linear
    # Mean and standard deviation of the logits of all rows, (S, K) float32 each, in each space.
    scales: tuple[tuple[Array, Array], ...]
    loss: Array  # (S,) float32, mean of the last pass
    step: Array  # () int32, passes so far


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first pass.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the heads.
      data: two spaces, or one and the nearest neighbours in it.
      settings: of the method.
    """
    head = heads.linears(task_keys(seed, tasks), data.spaces, settings.n_classes)
    trained = heads.Trained(head, optax.adam(settings.learning_rate).init(head))
    loss = jnp.full(len(tasks), jnp.inf)
    return State(tasks, trained, _scales(head, data.spaces), loss, jnp.zeros((), jnp.int32))


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One pass over the rows."""
    spaces = data.spaces

    def twin_loss(head: tuple[heads.Linear, ...], rows: Array, key: Array) -> Array:
        if len(spaces) == 1:
            other = heads.random_neighbours(key, rows, data.near)
            views = [(head[0], spaces[0][r]) for r in (rows, other)]
        else:
            views = [(own, x[rows]) for own, x in zip(head, spaces, strict=True)]
        one, other = (_normalised(heads.logits(own, x)) for own, x in views)
        return loss(one, other, settings.sharpness_weight, settings.diversity_weight)

    optimiser = optax.adam(settings.learning_rate)
    key = step_key(seed, state.step)
    n = len(spaces[0])
    trained, mean = heads.train(state.trained, key, n, settings.batch, optimiser, twin_loss)
    scales = _scales(trained.params, spaces)
    return State(state.task, trained, scales, mean, state.step + 1), Info(mean)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The most probable class of every row, ``(S, m)`` int32."""
    total = jnp.zeros(())
    for head, (mean, deviation), x in zip(state.trained.params, state.scales, spaces, strict=True):
        z = (heads.logits(head, x) - mean[:, None]) / deviation[:, None]
        total = total + jax.nn.softmax(z)
    return jnp.argmax(total, axis=-1).astype(jnp.int32)


def score(state: State, data: Data, settings: Settings) -> Array:
    """The loss of the last pass, ``(S,)``."""
    del data, settings
    return state.loss


def loss(one: Array, other: Array, sharpness_weight: float, diversity_weight: float) -> Array:
    """Eq. 4 of two views' logits ``(S, n, K)``: ``(S,)``."""
    total = jnp.zeros(len(one), one.dtype)
    for z, twin in ((one, other), (other, one)):
        log_p, log_q = jax.nn.log_softmax(z), jax.nn.log_softmax(twin)
        p = jnp.exp(log_p)
        divergence = jnp.mean(jnp.sum(p * (log_p - log_q), axis=-1), axis=-1)
        sharpness = -jnp.mean(jnp.sum(p * log_p, axis=-1), axis=-1)
        mean = jnp.maximum(jnp.mean(p, axis=1), 1e-8)
        diversity = -jnp.sum(mean * jnp.log(mean), axis=-1)
        total += divergence + sharpness_weight * sharpness - diversity_weight * diversity
    return total / 2


def _normalised(z: Array) -> Array:
    """Logits of mean 0 and variance 1 over the batch, ``(S, n, K)``."""
    mean = jnp.mean(z, axis=1, keepdims=True)
    return (z - mean) * jax.lax.rsqrt(jnp.var(z, axis=1, keepdims=True) + _EPSILON)


def _scales(
    head: tuple[heads.Linear, ...], spaces: tuple[Array, ...]
) -> tuple[tuple[Array, Array], ...]:
    found = []
    for own, x in zip(head, spaces, strict=True):
        z = heads.logits(own, x)
        found.append((jnp.mean(z, axis=1), jnp.sqrt(jnp.var(z, axis=1) + _EPSILON)))
    return tuple(found)
