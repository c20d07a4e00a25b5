"""Eq. 3, 5 and 7 a second time, in float64, for tests: nothing here uses hume_jax or jaxopt.

Everything is written for clarity and exactness at small size (at most about 300 x 24 and ten
classes), and differently from the library where that is possible: samples are rows, sparsemax
sorts, the inner problem stays in its original coordinates (second representation with a constant
column appended, penalty on every coefficient) and is solved by Newton's method with dense Hessians.

Three independent ways to the hypergradient: `implicit_gradient`, `central_difference` and
`unrolled_gradient`. They differentiate in ``theta`` as it is given; whether it is orthonormal, and
through which map it is read, is the caller's business. Every function takes the fields of `Problem`
in order, and optionally a class prior:

    problem = oracles.problem(seed=0)
    value, gradient = oracles.implicit_gradient(*problem)

Arguments may be arrays of any float type; results are float64 NumPy arrays, whatever jax is set to.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# The inner fit is solved until its gradient is below this.
RESIDUAL = 1e-12


class Problem(NamedTuple):
    """The arguments of the oracles."""

    theta: np.ndarray  # (d1, K)
    phi1_train: np.ndarray  # (n_train, d1)
    phi1_test: np.ndarray  # (n_test, d1)
    phi2_train: np.ndarray  # (n_train, d2), without the constant column
    phi2_test: np.ndarray  # (n_test, d2)
    temperature: float  # T
    penalty: float  # lambda, above 0
    entropy_weight: float  # eta


def problem(
    seed: int = 0,
    *,
    n_train: int = 200,
    n_test: int = 100,
    d1: int = 24,
    d2: int = 20,
    n_classes: int = 4,
    temperature: float = 0.1,
    penalty: float = 1e-2,
    entropy_weight: float = 10.0,
) -> Problem:
    """Clustered rows in two spaces, normalised as in a search, and a random orthonormal theta."""
    rng = np.random.default_rng(seed)
    n = n_train + n_test
    classes = rng.integers(n_classes, size=n)
    spaces = []
    for width in (d1, d2):
        rows = rng.normal(size=(n_classes, width))[classes] + rng.normal(size=(n, width))
        spaces.append(rows - rows.mean(axis=0))
    phi1 = spaces[0] / np.linalg.norm(spaces[0], axis=1, keepdims=True)
    phi2 = spaces[1] / np.sqrt(np.mean(np.sum(spaces[1] ** 2, axis=1)))
    theta = np.linalg.qr(rng.normal(size=(d1, n_classes)))[0]
    parts = phi1[:n_train], phi1[n_train:], phi2[:n_train], phi2[n_train:]
    return Problem(theta, *parts, temperature, penalty, entropy_weight)


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs ``function`` on float64 copies of its arguments and returns NumPy arrays."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(True):
            convert = functools.partial(jnp.asarray, dtype=jnp.float64)
            result = function(*map(convert, args), **jax.tree.map(convert, kwargs))
            return jax.tree.map(np.asarray, result)

    return wrapper


# --------------------------------------------------------------------------- the mathematics


def softmax(z: np.ndarray, axis: int = -1) -> np.ndarray:
    """In NumPy."""
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def sparsemax(z: Array) -> Array:
    """Rows of ``z`` projected on the simplex, by sorting; differentiable by construction."""
    falling = -jnp.sort(-z, axis=1)
    counts = jnp.arange(1, z.shape[1] + 1)[None]
    thresholds = (jnp.cumsum(falling, axis=1) - 1) / counts
    size = jnp.sum(falling > thresholds, axis=1, keepdims=True)
    return jnp.maximum(z - jnp.take_along_axis(thresholds, size - 1, axis=1), 0)


def cross_entropy(w: Array, x: Array, y: Array) -> Array:
    """``w`` (K, d2 + 1), ``x`` (n, d2 + 1), ``y`` (n, K)."""
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(x @ w.T, axis=1), axis=1))


def inner_loss(w: Array, x: Array, y: Array, penalty: Array) -> Array:
    """Eq. 5 with its penalty."""
    return cross_entropy(w, x, y) + penalty / 2 * jnp.sum(w**2)


def with_constant(phi2: Array) -> Array:
    """Appends the constant column."""
    return jnp.concatenate([phi2, jnp.ones_like(phi2[:, :1])], axis=1)


def newton(y: Array, x: Array, penalty: Array, iterations: int = 30) -> Array:
    """The minimiser of `inner_loss`; each step is halved until it does no harm."""
    f = functools.partial(inner_loss, x=x, y=y, penalty=penalty)
    lengths = 0.5 ** jnp.arange(12.0)

    def body(_: int, w: Array) -> Array:
        hessian = jax.hessian(f)(w).reshape(w.size, w.size)
        direction = jnp.linalg.solve(hessian, jax.grad(f)(w).ravel()).reshape(w.shape)
        candidates = w[None] - lengths[:, None, None] * direction[None]
        # The slack lets full steps through where rounding decides, else the last digits never come.
        harmless = jax.vmap(f)(candidates) <= f(w) + 1e-13
        return candidates[jnp.argmax(harmless)]

    return jax.lax.fori_loop(0, iterations, body, jnp.zeros((y.shape[1], x.shape[1])))


@jax.custom_vjp
def solution(y: Array, x: Array, penalty: Array) -> Array:
    """W*(labels), differentiable in the labels by the implicit function theorem."""
    return newton(y, x, penalty)


def _solution_forward(y: Array, x: Array, penalty: Array) -> tuple[Array, tuple[Array, ...]]:
    w = newton(y, x, penalty)
    return w, (w, y, x, penalty)


def _solution_backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, None, None]:
    # The inner gradient G(W, y) is zero along W*(y), so dW*/dy = -(dG/dW)^-1 dG/dy.
    w, y, x, penalty = saved
    hessian = jax.hessian(inner_loss)(w, x, y, penalty).reshape(w.size, w.size)
    u = jnp.linalg.solve(hessian, cotangent.ravel()).reshape(w.shape)
    _, pull = jax.vjp(lambda y: jax.grad(inner_loss)(w, x, y, penalty), y)
    return -pull(u)[0], None, None


solution.defvjp(_solution_forward, _solution_backward)


def descend(y: Array, x: Array, penalty: Array, steps: int) -> Array:
    """W after many plain gradient steps from zero, differentiable through every one of them."""
    curvature = jnp.linalg.eigvalsh(x.T @ x / x.shape[0])[-1] / 2 + penalty

    def body(w: Array, _: None) -> tuple[Array, None]:
        return w - jax.grad(inner_loss)(w, x, y, penalty) / curvature, None

    return jax.lax.scan(body, jnp.zeros((y.shape[1], x.shape[1])), None, length=steps)[0]


def eq7(
    theta: Array,
    phi1_train: Array,
    phi1_test: Array,
    phi2_train: Array,
    phi2_test: Array,
    temperature: Array,
    penalty: Array,
    entropy_weight: Array,
    *,
    prior: Array | None = None,
    solve: Callable[[Array, Array, Array], Array],
) -> tuple[Array, Array]:
    """Eq. 7, ``mean_test CE + eta KL(mean label || prior)``, and the norm of the inner gradient.

    For the uniform prior the second term is ``eta (log K - H)``; the mean is over train and test.
    """
    y_train = sparsemax(phi1_train @ theta / temperature)
    y_test = sparsemax(phi1_test @ theta / temperature)
    x_train, x_test = with_constant(phi2_train), with_constant(phi2_test)
    w = solve(y_train, x_train, penalty)
    mean = jnp.mean(jnp.concatenate([y_train, y_test]), axis=0)
    if prior is None:
        orders = jnp.full((1, mean.size), 1 / mean.size)
    else:
        # Which class is which of the prior's is open: the order of the least divergence counts.
        every = jnp.array(list(itertools.permutations(range(mean.size))))
        orders = (prior / jnp.sum(prior))[every]
    divergence = jnp.min(jnp.sum(mean[None] * (jnp.log(mean)[None] - jnp.log(orders)), axis=1))
    value = cross_entropy(w, x_test, y_test) + entropy_weight * divergence
    return value, jnp.linalg.norm(jax.grad(inner_loss)(w, x_train, y_train, penalty))


# --------------------------------------------------------------------------- the oracles


@functools.cache
def _compiled(how: str, steps: int = 0) -> Callable[..., Any]:
    solve = {
        "value": newton,
        "implicit": solution,
        "first_order": lambda *problem: jax.lax.stop_gradient(newton(*problem)),
        "unrolled": functools.partial(descend, steps=steps),
    }[how]
    function = functools.partial(eq7, solve=solve)
    return jax.jit(function if how == "value" else jax.value_and_grad(function, has_aux=True))


def _solved(residual: Array) -> None:
    assert residual < RESIDUAL, f"the inner fit is not solved: its gradient is still {residual:.1e}"


def _gradient(how: str, steps: int, *args: Array, **prior: Array) -> tuple[Array, Array]:
    (value, residual), gradient = _compiled(how, steps)(*args, **prior)
    _solved(residual)
    return value, gradient


@in_float64
def inner_solution(y: Array, phi2: Array, penalty: Array) -> Array:
    """W* of Eq. 5 for soft labels ``y`` (n, K): ``(K, d2 + 1)``, the constant's column last."""
    x = with_constant(phi2)
    w = jax.jit(newton)(y, x, penalty)
    _solved(jnp.linalg.norm(jax.grad(inner_loss)(w, x, y, penalty)))
    return w


