"""Eq. 7 and its hypergradient against three independent ways to it, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from hume_jax.core import inner_fit, objective, task_encoder
from hume_jax.core.inner_fit import InnerFit

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def _subset(problem: oracles.Problem, spaces: int = 1) -> objective.Subset:
    x_train, x_test = (
        np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        for rows in (problem.phi2_train, problem.phi2_test)
    )
    change = inner_fit.coordinates(x_train.T @ x_train / len(x_train), problem.penalty)
    train, test = (jnp.asarray(rows @ change.basis) for rows in (x_train, x_test))
    penalty = jnp.asarray(change.penalty)
    step = 2 / inner_fit.largest_curvature(train, penalty)
    space = objective.InnerSpace(train, test, penalty, step)
    return objective.Subset(
        jnp.asarray(problem.phi1_train), jnp.asarray(problem.phi1_test), (space,) * spaces
    )


def _value_and_gradient(problem, settings, spaces=1, prior=None, theta=None):
    subset = _subset(problem, spaces)
    k = problem.theta.shape[1]
    log_prior = jnp.log(jnp.full(k, 1 / k) if prior is None else jnp.asarray(prior))
    starts = (jnp.zeros((k, subset.spaces[0].train.shape[1])),) * spaces

    @jax.jit
    def run(theta, watches):
        return jax.value_and_grad(objective.objective, argnums=(0, 9), has_aux=True)(
            theta,
            starts,
            subset,
            problem.temperature,
            log_prior,
            problem.entropy_weight,
            settings,
            "sparsemax",
            None,
            watches,
        )

    theta = problem.theta if theta is None else theta
    probes = (inner_fit.probe(jnp.float64),) * spaces
    (value, terms), (gradient, seen) = run(jnp.asarray(theta), probes)
    return float(value), terms, np.asarray(gradient), seen[0]


def _relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


CONVERGED = {"steps": 12, "newton_steps": 100, "adjoint_steps": 200}


@pytest.mark.parametrize(
    ("seed", "prior"),
    [pytest.param(0, None, marks=pytest.mark.slow), (1, (0.4, 0.3, 0.2, 0.1))],
)
def test_hypergradient_four_ways(x64, seed, prior):
    problem = oracles.problem(seed)
    given = {} if prior is None else {"prior": np.asarray(prior)}
    value, terms, gradient, seen = _value_and_gradient(problem, InnerFit(**CONVERGED), prior=prior)
    assert terms.residuals[0].after < 1e-12
    assert seen.adjoint.after < 1e-12
    expected, implicit = oracles.implicit_gradient(*problem, **given)
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    assert _relative(gradient, implicit) < 1e-7
    _, unrolled = oracles.unrolled_gradient(*problem, **given)
    assert _relative(gradient, unrolled) < 1e-6
    for k in range(3):
        direction = oracles.smooth_direction(*problem, seed=k)
        central = oracles.central_difference(*problem, direction=direction, **given)
        np.testing.assert_allclose(np.sum(gradient * direction), central, rtol=1e-6)


def test_our_own_unrolled_adjoint_converges_to_the_implicit_one(x64):
    problem = oracles.problem(2)
    _, implicit = oracles.implicit_gradient(*problem)
    _, _, gradient, _ = _value_and_gradient(
        problem, InnerFit(adjoint="unrolled", solver="nesterov", steps=1500)
    )
    assert _relative(gradient, implicit) < 1e-6


def test_first_order_adjoint_takes_the_fit_as_constant(x64):
    problem = oracles.problem(3)
    _, expected = oracles.first_order_gradient(*problem)
    _, implicit = oracles.implicit_gradient(*problem)
    settings = InnerFit(adjoint="first_order", **CONVERGED)
    _, _, gradient, seen = _value_and_gradient(problem, settings)
    assert _relative(gradient, expected) < 1e-7
    assert _relative(gradient, implicit) > 1e-2
    assert seen.adjoint.after == seen.adjoint.before == 0


def test_few_steps_report_their_residuals(x64):
    problem = oracles.problem(4)
    results = [
        _value_and_gradient(problem, InnerFit(solver="nesterov", steps=steps, adjoint_steps=steps))
        for steps in (3, 12)
    ]
    (_, few, _, few_seen), (_, more, _, more_seen) = results
    (few_inner,), (more_inner,) = few.residuals, more.residuals
    assert few_inner.before > few_inner.after > more_inner.before > more_inner.after > 0
    assert few_seen.adjoint.after > more_seen.adjoint.after > 0
    assert few_seen.adjoint.before > few_seen.adjoint.after


@pytest.mark.parametrize("adjoint", ["implicit", "first_order", "unrolled"])
def test_the_way_back_sees_the_gradient_of_what_is_held_out(x64, adjoint):
    """The norm of the held-out cross-entropy's gradient in W, at the solution."""
    problem = oracles.problem(8)
    settings = InnerFit(adjoint=adjoint, solver="nesterov", steps=20)
    _, terms, _, seen = _value_and_gradient(problem, settings)
    (space,), (w,) = _subset(problem).spaces, terms.solutions
    y = task_encoder.labels(problem.theta, jnp.asarray(problem.phi1_test), problem.temperature)
    expected = jax.grad(inner_fit.cross_entropy)(w, space.test, y)
    np.testing.assert_allclose(seen.heldout, np.linalg.norm(expected), rtol=1e-9)


