"""The script that measures a search of ImageNet's size, at sizes of seconds."""

import io
import json
import os

import imagenet_size
import numpy as np
import pytest

from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks

LOG = """\
I1 rows.py:71] checking the values of all files
I1 progress.py:94] phi1 2048/5000, 2 s left
I1 progress.py:94] phi1 5000/5000, done in 1 s
I1 pipeline.py:82] each step reads its rows from disk: as float32 copies they take 1 GiB, 2 are free
I1 search_loop.py:88] compiling
I1 progress.py:94] search 1/4, 9 s left, objective 4.615
I1 progress.py:94] search 4/4, done in 13 s
I1 search_loop.py:63] read 5 subsets in 4 s, of which the search waited for 3 s
I1 scoring.py:45] scoring 1 task by cross-validation
I1 progress.py:94] scores 1/5, 2 min 05 s left
I1 progress.py:94] scores 5/5, done in 1 min 27 s
"""


SHAPE = imagenet_size.Shape(300, 20, {"phi1": 24, "phi2": 16}, 3)


@pytest.fixture
def small(monkeypatch):
    whole = SHAPE._replace(rows=900, test_rows=60)
    monkeypatch.setattr(imagenet_size, "SHAPES", {"imagenet": whole})
    monkeypatch.setattr(imagenet_size, "_BLOCK", 128)


def test_the_log_says_where_a_run_is(capsys):
    names = [name for _, name in imagenet_size.phases(io.StringIO(LOG), 0.0)]
    assert names == [
        "start",
        "values checked",
        "means of phi1",
        "second moments of phi2",
        "compiling, first step",
        "further steps",
        "labels of tasks",
        "scores",
        "labels, results",
    ]
    assert capsys.readouterr().err == LOG


def test_peaks_of_each_phase():
    samples = [imagenet_size.Sample(t, 10 * t, 100 - t) for t in range(6)]
    found = imagenet_size.by_phase(samples, [(0.0, "a"), (2.5, "b"), (2.6, "none"), (2.7, "c")])
    assert found == [
        {"phase": "a", "seconds": 2, "anonymous": 20, "file": 100},
        {"phase": "c", "seconds": 2, "anonymous": 50, "file": 97},
    ]


def test_memory_of_a_process():
    anonymous, file = imagenet_size.status(os.getpid())
    held = np.ones(2**26, np.uint8)
    more, _ = imagenet_size.status(os.getpid())
    assert 0.9 * held.nbytes < more - anonymous < 1.5 * held.nbytes
    assert file > 2**20
    assert imagenet_size.status(2**22 + 1) is None


def test_files_are_of_classes_and_made_once(small, tmp_path, capsys):
    flags = imagenet_size.make_files(tmp_path, SHAPE)
    paths = dict(flag.split("=") for flag in flags)
    phi1 = checks.open_array(paths["--config.data.train.phi1"])
    labels = np.load(paths["--config.data.train.labels"])
    assert (phi1.shape, phi1.dtype, labels.shape) == ((300, 24), np.float16, (300,))
    assert np.load(paths["--config.data.test.phi2"]).shape == (20, 16)
    assert np.mean(np.square(phi1.astype(float)).sum(axis=1)) == pytest.approx(1, rel=0.1)
    means = np.stack([phi1[labels == k].astype(float).mean(axis=0) for k in range(3)])
    # Both splits have the same classes.
    test = np.load(paths["--config.data.test.phi1"]).astype(float)
    nearest = np.argmin(((test[:, None] - means) ** 2).sum(axis=2), axis=1)
    assert np.mean(nearest == np.load(paths["--config.data.test.labels"])) > 0.6
    assert "writing" in capsys.readouterr().err
    assert imagenet_size.make_files(tmp_path, SHAPE) == flags
    assert "writing" not in capsys.readouterr().err


def test_mistakes_take_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--scale=0 is not between 1 and 1000"):
        imagenet_size.parse_arguments(["--folder=x", "--out=y", "--scale=0"])
    monkeypatch.setattr(
        imagenet_size.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9})
    )
    with pytest.raises(UserError, match=r"9\.5 GB are needed, 1\.0 GB are free: .*--scale=4"):
        imagenet_size.make_files(tmp_path, imagenet_size.SHAPES["imagenet"])
    assert not list(tmp_path.iterdir())


def test_space_is_asked_for_what_is_missing_alone(small, tmp_path, monkeypatch):
    flags = imagenet_size.make_files(tmp_path, SHAPE)
    missing = dict(flag.split("=") for flag in flags)["--config.data.train.phi2"]
    os.unlink(missing)
    usage = type("Usage", (), {"free": 2 * 300 * 16})
    monkeypatch.setattr(imagenet_size.shutil, "disk_usage", lambda _: usage)
    assert imagenet_size.make_files(tmp_path, SHAPE) == flags
    assert np.load(missing).shape == (300, 16)


SMALL = (
    "--config.n_classes=3",
    "--config.search.subset_size=200",
    "--config.score.rows=200",
    "--config.score.folds=2",
)


@pytest.mark.slow
def test_the_whole_script(small, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = [f"--folder={tmp_path / 'files'}", f"--out={out}", "--remove", "--", *SMALL]
    imagenet_size.main(arguments)
    found = json.loads(out.read_text())
    assert (found["rows"], found["steps"]) == (900, 2)
    assert 0 < found["seconds"]["gather_waited"] < found["seconds"]["search"]
    printed = capsys.readouterr().out
    for text in ("further steps", "peak RssAnon", "hidden", "from disk"):
        assert text in printed
    assert list((tmp_path / "files").glob("phi*")) == []


@pytest.mark.slow
def test_memory_of_a_search_from_disk_does_not_grow_with_the_rows(small, tmp_path, monkeypatch):
    """Labels and what is written of them do: a hundredth of the rows, and Python's objects."""
    monkeypatch.setattr(imagenet_size, "_BLOCK", 8192)
    peaks = {}
    for rows in (20_000, 220_000):
        shape = imagenet_size.Shape(rows, 60, {"phi1": 512, "phi2": 384}, 3)
        flags = [*imagenet_size.make_files(tmp_path, shape), *imagenet_size.FIELDS]
        fields = [*flags, *imagenet_size.SHORT, "--config.search.rows=disk", *SMALL]
        found = imagenet_size.measure(fields, tmp_path / f"run-{rows}")
        peaks[rows] = found["peak_anonymous"]
    one_copy = 4 * 200_000 * (512 + 384)
    assert peaks[220_000] - peaks[20_000] < 0.15 * one_copy
