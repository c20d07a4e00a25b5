"""Runs whose folder and arrays are in an object store, and the mirror of such a folder."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from hume_jax import config as config_lib
from hume_jax import stores
from hume_jax.config import common
from hume_jax.errors import Preempted, UserError
from hume_jax.workdir import Workdir

COMMAND = (
    sys.executable,
    "-m",
    "hume_jax.main",
    "--config=configs/testing.py",
    "--config.baselines=false",
    "--config.score.rows=200",
)
ARRAYS = [f"{field}_{split}" for split in ("train", "test") for field in ("phi1", "phi2", "labels")]


@pytest.fixture
def folder(object_store, request):
    """A folder of this test's own in the store."""
    return f"{object_store}/{request.node.name}"


@pytest.fixture
def config():
    config = common.get_config()
    config.n_classes = 3
    return config_lib.resolve(config)


def names(url):
    there = stores.open_path(url)
    return sorted(path.name for path in there.iterdir()) if there.is_dir() else []


def read(url):
    return stores.open_path(url).read_text()


# ---- the folder


def test_files_are_sent_as_they_are_written(folder, config):
    with Workdir(folder, config) as workdir:
        assert names(folder) == ["config.json"]
        workdir.write_json("results.json", {"acc": 1})
        assert json.loads(read(f"{folder}/results.json")) == {"acc": 1}
        workdir.write_npz("model.npz", {"theta": np.ones(3)})
        workdir.append({"step": 1})
        assert names(folder) == ["config.json", "model.npz", "results.json"]
        (workdir.path / "curves.png").write_bytes(b"drawn by others")
        (workdir.path / "profile").mkdir()
        (workdir.path / "profile" / "trace").write_bytes(b"1")
    left = ["config.json", "curves.png", "metrics.jsonl", "model.npz", "profile", "results.json"]
    assert names(folder) == left
    assert read(f"{folder}/profile/trace") == "1"
    local = workdir.path
    del workdir
    assert not local.exists(), "nothing is left on this machine"


def test_a_run_finds_what_an_earlier_one_left(folder, config):
    like = {"a": jnp.zeros((2, 3)), "b": np.zeros(2)}
    with Workdir(folder, config) as workdir:
        for step in range(4):
            workdir.append({"step": step})
            workdir.save("batch", step, {"a": like["a"] + step, "b": like["b"] - step})
        workdir.finish()
        assert len(read(f"{folder}/metrics.jsonl").splitlines()) == 4, "sent with each checkpoint"
    # Another machine, for its mirror is another.
    with Workdir(folder, config) as workdir:
        step, state = workdir.latest("batch", like)
        assert step == 3
        np.testing.assert_array_equal(state["a"], np.full((2, 3), 3.0, np.float32))
        np.testing.assert_array_equal(state["b"], [-3, -3])
        workdir.truncate(lambda record: record["step"] < 3)
        assert [record["step"] for record in workdir.metrics()] == [0, 1, 2]
        assert workdir.latest("other", like) is None
    assert len(read(f"{folder}/metrics.jsonl").splitlines()) == 3
    assert names(f"{folder}/checkpoints/batch") == ["2", "3"], "two are kept"


def test_a_folder_of_another_config_or_of_someone_else(folder, config):
    with Workdir(folder, config):
        pass
    other = config_lib.config_dict.ConfigDict(config)
    with other.unlocked():
        other.seed = 7
    for begin in (Workdir.check, Workdir.__enter__):
        with pytest.raises(UserError, match=f"workdir {folder} belongs to another config .seed"):
            begin(Workdir(folder, other))
    stores.open_path(f"{folder}/config.json").unlink()
    stores.open_path(f"{folder}/model.npz").write_text("")
    with pytest.raises(UserError, match=f"workdir {folder} holds model.npz but no config.json"):
        Workdir(folder, config).__enter__()


def test_a_folder_that_cannot_be_written(folder, config, monkeypatch):
    def fails(self, content):
        raise PermissionError("403 Forbidden")

    path_type = type(stores.open_path(folder))
    Workdir(folder, config).check()
    assert names(folder) == [], "the check leaves nothing"
    monkeypatch.setattr(path_type, "write_text", fails)
    with pytest.raises(UserError, match=r"probe cannot be reached \(403 Forbidden\)"):
        Workdir(folder, config).check()
    with Workdir(folder, config) as workdir:
        monkeypatch.setattr(path_type, "write_bytes", fails)
        with pytest.raises(UserError, match=r"403 .* what was not sent is kept in") as error:
            workdir.write_text("labels.csv", "what took hours")
        monkeypatch.undo()
    kept = pathlib.Path(str(error.value).rpartition(" ")[2])
    del workdir, error
    assert (kept / "labels.csv").read_text() == "what took hours"
    assert read(f"{folder}/labels.csv") == "what took hours", "it was sent once that could be"


