"""Eq. 5: the inner fit against scikit-learn, its conditioning, its solvers, its residuals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hume_jax.core import inner_fit, solvers

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def _problem(rng, n=300, d=12, k=4, decay=1.0):
    """Rows with a constant column, their Gram matrix, and soft labels."""
    scales = np.geomspace(1, decay, d)
    x = np.concatenate([rng.standard_normal((n, d)) * scales, np.ones((n, 1))], axis=1)
    logits = 2 * rng.standard_normal((k, d + 1)) @ x.T
    y = np.exp(logits) / np.exp(logits).sum(axis=0)
    return x, x.T @ x / n, y


def _solve(x, gram, y, penalty, *, steps=3000, precondition=True, solver="nesterov", **more):
    """W in the original coordinates, and the residual in those of the fit."""
    change = inner_fit.coordinates(gram, penalty, precondition=precondition)
    rows = jnp.asarray(x @ change.basis, x.dtype)
    weights = jnp.asarray(change.penalty, x.dtype)

    @jax.jit
    def run(rows, weights, y):
        step = 2 / inner_fit.largest_curvature(rows, weights)
        start = jnp.zeros((y.shape[0], rows.shape[1]), rows.dtype)
        return solvers.minimise(start, rows, y, weights, step, steps=steps, solver=solver, **more)

    found = run(rows, weights, jnp.asarray(y))
    return np.asarray(found.w) @ change.basis.T, float(found.residual)


@pytest.mark.parametrize(
    ("penalty", "solver", "steps"),
    [(1e-1, "nesterov", 1000), (1e-3, "nesterov", 3000), (1e-3, "newton", 15)],
)
def test_inner_fit_is_logistic_regression_on_weighted_rows(x64, rng, penalty, solver, steps):
    x, gram, y = _problem(rng)
    w, residual = _solve(x, gram, y, penalty, solver=solver, steps=steps, newton_steps=60)
    # Soft labels: every row once for each class, weighted by its label.
    n, k = x.shape[0], y.shape[0]
    model = LogisticRegression(C=1 / (n * penalty), fit_intercept=False, tol=1e-10, max_iter=5000)
    model.fit(np.tile(x, (k, 1)), np.repeat(np.arange(k), n), sample_weight=y.reshape(-1))
    assert residual < 1e-9
    np.testing.assert_allclose(w, model.coef_, atol=1e-6 * np.abs(model.coef_).max())


def test_coordinates_make_the_problem_half_smooth(rng):
    penalty = 1e-3
    x, gram, _ = _problem(rng, decay=1e-3)
    change = inner_fit.coordinates(gram, penalty)
    rows = x @ change.basis
    curvature = rows.T @ rows / len(rows) + 2 * np.diag(change.penalty)
    np.testing.assert_allclose(np.linalg.eigvalsh(curvature), 1, atol=1e-9)
    # The diagonal weights are the penalty on the original coefficients.
    v = rng.standard_normal(rows.shape[1])
    original = penalty * np.sum((change.basis @ v) ** 2)
    np.testing.assert_allclose(np.sum(change.penalty * v**2), original, rtol=1e-9)


def test_directions_without_variance_are_left_out(rng):
    x, _, _ = _problem(rng)
    x[:, 3] = 0
    change = inner_fit.coordinates(x.T @ x / len(x), 1e-4)
    assert change.basis.shape == (13, 12)
    assert change.kept == pytest.approx(1)
    assert np.all(np.abs(change.basis[3]) < 1e-6)


def test_leading_directions_and_their_share_of_the_variance(rng):
    x, _, _ = _problem(rng, decay=1e-2)
    x[:, :-1] -= x[:, :-1].mean(axis=0)
    values = np.linalg.eigvalsh(np.cov(x[:, :-1].T, bias=True))[::-1]
    # Wider spread than the constant column, which then is the last direction of the three.
    x[:, :-1] *= 1.2 / np.sqrt(values[1])
    change = inner_fit.coordinates(x.T @ x / len(x), 1e-4, directions=3)
    assert change.basis.shape == (13, 3)
    assert change.kept == pytest.approx(values[:2].sum() / values.sum())


def test_directions_that_the_penalty_holds_down_are_left_out(rng):
    x, gram, _ = _problem(rng, decay=1e-2)
    values = np.linalg.eigvalsh(gram)[::-1]
    penalty = 1e-3
    expected = int(np.sum(values > 1.5 * penalty))
    assert 1 < expected < len(values)
    change = inner_fit.coordinates(gram, penalty, floor=1.5)
    assert change.basis.shape == (13, expected)
    # What is left are the leading ones.
    whole = inner_fit.coordinates(gram, penalty)
    np.testing.assert_array_equal(change.basis, whole.basis[:, :expected])
    np.testing.assert_array_equal(change.penalty, whole.penalty[:expected])
    assert change.kept < whole.kept
    # A large penalty leaves those that are wide beside the widest.
    wide = inner_fit.coordinates(gram, 10.0, floor=1.5)
    assert wide.basis.shape == (13, int(np.sum(values > 0.01 * values[1])))
    assert wide.basis.shape[1] > 2


def test_no_preconditioning_keeps_the_coordinates(rng):
    _, gram, _ = _problem(rng)
    change = inner_fit.coordinates(gram, 0.0, precondition=False)
    np.testing.assert_array_equal(change.basis, np.eye(13))
    np.testing.assert_array_equal(change.penalty, 0)


def test_preconditioning_without_a_penalty_is_refused(rng):
    _, gram, _ = _problem(rng)
    with pytest.raises(ValueError, match="penalty above 0"):
        inner_fit.coordinates(gram, 0.0)


@pytest.mark.parametrize("subset", [24, 120])
def test_largest_curvature_bounds_the_subset(rng, subset):
    x, gram, _ = _problem(rng, n=2000)
    change = inner_fit.coordinates(gram, 1e-4)
    rows = (x[:subset] @ change.basis).astype(np.float32)
    exact = np.linalg.eigvalsh(rows.T @ rows / subset + 2 * np.diag(change.penalty))[-1]
    estimate = jax.jit(inner_fit.largest_curvature)(rows, change.penalty.astype(np.float32))
    assert exact <= estimate <= 1.06 * exact
    assert exact > 1.2


def test_two_classes_near_one_half_on_a_small_subset_converge(rng):
    """The case in which the bound 1/2 of the Hessian is attained and a step of 2 diverges."""
    d = 60
    x, gram, _ = _problem(rng, n=4000, d=d)
    change = inner_fit.coordinates(gram, 1e-4)
    rows = jnp.asarray(x[: 2 * d] @ change.basis, jnp.float32)
    half = 0.5 + 0.01 * rng.uniform(-1, 1, 2 * d)
    y = jnp.asarray(np.stack([half, 1 - half]), jnp.float32)
    penalty = jnp.asarray(change.penalty, jnp.float32)
    run = functools.partial(solvers.minimise, jnp.zeros((2, d + 1)), rows, y, penalty)
    fit = jax.jit(lambda step, steps: run(step, steps=steps))
    step = 2 / inner_fit.largest_curvature(rows, penalty)
    residuals = [float(fit(step, steps).residual) for steps in (1, 25, 50, 100, 200)]
    assert residuals[-1] < 1e-5
    assert all(b < a or b < 1e-6 for a, b in zip(residuals, residuals[1:], strict=False))


def test_acceleration_and_newton_get_further_with_the_same_products(rng):
    x, gram, y = _problem(rng, decay=1e-2)
    x, y = x.astype(np.float32), y.astype(np.float32)
    exact, _ = _solve(x, gram, y, 1e-4, steps=15, solver="newton", newton_steps=60)

    def error(**how):
        w, _ = _solve(x, gram, y, 1e-4, **{"steps": 30, **how})
        return np.linalg.norm((w - exact) @ x.T) / np.linalg.norm(exact @ x.T)

    accelerated = error()
    assert error(solver="gradient") > 1.5 * accelerated
    assert error(solver="newton", steps=4) < 0.8 * accelerated


def test_newton_does_not_overshoot_from_a_bad_start(rng):
    x, gram, y = _problem(rng)
    change = inner_fit.coordinates(gram, 1e-3)
    rows, weights = (jnp.asarray(a, jnp.float32) for a in (x @ change.basis, change.penalty))
    labels = jnp.asarray(y == y.max(axis=0), jnp.float32)
    # Confident and wrong: the curvature at the start says little about the way.
    start = -20 * labels @ rows / len(rows)

    @functools.partial(jax.jit, static_argnames="steps")
    def value(steps):
        found = solvers.minimise(start, rows, labels, weights, 0.0, steps=steps, solver="newton")
        return inner_fit.loss(found.w, rows, labels, weights)

    values = [float(value(steps)) for steps in range(6)]
    assert all(b <= a * (1 + 1e-5) for a, b in zip(values, values[1:], strict=False))
    assert values[-1] < 0.2 * values[0]


def test_newton_begins_at_zero_where_that_is_better_than_the_start(rng):
    x, gram, y = _problem(rng)
    rows, labels, weights = (jnp.asarray(a, jnp.float32) for a in (x, y, np.full(13, 1e-3)))
    good, far = 1e-3 * labels @ rows, -20 * labels @ rows
    run = functools.partial(solvers.minimise, solver="newton")
    zero = run(jnp.zeros_like(far), rows, labels, weights, 0.0, steps=2)
    for a, b in zip(run(far, rows, labels, weights, 0.0, steps=2), zero, strict=True):
        np.testing.assert_array_equal(a, b)
    kept = run(good, rows, labels, weights, 0.0, steps=0)
    np.testing.assert_array_equal(kept.w, good)
    np.testing.assert_array_equal(kept.logits, good @ rows.T)


def test_newton_knows_the_logits_at_its_solution(rng):
    x, gram, y = _problem(rng)
    rows, labels, weights = (jnp.asarray(a, jnp.float32) for a in (x, y, np.full(13, 1e-3)))
    start = jnp.zeros((4, 13))
    found = solvers.minimise(start, rows, labels, weights, 0.0, steps=3, solver="newton")
    np.testing.assert_allclose(found.logits, found.w @ rows.T, atol=1e-4)
    assert solvers.minimise(start, rows, labels, weights, 0.1, steps=3).logits is None


def test_conjugate_gradient_tells_what_was_left_before_its_last_step(rng):
    a = rng.standard_normal((20, 20)).astype(np.float32)
    a, b = a @ a.T + 20 * np.eye(20, dtype=np.float32), rng.standard_normal(20).astype(np.float32)
    left = [solvers.conjugate_gradient(lambda v: a @ v, b, steps)[1] for steps in (2, 3)]
    assert 0 < left[1].after < left[0].after < 1
    np.testing.assert_allclose(left[1].before, left[0].after, rtol=1e-5)


def test_unknown_solver_is_refused(rng):
    x = np.ones((5, 3), np.float32)
    with pytest.raises(ValueError, match="not newton, nesterov or gradient"):
        solvers.minimise(x[:2], x, x[:, :2].T, x[0], 1.0, steps=1, solver="sgd")


def test_tolerance_ends_a_fit_early(rng):
    x, gram, y = _problem(rng)
    change = inner_fit.coordinates(gram, 1e-2)
    rows = jnp.asarray(x @ change.basis, jnp.float32)
    start = jnp.zeros((4, rows.shape[1]))

    @jax.jit
    def both(y):
        arguments = (start, rows, y, jnp.asarray(change.penalty, jnp.float32), 1.5)
        return (
            solvers.minimise(*arguments, steps=500, tolerance=1e-3).residual,
            solvers.minimise(*arguments, steps=500, tolerance=1e-6).residual,
        )

    coarse, fine = both(jnp.asarray(y, jnp.float32))
    assert fine < 1e-6 < coarse < 1e-3


def test_conjugate_gradient_solves_and_survives_a_zero_residual(x64, rng):
    a = rng.standard_normal((20, 20))
    a = a @ a.T + np.eye(20)
    b = rng.standard_normal(20)
    solve = jax.jit(functools.partial(solvers.conjugate_gradient, lambda v: a @ v, steps=60))
    u, left = solve(b)
    np.testing.assert_allclose(u, np.linalg.solve(a, b), atol=1e-9)
    assert left.after < 1e-10
    nothing, left = solve(np.zeros(20))
    np.testing.assert_array_equal(nothing, 0)
    assert left.after == left.before == 0


def test_unknown_adjoint_is_refused(rng):
    x, gram, y = _problem(rng)
    with pytest.raises(ValueError, match="not implicit, unrolled or first_order"):
        inner_fit.fit(y, x, gram[0], y @ x, 1.0, inner_fit.InnerFit(adjoint="exact"))
