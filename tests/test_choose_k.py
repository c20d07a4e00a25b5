"""How many classes, as a user asks: made rows of a known number of them, and of none."""

import csv
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from ml_collections import config_dict
from sklearn.cluster import KMeans

from hume_jax import choose_k, halves
from hume_jax import config as config_lib
from hume_jax.choose_k import Numbers, Sizes
from hume_jax.errors import UserError
from hume_jax.evaluation.n_classes import Measured
from hume_jax.representations import store
from hume_jax.representations.store import Dataset, Space, Split

SMALL = Sizes(tasks=2, pairs=1)


def blobs(rng: np.random.Generator, classes: int, n: int = 480, d: int = 12) -> list[np.ndarray]:
    """Two spaces of well separated classes; of none where there is one."""
    labels = rng.permutation(np.arange(n) % classes)
    centres = 4 * rng.normal(size=(2, classes, d)) if classes > 1 else np.zeros((2, 1, d))
    hidden = rng.normal(size=(n, d))
    turns = [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2)]
    # What is no class is seen in both spaces too.
    spaces = [
        c[labels] + hidden @ t + 0.3 * rng.normal(size=(n, d))
        for c, t in zip(centres, turns, strict=True)
    ]
    return [space.astype(np.float32) for space in spaces]


def save(folder: pathlib.Path, spaces: list[np.ndarray]) -> list[str]:
    """Writes two spaces; the flags of a config that names them."""
    flags = ["--config=configs/arrays.py", "--config.search.steps=40"]
    flags.append("--config.search.anneal_steps=(24,32)")
    for name, space in zip(("phi1", "phi2"), spaces, strict=True):
        np.save(folder / f"{name}.npy", space)
        flags.append(f"--config.data.train.{name}={folder / name}.npy")
    return flags


def config_of(folder: pathlib.Path, spaces: list[np.ndarray]) -> config_dict.ConfigDict:
    save(folder, spaces)
    config = config_lib.load("configs/arrays.py")
    with config.unlocked():
        config.search.steps, config.search.anneal_steps = 40, (24, 32)
        for name in ("phi1", "phi2"):
            config.data.train[name] = str(folder / f"{name}.npy")
    return config


