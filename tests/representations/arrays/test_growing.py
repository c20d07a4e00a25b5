"""Arrays that grow on disk, by one process or several, and what is left of them after a kill."""

import contextlib
import json
import os

import numpy as np
import pytest

from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks, formats, growing, side_file
from hume_jax.representations.arrays.growing import GrowingArray

SHAPE = (10, 3)
ABOUT = {"encoder": "tiny"}
TWO = [(2, "cut short"), (7, "empty")]


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "phi.npy"


@pytest.fixture
def values(rng):
    return rng.normal(size=SHAPE).astype(np.float16)


@contextlib.contextmanager
def begin(path, process=0, shape=SHAPE, again=False):
    with GrowingArray(path, shape, "float16", process) as array:
        if process == 0:
            array.begin(ABOUT, again)
        array.open()
        yield array


def test_an_array_appears_only_when_it_is_whole(path, values):
    with begin(path) as array:
        array.write(np.arange(4), values[:4])
        array.flush()
        assert not path.exists()
        assert side_file.read(path) == {"complete": False, **ABOUT}
        assert array.remaining().tolist() == [4, 5, 6, 7, 8, 9]
        array.write(np.arange(4, 10), values[4:])
        array.flush()
        assert array.remaining().size == 0
        array.finish(ABOUT)
    np.testing.assert_array_equal(np.load(path), values)
    content = side_file.read(path)
    assert content["complete"]
    assert content["broken"] == []
    side_file.check(path, np.load(path))
    assert sorted(p.name for p in path.parent.iterdir()) == ["phi.npy", "phi.npy.json"]


def test_rows_in_any_order_lie_at_their_place(path, values, rng):
    order = rng.permutation(10)
    with begin(path) as array:
        array.write(order[:7], values[order[:7]])
        array.write(order[7:], values[order[7:]])
        array.flush()
        array.finish(ABOUT)
    np.testing.assert_array_equal(np.load(path), values)


def test_only_rows_that_are_on_disk_count_as_finished(path, values):
    with begin(path) as array:
        array.write(np.arange(4), values[:4])
        assert array.remaining().size == 10
        array.flush()
        assert array.remaining().size == 6


def test_what_an_interrupted_process_wrote_is_found_again(path, values):
    with begin(path) as array:
        array.write(np.arange(2, 5), values[2:5], [(3, "cut short")])
    with begin(path) as array:
        # A broken image is tried once more.
        assert array.remaining().tolist() == [0, 1, 3, 5, 6, 7, 8, 9]
        assert array.broken() == [(3, "cut short")]
        rest = np.array([0, 1, 5, 6, 7, 8, 9])
        array.write(rest, values[rest], [(0, "empty")])
        array.flush()
        array.finish(ABOUT)
    np.testing.assert_array_equal(np.load(path), values)
    assert side_file.read(path)["broken"] == [[0, "empty"], [3, "cut short"]]


@pytest.mark.parametrize("killed", [False, True])
def test_broken_rows_of_a_finished_array_are_written_later(path, values, killed, monkeypatch):
    with begin(path) as array:
        array.write(np.arange(10), np.where(np.arange(10)[:, None] % 5 == 2, 0, values), TWO)
        array.flush()
        array.finish(ABOUT)
    if killed:
        # Between two files, after which nothing may be lost.
        with monkeypatch.context() as patch:
            patch.setattr(side_file, "write", interrupt)
            with pytest.raises(KeyboardInterrupt), begin(path, again=True):
                pass
    with begin(path, again=True) as array:
        assert not path.exists()
        assert not side_file.read(path)["complete"]
        assert array.remaining().tolist() == [2, 7]
        array.write(np.array([2]), values[[2]])
        array.write(np.array([7]), 0 * values[[7]], TWO[1:])
        array.flush()
        array.finish(ABOUT)
    np.testing.assert_array_equal(np.load(path)[np.arange(10) != 7], np.delete(values, 7, axis=0))
    assert side_file.read(path)["broken"] == [[7, "empty"]]
    assert sorted(p.name for p in path.parent.iterdir()) == ["phi.npy", "phi.npy.json"]


def test_an_array_whose_file_was_deleted_is_made_anew(path, values):
    with begin(path) as array:
        array.write(np.arange(10), values)
        array.flush()
        array.finish(ABOUT)
    path.unlink()
    with begin(path) as array:
        assert array.remaining().size == 10


def test_a_torn_note_is_passed_over_and_its_rows_come_again(path, values):
    with begin(path) as array:
        array.write(np.arange(3), values[:3])
    notes = path.with_name("phi.npy.rows-0")
    with notes.open("a") as file:
        file.write('\n{"rows": 5}\n7\n{"rows": [[3, 9')
    with begin(path) as array:
        assert array.remaining().tolist() == [3, 4, 5, 6, 7, 8, 9]
        array.write(np.arange(3, 5), values[3:5])
    with begin(path) as array:
        assert array.remaining().tolist() == [5, 6, 7, 8, 9]


def test_the_rows_of_several_processes_come_together(path, values):
    with begin(path) as first, begin(path, process=1) as second:
        first.write(np.arange(5), values[:5])
        second.write(np.arange(5, 10), values[5:], [(9, "empty")])
        first.flush()
        second.flush()
        assert first.remaining().tolist() == second.remaining().tolist() == [9]
        assert first.broken() == [(9, "empty")]
        first.finish(ABOUT)
    np.testing.assert_array_equal(np.load(path), values)


