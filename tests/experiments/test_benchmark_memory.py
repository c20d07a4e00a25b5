"""Memory that a search is planned with is what its program is laid out for."""

import benchmark
import benchmark_memory
import pytest

from hume_jax import memory
from hume_jax.errors import UserError

QUICK = ("ImageNet-1k, 8 tasks, bfloat16",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in benchmark_memory.CASES
    ],
)
def test_memory_is_predicted_within_a_fifth(name):
    """As XLA lays the program out, resident arguments counted."""
    found = benchmark_memory.settings_of(benchmark_memory.CASES[name])
    assert found.predicted == pytest.approx(benchmark_memory.compiled_bytes(found), rel=0.2)


def test_a_thousand_classes_fit():
    """One task on a machine of 24 GiB, eight on an accelerator of 80 GB, rows included."""
    one = benchmark_memory.settings_of(benchmark_memory.CASES["ImageNet-1k, 1 task"])
    eight = benchmark_memory.settings_of(benchmark_memory.CASES["ImageNet-1k, 8 tasks, bfloat16"])
    assert one.search.n_classes == eight.search.n_classes == 1000
    assert memory.search_bytes(one.shape, one.search, 1) < 24 * 2**30
    assert eight.shape.rows > 1_281_000
    assert memory.search_bytes(eight.shape, eight.search, 8, stored=2) < 80e9


def test_a_case_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"there is no 'MNIST', there are Imagenette, one space"):
        benchmark.main(["memory", "--cases", "MNIST", f"--out={tmp_path}"])
