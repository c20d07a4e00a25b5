"""Inner fit (Eq. 5): a linear model on the second representation, and how gradients pass it.

``W*(theta) = argmin_W mean CE(W x, labels) + 1/2 sum_j penalty_j |W_j|^2``

How the problem is solved (`InnerFit.solver`) and how its solution is differentiated
(`InnerFit.adjoint`) are independent choices. Rows ``x`` hold a constant column already, possibly in
the preconditioned coordinates of `coordinates`.
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

with warnings.catch_warnings():
    # jaxopt 0.8.5 is its last release and says so at import; this module is its only user.
    warnings.filterwarnings("ignore", message="JAXopt is no longer maintained")
    from jaxopt.implicit_diff import root_vjp

from hume_jax.core import solvers
from hume_jax.core.effort import Effort
from hume_jax.core.solvers import Left, gradient_at

# Directions of this share of the second largest variance, the first may be the constant's, are
# never too narrow to matter.
_WIDE = 0.01


class InnerFit(NamedTuple):
    """How the inner problem is solved and differentiated. Static under jit."""

    adjoint: str = "implicit"  # 'implicit' | 'unrolled' | 'first_order'
    solver: str = "newton"  # 'newton' | 'nesterov' | 'gradient'
    steps: int = 2  # steps of the solver
    newton_steps: int = 6  # conjugate-gradient steps in each step of 'newton'
    adjoint_steps: int = 10  # conjugate-gradient steps of the implicit adjoint
    step_size: float = 0.0  # 0: 2 / s with s the largest curvature, see `largest_curvature`
    # What either solve may leave, see `effort.adjust`; 0: as many steps as above, always.
    tolerance: float = 0.0
    # Of the products of the fit and of its derivative: 'highest' | 'high' | 'default'.
    precision: str = "highest"

    @property
    def effort(self) -> Effort:
        """The numbers of steps as they begin."""
        return Effort.of(self.steps, self.newton_steps, self.adjoint_steps)


class Residuals(NamedTuple):
    """Norms of the inner gradient."""

    after: Array  # () at the solution
    before: Array  # () at the point that the solver's last step was taken from


class Watch(NamedTuple):
    """What reverse mode sees on its way back through `fit`, as the cotangent of a `probe`."""

    heldout: Array  # () norm of the cotangent of W*, the gradient of what is held out
    adjoint: Left  # of the implicit adjoint's linear system; zeros for other adjoints


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


# --------------------------------------------------------------------------- conditioning


def coordinates(
    gram: np.ndarray,
    penalty: float,
    *,
    precondition: bool = True,
    directions: int = 0,
    floor: float = 0.0,
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
      floor: directions whose ``e`` is below this many penalties are left out too. What they add to
        the logits is held down by the penalty, in proportion to ``e / (e h + penalty)`` with h, the
        curvature of the cross-entropy, well below 1/2. Those of a hundredth of the second largest
        stay: a large penalty holds all of them down alike.

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
    least = min(floor * penalty, _WIDE * values[min(1, size - 1)])
    rank = max(1, int(np.sum(values > max(1e-12 * values[0], least))))
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


# --------------------------------------------------------------------------- solution and adjoint


def probe(dtype: Any = jnp.float32) -> Watch:
    """A probe for `fit`: zeros, since it is looked at only where a gradient is taken in it."""
    zero = jnp.zeros((), dtype)
    return Watch(zero, Left(zero, zero))


def fit(
    y: Array,
    x: Array,
    penalty: Array,
    start: Array,
    step: Array | float,
    settings: InnerFit,
    effort: Effort | None = None,
    watch: Watch | None = None,
) -> tuple[Array, Residuals]:
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
      effort: numbers of steps, may be traced; those of the settings by default. ``unrolled`` takes
        those of the settings.
      watch: `probe`. It does not change the result; its cotangent is a `Watch`, which reverse mode
        could not return otherwise.

    Returns:
      ``(w, residuals)``: ``(K, r)`` weights and the inner gradient's `Residuals`.
    """
    if settings.adjoint not in ("implicit", "unrolled", "first_order"):
        raise ValueError(f"adjoint: {settings.adjoint!r} is not implicit, unrolled or first_order")
    effort = settings.effort if effort is None else effort
    watch = probe(x.dtype) if watch is None else watch
    start = jax.lax.stop_gradient(start)
    step = jax.lax.stop_gradient(jnp.asarray(step, x.dtype))
    with jax.default_matmul_precision(settings.precision), jax.named_scope("inner_fit"):
        if settings.adjoint == "implicit":
            return _implicit(settings, y, x, penalty, start, step, effort, watch)
        unrolled = settings.adjoint == "unrolled"
        found = solvers.minimise(
            start,
            x,
            y,
            penalty,
            step,
            steps=settings.steps if unrolled else effort.steps,
            solver=settings.solver,
            newton_steps=settings.newton_steps if unrolled else effort.newton_steps,
            differentiable=unrolled,
        )
        residuals, _ = jax.lax.stop_gradient(_residuals(found, x, y, penalty))
        w = found.w if unrolled else jax.lax.stop_gradient(found.w)
        return _watched(w, watch), residuals


