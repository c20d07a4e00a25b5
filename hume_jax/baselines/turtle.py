"""TURTLE: a first-order bilevel search over one or several spaces.

Gadetsky, Jiang & Brbic, *Let Go of Your Labels with Unsupervised Transfer*, ICML 2024. A task
encoder in every space gives softmax labels, whose mean over the spaces (Eq. 9) linear models in all
of them are fitted to by a few steps of Adam; the task encoders then take one step of Adam on the
models' cross-entropy, the models held constant (Eq. 13), and the entropy of each encoder's mean
label (Eq. 12).

Kept: all of it, weight normalisation of the encoders and cold or warm starts included. The method
is made for frozen features, so nothing is left out. Its authors take features as they are stored,
which for their encoders are far longer than one; their rates hardly move a model on rows of unit
norm, so these are scaled to a mean square of 1 a column. `score` is the objective that the search
ends at; their script can instead choose among searches by cross-validated accuracy.
A search whose labels rest (fewer than 0.1 % of the rows change in each of `patience` looks that are
`look` steps apart) stops there, which needs no true label to see.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines import heads
from hume_jax.baselines.heads import Linear
from hume_jax.baselines.method import Data, Info, fold_keys, step_key, task_keys


class Settings(NamedTuple):
    """The authors' defaults (github.com/mlbio-epfl/turtle, 4674efa). Static under jit."""

    n_classes: int
    steps: int = 6000  # of the task encoders
    inner_steps: int = 10
    learning_rate: float = 1e-3  # Adam's, of the task encoders
    inner_learning_rate: float = 1e-3
    entropy_weight: float = 10.0  # gamma of Eq. 12
    batch: int = 10_000
    warm: bool = False  # whether linear models go on from the last step's, or begin anew
    look: int = 50  # steps between two looks at the labels of all rows
    patience: int = 2  # looks in which labels rest before a search stops; 0: it never does

    @property
    def length(self) -> int:
        """Number of steps: of the task encoders."""
        return self.steps


class Encoder(NamedTuple):
    """A linear model whose columns have a length of their own (Salimans & Kingma 2016)."""

    v: Array  # (S, d, K) float32
    length: Array  # (S, K) float32
    b: Array  # (S, K) float32


class State(NamedTuple):
    """S searches."""

    task: Array  # (S,) int32
    encoders: tuple[Encoder, ...]  # of each space
    optimiser: optax.OptState
    models: tuple[Linear, ...]  # of each space; where starts are warm
    inner_optimiser: optax.OptState
    loss: Array  # (S,) float32, of the last step
    watch: heads.Watch  # of the most probable classes of all rows
    settled: Array  # (S,) bool
    step: Array  # () int32


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first step.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the searches.
      data: the rows; all of their spaces are used.
      settings: of the method.
    """
    keys = task_keys(seed, tasks)
    linear = heads.linears(fold_keys(keys, 0), data.spaces, settings.n_classes)
    encoders = tuple(Encoder(m.w, jnp.linalg.norm(m.w, axis=1), m.b) for m in linear)
    models = heads.linears(fold_keys(keys, 1), data.spaces, settings.n_classes)
    return State(
        tasks,
        encoders,
        optax.adam(settings.learning_rate).init(encoders),
        models,
        optax.adam(settings.inner_learning_rate).init(models),
        jnp.full(len(tasks), jnp.inf, jnp.float32),
        heads.unwatched(len(tasks), len(data.spaces[0])),
        jnp.zeros(len(tasks), bool),
        jnp.zeros((), jnp.int32),
    )


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One step of the task encoders, on a random batch without replacement that all tasks share."""
    n = len(data.spaces[0])
    spaces = _scaled(data.spaces)
    if settings.batch < n:
        rows = jax.random.choice(step_key(seed, state.step), n, (settings.batch,), replace=False)
        spaces = tuple(x[rows] for x in spaces)
    fixed, _ = _labels(state.encoders, spaces)
    models, inner_optimiser = state.models, state.inner_optimiser
    if not settings.warm:
        keys = fold_keys(task_keys(seed, state.task), 2 + state.step)
        models = heads.linears(keys, data.spaces, settings.n_classes)
        inner_optimiser = optax.adam(settings.inner_learning_rate).init(models)
    models, inner_optimiser = _fit(models, inner_optimiser, spaces, fixed, settings)

    def total(encoders: tuple[Encoder, ...]) -> tuple[Array, Array]:
        loss = objective(encoders, models, spaces, settings.entropy_weight)
        return jnp.sum(loss), loss

    gradients, loss = jax.grad(total, has_aux=True)(state.encoders)
    updates, optimiser = optax.adam(settings.learning_rate).update(gradients, state.optimiser)
    encoders = optax.apply_updates(state.encoders, updates)
    before = (state.encoders, state.optimiser, state.models, state.inner_optimiser, state.loss)
    after = (encoders, optimiser, models, inner_optimiser, loss)
    encoders, optimiser, models, inner_optimiser, loss = heads.keep(state.settled, before, after)
    seen, settled = _look(state, encoders, data, settings)
    state = State(
        state.task,
        encoders,
        optimiser,
        models,
        inner_optimiser,
        loss,
        seen,
        settled,
        state.step + 1,
    )
    return state, Info(loss)


