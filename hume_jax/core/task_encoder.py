"""Task encoder (Eq. 3): linear in the first representation, with sparsemax labels."""

import math

import jax
import jax.numpy as jnp
from jax import Array

# Ratio of the smallest to the largest singular value down to which `orthonormalise` is exact.
_SMALLEST_RATIO = 1e-3


def init(key: Array, dim: int, n_classes: int, dtype: jnp.dtype = jnp.float32) -> Array:
    """A random task encoder, uniform over matrices with orthonormal columns.

    Args:
      key: PRNG key.
      dim: width d1 of the first representation.
      n_classes: number of classes K, at most ``dim``.
      dtype: floating dtype of the result.

    Returns:
      ``(d1, K)`` matrix with orthonormal columns.
    """
    return orthonormalise(jax.random.normal(key, (dim, n_classes), dtype))


def labels(theta: Array, phi1: Array, temperature: Array | float) -> Array:
    """Soft labels ``sparsemax(theta^T phi1(x) / T)`` of Eq. 3.

    Args:
      theta: ``(d1, K)`` matrix with orthonormal columns.
      phi1: ``(n, d1)`` rows of the first representation, of unit norm.
      temperature: T, above zero.

    Returns:
      ``(K, n)``; every column is a point of the simplex.
    """
    return sparsemax(jnp.matmul(theta.T, phi1.T) / temperature, axis=0)


def predict(theta: Array, phi1: Array) -> Array:
    """Hard labels ``argmax_k theta_k^T phi1(x)``, ``(n,)`` int32; ties go to the lowest class."""
    return jnp.argmax(jnp.matmul(theta.T, phi1.T), axis=0).astype(jnp.int32)


def sparsemax(z: Array, axis: int = 0) -> Array:
    """Euclidean projection of ``z`` onto the simplex along ``axis``.

    Martins & Astudillo, *From Softmax to Sparsemax*, ICML 2016. The threshold is the root of a
    convex, piecewise linear function; Newton's method from the left reaches it exactly in a few
    passes (Michelot 1986), without the sort whose cost grows with K log K.
    """
    return (
        _sparsemax(jnp.moveaxis(z, axis, 0))
        if axis == 0
        else jnp.moveaxis(_sparsemax(jnp.moveaxis(z, axis, 0)), 0, axis)
    )


@jax.custom_jvp
def _sparsemax(z: Array) -> Array:
    z = z - jnp.max(z, axis=0, keepdims=True)

    def above(threshold: Array) -> Array:
        return jnp.sum(z > threshold, axis=0, keepdims=True)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        _, count, previous = carry
        return jnp.any(count != previous)

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        threshold, count, _ = carry
        total = jnp.sum(jnp.where(z > threshold, z, 0), axis=0, keepdims=True)
        # The exact iterates rise; the maximum keeps rounding from undoing that, hence it ends.
        threshold = jnp.maximum(threshold, (total - 1) / count)
        return threshold, above(threshold), count

    start = jnp.full_like(z[:1], -1)
    count = above(start)
    threshold, _, _ = jax.lax.while_loop(unfinished, newton, (start, count, count - count))
    return jnp.maximum(z - threshold, 0)


@_sparsemax.defjvp
def _sparsemax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p = _sparsemax(z)
    support = (p > 0).astype(z.dtype)
    mean = jnp.sum(support * dz, axis=0, keepdims=True) / jnp.sum(support, axis=0, keepdims=True)
    return p, support * (dz - mean)


def orthonormalise(theta: Array) -> Array:
    """The nearest matrix with orthonormal columns: the polar factor.

    ``theta (theta^T theta)^(-1/2)``, unlike Gram-Schmidt or QR, treats all columns alike, so
    permuting classes permutes the result. It is found by the dynamically weighted Halley iteration
    (Nakatsukasa, Bai & Gygi, SIAM J. Matrix Anal. 2010) on the K x K Gram matrix: three Cholesky
    factorisations and K x K products, so the cost is that of a few passes over ``theta`` for K = 10
    and of a few K x K products for K = 1000, on every device. Two Newton-Schulz steps on the full
    matrix then repair what squaring the condition number lost in float32. Everything is
    differentiable at every full-rank input; no eigendecomposition, whose derivative is undefined
    at orthonormal input.

    Args:
      theta: ``(d1, K)`` with K <= d1 and full column rank; exact down to a ratio of 1e-3 between
        the smallest and the largest singular value.

    Returns:
      ``(d1, K)`` with ``Q^T Q = I``.
    """
    gram = theta.T @ theta
    # Any upper bound of the largest eigenvalue will do; the result does not depend on it.
    bound = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(gram), axis=0)))
    q = (theta / jnp.sqrt(bound)) @ _halley_root(gram / bound)
    for _ in range(2):
        q = 1.5 * q - 0.5 * q @ (q.T @ q)
    return q


def _halley_root(gram: Array) -> Array:
    """``gram^(-1/2)`` for a symmetric ``(K, K)`` matrix with eigenvalues in ``[ratio^2, 1]``."""
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    root = eye
    for a, b, c in _halley_weights(_SMALLEST_RATIO):
        factor = jax.scipy.linalg.cho_factor(eye + c * gram, lower=True)
        inverse = jax.scipy.linalg.cho_solve(factor, eye)
        p = (b / c) * eye + (a - b / c) * inverse
        root = root @ p
        gram = p @ gram @ p
        gram = (gram + gram.T) / 2
    return root


def _halley_weights(ratio: float) -> list[tuple[float, float, float]]:
    """Weights of the Halley iterations that bring singular values in ``[ratio, 1]`` to 1."""
    weights = []
    low = ratio
    while 1 - low > 1e-4:
        d = (4 * (1 - low**2) / low**4) ** (1 / 3)
        root = math.sqrt(1 + d)
        a = root + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - low**2) / (low**2 * root))
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        weights.append((a, b, c))
        low = low * (a + b * low**2) / (1 + c * low**2)
    return weights
