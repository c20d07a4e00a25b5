"""SPICE: a head is taught the labels of prototypes, then those that neighbours confirm.

Niu, Shan & Wang, *SPICE: Semantic Pseudo-Labeling for Image Clustering*, IEEE TIP 2022. In turns
(section III-B), the rows that a head is surest of make a prototype of each class k in the
representation, the n / K rows X_k nearest to it get its label, and the head, p(x), is taught these
by a cross-entropy of the softmax of its probabilities:

    g_k = mean of x over the share of n / K rows of largest p_k(x)
    L1 = -mean over k and x in X_k of log softmax(p(x))_k

The rows whose neighbours N(x) have their label l(x) are reliable, r(x) (section III-C); a head is
then trained on reliable labels, and on its own labels of the other rows where it is sure of them,
s(x) (section III-D, as FixMatch does), in another view x' of the row:

    r(x): mean over z in N(x) of [l(z) = l(x)] >= 0.95      s(x): max_k p_k(x) > 0.95
    L2 = -mean of [r(x)] log p(x')_l(x) + [not r(x) and s(x)] log p(x')_argmax p(x)

Kept: prototypes of the surest half of n / K rows, n / K rows nearest to each, balanced and
overlapping as there; a head of one hidden layer whose cross-entropy is taken of its softmax's
output, Adam at 0.005, 8 repeats on batches of 5,000; a row is reliable where 0.95 of its 100
neighbours agree, as in the paper (the released code asks for other shares for some datasets, for
sure rows and for equally many of each class besides); sure labels are above 0.95. Left out: the
encoder's training in the last stage, and augmented images: the view that a label is taught on is
the row itself at first, and a random neighbour of it in the last stage. There a batch teaches 10
heads and the one of lowest loss is kept; here every start is a head, and `score` is its loss on the
batch of its last turn. Theirs takes 100 passes over the rows for its turns; here there are 20 turns
at most, whose loss more of them do not lower on Imagenette's train rows, and they end when labels
rest (fewer than 0.1 % of the rows change in each of `patience` turns). That loss does not see the
last stage: its rate is the one at which starts agree most there, which takes no label either
(`experiments/baseline_settings.py`, docs/RESULTS.md); by the same rule 20 passes and none are level
there, and 150 classes, where few rows have the 100 neighbours of one class that a reliable label
asks for, had better have none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines import heads
from hume_jax.baselines.method import Data, Info, step_key, task_keys


class Settings(NamedTuple):
    """The paper's, but for turns, passes and the rate of the last stage. Static under jit."""

    n_classes: int
    hidden: int = 512
    sure_share: float = 0.5  # of n / K rows that make a prototype
    turns: int = 20  # of prototypes
    repeats: int = 8  # passes over the labels of a turn
    batch: int = 5000  # rows of a turn
    sub_batch: int = 128
    learning_rate: float = 0.005  # Adam's
    neighbours: int = 100  # of a row
    reliable: float = 0.95  # share of the neighbours that confirm a label
    passes: int = 20  # on reliable labels
    threshold: float = 0.95  # probability above which an own label is taught
    label_learning_rate: float = 0.01
    patience: int = 2  # turns in which labels rest before the others are left out; 0: none is

    @property
    def length(self) -> int:
        """Number of steps: turns, then passes."""
        return self.turns + self.passes


class State(NamedTuple):
    """S heads."""

    task: Array  # (S,) int32
    trained: heads.Trained  # of heads.Mlp
    watch: heads.Watch  # over the turns
    fixed: Array  # (S, n) int32, reliable labels; -1: none
    loss: Array  # (S,) float32, of the last turn
    step: Array  # () int32


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first turn.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the heads.
      data: the rows, and their nearest neighbours in the first space.
      settings: of the method.
    """
    n, dim = data.spaces[0].shape
    head = heads.mlp(task_keys(seed, tasks), dim, settings.hidden, settings.n_classes)
    trained = heads.Trained(head, optax.adam(settings.learning_rate).init(head))
    none = jnp.full((len(tasks), n), -1, jnp.int32)
    rest = heads.unwatched(len(tasks), n)
    return State(
        tasks, trained, rest, none, jnp.full(len(tasks), jnp.inf), jnp.zeros((), jnp.int32)
    )


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """A turn of prototypes or, after those, a pass on reliable labels."""
    x, near = data.spaces[0], data.near

    resting = (state.watch.quiet >= settings.patience) & (settings.patience > 0)

    def turn(state: State) -> State:
        after, loss = _turn(state.trained, step_key(seed, state.step), x, settings)
        trained, loss = heads.keep(resting, (state.trained, state.loss), (after, loss))
        seen = heads.watch(state.watch, _most_probable(trained.params, x))
        return state._replace(trained=trained, watch=seen, loss=loss)

    def self_train(state: State) -> State:
        def first(state: State) -> State:
            labels = _most_probable(state.trained.params, x)
            fixed = jnp.where(confirmed(labels, near) >= settings.reliable, labels, -1)
            # The moments of the turns are not those of the passes.
            moments = jax.tree.map(jnp.zeros_like, state.trained.optimiser)
            return state._replace(fixed=fixed, trained=state.trained._replace(optimiser=moments))

        state = jax.lax.cond(state.step == settings.turns, first, lambda s: s, state)
        trained = _pass(state, step_key(seed, state.step), x, near, settings)
        return state._replace(trained=trained)

    stage = jnp.where(state.step < settings.turns, jnp.where(jnp.all(resting), 2, 0), 1)
    state = jax.lax.switch(stage, (turn, self_train, lambda state: state), state)
    return state._replace(step=state.step + 1), Info(state.loss)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The most probable class of every row, ``(S, m)`` int32."""
    return _most_probable(state.trained.params, spaces[0])


