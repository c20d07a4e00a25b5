"""How many steps the inner fit and its adjoint take: as many as what they leave asks for."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

# A count at most doubles from one outer step to the next.
_GROWTH = 2.0
# The colder the labels, the fewer rows their derivative is taken at, and the less evens out what
# the adjoint leaves. Below this temperature it may leave less, by which the hypergradient's cosine
# stays as it is (docs/measurements.md).
_WARM = 0.5


class Effort(NamedTuple):
    """Numbers of steps, int32: () each, or (G,) in a state of G seeds, whose tasks share them."""

    steps: Array  # of the solver
    newton_steps: Array  # conjugate-gradient steps in each step of 'newton'
    adjoint_steps: Array  # conjugate-gradient steps of the implicit adjoint

    @classmethod
    def of(cls, steps: int, newton_steps: int, adjoint_steps: int) -> Self:
        """Counts that do not change."""
        return cls(*(jnp.asarray(c, jnp.int32) for c in (steps, newton_steps, adjoint_steps)))


def adjoint_tolerance(tolerance: float, temperature: Array) -> Array:
    """What the implicit adjoint may leave, relative, at a temperature T of the labels (Eq. 3).

    Args:
      tolerance: what the inner fit may leave.
      temperature: ``()``.

    Returns:
      ``()``, ``tolerance min(T / 0.5, 1)``.
    """
    return tolerance * jnp.minimum(temperature / _WARM, 1)


def adjust(count: Array, after: Array, before: Array, tolerance: float | Array, most: int) -> Array:
    """The number of steps to take next, by what the last ones left.

    A residual above the tolerance asks for as many steps as bring it there at the rate seen; one
    that was below it before the last step, for one step less; for two where, at that rate, it was
    below it a step earlier still.

    Args:
      count: int32 steps taken, of any shape.
      after: ``()`` residual that they left, relative; nothing is known if it is not finite.
      before: ``()`` residual before the last of them.
      tolerance: what may be left, below 1.
      most: the most to take.

    Returns:
      int32, from 1 to ``most``, of the shape of the count.
    """
    growth = jnp.log(tolerance) / jnp.log(jnp.clip(after, tolerance, 0.999))
    more = jnp.ceil(count * jnp.clip(growth, 1, _GROWTH)).astype(jnp.int32)
    more = jnp.maximum(more, count + 1)
    earlier = before * (before / after)
    less = jnp.where(before <= tolerance, 1, 0) + jnp.where(earlier <= tolerance, 1, 0)
    following = jnp.where(after > tolerance, more, count - less)
    return jnp.clip(following, 1, most)
