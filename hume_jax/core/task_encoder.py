"""Task encoder (Eq. 3): linear in the first representation, with sparsemax or softmax labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Polynomials s (a + b h + c h^2 + d h^3 + e h^4), h = s^2 - centre, that bring singular values in
# [1.1e-3, 1] to 1, one after the other. Three times the steepest at 0 that keeps [0.32, 1.1] to
# itself, so what has risen never falls far again, and rounding does not grow; then the two nearest
# to 1 on what is left, the last of which is nearly the series of (1 + h)^(-1/2).
_GROWTH = (1.13, 2.394, -7.433, -21.412, 40.454, 0.6)
_POLISH = ((0.9887, -0.7696, 0.92, 5.0837, 6.6077, 1), (1, -0.5, 0.375, -0.31296, 0.27384, 1))
_POLYNOMIALS = np.array([_GROWTH] * 3 + list(_POLISH))
# Share of a random matrix in an encoder that begins at rows.
_NOISE = 0.1


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
    return _orthonormal(jax.random.normal(key, (dim, n_classes), dtype))


def init_from_rows(key: Array, phi1: Array, n_classes: int, lloyd_steps: int = 0) -> Array:
    """A task encoder whose classes begin at rows far from each other, or at clusters around them.

    The rows are those that k-means++ draws (Arthur & Vassilvitskii, SODA 2007), the clusters what
    spherical k-means makes of them (Dhillon & Modha, Machine Learning 2001). The nearest
    orthonormal matrix takes their place; a little of a random one keeps the columns independent
    where rows are not.

    Args:
      key: PRNG key.
      phi1: ``(n, d1)`` rows of the first representation.
      n_classes: number of classes K, at most d1.
      lloyd_steps: steps of spherical k-means; 0: the rows themselves.

    Returns:
      ``(d1, K)`` matrix with orthonormal columns.
    """
    rows_key, noise_key = jax.random.split(key)
    drawn = _unit(phi1[spread_rows(rows_key, phi1, n_classes)])
    drawn = jax.lax.fori_loop(0, lloyd_steps, lambda _, centres: _lloyd(centres, phi1), drawn)
    return _near(noise_key, drawn)


def init_from_labels(key: Array, phi1: Array, labels: Array, n_classes: int) -> Array:
    """A task encoder that begins at the clusters of a labelling, as `init_from_rows` at its own.

    Args:
      key: PRNG key.
      phi1: ``(n, d1)`` rows of the first representation.
      labels: ``(n,)`` int32. A class without rows begins at random.
      n_classes: number of classes K, at most d1.

    Returns:
      ``(d1, K)`` matrix with orthonormal columns.
    """
    return _near(key, _unit(_totals(phi1, labels, n_classes)))


def _near(key: Array, centres: Array) -> Array:
    """``(d1, K)`` orthonormal matrix near ``(K, d1)`` centres of unit norm."""
    noise = init(key, centres.shape[1], len(centres), centres.dtype)
    return _orthonormal(centres.T + _NOISE * noise)


def _orthonormal(start: Array) -> Array:
    """The map twice: once a search, for columns that may be much alike at its start."""
    return orthonormalise(orthonormalise(start))


def _lloyd(centres: Array, x: Array) -> Array:
    """``(K, d)`` centres after a step of spherical k-means; one without rows stays where it is."""
    total = _totals(x, jnp.argmax(x @ centres.T, axis=1), len(centres))
    return jnp.where(jnp.any(total != 0, axis=1, keepdims=True), _unit(total), centres)


def _totals(x: Array, labels: Array, n_classes: int) -> Array:
    """``(K, d)`` sums of the rows of each class."""
    return jax.nn.one_hot(labels, n_classes, dtype=x.dtype).T @ x


def _unit(rows: Array) -> Array:
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1)


def spread_rows(key: Array, x: Array, count: int) -> Array:
    """Numbers of rows far from each other: k-means++.

    Each is drawn with a chance proportional to its squared distance to the nearest of those before.

    Args:
      key: PRNG key.
      x: ``(n, d)`` rows.
      count: how many to draw.

    Returns:
      ``(count,)`` int32; all different where there are as many different rows.
    """
    squares = jnp.sum(x**2, axis=1)

    def one(nearest: Array, key: Array) -> tuple[Array, Array]:
        row = jax.random.categorical(key, jnp.log(nearest))
        apart = squares - 2 * x @ x[row] + squares[row]
        # Rounding must not give the row itself, or its equals, a second chance.
        apart = jnp.where(apart > 1e-6 * (squares + squares[row]), apart, 0)
        nearest = jnp.minimum(nearest, apart)
        # Fewer different rows than are asked for: any will do.
        return jnp.where(jnp.any(nearest > 0), nearest, 1.0), row.astype(jnp.int32)

    # A distance above all others: whatever the first row is, the second is far from it.
    first = jnp.full(len(x), 4 * jnp.max(squares) + 1)
    return jax.lax.scan(one, first, jax.random.split(key, count))[1]


def labels(theta: Array, phi1: Array, temperature: Array | float, kind: str = "sparsemax") -> Array:
    """Soft labels ``sparsemax(theta^T phi1(x) / T)`` of Eq. 3.

    Args:
      theta: ``(d1, K)`` matrix with orthonormal columns.
      phi1: ``(n, d1)`` rows of the first representation, of unit norm.
      temperature: T, above zero.
      kind: 'sparsemax', or 'softmax' in its place (TURTLE, Gadetsky et al., ICML 2024, Eq. 9).

    Returns:
      ``(K, n)``; every column is a point of the simplex.
    """
    return _labels(jnp.matmul(theta.T, phi1.T) / temperature, kind)


def _labels(z: Array, kind: str) -> Array:
    if kind not in ("sparsemax", "softmax"):
        raise ValueError(f"kind: {kind!r} is not sparsemax or softmax")
    return sparsemax(z, axis=0) if kind == "sparsemax" else jax.nn.softmax(z, axis=0)


def labels_of(
    theta: Array,
    parts: Sequence[Array],
    temperature: Array | float,
    kind: str = "sparsemax",
    shards: int = 1,
) -> list[Array]:
    """`labels` of several parts, found together.

    So there is one search for the thresholds of sparsemax, which devices that share the tasks end
    together: several that wait for each other in another order could block each other for good.

    Args:
      theta: ``(d1, K)`` matrix with orthonormal columns.
      parts: ``(n_i, d1)`` rows of the first representation each.
      temperature: T, above zero.
      kind: as of `labels`.
      shards: that each part has equally many rows of, one after the other. Parts are joined within
        shards, so that devices which hold some of them keep theirs.

    Returns:
      ``(K, n_i)`` each.
    """
    by_shard = [jnp.matmul(theta.T, part.T).reshape(theta.shape[1], shards, -1) for part in parts]
    ends = np.cumsum([z.shape[2] for z in by_shard])[:-1]
    found = _labels(jnp.concatenate(by_shard, axis=2) / temperature, kind)
    return [y.reshape(theta.shape[1], -1) for y in jnp.split(found, ends, axis=2)]


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


@jax.custom_jvp
def orthonormalise(theta: Array) -> Array:
    """The nearest matrix with orthonormal columns: the polar factor.

    ``theta (theta^T theta)^(-1/2)``, unlike Gram-Schmidt or QR, treats all columns alike, so
    permuting classes permutes the result. It is found by five steps ``q p(q^T q)``, p of degree 4:
    Newton-Schulz steps (Kovarik 1970; Bjorck & Bowie 1971) with coefficients of their own. Those
    that converge fastest (Amsel, Persson, Musco & Gower, *The Polar Express*, 2025) take
    orthonormal input, the usual one, far down first, where rounding grows; these do not. Degree 4
    raises small values the most for its products: two of K x K besides the two of K x d1.

    Products only: they are fast for K = 10, where all of it is a few passes over ``theta``, and for
    K = 1000, on every device. Batched triangular solves, of which a Cholesky factorisation would
    need some, can block each other for good on a CPU of few cores (jaxlib 0.10.2, seen at K = 150
    with two cores).

    Args:
      theta: ``(d1, K)`` with K <= d1 and full column rank; exact down to a ratio of 3e-3 between
        the smallest and the largest singular value. Below it the result still has the same polar
        factor, so a second pass goes on to 1e-5.

    Returns:
      ``(d1, K)`` with ``Q^T Q = I``.
    """
    eye = jnp.eye(theta.shape[1], dtype=theta.dtype)
    # A fixed number: devices that share the tasks would have to agree on when all of them are done.
    polynomials = jnp.asarray(_polynomials(theta.dtype), theta.dtype)

    def apply(q: Array, h: Array, square: Array, polynomial: Array) -> Array:
        a, b, c, d, e, _ = polynomial
        return a * q + q @ (b * h + c * square + square @ (d * h + e * square))

    def step(q: Array, polynomial: Array) -> tuple[Array, None]:
        h = q.T @ q - polynomial[-1] * eye
        return apply(q, h, h @ h, polynomial), None

    gram, square, scale = _scaled_gram(theta)
    centre = polynomials[0, -1]
    h, square = gram - centre * eye, square - 2 * centre * gram + centre**2 * eye
    return jax.lax.scan(step, apply(theta / scale, h, square, polynomials[0]), polynomials[1:])[0]


def _scaled_gram(theta: Array) -> tuple[Array, Array, Array]:
    """Gram matrix over ``scale**2``, its square, and a bound ``scale`` of all singular values.

    Any bound will do; the result of the map does not depend on it. The largest sum of a row's
    absolute values bounds an eigenvalue, and from the square, which the map needs anyway, more
    closely: by ``K^(1/8)`` at most for the singular values.
    """
    gram = theta.T @ theta
    first = _row_sum(gram)
    gram /= first
    square = gram @ gram
    second = jnp.sqrt(_row_sum(square))
    return gram / second, square / second**2, jnp.sqrt(first * second)


def _row_sum(symmetric: Array) -> Array:
    return jnp.max(jnp.sum(jnp.abs(symmetric), axis=0))


def _polynomials(dtype: jnp.dtype) -> np.ndarray:
    """Float32 ends at its own rounding; more digits take the last step once more."""
    more = _POLYNOMIALS[-1:] if jnp.finfo(dtype).eps < 1e-8 else _POLYNOMIALS[:0]
    return np.concatenate([_POLYNOMIALS, more])


@orthonormalise.defjvp
def _orthonormalise_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (theta,), (change,) = primals, tangents
    q = orthonormalise(theta)
    # theta = q h with h symmetric; h dh + dh h = theta^T change + change^T theta gives dh. Sums of
    # eigenvalues stand below, not differences: equal ones, as of orthonormal input, do no harm.
    h = q.T @ theta
    values, vectors = jnp.linalg.eigh((h + h.T) / 2)
    inner = theta.T @ change
    turned = vectors.T @ (inner + inner.T) @ vectors
    dh = vectors @ (turned / (values[:, None] + values[None, :])) @ vectors.T
    inverse = (vectors / values[None, :]) @ vectors.T
    return q, (change - q @ dh) @ inverse


def tangent(theta: Array, gradient: Array) -> Array:
    """A gradient in orthonormal columns, passed through `orthonormalise` at that same matrix.

    At orthonormal ``theta`` the derivative of the polar factor is ``d - theta sym(theta^T d)``, its
    own transpose (Abrudan, Eriksson & Koivunen 2008, Section II): what moves the columns along the
    set of orthonormal matrices remains. It costs two products and no
    eigendecomposition, which the derivative of `orthonormalise` elsewhere takes.

    Args:
      theta: ``(d1, K)`` with orthonormal columns.
      gradient: ``(d1, K)`` in ``theta``.

    Returns:
      ``(d1, K)`` gradient in the free matrix whose orthonormal image is ``theta``.
    """
    inner = theta.T @ gradient
    return gradient - theta @ ((inner + inner.T) / 2)
