"""Solvers of the inner problem (Eq. 5) and of linear systems, of a fixed number of steps.

The number of steps may be traced, so that another number is no other program, and every device
runs the same one.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# Root mean square of what a step of `newton` adds to a class's logits, as far as columns do not
# depend on each other, at most: float32 has no probability that is left by so much.
_FARTHEST = 100.0


class Solution(NamedTuple):
    """Where a solver has ended."""

    w: Array  # (K, r)
    residual: Array  # () norm of the gradient that the last step was taken from; inf without steps
    logits: Array | None  # (K, n) at w; None where the solver does not know them


class _Iterate(NamedTuple):
    w: Array  # (K, r) current point
    other: Array  # nesterov: (K, r) extrapolated point; newton: (K, n) logits at w
    number: Array  # () nesterov: its sequence; newton: the loss at w
    residual: Array  # () norm of the last gradient seen


# --------------------------------------------------------------------------- the inner problem


def gradient(w: Array, x: Array, y: Array, penalty: Array) -> Array:
    """Gradient ``(K, r)`` of the inner problem's loss in ``w``: two products. Its root is W*."""
    return gradient_at(jax.nn.softmax(w @ x.T, axis=0), w, x, y, penalty)


def gradient_at(p: Array, w: Array, x: Array, y: Array, penalty: Array) -> Array:
    """`gradient` where the probabilities ``(K, n)`` at ``w`` are known: one product."""
    return (p - y) @ x / x.shape[0] + penalty[None] * w


def curvature_diagonal(p: Array, x: Array, penalty: Array) -> Array:
    """``(K, r)`` diagonal of the inner Hessian, were confidence and position independent.

    Confident classes have little curvature, which the penalty's then stands out against.
    """
    scale = _mean_squares(x)
    curvature = jnp.mean(p * (1 - p), axis=1)[:, None] * scale[None] + penalty[None]
    # Without a penalty nothing else is left of classes that are certain of every row.
    rounding = jnp.finfo(x.dtype)
    return jnp.maximum(curvature, rounding.eps * jnp.mean(scale) + rounding.tiny)


def _mean_squares(x: Array) -> Array:
    """``(r,)``, of each coordinate; shared by all classes and tasks."""
    return jnp.mean(x**2, axis=0)


def minimise(
    start: Array,
    x: Array,
    y: Array,
    penalty: Array,
    step: Array | float,
    *,
    steps: int | Array,
    solver: str = "nesterov",
    newton_steps: int | Array = 6,
    lengths: int = 3,
    tolerance: float = 0.0,
    differentiable: bool = False,
) -> Solution:
    """A fixed number of steps on `inner_fit.loss`.

    * ``newton``: each step solves the Newton system by ``newton_steps`` of conjugate gradient and
      takes the longest of a few fixed lengths that does not raise the loss; logits are linear in
      the length, so that costs no product. At equal products it comes far closer to the solution
      than ``nesterov`` once the labels are nearly hard. It begins at zero where that is better than
      the start given, such as the solution of labels that are no more.
    * ``nesterov``: accelerated gradient steps; the momentum restarts where it points uphill
      (O'Donoghue & Candes 2015).
    * ``gradient``: plain gradient steps.

    Args:
      start: ``(K, r)`` first point.
      x: ``(n, r)``.
      y: ``(K, n)``.
      penalty: ``(r,)``.
      step: step size of ``nesterov`` and ``gradient``.
      steps: number of steps; may be traced unless ``differentiable``.
      solver: 'newton', 'nesterov' or 'gradient'.
      newton_steps: conjugate-gradient steps in each step of ``newton``; may be traced.
      lengths: number of lengths of a step of ``newton`` to choose from: 1, 1/3, 1/9, ...
      tolerance: above 0, stop once the residual is below it; for scores, not for the search.
      differentiable: unroll through a checkpointed ``scan`` that reverse mode can pass.
    """
    if solver == "newton":
        first = _newton_start(start, x, y, penalty)
        body = functools.partial(
            _newton, x=x, y=y, penalty=penalty, steps=newton_steps, lengths=lengths
        )
    elif solver in ("nesterov", "gradient"):
        first = _Iterate(start, start, jnp.ones((), x.dtype), jnp.full((), jnp.inf, x.dtype))
        momentum = solver == "nesterov"
        body = functools.partial(_descend, x=x, y=y, penalty=penalty, step=step, momentum=momentum)
    else:
        raise ValueError(f"solver: {solver!r} is not newton, nesterov or gradient")
    if differentiable:
        remat = jax.checkpoint(body)
        last, _ = jax.lax.scan(lambda it, _: (remat(it), None), first, length=int(steps))
    elif tolerance > 0:
        _, last = jax.lax.while_loop(
            lambda carry: (carry[0] < steps) & (carry[1].residual > tolerance),
            lambda carry: (carry[0] + 1, body(carry[1])),
            (jnp.zeros((), jnp.int32), first),
        )
    else:
        last = jax.lax.fori_loop(0, steps, lambda _, it: body(it), first)
    return Solution(last.w, last.residual, last.other if solver == "newton" else None)