@pytest.mark.usefixtures("quickly_compiled")
def test_halves_agree_on_as_many_classes_as_were_made(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    config = choose_k.prepare(config_of(tmp_path, blobs(rng, 3)), SMALL)
    dataset = halves.sample(config, store.open_files(config.data), 300)
    rows = halves.halve(config, dataset, 1)
    ((first, second),) = rows.pairs
    assert sorted([*first.numbers, *second.numbers]) == list(range(300))
    with config.unlocked():
        config.n_classes = 3
    done: list[int] = []
    found = halves.measure(config, rows, tmp_path / "k_3", lambda: done.append(1))
    assert len(done) == 2
    assert found.across.shape == (1, 2, 2)
    assert found.across.mean() > 0.95
    assert found.cv_accuracy.mean() > 0.95
    assert np.all(found.used == 3)
    assert np.all(found.smallest > 0.8)
    # What a half found is read again.
    again = halves.measure(config, rows, tmp_path / "k_3")
    np.testing.assert_array_equal(again.across, found.across)


def by_kmeans(
    config: config_dict.ConfigDict,
    half: halves.Half,
    rows: halves.Rows,
    seed: int,
    programs: object,
) -> np.ndarray:
    """In the place of a search, which takes its time to compile for each number of classes."""
    space = rows.dataset.train.phi1.arrays[0]
    starts = [KMeans(config.n_classes, n_init=1, random_state=seed + i) for i in range(2)]
    return np.stack([s.fit(space[half.numbers]).predict(space) for s in starts]).astype(np.int32)


def test_what_is_found_is_written_and_kept(
    rng: np.random.Generator, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halves, "_search", by_kmeans)
    config, out = config_of(tmp_path, blobs(rng, 4)), tmp_path / "out"
    numbers = Numbers((3, 4, 5), False)
    found = choose_k.recommend(config, out, numbers=numbers, sizes=SMALL)
    assert found.value == 4
    kept = json.loads((out / "choose_k.json").read_text())
    assert kept["recommendation"]["value"] == 4
    with open(out / "choose_k.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["n_classes"]) for row in rows] == [3, 4, 5]
    assert float(rows[1]["agreement_of_halves"]) == pytest.approx(found.agreement)
    assert (out / "choose_k.png").read_bytes().startswith(b"\x89PNG")
    lines = choose_k.table(kept).splitlines()
    assert lines[2].startswith("*  4  ")
    assert lines[-1] == "looked at K = 3, 4, 5"
    # What is finished is not searched again; another number is.
    searched: list[int] = []

    def count(config: config_dict.ConfigDict, *more: Any) -> np.ndarray:
        searched.append(config.n_classes)
        return by_kmeans(config, *more)

    monkeypatch.setattr(halves, "_search", count)
    assert choose_k.recommend(config, out, numbers=numbers, sizes=SMALL) == found
    assert not searched
    choose_k.recommend(config, out, numbers=Numbers((3, 4, 6), False), sizes=SMALL)
    assert searched == [6, 6]
    with pytest.raises(UserError, match=r"begun with other data \(--rows"):
        choose_k.recommend(config, out, sizes=SMALL._replace(rows=400))
    with pytest.raises(UserError, match="belongs to another config"):
        choose_k.recommend(config, out, sizes=Sizes(tasks=3, pairs=1))


def test_a_wide_range_is_looked_at_coarsely_first(
    rng: np.random.Generator, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(config: config_dict.ConfigDict, rows: halves.Rows, *more: Any) -> Measured:
        k = config.n_classes
        across = np.full((1, 2, 2), 0.9 - 0.1 * abs(np.log(k / 9)))
        if rows.dataset.train.phi1.arrays[0].mean() < 50:
            across[:] = 0.1  # the rows without classes are centred
        return Measured(k, across, *([np.zeros((1, 2, 2))] * 4))

    monkeypatch.setattr(halves, "measure", measure)
    spaces = [space + 100 for space in blobs(rng, 9)]
    config, out = config_of(tmp_path, spaces), tmp_path / "out"
    found = choose_k.recommend(config, out, numbers=choose_k.parse_numbers("2..24"), sizes=SMALL)
    assert found.value == 9
    assert found.reference == pytest.approx(0.1)
    looked = json.loads((out / "choose_k.json").read_text())["numbers"]
    assert [row["n_classes"] for row in looked] == [*range(2, 12), 12, 14, 17, 20, 24]


def test_labels_are_not_opened(rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    config = config_of(tmp_path, blobs(rng, 2))
    with config.unlocked():
        config.data.train.labels = "nowhere.npy"
    assert choose_k.prepare(config, SMALL).data.train.labels == ""


def test_mistakes_are_told(rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    for text, says in (("9..3", "upwards"), ("1,2", "at least 2"), ("ten", "give a range")):
        with pytest.raises(UserError, match=says):
            choose_k.parse_numbers(text)
    config = config_of(tmp_path, blobs(rng, 2))
    with pytest.raises(UserError, match="13 classes are too many: the encoders read 24 columns"):
        choose_k.recommend(
            config, tmp_path / "out", numbers=Numbers((2, 13), False), sizes=Sizes(rows=96)
        )
    with pytest.raises(UserError, match="--tasks=1: it must be at least 2"):
        choose_k.recommend(config, tmp_path / "out", sizes=Sizes(tasks=1))
    with config.unlocked():
        config.class_prior = (0.5, 0.5)
    with pytest.raises(UserError, match="class_prior"):
        choose_k.recommend(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_are_a_range_or_a_list() -> None:
    assert choose_k.parse_numbers("5,3,10") == Numbers((3, 5, 10), False)
    assert choose_k.parse_numbers("8..12") == Numbers((8, 9, 10, 11, 12), False)
    assert choose_k.parse_numbers("2..50").refined
    assert choose_k.parse_numbers("2..50").limits == (2, 50)


def test_rows_without_classes_have_the_covariance_of_both_spaces(rng: np.random.Generator) -> None:
    spaces = blobs(rng, 3, n=6000, d=4)
    phi1, phi2 = (Space((s,), (name,), ()) for s, name in zip(spaces, "ab", strict=True))
    dataset = Dataset(Split(phi1, phi2, None, 6000), None)
    found = halves.without_classes(dataset, 0).train
    joined = np.hstack([found.phi1.arrays[0], found.phi2.arrays[0]])
    expected = np.cov(np.hstack(spaces).T)
    assert np.abs(np.cov(joined.T) - expected).max() < 0.1 * np.abs(expected).max()
    # Close to Gaussian: the kurtosis of each direction is near 3, of the blobs' it is not.
    _, axes = np.linalg.eigh(expected)
    along = (joined - joined.mean(axis=0)) @ axes[:, -1]
    assert np.mean(along**4) / np.mean(along**2) ** 2 == pytest.approx(3, abs=0.3)


def command(flags: list[str], workdir: pathlib.Path, *more: str) -> list[str]:
    whole = [sys.executable, "-m", "hume_jax.choose_k", *flags, f"--workdir={workdir}"]
    return [*whole, "--tasks=2", "--pairs=1", *more]


def environment(repository: pathlib.Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repository), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2, 3, 6])
def test_the_command_finds_made_classes_and_none_in_a_cloud(
    rng: np.random.Generator, tmp_path: pathlib.Path, repository: pathlib.Path, classes: int
) -> None:
    flags = save(tmp_path, blobs(rng, classes))
    run = subprocess.run(
        command(flags, tmp_path / "out", "--k=2..9"),
        cwd=repository, env=environment(repository), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    if classes == 1:
        assert "\nno recommendation: " in run.stdout
    else:
        assert f"\n{classes} classes: " in run.stdout
    assert "looked at K = 2, 3, 4, 5, 6, 7, 8, 9" in run.stdout


@pytest.mark.slow
def test_a_killed_command_goes_on_and_ends_the_same(
    rng: np.random.Generator, tmp_path: pathlib.Path, repository: pathlib.Path
) -> None:
    flags = save(tmp_path, blobs(rng, 3))
    where = {"cwd": repository, "env": environment(repository), "stderr": subprocess.PIPE}
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(flags, killed, "--k=2..4"), **where)
    end = time.monotonic() + 400
    while not (killed / "k_4" / "half_0_0.npz").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = (killed / "k_4" / "half_0_0.npz").stat().st_mtime_ns
    for workdir in (killed, tmp_path / "whole"):
        subprocess.run(command(flags, workdir, "--k=2..4"), check=True, timeout=900, **where)
    assert (killed / "k_4" / "half_0_0.npz").stat().st_mtime_ns == before
    for name in ("choose_k.json", "choose_k.csv"):
        assert (killed / name).read_text() == (tmp_path / "whole" / name).read_text()
