"""Matching, agreement and vote: against brute force, and invariant to the names of classes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hume_jax.core import aggregate


def noisy_tasks(
    rng: np.random.Generator, n_tasks: int, n: int, n_classes: int, kept: float
) -> tuple[np.ndarray, np.ndarray]:
    """Makes tasks that follow one hidden labelling on a share of rows, each with its own names."""
    hidden = rng.integers(0, n_classes, n)
    tasks = [
        rng.permutation(n_classes)[
            np.where(rng.random(n) < kept, hidden, rng.integers(0, n_classes, n))
        ]
        for _ in range(n_tasks)
    ]
    return np.stack(tasks), hidden


def renamed(tasks: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Gives the classes of every task new numbers."""
    return np.stack([rng.permutation(n_classes)[task] for task in tasks])


def brute_force(source: np.ndarray, target: np.ndarray, n_classes: int) -> int:
    """Counts the equal rows under the best of all permutations."""
    return max(
        int((np.array(permutation)[source] == target).sum())
        for permutation in itertools.permutations(range(n_classes))
    )


@st.composite
def small_tasks(draw: st.DrawFn) -> tuple[np.ndarray, int, np.random.Generator]:
    n_classes = draw(st.integers(2, 5))
    n_tasks = draw(st.integers(1, 6))
    n = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tasks, _ = noisy_tasks(rng, n_tasks, n, n_classes, draw(st.sampled_from([0.0, 0.5, 0.9])))
    return tasks, n_classes, rng


def test_contingency_counts_pairs() -> None:
    counts = aggregate.contingency(np.array([0, 0, 2, 2]), np.array([1, 1, 0, 2]), 3)
    np.testing.assert_array_equal(counts, [[0, 2, 0], [0, 0, 0], [1, 0, 1]])
    assert counts.dtype == np.int64


@settings(deadline=None, max_examples=100)
@given(small_tasks())
def test_match_is_as_good_as_the_best_permutation(case) -> None:
    tasks, n_classes, _ = case
    permutation = aggregate.match(tasks[0], tasks[-1], n_classes)
    assert sorted(permutation) == list(range(n_classes))
    assert (permutation[tasks[0]] == tasks[-1]).sum() == brute_force(tasks[0], tasks[-1], n_classes)


@settings(deadline=None, max_examples=50)
@given(small_tasks())
def test_agreement_matrix_against_brute_force(case) -> None:
    tasks, n_classes, rng = case
    agreement = aggregate.agreement_matrix(tasks, n_classes)
    n = tasks.shape[1]
    for i, j in np.ndindex(agreement.shape):
        assert agreement[i, j] == brute_force(tasks[i], tasks[j], n_classes) / n
    np.testing.assert_array_equal(
        agreement, aggregate.agreement_matrix(renamed(tasks, n_classes, rng), n_classes)
    )


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("n", [300, 6000])
def test_many_classes_are_matched_optimally(kept: float, n: int) -> None:
    from scipy.optimize import linear_sum_assignment

    n_classes = 200
    (a, b), _ = noisy_tasks(np.random.default_rng(0), 2, n, n_classes, kept)
    counts = aggregate.contingency(a, b, n_classes)
    best = counts[linear_sum_assignment(counts, maximize=True)].sum()
    permutation = aggregate.match(a, b, n_classes)
    assert sorted(permutation) == list(range(n_classes))
    assert (permutation[a] == b).sum() == best
    assert aggregate.agreement_matrix(np.stack([a, b]), n_classes)[0, 1] == best / n


def test_certain_pairs_do_not_take_the_largest_entry_greedily() -> None:
    n_classes = 150
    counts = np.zeros((n_classes, n_classes), np.int64)
    counts[:2, :2] = [[5, 4], [4, 0]]  # taking 5 first gives 5, not 8
    counts[np.arange(2, n_classes), np.arange(2, n_classes)] = 3
    matched = aggregate._match_counts(counts)
    assert sorted(matched) == list(range(n_classes))
    assert counts[np.arange(n_classes), matched].sum() == 8 + 3 * (n_classes - 2)