def _descend(
    it: _Iterate, *, x: Array, y: Array, penalty: Array, step: Array | float, momentum: bool
) -> _Iterate:
    """One gradient step, from the extrapolated point if there is momentum."""
    g = gradient(it.other, x, y, penalty)
    w = it.other - step * g
    if not momentum:
        return _Iterate(w, w, it.number, jnp.linalg.norm(g))
    uphill = jnp.sum(g * (w - it.w)) > 0
    t = jnp.where(uphill, 1.0, it.number).astype(it.number.dtype)
    t_next = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    ahead = w + (t - 1) / t_next * (w - it.w)
    return _Iterate(w, ahead, t_next, jnp.linalg.norm(g))


def _newton_start(start: Array, x: Array, y: Array, penalty: Array) -> _Iterate:
    """The start given, or zero where that has the lower loss. One product."""
    logits = start @ x.T
    loss = _loss_at(start, logits, y, penalty)
    zero = jnp.log(jnp.asarray(y.shape[0], x.dtype))
    kept = loss <= zero
    return _Iterate(
        jnp.where(kept, start, 0),
        jnp.where(kept, logits, 0),
        jnp.where(kept, loss, zero),
        jnp.full((), jnp.inf, x.dtype),
    )


def _newton(
    it: _Iterate, *, x: Array, y: Array, penalty: Array, steps: int | Array, lengths: int
) -> _Iterate:
    """One Newton step: two products and two more for each conjugate-gradient step."""
    p = jax.nn.softmax(it.other, axis=0)
    g = gradient_at(p, it.w, x, y, penalty)
    product = functools.partial(hessian_product, p=p, x=x, penalty=penalty)
    d, _ = conjugate_gradient(product, -g, steps, curvature_diagonal(p, x, penalty))
    d = _held(d, x)
    dz = d @ x.T
    # Where rounding decides, the full step is taken.
    bound = it.number + 1e-6 * jnp.abs(it.number)
    choices = [3.0**-power for power in reversed(range(lengths))]
    losses = [_loss_at(it.w + a * d, it.other + a * dz, y, penalty) for a in choices]
    length, loss = jnp.asarray(choices[0], x.dtype), losses[0]
    for longer, value in zip(choices[1:], losses[1:], strict=True):
        length = jnp.where(value <= bound, jnp.asarray(longer, x.dtype), length)
        loss = jnp.where(value <= bound, value, loss)
    return _Iterate(it.w + length * d, it.other + length * dz, loss, jnp.linalg.norm(g))


def _held(d: Array, x: Array) -> Array:
    """A step, no longer than labels can ask for: without a penalty nothing else may bound it."""
    size = jnp.max(jnp.sum(d**2 * _mean_squares(x)[None], axis=1))
    return d * jnp.sqrt(_FARTHEST**2 / jnp.maximum(size, _FARTHEST**2))


def hessian_product(v: Array, p: Array, x: Array, penalty: Array) -> Array:
    """The inner Hessian's product with ``v`` ``(K, r)``, at probabilities ``(K, n)``."""
    q = v @ x.T
    return (p * (q - jnp.sum(p * q, axis=0, keepdims=True))) @ x / x.shape[0] + penalty[None] * v


def _loss_at(w: Array, logits: Array, y: Array, penalty: Array) -> Array:
    """`inner_fit.loss` where the logits are known."""
    ce = jnp.mean(jax.nn.logsumexp(logits, axis=0) - jnp.sum(y * logits, axis=0))
    return ce + 0.5 * jnp.sum(penalty[None] * w**2)


# --------------------------------------------------------------------------- linear systems


class Left(NamedTuple):
    """What conjugate gradient leaves of its system: norms of residuals, relative."""

    after: Array  # () after the last step
    before: Array  # () before it


def conjugate_gradient(
    product: Callable[[Array], Array],
    b: Array,
    steps: int | Array,
    diagonal: Array | None = None,
) -> tuple[Array, Left]:
    """A fixed number of conjugate-gradient steps on ``product(u) = b`` from zero.

    Every device runs the same number of steps; once the residual is rounding they change nothing.

    Args:
      product: a symmetric, positive definite linear map.
      b: right-hand side.
      steps: number of steps; may be traced.
      diagonal: preconditioner, positive, of the shape of ``b``; ones by default.

    Returns:
      ``u`` and what is `Left`, relative to the norm of ``b``.
    """

    def precondition(r: Array) -> Array:
        return r if diagonal is None else r / diagonal

    def body(_: int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        u, r, p, rz = carry[:4]
        hp = product(p)
        curvature = jnp.sum(p * hp)
        going = (rz > least) & (curvature > 0)
        alpha = jnp.where(going, rz / jnp.where(going, curvature, 1), 0)
        before = jnp.sum(r * r)
        u, r = u + alpha * p, r - alpha * hp
        z = precondition(r)
        rz_next = jnp.sum(r * z)
        beta = jnp.where(going, rz_next / jnp.where(going, rz, 1), 0)
        return u, r, z + beta * p, rz_next, before

    # Of unit norm, so that no square of what is small is zero; the derivative does not know it.
    norm = jax.lax.stop_gradient(jnp.linalg.norm(b))
    b = b / jnp.where(norm > 0, norm, 1)
    z = precondition(b)
    rz = jnp.sum(b * z)
    # Below it there is rounding alone, and nothing to divide by on the way back.
    least = jax.lax.stop_gradient(jnp.finfo(b.dtype).eps ** 2 * rz)
    first = (jnp.zeros_like(b), b, z, rz, jnp.ones_like(norm))
    u, r, _, _, before = jax.lax.fori_loop(0, steps, body, first)
    return norm * u, Left(jnp.linalg.norm(r), jnp.sqrt(before))
