"""The random subset that a step looks at: which rows of which shard, and the rows themselves.

The rows come from `Data`, which holds all of them as the algorithm reads them, or from `Gathered`,
which holds one subset as files do: `Changes` says how the one becomes the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hume_jax.core import inner_fit
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.objective import InnerSpace, Subset

# What rows in memory are held as. Of bfloat16 the bits: programs for a CPU would make float32 of
# all rows before they pick some.
HELD = {"float32": jnp.dtype(jnp.float32), "bfloat16": jnp.dtype(jnp.uint16)}


class Rows(NamedTuple):
    """One second representation, dealt to virtual shards, in the coordinates of the inner fit."""

    x: Array  # (V, m, r) float32
    penalty: Array  # (r,) float32


class Data(NamedTuple):
    """The search rows. Row ``i`` of the dataset is row ``i // V`` of virtual shard ``i % V``."""

    phi1: Array  # (V, m, d1) float32, unit norm
    spaces: tuple[Rows, ...]
    counts: Array  # (V,) int32, rows present in each shard; the rest is padding


class Gathered(NamedTuple):
    """One subset as it is stored, with the train rows of each shard before its test rows."""

    phi1: tuple[Array, ...]  # (V, rows of a shard, d_j) floating, for each file
    phi2: tuple[Array, ...]  # (V, rows of a shard, d2) floating, for each second space


class FirstChange(NamedTuple):
    """How stored rows of phi1 become rows of unit norm."""

    means: tuple[Array, ...]  # (d_j,) float32, for each file
    # () float32: a centred row at most this long, against the row and the mean, counts as zero.
    rounding: Array


class InnerChange(NamedTuple):
    """How stored rows become those of the inner fit, ``[(phi2 - mean) scale, 1] @ basis``."""

    mean: Array  # (d2,) float32
    scale: Array  # () float32
    basis: Array | None  # (d2 + 1, r) float32; None: no change of coordinates
    penalty: Array  # (r,) float32


class Changes(NamedTuple):
    """From stored rows to those of `Data`."""

    phi1: FirstChange | None  # None: as stored
    spaces: tuple[InnerChange, ...]


def make_data(
    phi1: np.ndarray, spaces: Sequence[tuple[np.ndarray, np.ndarray]], shards: int
) -> Data:
    """Deals the search rows to virtual shards.

    Args:
      phi1: ``(n, d1)`` float32, unit norm.
      spaces: ``(x, penalty)`` of each second space, ``(n, r)`` and ``(r,)`` float32.
      shards: V.
    """
    return Data(
        jnp.asarray(deal(phi1, shards)),
        tuple(Rows(jnp.asarray(deal(x, shards)), jnp.asarray(p)) for x, p in spaces),
        jnp.asarray(shard_counts(len(phi1), shards)),
    )


