"""Householder coordinates of a task encoder, in which PyTorch's orthogonal parametrisation works.

Adam takes its steps element by element, so where they lead depends on the coordinates. The authors'
code takes them in these (`torch.nn.utils.parametrizations.orthogonal`): with ``B`` a random
orthogonal matrix whose first K columns are the encoder at its start, every later one is
``-B H_1 ... H_K E``, E the first K unit vectors and ``H_k = I - tau_k v_k v_k^T`` a reflection
(Householder 1958). The coordinates are what ``v_k`` holds below the 1 at place k, 0 at the start.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.core import task_encoder

# Passes of the orthonormal map over a random square matrix, whose smallest singular values may be
# of the size of rounding.
_PASSES = 3


class Reflected(NamedTuple):
    """State of an optimiser that works in Householder coordinates."""

    basis: Array  # (d1, d1), B
    vectors: Array  # (d1, K), of which what is below the diagonal counts
    inner: optax.OptState


def basis(key: Array, theta: Array) -> Array:
    """A random orthogonal matrix that begins with the columns of another.

    Products only, as the orthonormal map: LAPACK's QR factorisation of a batch, like its triangular
    solves, can block for good on CPU devices that share a machine's threads (jaxlib 0.10.2).

    Args:
      key: PRNG key.
      theta: ``(d1, K)`` with orthonormal columns.

    Returns:
      ``(d1, d1)``.
    """
    dim, count = theta.shape
    others = jax.random.normal(key, (dim, dim - count), theta.dtype) * dim**-0.5
    # Across from theta, so that the nearest orthogonal matrix has its columns.
    found = jnp.concatenate([theta, others - theta @ (theta.T @ others)], axis=1)
    for _ in range(_PASSES):
        found = task_encoder.orthonormalise(found)
    return found


def matrix(basis: Array, vectors: Array) -> Array:
    """The orthonormal matrix of some coordinates.

    All reflections at once, ``I - V M^(-1) V^T`` with M the upper half of ``V^T V``, its diagonal
    halved (Schreiber & Van Loan 1989; Puglisi 1992).

    Args:
      basis: ``(d1, d1)``, orthogonal.
      vectors: ``(d1, K)``, of which what is below the diagonal counts; K <= d1.

    Returns:
      ``(d1, K)`` with orthonormal columns, up to rounding.
    """
    dim, count = vectors.shape
    eye = jnp.eye(dim, count, dtype=vectors.dtype)
    v = jnp.tril(vectors, -1) + eye
    gram = v.T @ v
    upper = jnp.triu(gram, 1) + jnp.diag(jnp.diagonal(gram) / 2)
    return basis @ (v @ _solve(upper, v[:count].T) - eye)


def _solve(upper: Array, b: Array) -> Array:
    """``upper^(-1) b``, whose derivative is another such solve and keeps nothing of the rows."""
    return jax.lax.custom_linear_solve(
        lambda x: upper @ x,
        b,
        lambda _, b: _substitute(upper, b),
        # Backwards, what is lower triangular is upper triangular.
        lambda _, b: _substitute(upper.T[::-1, ::-1], b[::-1])[::-1],
    )


def _substitute(upper: Array, b: Array) -> Array:
    """Back substitution, row by row; that of LAPACK could block for good, see `basis`."""

    def row(i: Array, x: Array) -> Array:
        # Rows of x that are not found yet are 0.
        j = len(b) - 1 - i
        return x.at[j].set((b[j] - upper[j] @ x) / upper[j, j])

    return jax.lax.fori_loop(0, len(b), row, jnp.zeros_like(b))


def init(key: Array, theta: Array, inner: optax.GradientTransformation) -> Reflected:
    """The state before the first step.

    Args:
      key: PRNG key of the basis.
      theta: ``(d1, K)`` with orthonormal columns.
      inner: the optimiser that moves the coordinates.
    """
    vectors = jnp.zeros_like(theta)
    return Reflected(basis(key, theta), vectors, inner.init(vectors))


def update(
    gradient: Array, state: Reflected, inner: optax.GradientTransformation
) -> tuple[Array, Reflected]:
    """A step in the coordinates.

    Args:
      gradient: ``(d1, K)`` in the matrix, of which the part along the orthonormal ones counts.
      state: before the step.
      inner: as given to `init`.

    Returns:
      The matrix ``(d1, K)`` after the step, orthonormal up to rounding, and its state.
    """
    _, pull = jax.vjp(lambda vectors: matrix(state.basis, vectors), state.vectors)
    updates, new = inner.update(pull(gradient)[0], state.inner)
    vectors = state.vectors + updates
    return matrix(state.basis, vectors), Reflected(state.basis, vectors, new)
