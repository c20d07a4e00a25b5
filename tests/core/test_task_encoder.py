"""Eq. 3: sparsemax and the orthonormal map."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hume_jax.core import task_encoder

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def _logits(k: int, n: int, scale: float = 3.0) -> jax.Array:
    return scale * jax.random.normal(jax.random.key(k), (k, n))


@pytest.mark.parametrize("k", [2, 10, 150])
def test_sparsemax_is_the_projection_onto_the_simplex(k):
    project = jax.jit(task_encoder.sparsemax)
    oracle = jax.jit(jax.vmap(optax.projections.projection_simplex, in_axes=1, out_axes=1))
    for scale in (1e-3, 1.0, 1e3):
        z = _logits(k, 40, scale)
        p = np.asarray(project(z))
        np.testing.assert_allclose(p, oracle(z), atol=2e-6 * max(1, scale))
        np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-5)
        assert (p >= 0).all()


def test_sparsemax_ignores_shifts_and_follows_permutations():
    z = _logits(6, 30)
    p = task_encoder.sparsemax(z)
    np.testing.assert_allclose(task_encoder.sparsemax(z + 7.0), p, atol=1e-5)
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    np.testing.assert_array_equal(task_encoder.sparsemax(z[order]), p[order])


def test_sparsemax_along_another_axis():
    z = _logits(5, 20)
    p = task_encoder.sparsemax(z.T, axis=1)
    np.testing.assert_array_equal(p, task_encoder.sparsemax(z).T)


def test_sparsemax_of_equal_and_of_dominated_logits():
    np.testing.assert_allclose(task_encoder.sparsemax(jnp.zeros((4, 1))), 0.25)
    one_hot = task_encoder.sparsemax(jnp.asarray([[50.0], [0.0], [-1e6]]))
    np.testing.assert_array_equal(one_hot, [[1.0], [0.0], [0.0]])


def test_jacobian_of_sparsemax_three_ways(x64, rng):
    z = 1.5 * rng.standard_normal(7)
    function = jax.jit(lambda v: task_encoder.sparsemax(v[:, None])[:, 0])
    p = np.asarray(function(z))
    support = (p > 0).astype(float)
    closed = np.diag(support) - np.outer(support, support) / support.sum()
    forward, reverse = jax.jit(jax.jacfwd(function))(z), jax.jit(jax.jacrev(function))(z)
    step = 1e-6
    ahead = np.stack([function(z + step * e) for e in np.eye(7)])
    behind = np.stack([function(z - step * e) for e in np.eye(7)])
    assert ((ahead > 0) == (p > 0)).all()
    assert ((behind > 0) == (p > 0)).all()
    np.testing.assert_allclose(forward, closed, atol=1e-12)
    np.testing.assert_allclose(reverse, closed, atol=1e-12)
    np.testing.assert_allclose((ahead - behind).T / (2 * step), closed, atol=1e-8)


def _with_condition(rng, rows: int, k: int, condition: float) -> np.ndarray:
    u, _ = np.linalg.qr(rng.standard_normal((rows, k)))
    v, _ = np.linalg.qr(rng.standard_normal((k, k)))
    return (u * np.geomspace(1, 1 / condition, k)) @ v.T


@pytest.mark.parametrize(
    ("rows", "k", "condition"),
    [(40, 10, 1), (40, 10, 300), (12, 12, 1), (12, 12, 100), (300, 150, 50), (8, 2, 10)],
)
def test_orthonormal_map_is_the_polar_factor(rng, rows, k, condition):
    orthonormalise = jax.jit(task_encoder.orthonormalise)
    theta = _with_condition(rng, rows, k, condition)
    u, _, vt = np.linalg.svd(theta, full_matrices=False)
    for scale in (1e-3, 1.0, 1e3):
        q = np.asarray(orthonormalise((scale * theta).astype(np.float32)))
        np.testing.assert_allclose(q.T @ q, np.eye(k), atol=1e-5)
        np.testing.assert_allclose(q, u @ vt, atol=2e-4 * max(1, condition / 30))


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-7), ("float64", 1e-14)])
def test_polynomials_bring_singular_values_to_one(dtype, error):
    """All that the map promises, and none falls far on its way once it has risen."""
    values = np.concatenate([np.geomspace(1.1e-3, 1, 10001), [1 + 1e-3]])
    risen = np.zeros(len(values), bool)
    for *polynomial, centre in task_encoder._polynomials(dtype):
        values = values * np.polynomial.Polynomial(polynomial)(values**2 - centre)
        risen |= values > 0.33
        assert values[risen].min() > 0.32
        assert values.max() < 1.101
    np.testing.assert_allclose(values, 1, atol=error)


@pytest.mark.parametrize("k", [2, 10, 150])
def test_bound_of_the_singular_values_is_near(rng, k):
    for condition in (1, 10, 1000):
        theta = _with_condition(rng, 200, k, condition).astype(np.float32)
        gram, square, scale = task_encoder._scaled_gram(7 * theta)
        assert 7 * (1 - 1e-5) <= scale <= 7 * k**0.125 * (1 + 1e-5)
        np.testing.assert_allclose(gram, theta.T @ theta * (7 / scale) ** 2, atol=1e-6)
        np.testing.assert_allclose(square, gram @ gram, atol=1e-6)


def test_a_search_may_begin_at_columns_much_alike(rng):
    """Two passes go far below what the map is held to at a step."""
    theta = _with_condition(rng, 300, 100, 3000)
    u, _, vt = np.linalg.svd(theta, full_matrices=False)
    q = np.asarray(task_encoder._orthonormal(theta.astype(np.float32)))
    np.testing.assert_allclose(q.T @ q, np.eye(100), atol=1e-5)
    np.testing.assert_allclose(q, u @ vt, atol=1e-3)


def test_orthonormal_map_leaves_orthonormal_input():
    theta = task_encoder.init(jax.random.key(3), 64, 10)
    np.testing.assert_allclose(task_encoder.orthonormalise(theta), theta, atol=1e-6)


@pytest.mark.parametrize("condition", [1.0, 20.0])
@pytest.mark.parametrize(("rows", "k"), [(12, 4), (5, 5)])
def test_derivative_of_the_orthonormal_map(x64, rng, rows, k, condition):
    theta = _with_condition(rng, rows, k, condition)
    direction, cotangent = rng.standard_normal((2, rows, k))
    value = jax.jit(lambda t: jnp.sum(cotangent * task_encoder.orthonormalise(t)))
    step = 1e-6
    central = (value(theta + step * direction) - value(theta - step * direction)) / (2 * step)
    gradient = np.asarray(jax.jit(jax.grad(value))(theta))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(np.sum(gradient * direction), central, rtol=1e-5)
    if condition == 1.0:
        # At orthonormal input, as the search has it, two products give the same.
        np.testing.assert_allclose(gradient, task_encoder.tangent(theta, cotangent), atol=1e-9)


def test_orthonormal_map_follows_permutations():
    theta = jax.random.normal(jax.random.key(6), (30, 6))
    order = jnp.asarray([2, 0, 1, 5, 3, 4])
    np.testing.assert_allclose(
        task_encoder.orthonormalise(theta[:, order]),
        task_encoder.orthonormalise(theta)[:, order],
        atol=1e-6,
    )


def test_predict_is_the_largest_soft_label():
    theta = task_encoder.init(jax.random.key(7), 20, 5)
    phi1 = jax.random.normal(jax.random.key(8), (50, 20))
    labels = task_encoder.labels(theta, phi1, 0.1)
    hard = task_encoder.predict(theta, phi1)
    assert hard.dtype == jnp.int32
    np.testing.assert_array_equal(hard, jnp.argmax(labels, axis=0))


def test_rows_that_are_drawn_lie_in_all_clusters(rng):
    centres = np.linalg.qr(rng.normal(size=(12, 6)))[0].T
    rows = (centres[np.arange(300) % 6] + 0.002 * rng.normal(size=(300, 12))).astype(np.float32)
    for seed in range(5):
        drawn = np.asarray(task_encoder.spread_rows(jax.random.key(seed), jnp.asarray(rows), 6))
        assert sorted(drawn % 6) == list(range(6))
        theta = task_encoder.init_from_rows(jax.random.key(seed), jnp.asarray(rows), 6)
        np.testing.assert_allclose(theta.T @ theta, np.eye(6), atol=1e-5)
        # Each class begins at the rows of one cluster.
        found = np.asarray(task_encoder.predict(theta, jnp.asarray(rows)))
        assert len({(cluster, found[i]) for i, cluster in enumerate(np.arange(300) % 6)}) == 6


@pytest.mark.parametrize("lloyd_steps", [0, 5])
def test_encoders_begin_at_rows_that_are_equal_or_zero(lloyd_steps):
    rows = jnp.zeros((20, 8)).at[:10, 0].set(1.0)
    theta = task_encoder.init_from_rows(jax.random.key(0), rows, 4, lloyd_steps)
    np.testing.assert_allclose(theta.T @ theta, np.eye(4), atol=1e-4)


def test_an_encoder_begins_at_a_labelling(rng):
    labels = np.arange(300) % 5
    rows = np.linalg.qr(rng.normal(size=(12, 5)))[0].T[labels] + 0.1 * rng.normal(size=(300, 12))
    rows = jnp.asarray(rows, jnp.float32)
    # One class of six has no row; the encoder has a column for it.
    theta = task_encoder.init_from_labels(jax.random.key(0), rows, jnp.asarray(labels), 6)
    np.testing.assert_allclose(theta.T @ theta, np.eye(6), atol=1e-5)
    np.testing.assert_array_equal(task_encoder.predict(theta, rows), labels)


def test_clusters_are_those_of_spherical_kmeans(rng, monkeypatch):
    """Against a loop in NumPy from the same rows."""
    rows = rng.normal(size=(80, 12)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    monkeypatch.setattr(task_encoder, "orthonormalise", lambda theta: theta)
    monkeypatch.setattr(task_encoder, "_NOISE", 0.0)
    begin, found = (
        task_encoder.init_from_rows(jax.random.key(3), jnp.asarray(rows), 5, steps).T
        for steps in (0, 7)
    )
    centres = np.asarray(begin, np.float64)
    for _ in range(7):
        nearest = (rows @ centres.T).argmax(1)
        sums = np.stack([rows[nearest == k].sum(0) for k in range(5)])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(found, centres, atol=1e-5)
    assert (rows @ centres.T).max(1).mean() > (rows @ np.asarray(begin).T).max(1).mean()


def test_labels_by_softmax(rng):
    theta, phi1 = rng.normal(size=(9, 4)), rng.normal(size=(7, 9))
    z = np.exp(phi1 @ theta / 0.5)
    found = task_encoder.labels(theta, phi1, 0.5, "softmax")
    np.testing.assert_allclose(found, (z / z.sum(1, keepdims=True)).T, rtol=1e-5)
    with pytest.raises(ValueError, match="'entmax' is not sparsemax or softmax"):
        task_encoder.labels(theta, phi1, 0.5, "entmax")
