"""What stored rows pass through on their way into the search, computed without holding them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from hume_jax.core.inner_fit import coordinates
from hume_jax.core.subsets import Changes, FirstChange, InnerChange
from hume_jax.representations import scaling
from hume_jax.representations.arrays.kept import Array, some
from hume_jax.representations.moments import Moments, moments
from hume_jax.representations.scaling import Kind, Statistics
from hume_jax.representations.store import Split


class InnerMap(NamedTuple):
    """How rows of one second space become those of the inner fit."""

    statistics: Statistics
    basis: np.ndarray | None  # (d2 + 1, r) float32, None for no change of coordinates
    penalty: np.ndarray  # (r,) float32
    kept: float  # share of the variance in the directions kept
    dropped: int  # directions without variance, or beyond those asked for


class Prepared(NamedTuple):
    """The maps of all files of the searched rows."""

    phi1: tuple[Statistics, ...]
    spaces: tuple[InnerMap, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Coordinates of the inner fit in each second space."""
        return tuple(len(space.penalty) for space in self.spaces)


def first_space(
    splits: Sequence[Split], kind: Kind, done: Callable[[int], None] = lambda rows: None
) -> tuple[tuple[Statistics, ...], list[str]]:
    """Statistics of every file of phi1.

    Args:
      splits: the searched ones.
      kind: `rows` (centre, unit norm) or `stored`.
      done: called with the number of rows read since the last call.

    Returns:
      The statistics, and warnings about rows that equal the mean.

    Raises:
      UserError: more than 1 % of the rows do.
    """
    found, warnings = [], []
    for j, arrays in enumerate(zip(*(split.phi1.arrays for split in splits), strict=True)):
        if kind == "stored":
            found.append(scaling.statistics(arrays, kind=kind))
            continue
        read = moments(arrays, products=False, done=done)
        found.append(Statistics(read.mean.astype(np.float32), scaling.ONE))
        warnings += scaling.judge_zero_rows(
            read.zero_rows,
            sum(map(len, arrays)),
            splits[0].phi1.paths[j],
            scaling.ZERO_ONCE_CENTRED,
        )
    return tuple(found), warnings


def second_space(
    arrays: Sequence[Array],
    *,
    normalised: bool,
    precondition: bool,
    directions: int,
    penalty: float,
    floor: float = 0.0,
    sample: int | None = None,
    done: Callable[[int], None] = lambda rows: None,
) -> InnerMap:
    """The map of one second space; arguments as of `prepare.inner_rows`.

    The rows are read once, or not at all if they are to stay as they are.

    Args:
      arrays: the searched rows, (n_i, d2) each, stacked by rows.
      normalised: whether to centre and scale to unit mean squared norm.
      precondition: whether to solve in preconditioned coordinates.
      directions: leading directions kept, 0 for all.
      penalty: lambda.
      floor: directions of a variance below this many lambda are left out.
      sample: rows that mean, scale and directions are taken from, see `sampled`; None for all.
      done: called with the number of rows read since the last call.
    """
    arrays = sampled(arrays, sample)
    d2 = arrays[0].shape[1]
    stats = scaling.statistics(arrays, kind="stored")
    gram = np.eye(d2 + 1)
    if normalised or precondition:
        found = moments(arrays, products=precondition, done=done)
        if normalised:
            scale = found.squares**-0.5 if found.squares > 0 else 1.0
            stats = Statistics(found.mean.astype(np.float32), np.asarray(scale, np.float32))
        gram = _gram(found, stats)
    change = coordinates(
        gram, penalty, precondition=precondition, directions=directions, floor=floor
    )
    return InnerMap(
        stats,
        change.basis.astype(np.float32) if precondition else None,
        change.penalty.astype(np.float32),
        change.kept,
        d2 + 1 - len(change.penalty),
    )


def sampled(arrays: Sequence[Array], most: int | None) -> Sequence[Array]:
    """At most so many rows of stacked arrays, spread evenly over them; all where there are fewer.

    Args:
      arrays: (n_i, d) each.
      most: rows, None for all.
    """
    n = sum(map(len, arrays))
    if most is None or n <= most:
        return arrays
    numbers = np.arange(most) * n // most
    found: list[Array] = []
    start = 0
    for array in arrays:
        own = numbers[(numbers >= start) & (numbers < start + len(array))] - start
        found.append(some(array, own))
        start += len(array)
    return found


def _gram(found: Moments, stats: Statistics) -> np.ndarray:
    """Mean of ``[x, 1]^T [x, 1]`` over the rows ``x = (phi2 - mean) scale``, float64."""
    size = len(found.mean) + 1
    if found.gram is None:
        return np.eye(size)
    mean = (found.mean - stats.mean) * stats.scale
    gram = np.empty((size, size))
    gram[:-1, :-1] = found.gram * float(stats.scale) ** 2 + np.outer(mean, mean)
    gram[:-1, -1] = gram[-1, :-1] = mean
    gram[-1, -1] = 1
    return gram


def changes(prepared: Prepared, kind: Kind) -> Changes:
    """The maps as the search's programs take them.

    Args:
      prepared: of the searched rows.
      kind: of phi1, `rows` or `stored`.
    """
    first = None
    if kind == "rows":
        means = tuple(jnp.asarray(stats.mean) for stats in prepared.phi1)
        first = FirstChange(means, jnp.float32(scaling.ROUNDING))
    return Changes(first, tuple(map(_change, prepared.spaces)))


def _change(space: InnerMap) -> InnerChange:
    return InnerChange(
        jnp.asarray(space.statistics.mean),
        jnp.asarray(space.statistics.scale),
        None if space.basis is None else jnp.asarray(space.basis),
        jnp.asarray(space.penalty),
    )


def to_arrays(prepared: Prepared) -> dict[str, np.ndarray]:
    """The maps as named arrays, for an .npz file."""
    arrays = {f"phi1_{j}_mean": stats.mean for j, stats in enumerate(prepared.phi1)}
    for i, space in enumerate(prepared.spaces):
        named = {
            "mean": space.statistics.mean,
            "scale": space.statistics.scale,
            "penalty": space.penalty,
            "kept": np.asarray(space.kept),
            "dropped": np.asarray(space.dropped),
        }
        if space.basis is not None:
            named["basis"] = space.basis
        arrays |= {f"phi2_{i}_{name}": value for name, value in named.items()}
    return arrays


def from_arrays(arrays: Mapping[str, Any]) -> Prepared:
    """The inverse of `to_arrays`."""

    def files(space: str) -> range:
        return range(sum(name.startswith(space) and name.endswith("_mean") for name in arrays))

    def inner_map(i: int) -> InnerMap:
        start = f"phi2_{i}_"
        return InnerMap(
            Statistics(arrays[f"{start}mean"], arrays[f"{start}scale"]),
            arrays.get(f"{start}basis"),
            arrays[f"{start}penalty"],
            float(arrays[f"{start}kept"]),
            int(arrays[f"{start}dropped"]),
        )

    return Prepared(
        tuple(Statistics(arrays[f"phi1_{j}_mean"], scaling.ONE) for j in files("phi1")),
        tuple(inner_map(i) for i in files("phi2")),
    )
