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
    permuting classes permutes the result. It is found by the scaled Newton-Schulz iteration (Chen &
    Chow 2014) on the K x K Gram matrix, which takes ten steps of K x K products, and two plain
    steps on the full matrix, which repair what squaring the condition number lost in float32.

    Products only: they are fast for K = 10, where all of it is a few passes over ``theta``, and for
    K = 1000, where it is a small share of the inner fit, on every device; and they differentiate at
    every full-rank input. An eigendecomposition has no derivative at orthonormal input, and batched
    triangular solves, of which a Cholesky factorisation would need some, can block each other for
    good on a CPU of few cores (jaxlib 0.10.2, seen at K = 150 with two cores).

    Args:
      theta: ``(d1, K)`` with K <= d1 and full column rank; exact down to a ratio of 1e-3 between
        the smallest and the largest singular value.

    Returns:
      ``(d1, K)`` with ``Q^T Q = I``.
    """
    gram = theta.T @ theta
    # Any upper bound of the largest eigenvalue will do; the result does not depend on it.
    bound = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(gram), axis=0)))
    q = (theta / jnp.sqrt(bound)) @ _inverse_root(gram / bound)
    for _ in range(2):
        q = 1.5 * q - 0.5 * q @ (q.T @ q)
    return q


def _inverse_root(gram: Array) -> Array:
    """``gram^(-1/2)`` for a symmetric ``(K, K)`` matrix with eigenvalues in ``[ratio^2, 1]``."""
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)

    def step(carry: tuple[Array, Array], scale: Array) -> tuple[tuple[Array, Array], None]:
        gram, root = carry
        p = 0.5 * scale * (3 * eye - scale**2 * gram)
        gram = p @ gram @ p
        return ((gram + gram.T) / 2, root @ p), None

    scales = jnp.asarray(_scales(_SMALLEST_RATIO), gram.dtype)
    (_, root), _ = jax.lax.scan(step, (gram, eye), scales)
    return root


def _scales(ratio: float) -> list[float]:
    """Scales of the Newton-Schulz steps that bring singular values in ``[ratio, 1]`` to 1.

    With ``a^2 = 3 / (1 + l + l^2)`` the step ``a x (3 - a^2 x^2) / 2`` maps ``[l, 1]`` to the
    highest interval below 1.
    """
    scales, low = [], ratio
    while 1 - low > 1e-3:
        scales.append(math.sqrt(3 / (1 + low + low**2)))
        low = 0.5 * scales[-1] * low * (3 - scales[-1] ** 2 * low**2)
    return scales
