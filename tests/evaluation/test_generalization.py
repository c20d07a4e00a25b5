"""The label-free scores of finished tasks against scikit-learn, on rows of the embedded dataset."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import hume_jax
from hume_jax.evaluation import generalization
from hume_jax.representations.prepare import inner_rows

pytestmark = pytest.mark.usefixtures("quickly_compiled")

ROWS, FOLDS, K = 600, 3, 10
PENALTY, TOLERANCE, ETA = 1e-3, 1e-4, 10.0
TRUE, RANDOM, AGAIN, UNEVEN = range(4)


@pytest.fixture(scope="module")
def folds():
    return generalization.folds(6000, FOLDS, ROWS, seed=0)


@pytest.fixture(scope="module")
def phi2(folds):
    """Second representation of the rows in the folds, fold after fold."""
    return load("phi2_train")[folds.reshape(-1)].astype(np.float32)


@pytest.fixture(scope="module")
def tasks(folds):
    true = load("labels_train")[folds.reshape(-1)]
    random = np.random.default_rng(0).integers(K, size=ROWS)
    return np.stack([true, random, true, true // 2]).astype(np.int32)


def load(name):
    package = pathlib.Path(hume_jax.__file__).parent
    return np.load(package / "data" / "quickstart" / f"{name}.npy")


@pytest.fixture(scope="module")
def score(phi2, tasks):
    """The scores under a class prior."""
    rows = jnp.arange(ROWS, dtype=jnp.int32).reshape(FOLDS, -1)

    def run(prior, penalty=PENALTY):
        space = inner_rows(
            [phi2], normalised=True, precondition=True, directions=0, penalty=penalty
        )
        log_prior = jnp.asarray(np.log(prior), jnp.float32)
        done = []
        found = generalization.score(
            jnp.asarray(tasks),
            jnp.asarray(space.x),
            jnp.asarray(space.penalty),
            rows,
            log_prior,
            entropy_weight=ETA,
            steps=50,
            tolerance=TOLERANCE,
            done=lambda: done.append(1),
        )
        assert len(done) == FOLDS
        return jax.device_get(found)

    return run


@pytest.fixture(scope="module")
def scores(score):
    return score(np.full(K, 1 / K))


def test_folds_are_disjoint_of_equal_size_and_random():
    found = generalization.folds(1000, 4, 10_000, seed=3)
    assert found.shape == (4, 250)
    assert found.dtype == np.int32
    assert len(np.unique(found)) == 1000
    np.testing.assert_array_equal(found, generalization.folds(1000, 4, 10_000, seed=3))
    assert not np.array_equal(found, generalization.folds(1000, 4, 10_000, seed=4))
    assert np.all(np.abs(found.mean(axis=1) - 500) < 100)
    # The remainder is left out; `rows` is the most that is used.
    assert generalization.folds(1003, 4, 10_000, seed=3).shape == (4, 250)
    few = generalization.folds(1000, 4, 90, seed=3)
    assert few.shape == (4, 22)
    assert len(np.unique(few)) == 88
    assert few.max() < 1000
    # Leave one out, where rows are fewer than folds.
    assert generalization.folds(3, 5, 10_000, seed=3).shape == (3, 1)


@pytest.mark.parametrize("task", [TRUE, RANDOM])
def test_scores_are_those_of_logistic_regression(scores, tasks, phi2, task):
    # As in the design of the inner fit: centred, unit mean squared norm, the constant a column.
    centred = phi2.astype(np.float64) - phi2.mean(axis=0, dtype=np.float64)
    scaled = centred / np.sqrt(np.mean(np.sum(centred**2, axis=1)))
    x = np.concatenate([scaled, np.ones((ROWS, 1))], axis=1)
    cross_entropy, right = [], []
    for test in np.arange(ROWS).reshape(FOLDS, -1):
        train = np.setdiff1d(np.arange(ROWS), test)
        model = LogisticRegression(
            C=1 / (len(train) * PENALTY), fit_intercept=False, tol=1e-8, max_iter=5000
        ).fit(x[train], tasks[task][train])
        held_out = tasks[task][test]
        log_probability = model.predict_log_proba(x[test])
        cross_entropy.append(-np.mean(log_probability[np.arange(len(test)), held_out]))
        right.append(np.mean(model.predict(x[test]) == held_out))
    np.testing.assert_allclose(scores.heldout_ce[task], np.mean(cross_entropy), rtol=2e-3)
    # One row of difference: one that lies between two classes.
    assert abs(scores.cv_accuracy[task] - np.mean(right)) <= 1.01 / ROWS


def test_true_labels_generalise_and_random_ones_do_not(scores):
    assert scores.cv_accuracy[TRUE] > 0.9
    assert scores.cv_accuracy[RANDOM] < 0.2
    assert scores.objective[TRUE] < scores.objective[RANDOM]


def test_every_fit_ends_below_the_tolerance(scores):
    assert np.all(scores.residual < TOLERANCE)


def test_fits_end_with_hardly_a_penalty(score):
    # Full Newton steps overshoot here, and the loss grows without bound.
    found = score(np.full(K, 1 / K), penalty=1e-8)
    assert np.all(found.residual < TOLERANCE)
    assert found.cv_accuracy[TRUE] > 0.9


def test_all_tasks_are_scored_on_the_same_folds(scores):
    for values in scores:
        np.testing.assert_allclose(values[AGAIN], values[TRUE], rtol=1e-6)


def test_the_entropy_term_is_that_of_the_label_histogram(score, scores, tasks):
    share = np.stack([np.bincount(task, minlength=K) / ROWS for task in tasks])
    log_share = np.log(np.where(share > 0, share, 1))
    entropy = -np.sum(share * log_share, axis=1)
    np.testing.assert_allclose(scores.entropy, entropy, rtol=1e-5)
    uniform = scores.heldout_ce + ETA * (np.log(K) - entropy)
    np.testing.assert_allclose(scores.objective, uniform, rtol=1e-5, atol=1e-4)
    assert scores.objective[UNEVEN] - scores.heldout_ce[UNEVEN] > ETA * np.log(2) - 0.2
    # Any other prior: the divergence from it, the largest share held against the largest class.
    prior = np.arange(1, K + 1) / (K * (K + 1) / 2)
    given = score(prior)
    cross = np.sum(np.sort(share, axis=1) * np.log(prior)[None], axis=1)
    divergence = np.sum(share * log_share, axis=1) - cross
    expected = given.heldout_ce + ETA * divergence
    np.testing.assert_allclose(given.objective, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(given.heldout_ce, scores.heldout_ce)
