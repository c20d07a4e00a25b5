"""A supervised head: what a network on top of the frozen representation gets from the labels.

The ceiling beside the linear probe: the cross-entropy ``-mean_x log softmax(h(x))_y(x)`` of a
network h of one hidden layer, minimised by AdamW (Loshchilov & Hutter, ICLR 2019). The head is
trained on the true labels of nine tenths of the train rows; the pass of highest accuracy on the
other tenth is kept. What a full fine-tune would also change, the encoder below, stays as it is.

Rate and decay are AdamW's usual ones, hidden units as many as SPICE's and TEMI's heads have; passes
and batch are this project's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines import heads
from hume_jax.baselines.method import Data, Info, held_out_rows, step_key, task_keys


class Settings(NamedTuple):
    """Static under jit."""

    n_classes: int
    hidden: int = 512
    passes: int = 20
    batch: int = 256
    learning_rate: float = 1e-3  # AdamW's
    weight_decay: float = 1e-2

    @property
    def length(self) -> int:
        """Number of steps: passes over the rows."""
        return self.passes


class State(NamedTuple):
    """S heads."""

    task: Array  # (S,) int32
    trained: heads.Trained  # of heads.Mlp
    best: heads.Mlp  # of the pass of highest accuracy
    accuracy: Array  # (S,) float32, of that pass on the held-out rows
    held_out: Array  # (S, n) bool
    loss: Array  # (S,) float32, mean of the last pass
    step: Array  # () int32, passes so far


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first pass.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the heads.
      data: the rows, and their true labels.
      settings: of the method.
    """
    n, dim = data.spaces[0].shape
    keys = task_keys(seed, tasks)
    head = heads.mlp(keys, dim, settings.hidden, settings.n_classes)
    held_out = jax.vmap(lambda key: held_out_rows(key, n))(keys)
    trained = heads.Trained(head, _optimiser(settings).init(head))
    accuracy, loss = jnp.full(len(tasks), -1.0), jnp.full(len(tasks), jnp.inf)
    copy = jax.tree.map(jnp.copy, head)
    return State(tasks, trained, copy, accuracy, held_out, loss, jnp.zeros((), jnp.int32))


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One pass over the rows."""
    x, true = data.spaces[0], data.true

    def loss(head: heads.Mlp, rows: Array, _: Array) -> Array:
        log_p = jax.nn.log_softmax(heads.logits(head, x[rows]))
        picked = jnp.take_along_axis(log_p, true[rows][None, :, None], axis=-1)[..., 0]
        return -jnp.mean(picked * ~state.held_out[:, rows], axis=-1)

    key = step_key(seed, state.step)
    optimiser = _optimiser(settings)
    trained, mean = heads.train(state.trained, key, len(x), settings.batch, optimiser, loss)
    right = jnp.argmax(heads.logits(trained.params, x), axis=-1) == true[None]
    held = state.held_out
    accuracy = jnp.sum(right & held, axis=1) / jnp.maximum(jnp.sum(held, axis=1), 1)
    worse = accuracy <= state.accuracy
    best, accuracy = heads.keep(
        worse, (state.best, state.accuracy), (trained.params, accuracy.astype(jnp.float32))
    )
    state = State(state.task, trained, best, accuracy, held, mean, state.step + 1)
    return state, Info(mean)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The most probable class of every row, ``(S, m)`` int32, by the kept pass."""
    z = heads.logits(state.best, spaces[0])
    return jnp.argmax(z, axis=-1).astype(jnp.int32)


def score(state: State, data: Data, settings: Settings) -> Array:
    """Less the accuracy on the held-out rows, ``(S,)``: lowest is best."""
    del data, settings
    return -state.accuracy


def _optimiser(settings: Settings) -> optax.GradientTransformation:
    return optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
