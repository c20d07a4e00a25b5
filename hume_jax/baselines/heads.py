"""Heads on frozen features, S at a time: what the methods of deep clustering train here.

`train` is one pass over the rows by batches, in a new order that all heads share; its loss is the
mean over the batches. It is the step of SCAN, TWIST, Self-classifier and the supervised head, and
what SPICE's turns and passes are made of.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines.method import fold_keys

# Parameters of S heads: a tree whose leaves begin with S.
Params = Any


class Linear(NamedTuple):
    """A linear head of each task."""

    w: Array  # (S, d, K) float32
    b: Array  # (S, K) float32


class Mlp(NamedTuple):
    """A head of one hidden layer of each task."""

    first: Linear  # d to h
    last: Linear  # h to K


class Trained(NamedTuple):
    """What is carried from pass to pass."""

    params: Params
    optimiser: optax.OptState


def linear(keys: Array, dim: int, outputs: int) -> Linear:
    """Linear heads U(+-1/sqrt(d)), as PyTorch starts them.

    Args:
      keys: ``(S,)``.
      dim: d.
      outputs: K.
    """

    def one(key: Array) -> Linear:
        w, b = jax.random.split(key)
        bound = dim**-0.5
        return Linear(
            jax.random.uniform(w, (dim, outputs), jnp.float32, -bound, bound),
            jax.random.uniform(b, (outputs,), jnp.float32, -bound, bound),
        )

    return jax.vmap(one)(keys)


def linears(keys: Array, spaces: tuple[Array, ...], outputs: int) -> tuple[Linear, ...]:
    """A linear head of each task in each space, as `linear` starts them.

    Args:
      keys: ``(S,)``.
      spaces: ``(n, d_i)`` each.
      outputs: K.
    """
    return tuple(linear(fold_keys(keys, i), x.shape[1], outputs) for i, x in enumerate(spaces))


def mlp(keys: Array, dim: int, hidden: int, outputs: int) -> Mlp:
    """Heads of one hidden layer, started as `linear` ones.

    Args:
      keys: ``(S,)``.
      dim: d.
      hidden: h.
      outputs: K.
    """
    first, last = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    return Mlp(linear(first, dim, hidden), linear(last, hidden, outputs))


def logits(head: Linear | Mlp, x: Array) -> Array:
    """Logits ``(S, n, K)`` of rows, the same ``(n, d)`` for all heads or ``(S, n, d)``."""
    if isinstance(head, Mlp):
        return logits(head.last, jax.nn.relu(logits(head.first, x)))
    product = "nd,sdk->snk" if x.ndim == 2 else "snd,sdk->snk"
    return jnp.einsum(product, x, head.w) + head.b[:, None]


def batches(key: Array, n: int, size: int) -> Array:
    """All rows in a random order, ``(n // size, size)`` int32; those left over wait.

    Args:
      key: of the pass.
      n: number of rows.
      size: rows of a batch; fewer where there are fewer rows.
    """
    size = min(size, n)
    order = jax.random.permutation(key, n)[: n // size * size]
    return order.reshape(-1, size).astype(jnp.int32)


def random_neighbours(key: Array, rows: Array, near: Array) -> Array:
    """A neighbour of each row, drawn with equal chances.

    Args:
      key: of the draw.
      rows: int32 numbers of rows, of any shape.
      near: ``(n, k)`` int32 neighbours of all rows.

    Returns:
      int32 numbers of rows, of the shape of ``rows``.
    """
    return near[rows, jax.random.randint(key, rows.shape, 0, near.shape[1])]


def train(
    trained: Trained,
    key: Array,
    n: int,
    size: int,
    optimiser: optax.GradientTransformation,
    loss: Callable[[Params, Array, Array], Array],
) -> tuple[Trained, Array]:
    """One pass over the rows.

    Args:
      trained: parameters before.
      key: of the pass.
      n: number of rows.
      size: rows of a batch.
      optimiser: element by element, so that the heads do not touch each other.
      loss: of parameters, rows ``(size,)`` and a key: ``(S,)``.

    Returns:
      What was trained, and the mean loss over the batches, ``(S,)``.
    """

    def one(carry: Trained, rows_and_key: tuple[Array, Array]) -> tuple[Trained, Array]:
        rows, batch_key = rows_and_key

        def total(params: Params) -> tuple[Array, Array]:
            each = loss(params, rows, batch_key)
            return jnp.sum(each), each

        gradients, each = jax.grad(total, has_aux=True)(carry.params)
        updates, state = optimiser.update(gradients, carry.optimiser, carry.params)
        return Trained(optax.apply_updates(carry.params, updates), state), each

    order_key, loss_key = jax.random.split(key)
    rows = batches(order_key, n, size)
    keys = jax.random.split(loss_key, len(rows))
    trained, losses = jax.lax.scan(one, trained, (rows, keys))
    return trained, jnp.mean(losses, axis=0)


class Watch(NamedTuple):
    """Whether the labels of a head still change, which needs no true label to see."""

    labels: Array  # (S, n) int32, of the last look
    quiet: Array  # (S,) int32, looks since a noticeable change


# A change of labels is noticed if it is one of this share of the rows.
_NOTICED = 1e-3


def unwatched(tasks: int, n: int) -> Watch:
    """Before the first look."""
    return Watch(jnp.full((tasks, n), -1, jnp.int32), jnp.zeros(tasks, jnp.int32))


def watch(seen: Watch, labels: Array) -> Watch:
    """One look at labels ``(S, n)`` int32."""
    same = jnp.mean(labels != seen.labels, axis=1) < _NOTICED
    return Watch(labels, jnp.where(same, seen.quiet + 1, 0))


def keep(settled: Array, before: Any, after: Any) -> Any:
    """What heads go on with: those that have settled stay what they are.

    Args:
      settled: ``(S,)`` bool.
      before: a tree; leaves that begin with S belong to the heads one by one.
      after: the same after a step.
    """

    def one(old: Array, new: Array) -> Array:
        if new.ndim == 0 or new.shape[0] != len(settled):
            return new
        return jnp.where(settled.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    return jax.tree.map(one, before, after)
