"""What is told about the number of classes from searches of several of them."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import adjusted_rand_score

from hume_jax.evaluation import n_classes as criteria
from hume_jax.evaluation.n_classes import Measured


def measured(curve: dict[int, float], noise: float = 0.002, seed: int = 0) -> list[Measured]:
    """Tasks of two pairs of halves that agree as a curve says, but for noise of each task."""
    rng = np.random.default_rng(seed)
    blank = np.zeros((2, 2, 4))
    found = []
    for k, agreement in curve.items():
        of_first, of_second = noise * rng.normal(size=(2, 2, 4))
        across = agreement + of_first[:, :, None] + of_second[:, None, :]
        found.append(Measured(k, across, blank, blank, blank, blank))
    return found


def sharp(truth: int, last: int) -> dict[int, float]:
    """A curve as searches give it: it rises to the truth, and falls more slowly behind it."""
    return {
        k: 0.4 + 0.55 * float(np.exp(-abs(np.log(k / truth)) / (0.1 if k < truth else 0.2)))
        for k in range(2, last + 1)
    }


def test_a_sharp_peak_is_recommended() -> None:
    reference = measured({10: 0.1})[0]
    found = criteria.recommend(measured(sharp(10, 20)), reference)
    assert (found.value, found.plausible, found.confidence) == (10, (10,), 1.0)
    assert found.reference == pytest.approx(0.1, abs=0.01)
    assert found.reason.startswith("10 classes: ")
    assert found.shares == {10: 1.0}


def test_numbers_beside_the_peak_that_were_not_looked_at_are_told() -> None:
    found = criteria.recommend(measured({2: 0.5, 5: 0.6, 6: 0.9, 10: 0.5}))
    assert found.value == 6
    assert found.reason.endswith("plausible: 6; not looked at: 7 to 9")


def test_of_a_coarse_and_a_fine_labelling_that_are_as_sure_the_fine_one_is_taken() -> None:
    curve = {2: 0.97, 3: 0.6, 4: 0.55, 9: 0.8, 10: 0.96, 11: 0.9, 12: 0.85}
    assert criteria.choose(curve) == 10
    # Not one that is less sure, nor a slope beside the peak.
    assert criteria.choose(curve | {10: 0.94}) == 2
    assert criteria.choose(curve | {11: 0.955}) == 10


def test_rows_that_a_cloud_explains_get_no_recommendation() -> None:
    curve = {k: 0.9 - 0.06 * k for k in range(2, 9)}
    reference = measured({2: 0.75})[0]
    found = criteria.recommend(measured(curve), reference)
    assert found.value is None
    assert found.peak == 2
    assert "without any classes (0.7" in found.reason


@pytest.mark.parametrize(
    ("curve", "noise", "says"),
    [
        ({k: 0.3 - 0.01 * (k - 5) ** 2 for k in range(2, 9)}, 0.01, "agree little"),
        ({k: 0.5 + 0.02 * k for k in range(2, 21)}, 0.01, "look further"),
        ({k: 0.99 - 0.02 * k for k in range(5, 12)}, 0.001, "look at fewer"),
        (dict.fromkeys(range(2, 12), 0.8), 0.03, "about as well on"),
        ({3: 0.9, 4: 0.8}, 0.001, "three numbers"),
    ],
)
def test_there_is_no_recommendation_where_the_curve_has_no_peak(
    curve: dict[int, float], noise: float, says: str
) -> None:
    found = criteria.recommend(measured(curve, noise))
    assert found.value is None
    assert says in found.reason


def test_the_uncertainty_grows_with_the_noise() -> None:
    curve = {8: 0.7, 9: 0.88, 10: 0.9, 11: 0.88, 12: 0.7}
    sure = criteria.recommend(measured(curve, 0.001))
    unsure = criteria.recommend(measured(curve, 0.03, seed=1))
    assert sure.interval == (10, 10)
    assert unsure.confidence < sure.confidence
    low, high = unsure.interval
    assert low < high
    # The same draws each time.
    assert criteria.recommend(measured(curve, 0.03, seed=1)) == unsure


@pytest.mark.parametrize("last", [20, 50, 100])
def test_coarse_to_fine_finds_each_peak_by_few_numbers(last: int) -> None:
    for truth in range(2, last + 1):
        whole = sharp(truth, last)
        looked = {k: whole[k] for k in criteria.grid(2, last)}
        while more := criteria.refine(looked, 2, last):
            assert not set(more) & set(looked)
            assert all(2 <= k <= last for k in more)
            looked |= {k: whole[k] for k in more}
        assert criteria.choose(looked) == truth
        assert {truth - 1, truth + 1} & set(whole) <= set(looked)
        assert len(looked) <= 32


def test_a_grid_begins_and_ends_where_it_should() -> None:
    assert criteria.grid(2, 20) == [2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20]
    assert criteria.grid(30, 50) == [30, 36, 43, 50]


def test_agreement_is_the_adjusted_rand_index(rng: np.random.Generator) -> None:
    first, second = rng.integers(0, 3, (2, 4, 50))
    across = criteria.across(first, second)
    assert across[1, 2] == pytest.approx(adjusted_rand_score(first[1], second[2]))
    assert criteria.within(first)[0] == pytest.approx(adjusted_rand_score(first[0], first[1]))
    assert criteria.within(first).shape == (6,)
    assert criteria.above_chance(np.array([0.25, 1.0]), 4).tolist() == [0.0, 1.0]


def test_linear_accuracy_is_that_of_ridge_regression(rng: np.random.Generator) -> None:
    train, test = rng.normal(size=(60, 5)), rng.normal(size=(40, 5))
    labels, held_out = rng.integers(0, 3, (2, 60)), rng.integers(0, 3, (2, 40))
    found = criteria.linear_accuracy(train, test, labels, held_out, 0.01)
    for i in range(2):
        model = Ridge(alpha=0.01 * 60, fit_intercept=False)
        model.fit(np.hstack([train, np.ones((60, 1))]), np.eye(3)[labels[i]])
        predicted = model.predict(np.hstack([test, np.ones((40, 1))])).argmax(axis=1)
        assert found[i] == np.mean(predicted == held_out[i])


def test_classes_that_tasks_disagree_on_are_told(rng: np.random.Generator) -> None:
    labels = np.repeat(np.arange(4), 100)
    renumbered = np.stack([rng.permutation(4)[labels] for _ in range(3)])
    np.testing.assert_array_equal(criteria.class_agreement(renumbered, labels, 4), np.ones(4))
    assert criteria.unsupported(renumbered, labels, 4) == []
    # Each task cuts the rows of two classes in another way.
    cut = np.stack([np.where(labels > 1, 2 + rng.integers(0, 2, 400), labels) for _ in range(3)])
    (told,) = criteria.unsupported(cut, labels, 4)
    assert told.startswith("tasks disagree on 2 of 4 classes")


def test_classes_without_rows_are_told() -> None:
    labels = np.repeat(np.arange(4), 100)
    tasks = np.stack([labels, labels])
    (told,) = criteria.unsupported(tasks, labels, 5)
    assert told.startswith("1 of 5 classes hold next to no rows (the smallest 0 of 400)")
    # Under a prior of one's own a class may be small.
    few = np.concatenate([labels, np.full(4, 4)])
    prior = np.array([0.2475] * 4 + [0.01])
    assert criteria.unsupported(np.stack([few, few]), few, 5, prior=prior) == []