def deal(rows: np.ndarray, shards: int) -> np.ndarray:
    """Deals rows to virtual shards: ``(n, d)`` to ``(V, ceil(n / V), d)``, padded with zeros.

    Neighbours go to different shards, so a dataset stored class by class gives the same subsets,
    up to chance, as a shuffled one.
    """
    n, dim = rows.shape
    dealt = np.zeros((shards, -(-n // shards), dim), rows.dtype)
    for shard in range(shards):
        part = rows[shard::shards]
        dealt[shard, : len(part)] = part
    return dealt


def shard_counts(n: int, shards: int) -> np.ndarray:
    """Rows of each virtual shard that are no padding, ``(V,)`` int32."""
    return np.array([len(range(shard, n, shards)) for shard in range(shards)], np.int32)


def draw(key: Array, counts: Array, depth: int, size: int) -> Array:
    """Draws the rows of a subset: from every virtual shard the same number, without padding.

    What is drawn from a shard depends on the key and the shard's number only, so the subset does
    not depend on the number of devices or hosts the shards lie on, nor on where the rows are read.

    Args:
      key: of the subset.
      counts: ``(V,)`` rows present in each shard.
      depth: rows of a shard, padding included.
      size: rows to draw from each.

    Returns:
      ``(V, size)`` int32 row numbers within each shard, in random order.
    """

    def order(shard: Array, count: Array) -> Array:
        chance = jax.random.uniform(jax.random.fold_in(key, shard), (depth,), jnp.float32)
        ranking = jnp.argsort(jnp.where(jnp.arange(depth) < count, chance, 2.0))
        return ranking[:size]

    return jax.vmap(order)(jnp.arange(len(counts)), counts)


def take(data: Data, rows: Array, train: int, settings: InnerFit) -> Subset:
    """The subset of the rows drawn.

    Args:
      data: the search rows.
      rows: ``(V, rows of a shard)`` numbers within each shard.
      train: how many of each shard's the inner model is fitted on; it is judged on the others.
      settings: of the inner fit.
    """

    def part(x: Array, index: Array) -> Array:
        picked = jax.vmap(lambda a, i: a[i])(x, index).reshape(-1, x.shape[-1])
        if picked.dtype == HELD["bfloat16"]:
            picked = jax.lax.bitcast_convert_type(picked, jnp.bfloat16)
        return picked.astype(computed(x.dtype))

    fitted, judged = rows[:, :train], rows[:, train:]
    spaces = tuple(
        _inner_space(part(space.x, fitted), part(space.x, judged), space.penalty, settings)
        for space in data.spaces
    )
    return Subset(part(data.phi1, fitted), part(data.phi1, judged), spaces)


def changed(gathered: Gathered, changes: Changes) -> tuple[Array, ...]:
    """Stored rows of shards as those of `Data`: of phi1, then of each second space, (V, m, width).

    Args:
      gathered: the rows.
      changes: what they pass through.
    """
    shape = gathered.phi1[0].shape[:2]
    first = _first_rows([_flat(x) for x in gathered.phi1], changes.phi1)
    inner = [
        _inner_rows(_flat(x), how) for x, how in zip(gathered.phi2, changes.spaces, strict=True)
    ]
    return tuple(rows.reshape(*shape, -1) for rows in (first, *inner))


def change(gathered: Gathered, changes: Changes, train: int, settings: InnerFit) -> Subset:
    """The subset of stored rows.

    Args:
      gathered: the rows.
      changes: what they pass through.
      train: how many of each shard's the inner model is fitted on; it is judged on the others.
      settings: of the inner fit.
    """
    fitted, judged = slice(None, train), slice(train, None)

    def first(rows: slice) -> Array:
        return _first_rows([_flat(x[:, rows]) for x in gathered.phi1], changes.phi1)

    def inner(x: Array, how: InnerChange) -> InnerSpace:
        train, test = (_inner_rows(_flat(x[:, rows]), how) for rows in (fitted, judged))
        return _inner_space(train, test, how.penalty, settings)

    spaces = tuple(map(inner, gathered.phi2, changes.spaces))
    return Subset(first(fitted), first(judged), spaces)


def held(x: Array, storage: str) -> Array:
    """Rows as they are held in memory.

    Args:
      x: float32, of any shape.
      storage: a key of `HELD`.
    """
    x = x.astype(storage)
    return x if x.dtype == HELD[storage] else jax.lax.bitcast_convert_type(x, HELD[storage])


def computed(held: jnp.dtype) -> jnp.dtype:
    """What rows are computed with that are held so: float32 at least."""
    return jnp.dtype(jnp.float32) if held == HELD["bfloat16"] else jnp.dtype(held)


def _flat(rows: Array) -> Array:
    """Rows of all shards, one below the other, as the algorithm computes."""
    return rows.reshape(-1, rows.shape[-1]).astype(jnp.float32)


def _first_rows(files: list[Array], how: FirstChange | None) -> Array:
    """Rows ``(n, d1)`` of phi1 from those of its files, ``(n, d_j)``."""
    if how is None:
        return jnp.concatenate(files, axis=1)
    units = [_unit(x, mean, how.rounding) for x, mean in zip(files, how.means, strict=True)]
    return units[0] if len(units) == 1 else jnp.concatenate(units, axis=1) * len(units) ** -0.5


def _unit(rows: Array, mean: Array, rounding: Array) -> Array:
    """Centred rows of unit norm; a row that equals the mean but for rounding becomes zero."""
    centred = rows - mean[None]
    norms = jnp.linalg.norm(centred, axis=1, keepdims=True)
    sizes = jnp.linalg.norm(rows, axis=1, keepdims=True) + jnp.linalg.norm(mean)
    zero = norms <= rounding * sizes
    return jnp.where(zero, 0, centred / jnp.where(zero, 1, norms))


def _inner_rows(x: Array, how: InnerChange) -> Array:
    """Rows ``(n, r)`` of the inner fit from stored ones, ``(n, d2)``."""
    x = (x - how.mean[None]) * how.scale
    if how.basis is None:
        return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)
    return x @ how.basis[:-1] + how.basis[-1:]


def _inner_space(train: Array, test: Array, penalty: Array, settings: InnerFit) -> InnerSpace:
    if settings.step_size or settings.solver == "newton":  # Newton's steps have no size.
        step = jnp.asarray(settings.step_size, train.dtype)
    else:
        step = 2 / inner_fit.largest_curvature(train, penalty)
    return InnerSpace(train, test, penalty, step)