def test_several_second_spaces_are_averaged(x64):
    problem = oracles.problem(5)
    settings = InnerFit(**CONVERGED)
    value, _, gradient, _ = _value_and_gradient(problem, settings)
    twice, terms, twice_gradient, _ = _value_and_gradient(problem, settings, spaces=2)
    np.testing.assert_allclose(twice, value, rtol=1e-12)
    np.testing.assert_allclose(twice_gradient, gradient, rtol=1e-9, atol=1e-12)
    assert len(terms.solutions) == 2


def test_permuting_classes_permutes_the_gradient(x64):
    problem = oracles.problem(6)
    order = np.asarray([2, 0, 3, 1])
    settings = InnerFit(steps=2, adjoint_steps=10)
    value, _, gradient, _ = _value_and_gradient(problem, settings)
    permuted = _value_and_gradient(problem, settings, theta=problem.theta[:, order])
    np.testing.assert_allclose(permuted[0], value, rtol=1e-12)
    np.testing.assert_allclose(permuted[2], gradient[:, order], atol=1e-10)


def test_rotating_the_second_representation_changes_nothing(x64, rng):
    problem = oracles.problem(7)
    settings = InnerFit(**CONVERGED)
    rotation, _ = np.linalg.qr(rng.standard_normal((problem.phi2_train.shape[1],) * 2))
    rotated = problem._replace(
        phi2_train=problem.phi2_train @ rotation, phi2_test=problem.phi2_test @ rotation
    )
    value, _, gradient, _ = _value_and_gradient(problem, settings)
    again, _, rotated_gradient, _ = _value_and_gradient(rotated, settings)
    np.testing.assert_allclose(again, value, rtol=1e-10)
    assert _relative(rotated_gradient, gradient) < 1e-7


@pytest.mark.parametrize("seed", range(3))
def test_a_class_prior_is_held_against_the_classes_in_its_best_order(seed, x64):
    """Brute force over all orders; classes change places where the term may not notice."""
    rng = np.random.default_rng(seed)
    mean, prior = rng.dirichlet(np.ones(5), 2)

    def divergence(mean, prior):
        return float(np.sum(mean * (np.log(mean) - np.log(prior))))

    least = min(divergence(mean, np.array(order)) for order in itertools.permutations(prior))
    value = objective.label_entropy(jnp.asarray(mean), jnp.log(jnp.asarray(prior)))[1]
    np.testing.assert_allclose(value, least, rtol=1e-12)
    found = jax.grad(lambda m: objective.label_entropy(m, jnp.log(jnp.asarray(prior)))[1])
    step = 1e-6 * np.eye(5)
    slopes = [
        objective.label_entropy(jnp.asarray(mean + s), jnp.log(jnp.asarray(prior)))[1]
        - objective.label_entropy(jnp.asarray(mean - s), jnp.log(jnp.asarray(prior)))[1]
        for s in step
    ]
    np.testing.assert_allclose(found(jnp.asarray(mean)), np.array(slopes) / 2e-6, rtol=1e-5)


def test_entropy_terms_are_finite_where_a_class_is_empty():
    mean = jnp.asarray([0.5, 0.5, 0.0])
    log_prior = jnp.log(jnp.full(3, 1 / 3))
    entropy, divergence = objective.label_entropy(mean, log_prior)
    np.testing.assert_allclose(entropy, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(divergence, np.log(3) - np.log(2), rtol=1e-6)
    gradient = jax.grad(lambda m: objective.label_entropy(m, log_prior)[1])(mean)
    assert jnp.all(jnp.isfinite(gradient))
