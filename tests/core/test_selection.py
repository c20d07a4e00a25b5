"""The surest rows: thresholds, ranks, as many of each class."""

import numpy as np
import pytest

from hume_jax.core.selection import reliable, told

LABELS = np.array([1, 0, 1, 0, 2, 1, -1, 0, 1, 3])
AGREEMENT = np.array([0.9, 0.9, 1.0, 0.8, 0.9, 0.9, 1.0, 0.7, 0.9, 0.5])
MARGIN = np.array([0.8, 0.85, 1.0, 0.7, 0.8, 0.8, 1.0, 0.4, 0.9, 0.1])


def pick(**options):
    return reliable(LABELS, AGREEMENT, MARGIN, **options)


def test_rows_above_both_thresholds_ranked_in_their_class():
    found = pick(least_agreement=0.8, least_margin=0.75)
    # Rows 0 and 5 are equal in margin and agreement: the first comes first.
    assert found.rows.tolist() == [1, 2, 8, 0, 5, 4]
    assert found.there == {0: 1, 1: 4, 2: 1, 3: 0}
    assert found.short == {3: 0}
    assert told(found) == "1 class has fewer sure rows than one: class 3 (0)"


def test_agreement_decides_between_equal_margins():
    rows = reliable(np.zeros(3, int), np.array([0.8, 0.9, 0.9]), np.full(3, 0.6)).rows
    assert rows.tolist() == [1, 2, 0]


def test_no_more_of_a_class_than_asked_for():
    found = pick(least_agreement=0.8, least_margin=0.0, per_class=2)
    assert found.rows.tolist() == [1, 3, 2, 8, 4]
    assert found.short == {2: 1, 3: 0}
    assert told(found) == "2 classes have fewer sure rows than 2: class 2 (1), class 3 (0)"


def test_balanced_takes_what_the_smallest_has():
    found = pick(least_agreement=0.8, least_margin=0.0, balanced=True)
    assert (found.quota, found.rows.tolist()) == (1, [1, 2, 4])
    found = reliable(np.repeat([0, 1], 6), np.ones(12), np.ones(12), balanced=True, per_class=4)
    assert (found.quota, found.short) == (4, {})
    assert found.rows.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]


def test_none_at_all():
    found = pick(least_agreement=1.0, least_margin=1.0, balanced=True)
    assert found.rows.tolist() == [2]
    assert not len(reliable(np.array([-1]), np.ones(1), np.ones(1), balanced=True).rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"per_class": 0}, "per_class is 0"),
        ({"least_agreement": 1.5}, "the least agreement is 1.5"),
        ({"least_margin": -0.1}, "the least margin is -0.1"),
    ],
)
def test_numbers_out_of_range(options, says):
    with pytest.raises(ValueError, match=says):
        pick(**options)
    with pytest.raises(ValueError, match="of one length"):
        reliable(LABELS[:3], AGREEMENT, MARGIN)
