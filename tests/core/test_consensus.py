"""The soft vote: shares of each class's vote, balance, and what a majority gets wrong."""

import numpy as np
import pytest

from hume_jax.core import aggregate, consensus
from hume_jax.evaluation import metrics


def merged_and_split(true: np.ndarray, k: int, seed: int, noise: float = 0.05) -> np.ndarray:
    """A task that has two classes in one and another one in two, as searches end at times."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.choice(k, 3, replace=False)
    task = true.copy()
    task[task == b] = a
    half = (true == c) & (rng.random(len(true)) < 0.5)
    task[half] = b
    wrong = rng.random(len(true)) < noise
    task[wrong] = rng.integers(0, k, wrong.sum())
    return rng.permutation(k)[task].astype(np.int32)


def made(k: int = 12, n: int = 1200, tasks: int = 7) -> tuple[np.ndarray, np.ndarray]:
    true = np.random.default_rng(0).permutation(np.repeat(np.arange(k), n // k))
    return np.stack([merged_and_split(true, k, seed) for seed in range(tasks)]), true


def test_tables_are_the_shares_of_the_labels_within_a_class() -> None:
    tasks = np.array([[0, 0, 0, 1], [2, 2, 2, 2]])
    tables = consensus.vote_tables(tasks, np.array([0, 0, 1, 1]), 3)
    smooth = np.array([2, 1, 0]) + 0.01
    np.testing.assert_allclose(tables[0, 0], smooth / smooth.sum(), rtol=1e-6)
    np.testing.assert_allclose(tables[1, 2], np.array([2.01, 2.01, 0.01]) / 4.03, rtol=1e-6)
    # A class without rows has no opinion.
    np.testing.assert_allclose(tables[1, 0], np.full(3, 1 / 3), rtol=1e-6)
    np.testing.assert_allclose(tables.sum(axis=2), 1, rtol=1e-6)


def test_the_soft_vote_by_hand() -> None:
    tables = np.array([[[0.75, 0.25], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]], np.float32)
    vote = consensus.soft_vote(np.array([[0, 1, 0], [0, 0, 1]]), tables, np.ones(2))
    np.testing.assert_array_equal(vote.labels, [0, 0, 0])
    np.testing.assert_allclose(vote.agreement, [0.875, 0.5, 0.625])
    np.testing.assert_allclose(vote.margin, [0.75, 0.0, 0.25], atol=1e-7)
    # Twice the weight for the second class: 0.5 and 2 x 0.5, and 0.625 and 2 x 0.375.
    weighted = consensus.soft_vote(np.array([[0, 1, 0], [0, 0, 1]]), tables, np.array([1.0, 2.0]))
    np.testing.assert_array_equal(weighted.labels, [0, 1, 1])
    np.testing.assert_allclose(weighted.agreement[1], 2 / 3, rtol=1e-6)


def test_classes_in_pieces_are_mended_where_most_tasks_have_them_whole() -> None:
    tasks, true = made()
    hard = aggregate.ensemble(tasks, 12)
    soft = consensus.consensus(tasks, hard.vote.labels, 12)
    single = [metrics.clustering_accuracy(task, true) for task in tasks]
    majority = metrics.clustering_accuracy(hard.vote.labels, true)
    mended = metrics.clustering_accuracy(soft.vote.labels, true)
    assert mended >= majority > np.mean(single)
    assert mended > 0.99


def test_tasks_without_sense_have_little_say() -> None:
    tasks, true = made()
    noise = np.random.default_rng(1).integers(0, 12, (3, len(true)))
    everyone = np.concatenate([tasks, noise])
    start = aggregate.ensemble(everyone, 12).vote.labels
    soft = consensus.consensus(everyone, start, 12)
    assert metrics.clustering_accuracy(soft.vote.labels, true) > 0.98
    # A class of theirs says nothing: its vote is spread over all classes.
    assert soft.tables[7:].max() < 0.25 < 0.8 < soft.tables[:7].max(axis=2).mean()


def test_balance_evens_out_rows_that_tasks_disagree_on() -> None:
    # Two of three tasks give the undecided rows to the class that is too large already.
    true = np.repeat([0, 1], 100)
    tasks = np.stack([np.where(np.arange(200) < cut, 0, 1) for cut in (140, 140, 100)])
    start = aggregate.ensemble(tasks, 2).vote.labels
    even = consensus.consensus(tasks, start, 2)
    plain = consensus.consensus(tasks, start, 2, evenness=0.0)
    assert np.bincount(plain.vote.labels).tolist() == [140, 60]
    np.testing.assert_array_equal(plain.weights, [1, 1])
    np.testing.assert_array_equal(even.vote.labels, true)


@pytest.mark.parametrize("largest", [0, 1])
def test_balance_follows_a_prior_in_whatever_order(largest: int) -> None:
    # The tasks put 140 or 150 rows in a class; the prior says that the larger one holds 160.
    tasks = np.stack([np.where(np.arange(200) < cut, largest, 1 - largest) for cut in (140, 150)])
    tasks = np.concatenate([tasks, np.where(np.arange(200) < 160, largest, 1 - largest)[None]])
    for prior in ([0.8, 0.2], [0.2, 0.8]):
        found = consensus.consensus(tasks, tasks[0], 2, prior=np.array(prior))
        assert np.bincount(found.vote.labels)[largest] == 160


@pytest.mark.parametrize("entropy_weight", [0.1, 1.0, 5.0])
def test_uneven_classes_cost_their_divergence(entropy_weight: float) -> None:
    # Where transport plus eta KL(sizes || uniform) is least, a class's weight is its size, in units
    # of the even one, to the power -eta.
    rng = np.random.default_rng(0)
    task = np.sort(rng.integers(0, 20, 500) ** 2 // 80)[None]
    labels = np.where(rng.random(500) < 0.3, rng.integers(0, 5, 500), task[0])
    tables = consensus.vote_tables(task, labels, 5)
    evenness = consensus.evenness_of(entropy_weight)
    weights = consensus._balance(task, tables, np.ones(5, bool), evenness, np.full(5, 0.2))
    votes = tables[0][task[0]] * weights
    sizes = (votes / votes.sum(axis=1, keepdims=True)).mean(axis=0)
    assert sizes.max() > 1.01 * sizes.min()
    expected = (5 * sizes) ** -entropy_weight
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-3)


def test_a_class_that_nobody_uses_stays_empty() -> None:
    true = np.random.default_rng(0).integers(0, 4, 400)
    wrong = np.random.default_rng(1).random((3, 400)) < 0.1
    tasks = np.where(wrong, (true + 1) % 4, true)
    soft = consensus.consensus(tasks, aggregate.ensemble(tasks, 6).vote.labels, 6)
    assert len(np.unique(soft.vote.labels)) == 4
    assert np.isfinite(soft.weights).all()
    assert soft.tables.shape == (3, 6, 6)
    assert metrics.clustering_accuracy(soft.vote.labels, true) > 0.9


def test_a_class_that_a_vote_lost_is_filled_again() -> None:
    tasks, true = made()
    # The rows of class 11 with those of class 3, as where one to one matching left it no partner.
    lost = np.where(true == 11, 3, true)
    filled = consensus.fill_empty(tasks, lost, 12)
    assert (
        metrics.clustering_accuracy(filled, true) > 0.98 > metrics.clustering_accuracy(lost, true)
    )
    # Others are as they were, but for rows that most tasks have elsewhere.
    assert np.mean(filled[true != 11] == lost[true != 11]) > 0.99
    found = consensus.consensus(tasks, lost, 12).vote.labels
    assert metrics.clustering_accuracy(found, true) > 0.99
    np.testing.assert_array_equal(consensus.fill_empty(tasks, true, 12), true)


def test_similarity_is_the_share_of_tasks_that_have_rows_together() -> None:
    rng = np.random.default_rng(0)
    tasks, labels = rng.integers(0, 4, (5, 40)), rng.integers(0, 3, 40)
    together = np.mean(tasks[:, :, None] == tasks[:, None, :], axis=0)
    expected = [together[i, labels == labels[i]].mean() for i in range(40)]
    np.testing.assert_allclose(consensus._similarity(tasks, labels, 4), expected, rtol=1e-12)


def test_numbers_of_classes_within_tasks_do_not_matter() -> None:
    tasks, _ = made()
    start = aggregate.ensemble(tasks, 12).vote.labels
    orders = [np.random.default_rng(i).permutation(12) for i in range(len(tasks))]
    renamed = np.stack([order[task] for order, task in zip(orders, tasks, strict=True)])
    np.testing.assert_array_equal(
        consensus.consensus(tasks, start, 12).vote.labels,
        consensus.consensus(renamed, start, 12).vote.labels,
    )


def test_one_task_is_its_own_consensus() -> None:
    task = np.random.default_rng(0).integers(0, 5, (1, 300))
    soft = consensus.consensus(task, task[0], 5, evenness=0.0)
    np.testing.assert_array_equal(soft.vote.labels, task[0])
    assert soft.rounds == 1


@pytest.mark.parametrize("block", [7, 64])
def test_blocks_do_not_change_the_vote(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, _ = made(n=240)
    start = aggregate.ensemble(tasks, 12).vote.labels
    whole = consensus.consensus(tasks, start, 12).vote
    monkeypatch.setattr(consensus, "_BLOCK_SHARES", 12 * block)
    for a, b in zip(whole, consensus.consensus(tasks, start, 12).vote, strict=True):
        np.testing.assert_array_equal(a, b)