def test_stores_that_cannot_keep_checkpoints(config):
    with pytest.raises(UserError, match="gs:/b/run is no path"):
        Workdir("gs:/b/run", config)
    with pytest.raises(UserError, match=r"workdir s3://b/run: checkpoints are kept whole on"):
        Workdir("s3://b/run", config)


# ---- runs, as a user types them


def started(repository, workdir, *flags, devices=2):
    return subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}", *flags],
        cwd=repository,
        env=os.environ
        | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process, status=0):
    try:
        out, log = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == status, log[-3000:]
    return out, log


def wait_for_checkpoint(folder, processes, seconds=200):
    """Until one is complete, while all processes run."""
    end, place = time.monotonic() + seconds, f"{folder}/checkpoints/batch_0000"
    while not any("commit_success.txt" in names(f"{place}/{step}") for step in names(place)):
        assert all(p.poll() is None for p in processes), [p.communicate() for p in processes]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def arrays(object_store, repository):
    """The flags that name the quickstart's arrays in the store."""
    folder = f"{object_store}/quickstart"
    for name in ARRAYS:
        content = (repository / "hume_jax" / "data" / "quickstart" / f"{name}.npy").read_bytes()
        with warnings.catch_warnings():
            # aiohttp would rather have large bodies as files.
            warnings.simplefilter("ignore", ResourceWarning)
            stores.open_path(f"{folder}/{name}.npy").write_bytes(content)
    fields = [name.split("_") for name in ARRAYS]
    places = [(field, split, f"{folder}/{field}_{split}.npy") for field, split in fields]
    return [f"--config.data.{split}.{field}={place}" for field, split, place in places]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HUME_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_run_in_a_store_is_one_on_a_disk(folder, repository, arrays, cache, tmp_path):
    there = started(repository, folder, *arrays)
    here = started(repository, tmp_path / "run")
    out, log = finished(there)
    expected, _ = finished(here)
    assert f"results, labels and plots: {folder}" in out
    assert f"workdir: {folder}" in log
    assert f"copying {arrays[0].partition('=')[2]} to {cache}" in log
    local = {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")}
    assert set(names(folder)) == local
    assert read(f"{folder}/labels.csv") == (tmp_path / "run" / "labels.csv").read_text()
    # But for the time that it took, and the folder.
    assert out.splitlines()[1:10] == expected.splitlines()[1:10]
    # Again: finished, nothing is copied.
    out, log = finished(started(repository, folder, *arrays))
    assert f"this run is finished; delete {folder}/results.json to score it again" in log
    assert "copying" not in log


@pytest.mark.slow
def test_a_killed_run_goes_on_elsewhere(folder, repository, cache, tmp_path):
    long = ("--config.search.steps=60", "--config.checkpoint_seconds=0", "--noconfig.plots")
    run = started(repository, folder, *long)
    wait_for_checkpoint(folder, [run])
    run.kill()
    run.communicate()
    assert "results.json" not in names(folder)
    _, log = finished(started(repository, folder, *long))
    assert "going on from step" in log
    finished(started(repository, tmp_path / "run", *long))
    assert read(f"{folder}/labels.csv") == (tmp_path / "run" / "labels.csv").read_text()
    steps = [json.loads(line)["step"] for line in read(f"{folder}/metrics.jsonl").splitlines()]
    assert steps == list(range(2, 61, 2))


@pytest.mark.slow
def test_two_processes_and_seeds_share_a_folder_in_a_store(
    folder, repository, arrays, cache, free_port
):
    """SIGTERM to one of them stops both; one process goes on, on two devices."""
    flags = [*arrays, "--config.seeds=(0,1)", "--noconfig.plots", "--config.search.steps=60"]
    joined = [f"--distributed=127.0.0.1:{free_port}", "--processes=2"]
    both = [
        started(repository, folder, *flags, *joined, f"--process={i}", devices=1) for i in range(2)
    ]
    wait_for_checkpoint(folder, both)
    both[1].send_signal(signal.SIGTERM)
    logs = [finished(process, Preempted.STATUS)[1] for process in both]
    assert all("stopped by SIGTERM after step" in log for log in logs)
    assert len(read(f"{folder}/metrics.jsonl").splitlines()) > 0
    _, log = finished(started(repository, folder, *flags))
    assert "going on from step" in log
    assert {"seed_0", "seed_1", "results.json"} <= set(names(folder))
    assert "labels.csv" in names(f"{folder}/seed_1")


def test_what_cannot_be_is_said_at_once(object_store, repository, cache, tmp_path):
    missing = f"--config.data.train.phi1={object_store}/none.npy"
    _, log = finished(started(repository, tmp_path, missing), 2)
    assert f"1 file not found: data.train.phi1={object_store}/none.npy" in log
    _, log = finished(started(repository, "s3://bucket/run"), 2)
    assert "error: workdir s3://bucket/run: checkpoints are kept whole" in log
    encode = ["--config.images.train=gs://bucket/photos", "--config.encode.phi1=dinov2_vits14"]
    _, log = finished(started(repository, tmp_path, *encode), 2)
    assert "config field 'images.train' is gs://bucket/photos: images are read from" in log