def test_by_appearance_numbers_classes_by_their_first_row() -> None:
    permutation = aggregate.by_appearance(np.array([4, 4, 1, 3, 1, 4]), 6)
    np.testing.assert_array_equal(permutation, [3, 1, 4, 2, 0, 5])


def test_align_undoes_a_renaming_and_keeps_the_reference() -> None:
    rng = np.random.default_rng(1)
    task = rng.integers(0, 7, 200)
    tasks = renamed(np.stack([task] * 5), 7, rng)
    permutations = aggregate.align(tasks, 7, reference=3)
    np.testing.assert_array_equal(permutations[3], np.arange(7))
    np.testing.assert_array_equal(aggregate.relabel(tasks, permutations), [tasks[3]] * 5)


def test_vote_counts_shares_and_breaks_ties_to_the_lowest_class() -> None:
    aligned = np.array([[0, 2, 1], [0, 1, 1], [1, 2, 0], [0, 1, 2]])
    vote = aggregate.vote(aligned, 3)
    np.testing.assert_array_equal(vote.labels, [0, 1, 1])
    np.testing.assert_allclose(vote.agreement, [0.75, 0.5, 0.5])
    np.testing.assert_allclose(vote.margin, [0.5, 0.0, 0.25])
    assert (vote.labels.dtype, vote.agreement.dtype, vote.margin.dtype) == (
        np.int32,
        np.float32,
        np.float32,
    )


def test_vote_with_weights() -> None:
    aligned = np.array([[0, 2, 1], [0, 1, 1], [1, 2, 0], [0, 1, 2]])
    vote = aggregate.vote(aligned, 3, weights=np.array([1.0, 2.0, 5.0, 0.0]))
    np.testing.assert_array_equal(vote.labels, [1, 2, 0])
    np.testing.assert_allclose(vote.agreement, [5 / 8, 6 / 8, 5 / 8])
    np.testing.assert_allclose(vote.margin, [2 / 8, 4 / 8, 2 / 8])
    even = aggregate.vote(aligned, 3, weights=np.full(4, 0.5))
    for weighted, plain in zip(even, aggregate.vote(aligned, 3), strict=True):
        np.testing.assert_array_equal(weighted, plain)


@pytest.mark.parametrize("weights", [[1, 1], [1, -1, 1], [0, 0, 0], [np.nan, 1, 1], [np.inf, 1, 1]])
def test_vote_refuses_bad_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be 3 finite numbers"):
        aggregate.vote(np.zeros((3, 2), int), 2, weights=np.array(weights))


def test_vote_in_blocks_equals_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = np.random.default_rng(2).integers(0, 4, (5, 101))
    whole = aggregate.vote(aligned, 4)
    monkeypatch.setattr(aggregate, "_BLOCK_COUNTERS", 40)
    for a, b in zip(aggregate.vote(aligned, 4), whole, strict=True):
        np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=100)
@given(small_tasks())
def test_renaming_classes_of_any_task_leaves_the_ensemble_unchanged(case) -> None:
    tasks, n_classes, rng = case
    others = renamed(tasks, n_classes, rng)
    one = aggregate.ensemble(tasks, n_classes)
    two = aggregate.ensemble(others, n_classes)
    assert (one.reference, one.rounds) == (two.reference, two.rounds)
    for a, b in zip(one.vote, two.vote, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        aggregate.relabel(tasks, one.permutations), aggregate.relabel(others, two.permutations)
    )


def test_renaming_many_classes_leaves_the_ensemble_unchanged() -> None:
    rng = np.random.default_rng(3)
    tasks, _ = noisy_tasks(rng, 4, 900, 180, kept=0.3)
    one = aggregate.ensemble(tasks, 180)
    two = aggregate.ensemble(renamed(tasks, 180, rng), 180)
    for a, b in zip(one.vote, two.vote, strict=True):
        np.testing.assert_array_equal(a, b)


