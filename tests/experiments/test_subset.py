"""Arrays of some of the train rows."""

import pathlib

import numpy as np
import pytest
import subset

from hume_jax.errors import UserError


def run(out: pathlib.Path, arrays: list[str], *what: str) -> None:
    subset.main(["--config=configs/arrays.py", f"--out={out}", *what, "--", *arrays])


def loaded(out: pathlib.Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path) for path in sorted(out.glob("*.npy"))}


def named(arrays: list[str], split: str) -> dict[str, pathlib.Path]:
    """The given files of a split, by field."""
    pairs = (flag.removeprefix("--config.data.").split("=") for flag in arrays if ".data." in flag)
    return {
        name.partition(".")[2]: pathlib.Path(path)
        for name, path in pairs
        if name.startswith(split) and path.endswith(".npy")
    }


def test_rows_are_held_out(
    arrays: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "out", arrays, "--hold-out=0.25")
    train, test = named(arrays, "train"), named(arrays, "test")
    n = len(np.load(train["labels"]))
    assert f"train: {n - n // 4} of {n} train rows" in capsys.readouterr().out
    found = loaded(tmp_path / "out")
    for field in subset.FIELDS:
        whole = np.load(train[field])
        parts = [found[train[field].stem], found[test[field].stem]]
        # Every row is in one of them, in its order there.
        np.testing.assert_array_equal(
            np.sort(np.concatenate(parts), axis=0), np.sort(whole, axis=0)
        )
        assert parts[0].dtype == whole.dtype
    # Rows of all fields are the same samples.
    phi1 = np.load(train["phi1"])
    where = [int(np.flatnonzero((phi1 == row).all(axis=1))[0]) for row in found[test["phi1"].stem]]
    assert where == sorted(where)
    np.testing.assert_array_equal(found[test["phi2"].stem], np.load(train["phi2"])[where])
    np.testing.assert_array_equal(found[test["labels"].stem], np.load(train["labels"])[where])


def test_some_rows_and_a_long_tail(arrays: list[str], tmp_path: pathlib.Path) -> None:
    train = named(arrays, "train")
    run(tmp_path / "some", arrays, "--rows=50")
    some = loaded(tmp_path / "some")
    assert {len(array) for array in some.values()} == {50}
    assert set(some) == {path.stem for path in train.values()}
    run(tmp_path / "tail", arrays, "--long-tail=4")
    labels = np.load(train["labels"])
    _, before = np.unique(labels, return_counts=True)
    _, after = np.unique(loaded(tmp_path / "tail")[train["labels"].stem], return_counts=True)
    np.testing.assert_array_equal(after, np.round(before / 4 ** (np.arange(3) / 2)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("--rows=0", "there are"),
        ("--rows=100000", "there are"),
        ("--long-tail=0.5", "must be at least 1"),
        ("--hold-out=1", "between 0 and 1"),
        ("--hold-out=0.5 --seed=-1", "--seed=-1: it must be from 0"),
    ],
)
def test_numbers_that_will_not_do(
    arrays: list[str], tmp_path: pathlib.Path, what: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", arrays, *what.split())


def test_arrays_that_are_not_there_are_named(arrays: list[str], tmp_path: pathlib.Path) -> None:
    more = [*arrays, f"--config.data.train.phi2={tmp_path / 'nowhere.npy'}"]
    with pytest.raises(UserError, match=r"data\.train\.phi2: .*nowhere\.npy cannot be read"):
        run(tmp_path / "out", more, "--rows=2")
    assert not (tmp_path / "out").exists()


def test_several_files_are_told(arrays: list[str], tmp_path: pathlib.Path) -> None:
    more = [*arrays, "--config.data.train.phi2=('a.npy','b.npy')"]
    with pytest.raises(UserError, match=r"data\.train\.phi2 is .*one \.npy file"):
        run(tmp_path / "out", more, "--rows=2")


@pytest.mark.parametrize("link", [False, True], ids=["the folder", "a link to it"])
def test_the_arrays_themselves_are_never_written_over(
    arrays: list[str], tmp_path: pathlib.Path, link: bool
) -> None:
    out = tmp_path
    if link:
        out = tmp_path / "link"
        out.symlink_to(tmp_path, target_is_directory=True)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.npy")}
    with pytest.raises(UserError, match="is there and holds other rows: give another --out"):
        run(out, arrays, "--rows=10")
    assert {path: path.read_bytes() for path in tmp_path.glob("*.npy")} == before


def test_what_is_there_already_stays(arrays: list[str], tmp_path: pathlib.Path) -> None:
    out = tmp_path / "out"
    run(out, arrays, "--rows=50")
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    run(out, arrays, "--rows=50")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    (out / "labels_train.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="labels_train.npy is there"):
        run(out, arrays, "--rows=50")


def test_two_files_of_one_name_are_told(arrays: list[str], tmp_path: pathlib.Path) -> None:
    own = tmp_path / "other" / "phi1_train.npy"
    own.parent.mkdir()
    np.save(own, np.zeros((160, 8)))
    with pytest.raises(UserError, match="files of two fields have one name"):
        run(tmp_path / "out", [*arrays, f"--config.data.train.phi2={own}"], "--rows=10")
