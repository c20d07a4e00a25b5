"""Ours beside the authors' code: what can be tested without PyTorch and their repositories."""

import argparse
import json
import pathlib
import re
import stat
import subprocess

import authors_code
import baselines
import figures
import jax.numpy as jnp
import numpy as np
import pairs
import pytest

from hume_jax.baselines import running, turtle
from hume_jax.baselines.method import Data
from hume_jax.baselines.methods import METHODS
from hume_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# A Python of its own that answers as `authors_torch.py` does: all rows in class 0.
WORKER = """#!{python}
import pathlib, sys
import numpy as np
method, *flags = sys.argv[2:]
values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
folder = pathlib.Path(values["arrays"])
test = np.load(folder / "space0_test.npy")
near = "neighbours.npy" in [path.name for path in folder.iterdir()]
assert near != method.startswith("turtle")
scale = np.linalg.norm(test, axis=1).mean()
assert abs(scale - (1 if method == "scan" else test.shape[1] ** 0.5)) < 1e-4
labels = np.zeros((int(values["starts"]), len(test)), int)
score = np.arange(len(labels)) * (not method.startswith("turtle"))
np.savez(values["out"], test=labels, score=score, seconds=2.5)
"""


@pytest.fixture
def python(tmp_path: pathlib.Path) -> pathlib.Path:
    import sys

    path = tmp_path / "python"
    path.write_text(WORKER.replace("{python}", sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def command(tmp_path: pathlib.Path, python: pathlib.Path, *more: str) -> list[str]:
    own = ["--config=configs/arrays.py", f"--torch-python={python}", f"--out={tmp_path / 'out'}"]
    return [
        *own,
        "--starts=2",
        "--set",
        "turtle.steps=3",
        "turtle_warm.steps=3",
        "scan.passes=20",
        "temi.passes=2",
        "--",
        *more,
    ]


@pytest.mark.slow
def test_both_are_scored_on_the_same_rows(
    arrays: list[str],
    tmp_path: pathlib.Path,
    python: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    checkouts = [f"--{name}={checkout}" for name in ("turtle", "scan", "temi")]
    asked = [*checkouts, *command(tmp_path, python, *arrays)]
    authors_code.main(asked)
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    turtle = ["TURTLE, cold start", "TURTLE, warm start"]
    assert [row["method"] for row in rows] == ["SCAN", "TEMI", *turtle]
    labels = next(f for f in arrays if "test.labels" in f).partition("=")[2]
    largest = np.unique(np.load(labels), return_counts=True)[1].max() / 60
    for row in rows:
        assert row["acc"]["theirs"] == pytest.approx([largest] * 2)
        assert len(row["acc"]["ours"]) == 2
        # Heads of TEMI are runs of their own.
        assert row["seconds"]["theirs"] == (5 if row["method"] == "TEMI" else 2.5)
        assert row["commit"] == "?"
    assert list(rows[2]["chosen"]) == ["ours"]
    assert (tmp_path / "out" / "table.png").read_bytes().startswith(b"\x89PNG")
    # What is finished is not run again.
    python.write_text("#!/bin/bash\nexit 1\n")
    authors_code.main(asked)
    assert capsys.readouterr().out == printed
    with pytest.raises(UserError, match="made with other settings"):
        authors_code.main(["--seed=1", *asked])
    # Nor is it told as of another commit.
    git(checkout, "init", "--quiet")
    with pytest.raises(UserError, match="made with other settings"):
        authors_code.main(asked)


def test_ours_from_given_starts(arrays: list[str], tmp_path: pathlib.Path) -> None:
    """From its own starts it ends where it does, and from others elsewhere."""
    pair = pairs.load(figures.load_config("configs/arrays.py", arrays))
    job = baselines.Job("turtle_warm", "both")
    settings = METHODS["turtle_warm"].settings(3)._replace(steps=20, patience=0)  # type: ignore[attr-defined]
    spaces = pairs.choose(pair, "train", "both")
    data = Data(tuple(map(jnp.asarray, spaces)))
    own = running.fit(turtle, settings, data, np.arange(2), 0).state
    begun = {}
    first = turtle.init(0, jnp.arange(2), data, settings)
    for i, (encoder, model) in enumerate(zip(first.encoders, first.models, strict=True)):
        values = dict(zip(("v", "length", "b", "w", "c"), (*encoder, *model), strict=True))
        begun |= {f"{name}{i}": np.asarray(value) for name, value in values.items()}
    expected = running.predict(turtle, own, pairs.choose(pair, "test", "both"))
    found = authors_code.from_their_starts(job, pair, begun, settings)
    np.testing.assert_array_equal(found, expected)
    swapped = {name: value[::-1] for name, value in begun.items()}
    np.testing.assert_array_equal(
        authors_code.from_their_starts(job, pair, swapped, settings), expected[::-1]
    )
    options = argparse.Namespace(
        set=["turtle_warm.steps=20"], out=tmp_path, starts=2, seed=0, exchanged=False,
        config="configs/arrays.py", fields=arrays,
    )  # fmt: skip
    other = {**begun, "test": expected, "settings": np.asarray("theirs")}
    assert authors_code.same_labels(job, pair, other, options) == [1, 1]
    # What is finished is taken from the folder, and is not taken for that of another run of theirs.
    (path,) = tmp_path.glob("*.npz")
    before = path.stat().st_mtime_ns
    assert authors_code.same_labels(job, pair, other, options) == [1, 1]
    assert path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made with other settings"):
        authors_code.same_labels(job, pair, {**other, "settings": np.asarray("later")}, options)
    # Theirs holds something random where a batch is some of the rows, and in other methods.
    options.set = ["turtle_warm.batch=10"]
    assert authors_code.same_labels(job, pair, other, options) == []
    assert authors_code.same_labels(job, pair, {"test": expected}, options) == []


def test_the_interval_of_a_difference() -> None:
    # Welch by hand: variances 1 and 4 of three, so an error of sqrt(5 / 3) with 50 / 17 degrees.
    mean, interval = authors_code.difference([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert mean == "-2.000"
    low, high = (float(part) for part in interval.split(" to "))
    half = 3.219 * (5 / 3) ** 0.5
    assert low == pytest.approx(-2 - half, abs=2e-3)
    assert high == pytest.approx(-2 + half, abs=2e-3)
    assert authors_code.difference([1.0], [2.0]) == ("-1.000", "-")
    assert authors_code.difference([1.0, 1.0], [0.5, 0.5]) == ("+0.500", "+0.500 to +0.500")


def git(folder: pathlib.Path, *asked: str) -> None:
    names = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *names, *asked], check=True)


def test_the_commit_of_a_checkout(tmp_path: pathlib.Path) -> None:
    assert authors_code.commit(tmp_path) == "?"
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message=first")
    found = authors_code.commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{7,}", found)
    (tmp_path / "code.py").write_text("2")
    assert authors_code.commit(tmp_path) == f"{found} and changes"


def test_what_is_missing_is_named(tmp_path: pathlib.Path, arrays: list[str]) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError, match="--torch-python=.*nowhere: no such program"):
        authors_code.main(command(tmp_path, nowhere, *arrays))
    # Without PyTorch, or whatever else fails.
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    asked = command(tmp_path, failing, *arrays)
    nothing = "nothing to compare: give the checkouts of --methods by --turtle, --temi or --scan"
    with pytest.raises(UserError, match=nothing):
        authors_code.main(asked)
    with pytest.raises(UserError, match="no such folder; clone the repository"):
        authors_code.main([f"--scan={nowhere}", *asked])
    with pytest.raises(UserError, match=nothing):
        authors_code.main([f"--scan={tmp_path}", "--methods", "temi", *asked])
    with pytest.raises(UserError, match="authors' code of scan did not run"):
        authors_code.main([f"--scan={tmp_path}", *asked])