def _residuals(
    found: solvers.Solution, x: Array, y: Array, penalty: Array
) -> tuple[Residuals, Array]:
    """The inner gradient's norms, and the probabilities ``(K, n)`` at the solution."""
    logits = found.w @ x.T if found.logits is None else found.logits
    p = jax.nn.softmax(logits, axis=0)
    after = jnp.linalg.norm(gradient_at(p, found.w, x, y, penalty))
    return Residuals(after, found.residual), p


@jax.custom_vjp
def _watched(w: Array, watch: Watch) -> Array:
    return w


def _watched_backward(_: None, cotangent: Array) -> tuple[Array, Watch]:
    seen = probe(cotangent.dtype)._replace(heldout=jnp.linalg.norm(cotangent))
    return cotangent, seen


_watched.defvjp(lambda w, watch: (w, None), _watched_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _implicit(settings: InnerFit, *arguments: Any) -> tuple[Array, Residuals]:
    """`fit` by the implicit function theorem; arguments as of `_implicit_forward`."""
    return _implicit_forward(settings, *arguments)[0]


def _implicit_forward(
    settings: InnerFit,
    y: Array,
    x: Array,
    penalty: Array,
    start: Array,
    step: Array,
    effort: Effort,
    watch: Watch,
) -> tuple[tuple[Array, Residuals], tuple]:
    found = solvers.minimise(
        start,
        x,
        y,
        penalty,
        step,
        steps=effort.steps,
        solver=settings.solver,
        newton_steps=effort.newton_steps,
    )
    residuals, p = _residuals(found, x, y, penalty)
    return (found.w, residuals), (found.w, p, y, x, penalty, effort)


def _implicit_backward(settings: InnerFit, saved: tuple, cotangents: tuple) -> tuple:
    """The labels' cotangent by `jaxopt.implicit_diff.root_vjp`; rows and penalty have none."""
    w, p, y, x, penalty, effort = saved
    b, _ = cotangents

    hessian = functools.partial(solvers.hessian_product, p=p, x=x, penalty=penalty)
    left = []

    def optimality(w: Array, y: Array) -> Array:
        return gradient_at(p, w, x, y, penalty)

    def solve(_: Any, b: Array) -> Array:
        # The derivative in w in closed form: it takes the probabilities that the solver has found,
        # and rows as they lie, not a transposed copy of them.
        diagonal = solvers.curvature_diagonal(p, x, penalty)
        u, residual = solvers.conjugate_gradient(hessian, b, effort.adjoint_steps, diagonal)
        left.append(residual)
        return u

    # Traced by itself, out of the context that `fit` gives its products.
    with jax.default_matmul_precision(settings.precision), jax.named_scope("adjoint"):
        (y_bar,) = root_vjp(optimality, w, (y,), b, solve)
    watch = Watch(jnp.linalg.norm(b), left[0])
    return y_bar, None, None, None, None, None, watch


_implicit.defvjp(_implicit_forward, _implicit_backward)
