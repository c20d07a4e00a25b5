"""Scores against brute force over permutations, scikit-learn and scipy."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from hume_jax.evaluation import metrics


@st.composite
def labellings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draws predicted and true labels, both of 1 to 5 classes with any gaps in their numbers."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    used = rng.choice(20, draw(st.integers(1, 5)), replace=False)
    classes = rng.choice(np.arange(-50, 50), draw(st.integers(1, 5)), replace=False)
    true = rng.integers(0, len(classes), n)
    follow = rng.random(n) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    predicted = np.where(follow, true % len(used), rng.integers(0, len(used), n))
    return used[predicted], classes[true]


def brute_force_accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Tries every one-to-one assignment of predicted to true classes."""
    used, classes = np.unique(predicted).tolist(), np.unique(true).tolist()
    size = max(len(used), len(classes))
    used += [None] * (size - len(used))
    best = 0
    for order in itertools.permutations(used, len(classes)):
        pairs = zip(order, classes, strict=True)
        best = max(
            best, sum(((predicted == u) & (true == c)).sum() for u, c in pairs if u is not None)
        )
    return best / len(true)


@settings(deadline=None, max_examples=100)
@given(labellings())
def test_clustering_accuracy_against_brute_force(case) -> None:
    predicted, true = case
    assert metrics.clustering_accuracy(predicted, true) == pytest.approx(
        brute_force_accuracy(predicted, true), abs=1e-12
    )


@settings(deadline=None, max_examples=100)
@given(labellings())
def test_ari_and_nmi_against_scikit_learn(case) -> None:
    predicted, true = case
    assert metrics.adjusted_rand_index(predicted, true) == pytest.approx(
        sklearn.metrics.adjusted_rand_score(true, predicted), abs=1e-9
    )
    assert metrics.normalised_mutual_information(predicted, true) == pytest.approx(
        sklearn.metrics.normalized_mutual_info_score(true, predicted), abs=1e-9
    )


@settings(deadline=None, max_examples=50)
@given(labellings())
def test_score_is_the_three_and_renaming_changes_nothing(case) -> None:
    predicted, true = case
    score = metrics.score(predicted, true)
    assert score == {
        "acc": metrics.clustering_accuracy(predicted, true),
        "ari": metrics.adjusted_rand_index(predicted, true),
        "nmi": metrics.normalised_mutual_information(predicted, true),
    }
    assert metrics.score(19 - predicted, true * 3 - 7) == pytest.approx(score, abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(labellings())
def test_confusion_has_the_matched_classes_on_its_diagonal(case) -> None:
    predicted, true = case
    confusion = metrics.confusion_matrix(predicted, true)
    np.testing.assert_array_equal(confusion.classes, np.unique(true))
    assert confusion.matrix.shape == (len(confusion.classes), len(confusion.predicted))
    for (i, c), (j, p) in itertools.product(
        enumerate(confusion.classes), enumerate(confusion.predicted)
    ):
        assert confusion.matrix[i, j] == ((true == c) & (predicted == p)).sum()
    assert sorted(confusion.predicted[confusion.predicted >= 0]) == sorted(np.unique(predicted))
    accuracy = np.trace(confusion.matrix) / len(true)
    assert accuracy == pytest.approx(metrics.clustering_accuracy(predicted, true))
    recall = metrics.per_class_recall(predicted, true)
    assert recall @ confusion.matrix.sum(axis=1) / len(true) == pytest.approx(accuracy)


def test_a_perfect_labelling_under_other_names() -> None:
    true = np.array([-3, -3, 7, 100, 7])
    score = metrics.score(np.array([2, 2, 0, 1, 0]), true)
    assert score == pytest.approx({"acc": 1.0, "ari": 1.0, "nmi": 1.0}, abs=1e-12)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(np.array([2, 2, 0, 1, 0]), true).predicted, [2, 0, 1]
    )


def test_more_and_fewer_predicted_classes_than_true_ones() -> None:
    true = np.array([0, 0, 0, 1, 1, 1])
    more = metrics.confusion_matrix(np.array([4, 4, 0, 1, 2, 2]), true)
    np.testing.assert_array_equal(more.matrix, [[2, 0, 1, 0], [0, 2, 0, 1]])
    np.testing.assert_array_equal(more.predicted, [4, 2, 0, 1])
    fewer = metrics.confusion_matrix(np.zeros(6, int), true)
    np.testing.assert_array_equal(fewer.matrix, [[3, 0], [3, 0]])
    np.testing.assert_array_equal(fewer.predicted, [0, -1])
    np.testing.assert_array_equal(metrics.per_class_recall(np.zeros(6, int), true), [1, 0])


def test_large_counts_do_not_overflow() -> None:
    counts = np.diag(np.full(1000, 4_000_000)) + 1000
    assert 0.0 < metrics._adjusted_rand_index(counts) < 1.0
    assert 0.0 < metrics._normalised_mutual_information(counts) < 1.0


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        (np.zeros(3, int), np.zeros(4, int), "two \\(n,\\) arrays"),
        (np.zeros((3, 1), int), np.zeros((3, 1), int), "two \\(n,\\) arrays"),
        (np.zeros(0, int), np.zeros(0, int), "n >= 1"),
        (np.zeros(3), np.zeros(3, int), "must be integers, got float64"),
    ],
)
def test_bad_labels_are_refused(predicted: np.ndarray, true: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.score(predicted, true)


def test_correlation_against_scipy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=32)
    y = -x + 0.3 * rng.normal(size=32)
    y[:5] = y[5]  # ties
    result = metrics.correlation(x, y, seed=1)
    assert result is not None
    assert result["pearson"] == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert result["spearman"] == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert result["n"] == 32
    for name in ("pearson", "spearman"):
        low, high = result[f"{name}_interval"]
        assert -1 <= low < result[name] < high < 0
    assert result == metrics.correlation(x, y, seed=1)
    assert result != metrics.correlation(x, y, seed=2)


def test_bootstrap_interval_against_the_one_of_scipy() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: scipy.stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=2000,
        rng=np.random.default_rng(4),
    ).confidence_interval
    ours = metrics.correlation(x, y)["pearson_interval"]
    np.testing.assert_allclose(ours, theirs, atol=0.03)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1.0, 2.0], [1.0, 3.0]),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [0.1 + 0.2, 0.3, 0.3]),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, np.nan, 2.0 - 1.0]),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
        ([], []),
    ],
)
def test_no_correlation_of_a_constant_side(x: list[float], y: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.correlation(np.array(x), np.array(y)) is None


def test_correlation_with_few_or_odd_points_gives_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in (
            ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]),
            ([1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 2.0, 3.0]),
            ([1e-200, 2e-200, 3e-200], [1e200, 3e200, 2e200]),
            ([1.0, 2.0, 3.0, np.inf], [3.0, 2.0, 1.0, 5.0]),
        ):
            result = metrics.correlation(np.array(x), np.array(y))
            assert result is not None
            low, high = result["pearson_interval"]
            assert -1 <= low <= high <= 1


def test_correlation_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="two \\(S,\\) arrays"):
        metrics.correlation(np.zeros(3), np.zeros(4))