def _look(
    state: State, encoders: tuple[Encoder, ...], data: Data, settings: Settings
) -> tuple[heads.Watch, Array]:
    """Looks at the labels of all rows every so many steps, if a search may stop early."""
    if not settings.patience:
        return state.watch, state.settled

    def look(seen: heads.Watch) -> heads.Watch:
        labels = jnp.argmax(_labels(encoders, _scaled(data.spaces))[0], axis=-1)
        return heads.watch(seen, labels.astype(jnp.int32))

    due = (state.step + 1) % settings.look == 0
    seen = jax.lax.cond(due, look, lambda seen: seen, state.watch)
    return seen, state.settled | (seen.quiet >= settings.patience)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The most probable class of every row, ``(S, m)`` int32."""
    return jnp.argmax(_labels(state.encoders, _scaled(spaces))[0], axis=-1).astype(jnp.int32)


def score(state: State, data: Data, settings: Settings) -> Array:
    """The objective of the last step, ``(S,)``."""
    del data, settings
    return state.loss


def objective(
    encoders: tuple[Encoder, ...],
    models: tuple[Linear, ...],
    spaces: tuple[Array, ...],
    entropy_weight: float,
) -> Array:
    """Eq. 12 with the linear models held constant, as in Eq. 13.

    Args:
      encoders: of S tasks, in each space.
      models: the linear models that were fitted to their labels.
      spaces: ``(n, d_i)`` rows.
      entropy_weight: gamma.

    Returns:
      ``(S,)``: cross-entropy of the models, summed over the spaces, less gamma times the entropy of
      each encoder's mean label.
    """
    labels, own = _labels(encoders, spaces)
    loss = _cross_entropy(jax.lax.stop_gradient(models), spaces, labels)
    for each in own:
        mean = jnp.mean(each, axis=1)
        loss += entropy_weight * jnp.sum(jax.scipy.special.xlogy(mean, mean), axis=-1)
    return loss


def _scaled(spaces: tuple[Array, ...]) -> tuple[Array, ...]:
    """Rows of unit norm as rows with a mean square of 1 a column."""
    return tuple(x * x.shape[1] ** 0.5 for x in spaces)


def _labels(encoders: tuple[Encoder, ...], spaces: tuple[Array, ...]) -> tuple[Array, list[Array]]:
    """Soft labels ``(S, n, K)``, and those of each encoder by itself (Eq. 9)."""
    own = []
    for encoder, x in zip(encoders, spaces, strict=True):
        w = encoder.v * (encoder.length / jnp.linalg.norm(encoder.v, axis=1))[:, None]
        own.append(jax.nn.softmax(heads.logits(Linear(w, encoder.b), x), axis=-1))
    return functools.reduce(jnp.add, own) / len(own), own


def _cross_entropy(models: tuple[Linear, ...], spaces: tuple[Array, ...], labels: Array) -> Array:
    """``(S,)``, of the mean row, summed over the spaces."""
    total = jnp.zeros(len(labels), labels.dtype)
    for model, x in zip(models, spaces, strict=True):
        log_p = jax.nn.log_softmax(heads.logits(model, x), axis=-1)
        total -= jnp.mean(jnp.sum(labels * log_p, axis=-1), axis=-1)
    return total


def _fit(
    models: tuple[Linear, ...],
    optimiser: optax.OptState,
    spaces: tuple[Array, ...],
    labels: Array,
    settings: Settings,
) -> tuple[tuple[Linear, ...], optax.OptState]:
    """A few steps of Adam on the linear models."""
    adam = optax.adam(settings.inner_learning_rate)

    def one(_: int, carry: tuple) -> tuple:
        models, optimiser = carry
        gradients = jax.grad(lambda m: jnp.sum(_cross_entropy(m, spaces, labels)))(models)
        updates, optimiser = adam.update(gradients, optimiser)
        return optax.apply_updates(models, updates), optimiser

    return jax.lax.fori_loop(0, settings.inner_steps, one, (models, optimiser))