@in_float64
def labels(theta: Array, phi1: Array, temperature: Array) -> Array:
    """Soft labels of Eq. 3, ``(n, K)``."""
    return sparsemax(phi1 @ theta / temperature)


@in_float64
def implicit_gradient(*args: Array, **prior: Array) -> tuple[Array, Array]:
    """Eq. 7 and its gradient ``(d1, K)`` in theta by the implicit function theorem."""
    return _gradient("implicit", 0, *args, **prior)


@in_float64
def first_order_gradient(*args: Array, **prior: Array) -> tuple[Array, Array]:
    """Eq. 7 and its gradient with W* taken as constant in theta."""
    return _gradient("first_order", 0, *args, **prior)


def unrolled_gradient(*args: Any, steps: int = 6000, **prior: Any) -> tuple[Any, Any]:
    """Eq. 7 and its gradient through ``steps`` gradient steps; fails if they do not converge."""
    return in_float64(functools.partial(_gradient, "unrolled", steps))(*args, **prior)


@in_float64
def value(*args: Array, **prior: Array) -> Array:
    """Eq. 7."""
    result, residual = _compiled("value")(*args, **prior)
    _solved(residual)
    return result


def supports_change(
    theta: Any, *rest: Any, direction: np.ndarray, step: float = 1e-5, **_: Any
) -> int:
    """Number of entries of the soft labels that enter or leave their support within the step.

    It is enough to look at the two ends: scores are linear in theta, and the scores that share a
    support are a convex set.
    """
    phi1, temperature = np.concatenate([rest[0], rest[1]]), rest[4]
    reach = 2 * step * np.asarray(direction)
    ends = [labels(np.asarray(theta) + sign * reach, phi1, temperature) for sign in (-1, 1)]
    return int(np.sum((ends[0] > 0) != (ends[1] > 0)))


def central_difference(
    theta: Any, *rest: Any, direction: np.ndarray, step: float = 1e-5, **prior: Any
) -> float:
    """Derivative of Eq. 7 along ``direction`` (d1, K), of fourth order in ``step``.

    Asserts that no support of sparsemax changes within the step: there Eq. 7 has no derivative.
    """
    changed = supports_change(theta, *rest, direction=direction, step=step)
    assert not changed, f"{changed} supports change within the step; take another point or step"
    theta = np.asarray(theta, np.float64)

    def at(offset: float) -> float:
        return float(value(theta + offset * direction, *rest, **prior))

    near, far = at(step) - at(-step), at(2 * step) - at(-2 * step)
    return (8 * near - far) / (12 * step)


def smooth_direction(
    theta: Any, *rest: Any, seed: int = 0, step: float = 1e-5, tries: int = 50
) -> np.ndarray:
    """A random direction (d1, K) of unit norm along which no support changes within the step."""
    rng = np.random.default_rng(seed)
    for _ in range(tries):
        direction = rng.normal(size=np.shape(theta))
        direction /= np.linalg.norm(direction)
        if not supports_change(theta, *rest, direction=direction, step=step):
            return direction
    raise AssertionError(f"supports change within {2 * step:g} along {tries} directions")