def test_killed_between_the_array_and_its_side_file(path, values):
    with begin(path) as array:
        array.write(np.arange(10), values)
    os.replace(side_file.part(path), path)
    with begin(path) as array:
        assert array.remaining().size == 0
        array.finish(ABOUT)
    np.testing.assert_array_equal(np.load(path), values)
    assert side_file.read(path)["complete"]


def test_notes_of_rows_that_are_gone_are_not_believed(path, values):
    with begin(path) as array:
        array.write(np.arange(10), values)
    side_file.part(path).unlink()
    with begin(path) as array:
        assert array.remaining().size == 10


def test_two_runs_at_a_time_are_refused(path):
    message = r"phi\.npy is being encoded by another"
    with begin(path), pytest.raises(UserError, match=message), begin(path):
        pass


def test_a_run_that_is_refused_leaves_the_other_one_its_files(path, values):
    with begin(path) as array:
        array.write(np.arange(5), values[:5])
        side_file.part(path).rename(path.with_name("away"))
        with pytest.raises(UserError, match="is being encoded by another"), begin(path):
            pass
        path.with_name("away").rename(side_file.part(path))
        array.write(np.arange(5, 10), values[5:])
        array.flush()
        array.finish(ABOUT)
    np.testing.assert_array_equal(np.load(path), values)
    with pytest.raises(UserError, match="was just completed by another"), begin(path):
        pass


def test_an_array_is_not_finished_while_rows_are_missing(path, values):
    with begin(path) as array:
        array.write(np.arange(5), values[:5])
        array.flush()
        with pytest.raises(UserError, match="5 rows of .* are not on disk"):
            array.finish(ABOUT)
    assert not path.exists()


def test_another_shape_in_the_same_place_is_refused(path):
    with begin(path):
        pass
    message = r"has shape \(10, 3\) and dtype float16, not \(10, 4\)"
    with pytest.raises(UserError, match=message), begin(path, shape=(10, 4)):
        pass


def test_a_full_disk_is_known_before_the_first_row(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(growing.os, "posix_fallocate", full)
    message = "No space left on device; set encode.folder"
    with pytest.raises(UserError, match=message), begin(path):
        pass
    assert not side_file.part(path).exists()


def test_a_disk_that_fills_up_keeps_what_was_written(path, values, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with begin(path) as array:
        array.write(np.arange(4), values[:4])
        with monkeypatch.context() as patch:
            patch.setattr(growing.os, "pwrite", full)
            with pytest.raises(UserError, match="the same command goes on"):
                array.write(np.arange(4, 8), values[4:8])
    with begin(path) as array:
        assert array.remaining().tolist() == [4, 5, 6, 7, 8, 9]


# ---- side files


def test_an_array_without_a_side_file_is_taken_as_it_is(tmp_path, values):
    np.save(tmp_path / "own.npy", values)
    assert side_file.read(tmp_path / "own.npy") is None
    side_file.check(tmp_path / "own.npy", values)


def test_a_half_written_array_is_refused(path, values):
    side_file.place(path).parent.mkdir()
    side_file.write(path, {"complete": False})
    with pytest.raises(UserError, match=r"phi\.npy is half-written: the same .* goes on"):
        side_file.check(path, values)


def test_the_rows_so_far_are_no_array(path, values):
    with begin(path) as array:
        array.write(np.arange(2), values[:2])
    with pytest.raises(UserError, match=r"phi\.npy\.part is half-written: the same .* until .*npy"):
        formats.open_header(f"{path}.part")


def test_opening_a_half_written_array_says_so(path, values):
    with begin(path) as array:
        array.write(np.arange(4), values[:4])
    assert "half-written: the same" in formats.what_is_missing(str(path))
    np.save(path, values)
    with pytest.raises(UserError, match="is half-written"):
        formats.open_array(path)


def test_an_array_that_was_written_over_is_refused(path, values):
    with begin(path) as array:
        array.write(np.arange(10), values)
        array.flush()
        array.finish(ABOUT)
    np.save(path, values[::-1])
    with pytest.raises(UserError, match=r"is not the array that .*phi\.npy\.json describes"):
        formats.open_array(path)


def test_a_file_in_place_of_the_folder_is_named(path):
    path.parent.write_text("")
    with pytest.raises(UserError, match=r"named as its folder is a file: set encode\.folder"):
        side_file.read(path)


@pytest.mark.parametrize("broken", [{}, [3], [[10, "empty"]], [[-1, "empty"]], [["3", "empty"]]])
def test_broken_rows_that_cannot_be_are_refused(path, values, broken):
    path.parent.mkdir()
    np.save(path, values)
    side_file.write(path, {"complete": True, "digest": checks.digest(values), "broken": broken})
    with pytest.raises(UserError, match=r"phi\.npy\.json is damaged: delete it and "):
        formats.open_array(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", json.dumps({"complete": "yes"})])
def test_a_damaged_side_file_is_named(path, text):
    path.parent.mkdir()
    side_file.place(path).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"phi\.npy\.json"):
        side_file.read(path)
