"""Whole runs that read the rows of each step from disk."""

import functools
import json
import pathlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hume_jax import config as config_lib
from hume_jax import labelling, memory, pipeline, planning
from hume_jax.core.search import Search
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.representations import prepared, store
from hume_jax.representations.arrays import checks, side_file
from hume_jax.workdir import Workdir

pytestmark = pytest.mark.usefixtures("quickly_compiled")

K, TRAIN, TEST, D1, D2, STEPS = 4, 301, 100, 16, 12, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Clustered rows in two spaces, float16."""
    folder, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    means = {"phi1": rng.normal(size=(K, D1)), "phi2": rng.normal(size=(K, D2))}
    for split, n in (("train", TRAIN), ("test", TEST)):
        labels = rng.integers(K, size=n)
        np.save(folder / f"labels_{split}.npy", labels)
        for name, centres in means.items():
            rows = 3 + 2 * centres[labels] + rng.normal(size=(n, centres.shape[1]))
            np.save(folder / f"{name}_{split}.npy", rows.astype(np.float16))
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Callable[..., pathlib.Path]:
    """Runs a search of few and cheap steps, in a workdir of its own if none is given."""

    def run(
        rows: str, workdir: pathlib.Path | None = None, fields: dict[str, Any] | None = None
    ) -> pathlib.Path:
        config = config_lib.load("configs/testing.py:transductive")
        for split in ("train", "test"):
            for name in ("phi1", "phi2", "labels"):
                config.data[split][name] = str(folder / f"{name}_{split}.npy")
        config.update({"n_classes": K, "n_tasks": 2, "plots": False, "baselines": False})
        config.search.update({"rows": rows, "steps": STEPS, "subset_size": 200})
        config.inner.update({"adjoint": "first_order", "solver": "gradient", "step_size": 0.5})
        config.score.update({"rows": 200, "steps": 3, "tolerance": 1.0})
        # What else depends on rows: where encoders begin.
        config.encoder.start, config.ensemble.vote = "rows", "soft"
        for name, value in (fields or {}).items():
            *sections, last = name.split(".")
            section = config
            for part in sections:
                section = section[part]
            section[last] = value
        workdir = workdir or tmp_path_factory.mktemp("runs") / "run"
        pipeline.run(config, workdir)
        return workdir

    return run


@pytest.fixture(scope="module")
def disk(run) -> pathlib.Path:
    return run("disk", fields={"baselines": True})


@pytest.fixture(scope="module")
def held(run) -> pathlib.Path:
    """The same, all rows in memory."""
    return run("memory", fields={"baselines": True})


def searched(path: pathlib.Path) -> list[dict[str, Any]]:
    """metrics.jsonl, but for times."""
    rows = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def state(path: pathlib.Path) -> Any:
    with ocp.CheckpointManager(path / "checkpoints" / "batch_0000") as manager:
        return manager.restore(STEPS, args=ocp.args.StandardRestore())


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def labels(path: pathlib.Path) -> np.ndarray:
    lines = (path / "labels.csv").read_text().splitlines()[1:]
    return np.array([int(line.split(",")[2]) for line in lines])


def test_a_run_from_disk_finds_what_one_in_memory_finds(disk, held):
    for mine, theirs in zip(searched(disk), searched(held), strict=True):
        assert mine.keys() == theirs.keys()
        # Rows are rounded to float32 at other places.
        for name in ("objective", "heldout_ce", "entropy", "gradient_norm"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4)
    np.testing.assert_allclose(state(disk)["theta"], state(held)["theta"], atol=1e-4)
    assert metrics.score(labels(disk), labels(held))["acc"] >= 0.99
    results = [json.loads((path / "results.json").read_text()) for path in (disk, held)]
    # The same rows, so few that no bound on memory is felt.
    assert results[0]["baselines"] == results[1]["baselines"]
    assert results[0]["seconds"].keys() - results[1]["seconds"].keys() == {
        "gather",
        "gather_waited",
    }


# Numbers of rows in files that hold these beside the others.
UNSEEN = {"train": [0, 1, 7, 100, *range(101, 330, 9), 331], "test": [5]}


def with_unseen(split: str, rows: np.ndarray, fill: int) -> np.ndarray:
    spread = np.full((len(rows) + len(UNSEEN[split]), *rows.shape[1:]), fill, rows.dtype)
    spread[np.setdiff1d(np.arange(len(spread)), UNSEEN[split])] = rows
    return spread


@pytest.fixture(scope="module")
def unread(folder, tmp_path_factory) -> dict[str, str]:
    """The same rows among others, as if encoded from images that could not all be read."""
    target, fields = tmp_path_factory.mktemp("unread"), {}
    for split, rows in UNSEEN.items():
        for name, mine in (("phi1", rows[::2]), ("phi2", rows[1::2] or rows), ("labels", [])):
            array = with_unseen(split, np.load(folder / f"{name}_{split}.npy"), fill=3)
            array[mine] = 0
            path = target / f"{name}_{split}.npy"
            np.save(path, array)
            fields[f"data.{split}.{name}"] = str(path)
            if mine:
                broken = [[row, "it is empty"] for row in mine]
                about = {"complete": True, "broken": broken, "digest": checks.digest(array)}
                side_file.write(path, about)
    return fields


@pytest.mark.parametrize("rows", ["disk", "memory"])
def test_rows_of_broken_images_take_no_part(rows, run, disk, held, unread, caplog):
    """Bit for bit as if they were not in the files, many as they are."""
    expected = disk if rows == "disk" else held
    path = run(rows, fields={**unread, "baselines": True})
    assert "31 of 332 rows are left out, of images that could not be read: " in caplog.text
    assert searched(path) == searched(expected)
    jax.tree.map(np.testing.assert_array_equal, state(path), state(expected))
    for name in ("model.npz", "scores.npz", "baselines.npz"):
        jax.tree.map(np.testing.assert_array_equal, arrays(path / name), arrays(expected / name))
    results = [json.loads((run / "results.json").read_text()) for run in (path, expected)]
    for name in ("ensemble", "tasks", "baselines"):
        assert results[0][name] == results[1][name]
    for mine, theirs, split in zip(
        np.split(labels(path), [TRAIN + len(UNSEEN["train"])]),
        np.split(labels(expected), [TRAIN]),
        UNSEEN,
        strict=True,
    ):
        np.testing.assert_array_equal(mine, with_unseen(split, theirs, fill=-1))


def test_a_run_that_is_stopped_goes_on_without_reading_all_rows_again(run, disk, tmp_path):
    save = Workdir.save

    def stop(self, name: str, step: int, tree: Any) -> None:
        save(self, name, step, tree)
        if step >= 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workdir, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run("disk", tmp_path / "run", {"baselines": True})
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (store, "scan_files"),
            (prepared, "first_space"),
            (prepared, "second_space"),
        ):
            patch.delattr(module, name)
        path = run("disk", tmp_path / "run", {"baselines": True})
    # Bit for bit.
    assert searched(path) == searched(disk)
    jax.tree.map(np.testing.assert_array_equal, state(path), state(disk))
    assert (path / "labels.csv").read_bytes() == (disk / "labels.csv").read_bytes()
    for name in ("model.npz", "prepared.npz", "scores.npz", "baselines.npz"):
        jax.tree.map(np.testing.assert_array_equal, arrays(path / name), arrays(disk / name))


def test_how_often_each_file_is_read(run, monkeypatch):
    """Whole; the steps read single rows, which do not count."""
    read: Counter[int] = Counter()
    blocks = checks.blocks

    def counted(array):
        for start, block in blocks(array):
            read[array.shape[1]] += len(block)
            yield start, block

    monkeypatch.setattr(checks, "blocks", counted)
    run("disk")
    n = TRAIN + TEST
    # Values checked, mean; labels of the tasks, labels of the model.
    assert read[D1] == 4 * n
    # Values checked, mean and Gram matrix; three times the folds, of 66, that tasks are scored on.
    assert read[D2] == 2 * n + 3 * 198


def test_labelling_counts_its_rows(disk, folder, monkeypatch):
    monkeypatch.setattr(labelling, "_BLOCK", 128)
    model, rows = labelling.from_arrays(arrays(disk / "model.npz")), []
    vote = labelling.predict(model, [np.load(folder / "phi1_train.npy")], rows.append)
    assert rows == [128, 128, 45]
    np.testing.assert_array_equal(vote.labels, labels(disk)[:TRAIN])


def test_a_run_keeps_where_it_reads_from(run, tmp_path, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workdir, "save", stop)
    for rows, free in (("disk", 0.0), ("memory", 1e15)):
        path = tmp_path / rows
        monkeypatch.setattr(planning, "_COMFORTABLE", free)
        with pytest.raises(KeyboardInterrupt):
            run("auto", path)
        assert json.loads((path / "rows.json").read_text()) == rows
        # Now there is more, or less, memory than there was.
        monkeypatch.setattr(planning, "_COMFORTABLE", 1e15 - free)
        with pytest.raises(KeyboardInterrupt):
            run("auto", path)
        assert planning.kept_rows(path) == rows


def test_arrays_stored_by_columns_are_refused_before_anything_is_written(folder, run, tmp_path):
    file = folder / "columns.npy"
    np.save(file, np.asfortranarray(np.load(folder / "phi2_train.npy")))
    with pytest.raises(UserError, match=r"columns.npy is stored column by column"):
        run("disk", tmp_path / "run", {"data.train.phi2": str(file)})
    assert not (tmp_path / "run").exists()


def test_rows_that_equal_the_mean_are_an_error_before_anything_is_written(folder, run, tmp_path):
    half = np.random.default_rng(0).normal(size=(TRAIN // 2 - 10, D1))
    rows = np.concatenate([half, -half, np.zeros((21, D1))]).astype(np.float32)
    np.save(folder / "centred.npy", rows)
    fields = {"data.train.phi1": str(folder / "centred.npy"), "setting": "inductive"}
    for rows in ("disk", "memory"):
        with pytest.raises(UserError, match=r"centred.npy: 21 of 301 rows have zero norm"):
            run(rows, tmp_path / "run", fields)
    assert not (tmp_path / "run").exists()


# ---- where the rows are read from, and what that takes

SHAPE = memory.Shape(rows=1_281_216, train=9984, test=9984, phi1=2048, inner=(1537,))
SETTINGS = Search(1000, 156, 156)
GIB = 2**30


def needed(tasks: int, rows: str) -> int:
    return memory.search_bytes(SHAPE, SETTINGS, tasks, rows=rows)


def test_a_search_of_imagenets_size_from_disk_takes_little_memory():
    assert memory.data_bytes(SHAPE) > 16 * GIB
    assert needed(1, "disk") < 2 * GIB
    disk, held = (functools.partial(needed, rows=rows) for rows in ("disk", "memory"))
    assert planning.batch_size(16, 0, 1, disk, 8 * GIB) >= 4
    with pytest.raises(UserError, match=r"GiB are free: set search.rows=disk, lower search.subset"):
        planning.batch_size(16, 0, 1, held, 8 * GIB)
    with pytest.raises(UserError, match=r"GiB are free: lower search.subset_size"):
        planning.batch_size(16, 0, 1, disk, GIB)


@pytest.mark.parametrize(
    ("free", "storage", "devices", "rows"),
    [
        (64, "float32", 1, "memory"),
        (24, "float32", 1, "disk"),
        (24, "bfloat16", 1, "memory"),
        (24, "float32", 2, "memory"),
    ],
)
def test_memory_is_chosen_if_it_leaves_half(free, storage, devices, rows):
    stored = memory.stored_bytes(storage)
    own = SHAPE.part(devices)
    assert planning.choose_rows("auto", own, SETTINGS, free * GIB, stored) == rows
    for asked in ("memory", "disk"):
        assert planning.choose_rows(asked, own, SETTINGS, free * GIB, stored) == asked


def test_the_choice_is_explained(monkeypatch):
    config = config_lib.resolve(config_lib.load("configs/testing.py"))
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 100 * GIB)
    for n, what in ((6000, "rows are searched in memory"), (10**8, "each step reads its rows")):
        line = planning.where(planning.make_plan(config, n, 128, (129,)))
        assert line.startswith(what)
        assert "100 GiB are free" in line
        # Each of the two devices, which share the tasks, would have all rows.
        assert line.endswith("would share them among more devices") == (n > 6000)