def score(state: State, data: Data, settings: Settings) -> Array:
    """The loss of the last turn, ``(S,)``; the authors choose heads by it."""
    del data, settings
    return state.loss


def prototypes(p: Array, x: Array, share: float) -> tuple[Array, Array]:
    """Labels by prototypes.

    Args:
      p: ``(n, K)`` a head's probabilities.
      x: ``(n, d)`` rows.
      share: of n / K rows, the surest of each class, that make its prototype.

    Returns:
      ``(K m,)`` int32 numbers of rows, m = n / K of each class, and their labels. A row may be
      there for several classes.
    """
    n, k = p.shape
    each = max(1, n // k)
    surest = jax.lax.top_k(p.T, max(1, int(share * each)))[1]
    nearest = jax.lax.top_k(jnp.mean(x[surest], axis=1) @ x.T, each)[1]
    labels = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32)[:, None], nearest.shape)
    return nearest.reshape(-1).astype(jnp.int32), labels.reshape(-1)


def taught(z: Array, labels: Array) -> Array:
    """Mean cross-entropy of the softmax of probabilities (``double softmax``) on labels.

    Args:
      z: ``(S, n, K)`` logits.
      labels: ``(S, n)`` int32.

    Returns:
      ``(S,)``.
    """
    log_p = jax.nn.log_softmax(jax.nn.softmax(z))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0], axis=-1)


def confirmed(labels: Array, near: Array) -> Array:
    """Share of the neighbours ``(n, k)`` that have a row's label ``(S, n)``: ``(S, n)``."""

    def add(total: Array, neighbour: Array) -> tuple[Array, None]:
        return total + (labels[:, neighbour] == labels), None

    total, _ = jax.lax.scan(add, jnp.zeros(labels.shape, jnp.int32), near.T)
    return total / near.shape[1]


def _turn(
    trained: heads.Trained, key: Array, x: Array, settings: Settings
) -> tuple[heads.Trained, Array]:
    """Labels a random batch by prototypes and teaches them; returns also the loss on them."""
    optimiser = optax.adam(settings.learning_rate)
    keys = jax.random.split(key, 1 + settings.repeats)
    batch = x[heads.batches(keys[0], len(x), settings.batch)[0]]
    p = jax.nn.softmax(heads.logits(trained.params, batch))
    rows, labels = jax.vmap(lambda own: prototypes(own, batch, settings.sure_share))(p)

    def teach(head: heads.Mlp, picked: Array, _: Array) -> Array:
        return taught(heads.logits(head, batch[rows[:, picked]]), labels[:, picked])

    def repeat(trained: heads.Trained, key: Array) -> tuple[heads.Trained, Array]:
        return heads.train(trained, key, rows.shape[1], settings.sub_batch, optimiser, teach)

    trained, losses = jax.lax.scan(repeat, trained, keys[1:])
    return trained, losses[-1]


def _pass(state: State, key: Array, x: Array, near: Array, settings: Settings) -> heads.Trained:
    """A pass over the rows on reliable labels, and on own labels where a head is sure of them."""

    def teach(head: heads.Mlp, rows: Array, key: Array) -> Array:
        other = heads.random_neighbours(key, rows, near)
        own = jax.nn.softmax(jax.lax.stop_gradient(heads.logits(head, x[rows])))
        fixed = state.fixed[:, rows]
        target = jnp.where(fixed >= 0, fixed, jnp.argmax(own, axis=-1))
        counted = (fixed >= 0) | (jnp.max(own, axis=-1) > settings.threshold)
        log_p = jax.nn.log_softmax(heads.logits(head, x[other]))
        picked = jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
        return -jnp.mean(counted * picked, axis=-1)

    optimiser = optax.adam(settings.label_learning_rate)
    return heads.train(state.trained, key, len(x), settings.sub_batch, optimiser, teach)[0]


def _most_probable(head: heads.Mlp, x: Array) -> Array:
    return jnp.argmax(heads.logits(head, x), axis=-1).astype(jnp.int32)
