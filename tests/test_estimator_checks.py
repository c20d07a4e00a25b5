"""The checks of scikit-learn, by the wrapper that makes HUME an estimator of one space."""

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from hume_jax import HUME, OneSpaceHUME

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_compiled")]

_HUME = HUME(
    2,
    n_tasks=2,
    random_state=0,
    config={
        "search.steps": 2,
        "search.anneal_steps": (1,),
        "search.subset_size": 40,
        "score.folds": 2,
        "score.rows": 20,
    },
)
# Checks that ask for what the wrapper does not do, with the reason.
_OTHERS = {
    "check_estimators_dtypes": "its rows of integers are zero for one sample in twenty; more than "
    "1 % of rows without a direction are refused, since samples were not encoded",
}


@parametrize_with_checks([OneSpaceHUME(_HUME)], expected_failed_checks=lambda _: _OTHERS)
def test_is_an_estimator(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