@settings(deadline=None, max_examples=50)
@given(small_tasks())
def test_ensemble_is_the_vote_of_its_members_and_no_worse_than_the_first_alignment(case) -> None:
    tasks, n_classes, _ = case
    result = aggregate.ensemble(tasks, n_classes)
    for permutation in result.permutations:
        assert sorted(permutation) == list(range(n_classes))
    again = aggregate.vote(aggregate.relabel(tasks, result.permutations), n_classes)
    for a, b in zip(again, result.vote, strict=True):
        np.testing.assert_array_equal(a, b)
    first = aggregate.align(tasks, n_classes, result.reference)
    before = aggregate.vote(aggregate.relabel(tasks, first), n_classes)
    # float32 shares: equal up to their rounding
    assert result.vote.agreement.sum() >= before.agreement.sum() - 1e-4
    np.testing.assert_allclose(
        result.member_agreement.mean(), result.vote.agreement.mean(), rtol=1e-5
    )


def test_alignment_to_the_vote_mends_a_poor_reference() -> None:
    gains = []
    for seed in range(30):
        tasks, _ = noisy_tasks(np.random.default_rng(seed), 9, 80, 6, kept=0.3)
        once = aggregate.ensemble(tasks, 6, rounds=0)
        more = aggregate.ensemble(tasks, 6)
        assert once.rounds == 0 < more.rounds <= 10
        gains.append(more.member_agreement.mean() - once.member_agreement.mean())
    assert min(gains) >= 0
    assert np.mean(np.array(gains) > 0) > 0.5


def test_ensemble_of_noisy_tasks_beats_each_of_them() -> None:
    tasks, hidden = noisy_tasks(np.random.default_rng(4), 12, 2000, 10, kept=0.5)
    result = aggregate.ensemble(tasks, 10)
    voted = matched_share(result.vote.labels, hidden, 10)
    assert voted > 0.95 > max(matched_share(task, hidden, 10) for task in tasks)
    right = aggregate.match(result.vote.labels, hidden, 10)[result.vote.labels] == hidden
    assert result.vote.agreement[right].mean() > result.vote.agreement[~right].mean() + 0.1


def matched_share(labels: np.ndarray, hidden: np.ndarray, n_classes: int) -> float:
    return float((aggregate.match(labels, hidden, n_classes)[labels] == hidden).mean())


def test_ensemble_of_some_members() -> None:
    rng = np.random.default_rng(5)
    tasks, _ = noisy_tasks(rng, 6, 300, 4, kept=0.7)
    some = aggregate.ensemble(
        tasks, 4, members=[5, 1, 2], agreement=aggregate.agreement_matrix(tasks, 4)
    )
    alone = aggregate.ensemble(tasks[[5, 1, 2]], 4)
    np.testing.assert_array_equal(some.members, [5, 1, 2])
    assert some.reference == [5, 1, 2][alone.reference]
    np.testing.assert_array_equal(some.vote.labels, alone.vote.labels)


def test_ensemble_with_all_weight_on_one_member_is_that_member() -> None:
    tasks, _ = noisy_tasks(np.random.default_rng(6), 4, 200, 5, kept=0.4)
    result = aggregate.ensemble(tasks, 5, weights=np.array([0.0, 0.0, 1.0, 0.0]))
    np.testing.assert_array_equal(result.permutations[2][tasks[2]], result.vote.labels)
    np.testing.assert_array_equal(result.vote.agreement, np.ones(200, np.float32))


