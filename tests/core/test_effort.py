"""The rule by which numbers of steps follow what the last ones left."""

import jax
import numpy as np
import pytest

from hume_jax.core import effort


def adjust(count, after, before, tolerance=0.1, most=50):
    f = jax.jit(effort.adjust, static_argnames=("tolerance", "most"))
    return int(f(np.int32(count), np.float32(after), np.float32(before), tolerance, most))


def test_a_count_stays_where_the_last_step_was_the_one_that_reached_the_tolerance():
    assert adjust(8, 0.07, 0.13) == 8


def test_one_step_less_where_the_one_before_the_last_had_reached_it():
    assert adjust(8, 0.05, 0.09) == 7
    assert adjust(1, 0.05, 0.09) == 1


def test_two_less_where_the_one_before_that_had():
    assert adjust(8, 0.02, 0.03) == 6
    assert adjust(2, 0.02, 0.03) == 1
    # Where the last step made it worse, it was below it before all the more.
    assert adjust(8, 0.05, 0.04) == 6
    assert adjust(8, 0.0, 0.0) in (7, 8)


@pytest.mark.parametrize(("after", "expected"), [(0.2, 12), (0.32, 17), (0.101, 9), (0.9, 16)])
def test_a_residual_asks_for_the_steps_that_reach_the_tolerance_at_the_rate_seen(after, expected):
    """8 steps to 0.2 are 11.4 to 0.1; twice as many at most, one more at least."""
    assert adjust(8, after, 1.0) == min(expected, 16)


def test_no_more_than_the_most():
    assert adjust(8, 0.9, 1.0, most=10) == 10


def test_what_grew_is_no_rate():
    assert adjust(4, 3.0, 1.0) == 8


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 0.1), (0.5, 0.1), (0.25, 0.05), (1e-3, 2e-4)]
)
def test_the_adjoint_may_leave_less_of_colder_labels(temperature, expected):
    assert effort.adjoint_tolerance(0.1, np.float32(temperature)) == pytest.approx(expected)


@pytest.mark.parametrize("after", [np.nan, np.inf])
def test_a_residual_that_is_not_finite(after):
    assert adjust(4, after, np.nan) in (4, 8)
