"""Rows by number from files, and the thread that makes the next item meanwhile."""

import mmap
import pathlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from hume_jax.errors import UserError
from hume_jax.representations import gather
from hume_jax.representations.arrays import checks
from hume_jax.representations.gather import Ahead, Stack


@pytest.fixture
def readers():
    with ThreadPoolExecutor(gather.READERS) as pool:
        yield pool


def saved(path: pathlib.Path, array: np.ndarray) -> np.ndarray:
    np.save(path, array)
    return checks.open_array(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_rows_by_number_from_arrays_that_lie_one_upon_the_other(dtype, readers, rng, tmp_path):
    parts = [rng.normal(size=(n, 5)).astype(dtype) for n in (40, 1, 23)]
    if dtype is not ml_dtypes.bfloat16:  # which .npy files do not know
        parts = [saved(tmp_path / f"{i}.npy", part) for i, part in enumerate(parts)]
    stack = Stack(parts)
    assert (stack.shape, stack.dtype) == ((64, 5), np.dtype(dtype))
    everything = np.concatenate(parts)
    for rows in (rng.integers(0, 64, 200), np.array([63, 0, 40, 41, 40]), np.arange(3)):
        found = stack.take(rows, readers)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, everything[rows])


@pytest.mark.parametrize(
    "dtypes", [("<f8",), (">f2",), ("<f2", "<f4")], ids=["float64", "big-endian", "mixed"]
)
def test_what_devices_do_not_hold_is_read_as_float32(dtypes, readers, rng):
    parts = [rng.normal(size=(9, 4)).astype(dtype) for dtype in dtypes]
    stack = Stack(parts)
    assert stack.dtype == np.float32
    rows = rng.integers(0, stack.shape[0], 30)
    expected = np.concatenate([part.astype(np.float32) for part in parts])[rows]
    np.testing.assert_array_equal(stack.take(rows, readers), expected)


def test_arrays_stored_by_columns_are_refused(rng, tmp_path):
    array = rng.normal(size=(20, 4)).astype(np.float32)
    columns = saved(tmp_path / "a.npy", np.asfortranarray(array))
    with pytest.raises(UserError, match=r"a.npy is stored column by column.*search.rows=memory"):
        gather.check_order(columns, "a.npy")
    for fine in (
        array,
        saved(tmp_path / "b.npy", array),
        array[:, :2],
        np.asfortranarray(array[:, :1]),
    ):
        gather.check_order(fine, "b.npy")


@pytest.mark.skipif(not hasattr(mmap, "MADV_RANDOM"), reason="the system takes no such advice")
def test_the_system_is_told_that_single_rows_are_read_and_when_no_more(tmp_path, rng):
    array = saved(tmp_path / "a.npy", rng.normal(size=(9, 4)))

    def random_reads() -> bool:
        smaps = pathlib.Path("/proc/self/smaps").read_text()
        (flags,) = re.findall(r"a\.npy\n(?:.*\n)*?VmFlags: (.*)\n", smaps)
        return "rr" in flags.split()

    if not pathlib.Path("/proc/self/smaps").exists():
        pytest.skip("no /proc/self/smaps")
    with gather.scattered([array[2:], array, np.ones((3, 4))]):
        assert random_reads()
    assert not random_reads()


# ---- one item ahead


def test_an_item_is_made_before_it_is_asked_for():
    made = threading.Event()

    def make(key: int) -> int:
        if key == 1:
            made.set()
        return 10 * key

    with Ahead(make) as ahead:
        assert ahead.take(0) == 0
        ahead.start(1)
        assert made.wait(30)
        assert ahead.take(1) == 10
        ahead.start(8)
        # Another one than was foreseen.
        assert ahead.take(3) == 30
    assert ahead.items == 3
    assert ahead.made_seconds > 0
    assert ahead.waited_seconds > 0


def test_an_item_is_made_once():
    made = []
    with Ahead(made.append) as ahead:
        ahead.start(0)
        ahead.start(0).result()
        ahead.take(0)
        assert made == [0]
        ahead.take(0)
        assert made == [0, 0]


def test_an_error_is_raised_where_the_item_is_taken():
    def make(key: int) -> int:
        if key == 1:
            raise OSError("the disk is gone")
        return key

    with Ahead(make) as ahead:
        ahead.start(1)
        with pytest.raises(OSError, match="the disk is gone"):
            ahead.take(1)
        # And goes with it.
        assert ahead.take(2) == 2


def test_the_thread_ends_with_the_block_even_if_it_ends_early():
    begun, before = threading.Event(), threading.active_count()

    def make(key: int) -> int:
        begun.set()
        time.sleep(0.05)
        return key

    with pytest.raises(KeyboardInterrupt), Ahead(make) as ahead:
        ahead.start(0)
        assert begun.wait(30)
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_rows_that_lie_at_odd_places_are_read_without_a_copy_of_all(readers, rng, monkeypatch):
    """As members of an .npz archive do, by the length of their names."""
    array = rng.normal(size=(64, 5)).astype(np.float32)
    file = np.frombuffer(b"x" + array.tobytes(), np.uint8)
    odd = file[1:].view(np.float32).reshape(64, 5)
    assert not odd.flags.aligned
    seen = []
    take = np.take
    monkeypatch.setattr(np, "take", lambda a, *args, **how: seen.append(a) or take(a, *args, **how))
    rows = rng.integers(0, 64, 20)
    np.testing.assert_array_equal(Stack([odd]).take(rows, readers), array[rows])
    assert seen
    assert all(a.flags.aligned for a in seen)