def test_ensemble_of_one_task_is_the_task() -> None:
    task = np.array([[2, 2, 0, 1]])
    result = aggregate.ensemble(task, 3)
    np.testing.assert_array_equal(result.vote.labels, [0, 0, 1, 2])
    np.testing.assert_array_equal(result.permutations, [[1, 2, 0]])
    np.testing.assert_array_equal(result.vote.margin, np.ones(4))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (np.zeros((2, 3)), "integer array"),
        (np.zeros(3, int), r"\(S, n\) integer"),
        (np.zeros((0, 3), int), "non-empty"),
        (np.full((1, 3), 4), "outside \\[0, 4\\)"),
        (np.full((1, 3), -1), "outside \\[0, 4\\)"),
    ],
)
def test_bad_tasks_are_refused(tasks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate.ensemble(tasks, 4)


def test_an_ensemble_needs_members() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        aggregate.ensemble(np.zeros((2, 3), int), 2, members=[])


def test_mean_agreement_leaves_the_task_itself_out() -> None:
    agreement = np.array([[1.0, 0.5, 0.7], [0.5, 1.0, 0.9], [0.7, 0.9, 1.0]])
    np.testing.assert_allclose(aggregate.mean_agreement(agreement), [0.6, 0.7, 0.8])
    np.testing.assert_array_equal(aggregate.mean_agreement(np.ones((1, 1))), [1.0])


def test_duplicates_are_grouped() -> None:
    agreement = np.eye(6)
    for i, j in [(0, 4), (4, 2), (1, 5)]:
        agreement[i, j] = agreement[j, i] = 0.9995
    assert aggregate.duplicates(agreement) == [[0, 2, 4], [1, 5]]
    assert aggregate.duplicates(agreement, threshold=0.9999) == []


def test_classes_used_and_collapsed() -> None:
    labels = np.array([0] * 96 + [1] * 3 + [3])
    assert aggregate.classes_used(labels, 4) == 3
    assert aggregate.classes_used(labels, 4, smallest=2) == 2
    np.testing.assert_array_equal(aggregate.class_counts(labels[None], 4), [[96, 3, 0, 1]])
    even = np.arange(100) % 4
    # n / (20 K) is 1.25 rows
    two = np.array([0] * 49 + [1] * 49 + [2] * 1 + [3] * 1)
    enough = np.array([0] * 48 + [1] * 48 + [2] * 2 + [3] * 2)
    tasks = np.stack([labels, even, two, enough])
    np.testing.assert_array_equal(aggregate.collapsed(tasks, 4), [True, False, True, False])
    prior = [0.4, 0.4, 0.1, 0.1]
    np.testing.assert_array_equal(aggregate.collapsed(tasks, 4, prior), [True, False, False, False])


def test_mean_sizes_are_those_of_the_classes_in_order() -> None:
    tasks = np.array([[0] * 60 + [1] * 30 + [2] * 10, [2] * 50 + [0] * 40 + [1] * 10])
    np.testing.assert_allclose(aggregate.mean_sizes(tasks, 3), [0.55, 0.35, 0.10])
    # A class that no task has left rows in stays possible: a twentieth of 1 / K.
    lost = aggregate.mean_sizes(np.zeros((2, 100), int), 2)
    np.testing.assert_allclose(lost, np.array([1, 0.025]) / 1.025)


def test_rank_keeps_to_tiers() -> None:
    scores = np.array([0.3, 0.1, np.nan, 0.2, 0.2])
    np.testing.assert_array_equal(aggregate.rank(scores), [1, 3, 4, 0, 2])
    collapsed = np.array([False, True, False, False, True])
    np.testing.assert_array_equal(aggregate.rank(scores, collapsed), [3, 0, 2, 1, 4])
    np.testing.assert_array_equal(aggregate.rank(scores, highest_first=True), [0, 3, 4, 1, 2])
    ties = np.array([0, 0, 0, 2, 1])
    np.testing.assert_array_equal(aggregate.rank(scores, ties=ties), [1, 4, 3, 0, 2])
    unused = np.array([2, 0, 1, 0, 1])
    np.testing.assert_array_equal(aggregate.rank(scores, unused), [1, 3, 4, 2, 0])
