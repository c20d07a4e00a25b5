"""The comparison of ways to the nearest neighbours, at a size of a second."""

import json
import pathlib

import nearest_neighbours
import pytest

from hume_jax.errors import UserError


def test_all_ways_find_the_same(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--rows=300", "--columns=6", "--count=4", "--repeats=2"]
    nearest_neighbours.main([*sizes, f"--out={tmp_path}"])
    found = json.loads((tmp_path / "seconds.json").read_text())
    assert min(found["same"].values()) > 0.99
    assert all(len(values) == 2 for values in found["seconds"].values())
    printed = capsys.readouterr().out
    assert "4 neighbours of 300 rows of 6 columns" in printed
    assert "| scikit-learn |" in printed
    assert printed.endswith((tmp_path / "table.md").read_text())


def test_more_neighbours_than_rows(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="--count=40: it must be between 1 and one less"):
        nearest_neighbours.main(["--rows=40", "--count=40", f"--out={tmp_path}"])


def test_nothing_to_time(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="--repeats=0: it must be at least 1"):
        nearest_neighbours.main(["--repeats=0", f"--out={tmp_path}"])
