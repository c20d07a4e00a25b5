"""Inner fit (Eq. 5): a linear model on the second representation, and how gradients pass it.

``W*(theta) = argmin_W mean CE(W x, labels) + 1/2 sum_j penalty_j |W_j|^2``

How the problem is solved (`InnerFit.solver`) and how its solution is differentiated
(`InnerFit.adjoint`) are independent choices. Rows ``x`` hold a constant column already, possibly in
the preconditioned coordinates of `coordinates`.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

with warnings.catch_warnings():
    # jaxopt 0.8.5 is its last release and says so at import; this module is its only user.
    warnings.filterwarnings("ignore", message="JAXopt is no longer maintained")
    from jaxopt.implicit_diff import custom_root


class InnerFit(NamedTuple):
    """How the inner problem is solved and differentiated. Static under jit."""

    adjoint: str = "implicit"  # 'implicit' | 'unrolled' | 'first_order'
    solver: str = "newton"  # 'newton' | 'nesterov' | 'gradient'
    steps: int = 2  # steps of the solver
    newton_steps: int = 6  # conjugate-gradient steps in each step of 'newton'
    adjoint_steps: int = 10  # conjugate-gradient steps of the implicit adjoint
    step_size: float = 0.0  # 0: 2 / s with s the largest curvature, see `largest_curvature`


class Coordinates(NamedTuple):
    """A linear change of coordinates of the inner problem, ``x = [phi2, 1] @ basis``."""

    basis: np.ndarray  # (d2 + 1, r) float64
    penalty: np.ndarray  # (r,) float64, weight of each squared coefficient
    kept: float  # share of the second representation's variance in the r directions


# --------------------------------------------------------------------------- the problem


def loss(w: Array, x: Array, y: Array, penalty: Array) -> Array:
    """Objective of Eq. 5: mean cross-entropy to soft labels plus the penalty.

    Args:
      w: ``(K, r)`` weights.
      x: ``(n, r)`` rows.
      y: ``(K, n)`` soft labels, columns on the simplex.
      penalty: ``(r,)`` weight of each squared coefficient.

    Returns:
      Scalar.
    """
    return cross_entropy(w, x, y) + 0.5 * jnp.sum(penalty[None] * w**2)


def cross_entropy(w: Array, x: Array, y: Array) -> Array:
    """``mean_x CE(w x, y(x))``; shapes as in `loss`. Scalar."""
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(w @ x.T, axis=0), axis=0))


def gradient(w: Array, x: Array, y: Array, penalty: Array) -> Array:
    """Gradient ``(K, r)`` of `loss` in ``w``: two products. Its root is W*."""
    return (jax.nn.softmax(w @ x.T, axis=0) - y) @ x / x.shape[0] + penalty[None] * w


# --------------------------------------------------------------------------- conditioning


def coordinates(
    gram: np.ndarray, penalty: float, *, precondition: bool = True, directions: int = 0
) -> Coordinates:
    """Coordinates in which the inner problem on all rows is 1/2-smooth.

    The Hessian of the softmax cross-entropy is bounded by ``1/2 (gram kron I)`` (Boehning 1992).
    With ``gram = U diag(e) U^T`` the rows ``[phi2, 1] U diag(e + 2 penalty)^(-1/2)`` make that
    bound 1/2, and the penalty a diagonal weight ``penalty / (e + 2 penalty)``.

    Args:
      gram: ``(d2 + 1, d2 + 1)`` float64, mean of ``[phi2, 1]^T [phi2, 1]`` over the search rows.
      penalty: lambda of Eq. 5, on all coefficients, the constant's included.
      precondition: False keeps the coordinates as they are.
      directions: number of leading directions to keep (the constant counts as one); 0 for all.

    Returns:
      `Coordinates`. Directions without variance are left out.

    Raises:
      ValueError: if ``precondition`` is asked for with a penalty of 0, which leaves directions
        without variance unscaled and W* undefined.
    """
    size = gram.shape[0]
    if not precondition:
        return Coordinates(np.eye(size), np.full(size, float(penalty)), kept=1.0)
    if penalty <= 0:
        raise ValueError("preconditioning needs a penalty above 0")
    values, vectors = np.linalg.eigh(np.asarray(gram, np.float64))
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    rank = max(1, int(np.sum(values > 1e-12 * values[0])))
    rank = min(rank, directions) if directions else rank
    # A fixed sign makes the coordinates, and with them the search, independent of the LAPACK build.
    peak = np.argmax(np.abs(vectors), axis=0)
    vectors = vectors * np.sign(vectors[peak, np.arange(size)])
    # The constant is no part of the variance; nor is the mean, where phi2 was not centred.
    spread = gram[:-1, :-1] - np.outer(gram[:-1, -1], gram[-1, :-1])
    columns = vectors[:-1, :rank]
    kept = float(np.sum(columns * (spread @ columns)) / np.trace(spread))
    scale = values[:rank] + 2 * penalty
    return Coordinates(vectors[:, :rank] / np.sqrt(scale), penalty / scale, kept)


def largest_curvature(x: Array, penalty: Array, iterations: int = 10) -> Array:
    """An upper estimate of the largest eigenvalue ``s`` of ``x^T x / n + 2 diag(penalty)``.

    The inner Hessian is at most ``s / 2``. On a subset ``s`` exceeds the 1 of the full data, so it
    is estimated by a fixed number of Lanczos steps from a fixed start, without a host round-trip;
    power iterations of the same cost end up to a tenth lower, where the spectrum is dense at its
    edge.

    Args:
      x: ``(n, r)`` rows.
      penalty: ``(r,)``.
      iterations: Lanczos steps, two products with a vector each.

    Returns:
      Scalar, the largest Ritz value times a safety factor of 1.05.
    """
    count = min(iterations, x.shape[1])

    def product(v: Array) -> Array:
        return (x @ v) @ x / x.shape[0] + 2 * penalty * v

    def extend(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, images, v = carry
        # Orthogonal to all directions before it, twice, for float32; zero once they are exhausted.
        for _ in range(2):
            v = v - (basis @ v) @ basis
        norm = jnp.linalg.norm(v)
        v = jnp.where(norm > 0, v / jnp.where(norm > 0, norm, 1), 0)
        image = product(v)
        return basis.at[j].set(v), images.at[j].set(image), image

    start = jax.random.normal(jax.random.key(0), (x.shape[1],), x.dtype)
    empty = jnp.zeros((count, x.shape[1]), x.dtype)
    basis, images, _ = jax.lax.fori_loop(0, count, extend, (empty, empty, start))
    ritz = basis @ images.T
    return 1.05 * jnp.linalg.eigvalsh((ritz + ritz.T) / 2)[-1]


# --------------------------------------------------------------------------- solvers


class _Iterate(NamedTuple):
    w: Array  # (K, r) current point
    other: Array  # nesterov: (K, r) extrapolated point; newton: (K, n) logits at w
    t: Array  # () Nesterov's sequence
    residual: Array  # () norm of the last gradient seen


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
) -> tuple[Array, Array]:
    """A fixed number of steps on `loss`.

    * ``newton``: each step solves the Newton system by ``newton_steps`` of conjugate gradient and
      takes the longest of a few fixed lengths that does not raise the loss; logits are linear in
      the length, so that costs no product. At equal products it comes far closer to the solution
      than ``nesterov`` once the labels are nearly hard.
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
      newton_steps: conjugate-gradient steps in each step of ``newton``.
      lengths: number of lengths of a step of ``newton`` to choose from: 1, 1/3, 1/9, ...
      tolerance: above 0, stop once the residual is below it; for scores, not for the search.
      differentiable: unroll through a checkpointed ``scan`` that reverse mode can pass.

    Returns:
      ``(w, residual)``: the last point and the norm of the last gradient evaluated.
    """
    first = _Iterate(start, start, jnp.ones((), x.dtype), jnp.full((), jnp.inf, x.dtype))
    if solver == "newton":
        # Curvature of each coordinate, shared by all classes and tasks.
        scale = jnp.mean(x**2, axis=0)
        first = first._replace(other=start @ x.T)
        body = functools.partial(
            _newton,
            x=x,
            y=y,
            penalty=penalty,
            scale=scale,
            steps=newton_steps,
            lengths=lengths,
        )
    elif solver in ("nesterov", "gradient"):
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
    return last.w, last.residual


def _descend(
    it: _Iterate, *, x: Array, y: Array, penalty: Array, step: Array | float, momentum: bool
) -> _Iterate:
    """One gradient step, from the extrapolated point if there is momentum."""
    g = gradient(it.other, x, y, penalty)
    w = it.other - step * g
    if not momentum:
        return _Iterate(w, w, it.t, jnp.linalg.norm(g))
    uphill = jnp.sum(g * (w - it.w)) > 0
    t = jnp.where(uphill, 1.0, it.t).astype(it.t.dtype)
    t_next = (1 + jnp.sqrt(1 + 4 * t**2)) / 2
    ahead = w + (t - 1) / t_next * (w - it.w)
    return _Iterate(w, ahead, t_next, jnp.linalg.norm(g))


def _newton(
    it: _Iterate,
    *,
    x: Array,
    y: Array,
    penalty: Array,
    scale: Array,
    steps: int | Array,
    lengths: int,
) -> _Iterate:
    """One Newton step: two products and two more for each conjugate-gradient step."""
    n = x.shape[0]
    p = jax.nn.softmax(it.other, axis=0)
    g = (p - y) @ x / n + penalty[None] * it.w

    def hessian(v: Array) -> Array:
        q = v @ x.T
        return (p * (q - jnp.sum(p * q, axis=0, keepdims=True))) @ x / n + penalty[None] * v

    # The Hessian's diagonal, were confidence and position independent. Confident classes have
    # little curvature, which the penalty's then stands out against.
    diagonal = jnp.mean(p * (1 - p), axis=1)[:, None] * scale[None] + penalty[None]
    d, _ = conjugate_gradient(hessian, -g, steps, diagonal)
    dz = d @ x.T

    def value(length: float) -> Array:
        z, w = it.other + length * dz, it.w + length * d
        ce = jnp.mean(jax.nn.logsumexp(z, axis=0) - jnp.sum(y * z, axis=0))
        return ce + 0.5 * jnp.sum(penalty[None] * w**2)

    now = value(0.0)
    # Where rounding decides, the full step is taken.
    bound = now + 1e-6 * jnp.abs(now)
    length = jnp.asarray(3.0 ** (1 - lengths), x.dtype)
    for power in range(2 - lengths, 1):
        length = jnp.where(value(3.0**power) <= bound, jnp.asarray(3.0**power, x.dtype), length)
    return _Iterate(it.w + length * d, it.other + length * dz, it.t, jnp.linalg.norm(g))


def conjugate_gradient(
    product: Callable[[Array], Array],
    b: Array,
    steps: int | Array,
    diagonal: Array | None = None,
) -> tuple[Array, Array]:
    """A fixed number of conjugate-gradient steps on ``product(u) = b`` from zero.

    Every device runs the same number of steps; once the residual is zero they change nothing.

    Args:
      product: a symmetric, positive definite linear map.
      b: right-hand side.
      steps: number of steps.
      diagonal: preconditioner, positive, of the shape of ``b``; ones by default.

    Returns:
      ``(u, residual)`` with the residual's norm relative to ``b``'s.
    """

    def precondition(r: Array) -> Array:
        return r if diagonal is None else r / diagonal

    def body(_: int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        u, r, p, rz = carry
        hp = product(p)
        curvature = jnp.sum(p * hp)
        alpha = jnp.where(curvature > 0, rz / jnp.where(curvature > 0, curvature, 1), 0)
        u, r = u + alpha * p, r - alpha * hp
        z = precondition(r)
        rz_next = jnp.sum(r * z)
        beta = jnp.where(rz > 0, rz_next / jnp.where(rz > 0, rz, 1), 0)
        return u, r, z + beta * p, rz_next

    z = precondition(b)
    u, r, _, _ = jax.lax.fori_loop(0, steps, body, (jnp.zeros_like(b), b, z, jnp.sum(b * z)))
    bb = jnp.sum(b * b)
    return u, jnp.sqrt(jnp.sum(r * r) / jnp.where(bb > 0, bb, 1))


# --------------------------------------------------------------------------- solution and adjoint


def fit(
    y: Array,
    x: Array,
    penalty: Array,
    start: Array,
    step: Array | float,
    settings: InnerFit,
    probe: Array | float = 0.0,
) -> tuple[Array, Array]:
    """The inner fit W*(labels), differentiable in the labels by the adjoint of ``settings``.

    * ``implicit``: the implicit function theorem at the solution; one linear system with the inner
      Hessian, solved by conjugate gradient in the same coordinates.
    * ``unrolled``: reverse mode through the solver's steps, as in the authors' released code.
    * ``first_order``: W* is constant in the labels (TURTLE, Gadetsky et al., ICML 2024).

    The start is a constant for every adjoint.

    Args:
      y: ``(K, n)`` soft labels.
      x: ``(n, r)`` rows.
      penalty: ``(r,)``.
      start: ``(K, r)`` first point of the solver.
      step: step size.
      settings: `InnerFit`.
      probe: any scalar. It does not change the result; its cotangent under the implicit adjoint is
        the relative residual of the adjoint's linear system, which reverse mode could not return
        otherwise.

    Returns:
      ``(w, residual)``: ``(K, r)`` weights and the norm of the last inner gradient.
    """
    start = jax.lax.stop_gradient(start)
    step = jax.lax.stop_gradient(step)
    solve = functools.partial(
        minimise,
        x=x,
        penalty=penalty,
        step=step,
        steps=settings.steps,
        solver=settings.solver,
        newton_steps=settings.newton_steps,
    )
    if settings.adjoint == "unrolled":
        w, residual = solve(start, y=y, differentiable=True)
    elif settings.adjoint == "first_order":
        w, residual = jax.lax.stop_gradient(solve(start, y=y))
    elif settings.adjoint == "implicit":
        w, residual = _implicit(solve, y, x, penalty, start, settings.adjoint_steps, probe)
    else:
        raise ValueError(f"adjoint: {settings.adjoint!r} is not implicit, unrolled or first_order")
    return w, jax.lax.stop_gradient(residual)


def _implicit(
    solve: Callable[..., tuple[Array, Array]],
    y: Array,
    x: Array,
    penalty: Array,
    start: Array,
    adjoint_steps: int | Array,
    probe: Array | float,
) -> tuple[Array, Array]:
    """`fit` by ``jaxopt.implicit_diff.custom_root``.

    The root is that of ``(gradient(w), tracer - probe)``: the second, trivial equation only carries
    the residual of the adjoint system out, as the cotangent of ``probe``. ``x`` is closed over, so
    that no cotangent of its size is ever formed.
    """

    def optimality(root: tuple[Array, Array], y: Array, probe: Array) -> tuple[Array, Array]:
        w, tracer = root
        return gradient(w, x, y, penalty), tracer - probe

    def adjoint(matvec: Callable[..., tuple[Array, Array]], b: tuple[Array, Array]) -> tuple:
        u, residual = conjugate_gradient(
            lambda v: matvec((v, jnp.zeros_like(b[1])))[0], b[0], adjoint_steps
        )
        return u, residual

    @custom_root(optimality, solve=adjoint, has_aux=True)
    def root(start: tuple[Array, Array], y: Array, probe: Array) -> tuple:
        w, residual = solve(start[0], y=y)
        return (w, probe), residual

    probe = jnp.asarray(probe, x.dtype)
    (w, _), residual = root((start, probe), y, probe)
    return w, residual
