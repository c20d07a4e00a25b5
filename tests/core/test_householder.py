"""Householder coordinates of the task encoder, against reflections one by one and PyTorch's."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hume_jax.core import householder, task_encoder

pytestmark = pytest.mark.usefixtures("quickly_compiled")

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "paper_parity.npz"
matrix = jax.jit(householder.matrix)
basis = jax.jit(householder.basis)


def reflected(b: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The matrix by its definition, reflection by reflection."""
    q = -np.eye(*vectors.shape)
    for k in range(vectors.shape[1])[::-1]:
        v = np.concatenate([np.zeros(k), [1], np.asarray(vectors[k + 1 :, k], np.float64)])
        q -= 2 * np.outer(v, v @ q) / (v @ v)
    return b @ q


@pytest.mark.parametrize("shape", [(7, 3), (64, 10), (5, 5), (1, 1), (300, 150)])
def test_the_basis_begins_with_the_encoder(shape):
    key, encoder_key = jax.random.split(jax.random.key(shape[0]))
    theta = task_encoder.init(encoder_key, *shape)
    b = basis(key, theta)
    np.testing.assert_allclose(b[:, : shape[1]], theta, atol=2e-6)
    np.testing.assert_allclose(b.T @ b, np.eye(len(b)), atol=1e-5)
    np.testing.assert_allclose(matrix(b, jnp.zeros(shape)), theta, atol=2e-6)
    if shape[0] > shape[1]:
        assert np.abs(basis(encoder_key, theta) - b)[:, shape[1] :].max() > 0.1


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_matrix_is_that_of_its_reflections(scale, rng):
    """Whatever the length of the vectors; what is not below the diagonal does not count."""
    vectors = scale * rng.standard_normal((40, 8))
    b = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    found = matrix(jnp.asarray(b, jnp.float32), jnp.asarray(vectors, jnp.float32))
    np.testing.assert_allclose(found, reflected(b, vectors), atol=5e-6)
    np.testing.assert_allclose(found.T @ found, np.eye(8), atol=5e-6)


def test_its_derivative(x64, rng):
    vectors, cotangent = rng.standard_normal((2, 9, 4))
    b = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    _, pull = jax.vjp(lambda v: householder.matrix(jnp.asarray(b), v), jnp.asarray(vectors))
    step, want = 1e-6, np.zeros_like(vectors)
    for i, j in np.ndindex(*vectors.shape):
        moved = np.zeros_like(vectors)
        moved[i, j] = step
        change = reflected(b, vectors + moved) - reflected(b, vectors - moved)
        want[i, j] = np.sum(cotangent * change) / (2 * step)
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], want, atol=1e-7)
    assert not np.triu(want).any()
    assert np.abs(want).max() > 0.1


def test_a_batch_of_many_classes_ends():
    """Triangular solves of LAPACK's in a batch could wait for each other for good."""
    keys = jax.random.split(jax.random.key(0), 4)
    theta = jax.jit(jax.vmap(lambda key: task_encoder.init(key, 200, 150)))(keys)
    b = jax.jit(jax.vmap(householder.basis))(keys, theta)

    def pull(b, vectors, cotangent):
        return jax.vjp(lambda v: householder.matrix(b, v), vectors)[1](cotangent)[0]

    pulled = jax.jit(jax.vmap(pull))(b, 0.1 * theta, theta)
    assert np.isfinite(pulled).all()
    # The matrix itself leads away from the orthonormal ones: at the start nothing of it is left.
    np.testing.assert_allclose(jax.jit(jax.vmap(pull))(b, 0 * theta, theta), 0, atol=2e-5)


@pytest.fixture(scope="module")
def updates():
    """A run of the authors' code: its basis, task encoders, and the gradients that moved them."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        rate = json.loads(str(file["meta"]))["updates"]["outer_lr"]
        adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        return adam, *(jnp.asarray(file[f"updates/{x}"]) for x in ("basis", "q", "gradient"))


def follow(move, theta, state, gradients):
    """Where the gradients lead from an encoder, as the search follows them."""
    found = [theta]
    for gradient in gradients:
        theta, state = move(theta, task_encoder.tangent(theta, gradient), state)
        theta = task_encoder.orthonormalise(theta)
        found.append(theta)
    return np.stack(found)


def test_updates_are_those_of_the_authors_code(updates):
    adam, b, q, gradients = updates

    @jax.jit
    def reflect(_, gradient, state):
        return householder.update(gradient, state, adam)

    @jax.jit
    def move(theta, gradient, state):
        updates, state = adam.update(gradient, state)
        return theta + updates, state

    state = householder.init(jax.random.key(0), q[0], adam)
    found = follow(reflect, q[0], state._replace(basis=b), gradients)
    np.testing.assert_allclose(found, q, atol=2e-5)
    assert np.linalg.norm(q[-1] - q[0]) > 1
    # Guards the test: the coordinates matter, and so does the basis.
    assert np.abs(follow(move, q[0], adam.init(q[0]), gradients) - q).max() > 0.1
    assert np.abs(follow(reflect, q[0], state, gradients) - q).max() > 0.1
