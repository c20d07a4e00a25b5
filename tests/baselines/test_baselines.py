"""k-means and the supervised probe on data where the answer is known."""

import threading

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from hume_jax.baselines import kmeans as kmeans_module
from hume_jax.baselines import probe as probe_module
from hume_jax.baselines.kmeans import kmeans
from hume_jax.baselines.probe import probe
from hume_jax.evaluation import metrics


def blobs(
    n: int, n_classes: int, d: int, distance: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws rows around fixed centres; labels are 3, 6, 9, ... in no order."""
    centres = np.random.default_rng(0).normal(size=(n_classes, d)) * distance
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, n_classes, n)
    return centres[classes] + rng.normal(size=(n, d)), 3 * classes + 3


def test_kmeans_finds_separate_blobs_in_train_and_test() -> None:
    (train, true), (test, test_true) = blobs(400, 5, 8, 10.0, 1), blobs(100, 5, 8, 10.0, 2)
    labels, test_labels = kmeans(train.astype(np.float16), test.astype(np.float16), 5)
    assert test_labels is not None
    assert (labels.dtype, labels.shape, test_labels.shape) == (np.int32, (400,), (100,))
    assert metrics.clustering_accuracy(labels, true) == 1.0
    assert metrics.clustering_accuracy(test_labels, test_true) == 1.0


def test_kmeans_without_a_test_split_and_by_seed() -> None:
    train, _ = blobs(300, 5, 8, 0.3, 1)
    labels, none = kmeans(train, None, 5, seed=3)
    assert none is None
    np.testing.assert_array_equal(labels, kmeans(train, None, 5, seed=3)[0])


def test_kmeans_is_as_tight_as_ten_starts_of_scikit_learn() -> None:
    train, _ = blobs(500, 6, 8, 0.6, 1)
    labels = kmeans(train, None, 6)[0]
    inertia = sum(
        ((train[labels == k] - train[labels == k].mean(axis=0)) ** 2).sum() for k in range(6)
    )
    theirs = KMeans(6, n_init=10, random_state=0).fit(train).inertia_
    assert inertia == pytest.approx(theirs, rel=0.01)


def test_kmeans_fits_some_rows_and_assigns_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_module, "_BLOCK", 64)
    train, true = blobs(500, 5, 8, 10.0, 1)
    labels = kmeans(train, None, 5, max_rows=100)[0]
    assert metrics.clustering_accuracy(labels, true) == 1.0


def test_kmeans_with_fewer_different_rows_than_clusters() -> None:
    labels = kmeans(np.repeat(np.eye(3), 10, axis=0), None, 5)[0]
    assert metrics.clustering_accuracy(labels, np.repeat(np.arange(3), 10)) == 1.0


def test_probe_predicts_the_true_labels() -> None:
    (train, true), (test, test_true) = blobs(400, 5, 8, 1.5, 1), blobs(200, 5, 8, 1.5, 2)
    result = probe(train.astype(np.float16), true, test.astype(np.float16))
    assert result.labels.dtype == np.int64
    assert set(result.labels) == {3, 6, 9, 12, 15}
    reference = LogisticRegression(C=1.0, max_iter=1000).fit(train, true)
    accuracy = (result.labels == test_true).mean()
    assert accuracy >= reference.score(test, test_true) - 0.02 >= 0.9
    assert result.held_out_accuracy is not None
    assert 0.8 <= result.held_out_accuracy <= 1.0
    again = probe(train.astype(np.float16), true, test.astype(np.float16))
    np.testing.assert_array_equal(result.labels, again.labels)


def test_probe_does_not_depend_on_the_scale_or_the_origin_of_a_space() -> None:
    (train, true), (test, _) = blobs(300, 4, 8, 0.7, 1), blobs(200, 4, 8, 0.7, 2)
    plain = probe(train, true, test)
    moved = probe(1e-3 * train + 5, true, 1e-3 * test + 5)
    assert moved.penalty == plain.penalty
    assert (moved.labels == plain.labels).mean() > 0.99


def test_probe_solves_the_stated_problem() -> None:
    # In a space of rows of unit mean squared norm, with C = 1 / (n lambda).
    (train, true), (test, _) = blobs(300, 4, 8, 0.5, 1), blobs(300, 4, 8, 0.5, 2)
    mean = train.mean(axis=0)
    scale = np.sqrt(np.square(train - mean).sum(axis=1).mean())
    for penalty in (1e-1, 1e-3):
        oracle = LogisticRegression(C=1 / (300 * penalty), tol=1e-8, max_iter=5000)
        expected = oracle.fit((train - mean) / scale, true).predict((test - mean) / scale)
        result = probe(train, true, test, penalties=(penalty,))
        assert result.penalty == penalty
        assert (result.labels == expected).mean() > 0.99


def test_probe_chooses_on_rows_it_was_not_fitted_on() -> None:
    # Labels are noise: fitted rows would score 1.0 under the weakest penalty.
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(2, 300, 400))
    result = probe(train, rng.integers(0, 2, 300), test)
    assert 0.2 < result.held_out_accuracy < 0.8


def test_probe_fits_some_rows() -> None:
    (train, true), (test, test_true) = blobs(600, 5, 8, 3.0, 1), blobs(200, 5, 8, 3.0, 2)
    result = probe(train, true, test, max_rows=150)
    assert (result.labels == test_true).mean() > 0.98


def test_probe_with_one_class_and_with_single_rows_of_a_class() -> None:
    train = np.random.default_rng(0).normal(size=(30, 4))
    np.testing.assert_array_equal(probe(train, np.full(30, 7), train[:3]).labels, [7, 7, 7])
    labels = np.zeros(30, int)
    labels[4] = 1
    assert probe(train, labels, train[:3]).labels.shape == (3,)
    few = probe(train[:5], labels[:5], train[:3])
    assert few.held_out_accuracy is None
    assert few.labels.shape == (3,)


def test_probe_on_constant_rows() -> None:
    assert probe(np.ones((20, 3)), np.arange(20) % 2, np.ones((4, 3))).labels.shape == (4,)


def test_kmeans_within_a_bound_on_memory() -> None:
    train, true = blobs(2000, 5, 8, 10.0, 1)
    sizes, starts = [], []
    fit = kmeans_module._fit

    def watched(rows: np.ndarray, *rest: int) -> KMeans:
        sizes.append(rows.nbytes)
        starts.append(threading.active_count())
        return fit(rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans_module, "_fit", watched)
        patch.setattr(kmeans_module.os, "cpu_count", lambda: 10)
        before = threading.active_count()
        labels = kmeans(train, None, 5, max_bytes=5 * 4 * 8 * 500)[0]
    # A fifth for the rows, and two copies for each of two starts at a time.
    assert set(sizes) == {4 * 8 * 500}
    assert max(starts) == before + 2
    assert metrics.clustering_accuracy(labels, true) == 1.0
    np.testing.assert_array_equal(
        kmeans(train, None, 5, max_bytes=2**30)[0], kmeans(train, None, 5)[0]
    )


def test_probe_within_a_bound_on_memory() -> None:
    (train, true), (test, test_true) = blobs(2000, 5, 8, 3.0, 1), blobs(200, 5, 8, 3.0, 2)
    # A row: 8 values twice, and for each fit three of each of the five classes.
    each = 4 * (2 * 8 + 3 * 5)
    assert probe_module._bounded(train, true, 100_000, 4, 300 * each) == (300, 1)
    assert probe_module._bounded(train, true, 100_000, 4, 2000 * (each + 4 * 3 * 5)) == (2000, 2)
    assert probe_module._bounded(train, true, 100, 4, 2**30) == (100, 4)
    result = probe(train, true, test, max_bytes=300 * each)
    assert (result.labels == test_true).mean() > 0.95
    np.testing.assert_array_equal(
        probe(train, true, test, max_bytes=2**30).labels, probe(train, true, test).labels
    )
