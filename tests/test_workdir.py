import gc
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hume_jax import config as config_lib
from hume_jax.config import common
from hume_jax.errors import UserError
from hume_jax.workdir import _OWN_FILES, Workdir, plain


class State(NamedTuple):
    theta: jax.Array
    inner: tuple[jax.Array, ...]
    optimiser: optax.OptState
    counts: np.ndarray
    step: jax.Array


def make_state(seed):
    rng = np.random.default_rng(seed)
    theta = jnp.asarray(rng.normal(size=(4, 30, 5)), jnp.float32)
    # Values that a text format or a comparison would lose.
    odd = jnp.array([np.nan, -0.0, np.inf, 1e-45, 0.1], jnp.float32)
    optimiser = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(theta)
    return State(
        theta,
        (odd, theta[0].astype(jnp.bfloat16)),
        optimiser,
        rng.bytes(3)[0] * np.ones(3),
        jnp.int32(seed),
    )


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def make_config(**fields):
    config = common.get_config()
    config.n_classes = 3
    config.update(fields)
    return config_lib.resolve(config)


@pytest.fixture
def config():
    return make_config()


# ---- whose folder it is


def test_makes_the_folder_and_writes_the_config(tmp_path, config):
    path = tmp_path / "runs" / "a"
    with Workdir(path, config) as workdir:
        assert workdir.path == path
        assert json.loads((path / "config.json").read_text())["n_classes"] == 3
    with Workdir(path, config):
        pass
    assert sorted(p.name for p in path.iterdir()) == [".lock", "config.json"]


def test_refuses_another_config_and_shows_the_difference(tmp_path, config):
    with Workdir(tmp_path, config):
        pass
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"another config \(n_classes: 3 -> 4; seed: 0 -> 7\)"):
        Workdir(tmp_path, make_config(n_classes=4, seed=7)).__enter__()
    assert (tmp_path / "config.json").read_text() == before
    with Workdir(tmp_path, config):
        pass  # a refusal leaves no lock


def test_refuses_a_damaged_config(tmp_path, config):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        Workdir(tmp_path, config).__enter__()


@pytest.mark.parametrize("name", _OWN_FILES)
def test_refuses_a_folder_with_files_of_someone_else(tmp_path, config, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"holds {name} but no config.json"):
        Workdir(tmp_path, config).__enter__()
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "notes.txt"])


def test_a_folder_with_other_files_is_taken(tmp_path, config):
    (tmp_path / "log.txt").write_text("mine")
    with Workdir(tmp_path, config):
        pass


def test_a_path_that_is_a_file(tmp_path, config):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="a is a file: set --workdir to a folder"):
        Workdir(tmp_path / "a", config).__enter__()
    with pytest.raises(UserError, match="b lies under a file: set --workdir to a folder"):
        Workdir(tmp_path / "a" / "b", config).__enter__()


def test_the_folder_is_logged_once_it_is_taken(tmp_path, config, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    with Workdir(tmp_path, config):
        assert caplog.messages == [f"workdir: {tmp_path}"]
        with pytest.raises(UserError, match="in use"):
            Workdir(tmp_path, config).__enter__()
    assert len(caplog.messages) == 1


HOLD = """
import sys, time
from hume_jax import config as config_lib
from hume_jax.config import common
from hume_jax.workdir import Workdir
config = common.get_config()
config.n_classes = 3
with Workdir(sys.argv[1], config_lib.resolve(config)):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, config, repository):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True, cwd=repository
    ) as first:
        try:
            assert first.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"is in use by process {first.pid} on "):
                Workdir(tmp_path, config).__enter__()
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
    with Workdir(tmp_path, config):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_the_same_process_is_refused_too(tmp_path, config):
    with Workdir(tmp_path, config), pytest.raises(UserError, match="in use"):
        Workdir(tmp_path, config).__enter__()


# ---- metrics


def test_metrics_are_there_when_append_returns(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        workdir.append({"step": 1, "loss": np.float32(0.1), "all": jnp.arange(2), "bad": np.nan})
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text == '{"step": 1, "loss": 0.1, "all": [0, 1], "bad": null}\n'
        assert workdir.metrics() == [{"step": 1, "loss": 0.1, "all": [0, 1], "bad": None}]


@pytest.mark.parametrize("torn", ["", '{"step": 9, "lo', '{"step": 9}', "\x00\x00", "{}}\n"])
def test_truncate_drops_later_and_torn_lines(tmp_path, config, torn):
    with Workdir(tmp_path, config) as workdir:
        assert workdir.metrics() == []
        workdir.truncate(lambda record: True)
        for step in range(6):
            workdir.append({"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    with Workdir(tmp_path, config) as workdir:
        workdir.truncate(lambda record: record["step"] <= 3)
        workdir.append({"step": 4})
        assert [record["step"] for record in workdir.metrics()] == [0, 1, 2, 3, 4]
        assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 5


def test_truncate_leaves_what_it_keeps_byte_for_byte(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        values = np.random.default_rng(0).normal(size=20)
        for step, value in enumerate(values):
            workdir.append({"step": step, "a": value, "b": np.float32(value), "c": "é"})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        workdir.truncate(lambda record: True)
        assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_line_in_the_middle_is_not_passed_over(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
        with pytest.raises(UserError, match="line 2 is not JSON"):
            workdir.metrics()


# ---- checkpoints


def test_checkpoints_come_back_bit_for_bit(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        assert workdir.latest("search", make_state(0)) is None
        for step in (3, 5, 9):
            workdir.save("search", step, make_state(step))
        workdir.save("other", 1, {"a": jnp.zeros(2)})
        step, state = workdir.latest("search", make_state(0))
        assert step == 9
        same_bits(state, make_state(9))
    with Workdir(tmp_path, config) as workdir:
        step, state = workdir.latest("search", make_state(0))
        same_bits(state, make_state(9))
        workdir.save("search", 10, make_state(10))
        assert workdir.latest("search", make_state(0))[0] == 10
        assert workdir.latest("other", {"a": jnp.ones(2)})[0] == 1
    kept = [p.name for p in (tmp_path / "checkpoints" / "search").iterdir()]
    assert sorted(kept) == ["10", "9"]


def test_restored_arrays_can_be_donated_and_stepped(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        workdir.save("search", 1, make_state(1))
        _, state = workdir.latest("search", make_state(0))
    out = jax.jit(lambda x: x + 1, donate_argnums=0)(state.theta)
    np.testing.assert_array_equal(out, make_state(1).theta + 1)


# Orbax closes its event loop while tensorstore still answers for the other arrays.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_leaves_the_one_before(tmp_path, config, caplog):
    with Workdir(tmp_path, config) as workdir:
        for step in (1, 2):
            workdir.save("search", step, make_state(step))
    for path in (tmp_path / "checkpoints" / "search" / "2").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:-7])
    with Workdir(tmp_path, config) as workdir:
        step, state = workdir.latest("search", make_state(0))
        assert step == 1
        same_bits(state, make_state(1))
        workdir.save("search", 2, make_state(2))
        assert workdir.latest("search", make_state(0))[0] == 2
    assert "checkpoint search 2 is damaged" in caplog.text
    gc.collect()


def test_checkpoints_that_cannot_be_read_at_all(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        workdir.save("search", 1, {"a": jnp.zeros(3)})
        with pytest.raises(UserError, match="no checkpoint in .* can be read: delete"):
            workdir.latest("search", {"b": jnp.zeros(3), "c": jnp.zeros(2)})
        # None is deleted before another one is known to be good.
        assert workdir.latest("search", {"a": jnp.ones(3)})[0] == 1


def test_other_data_under_the_same_names_is_refused(tmp_path, config):
    mine, theirs = ({"data.train.phi1": [f"(3, 2) float32 {digest}"]} for digest in ("ab", "cd"))
    for _ in range(2):
        with Workdir(tmp_path, config) as workdir:
            workdir.check_data(mine)
    with (
        Workdir(tmp_path, config) as workdir,
        pytest.raises(UserError, match=r"begun with other data \(data.train.phi1: .*ab.* -> .*cd"),
    ):
        workdir.check_data(theirs)


def test_saving_a_step_twice_is_a_mistake(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        workdir.save("search", 2, {"a": jnp.zeros(3)})
        with pytest.raises(Exception, match="step"):
            workdir.save("search", 2, {"a": jnp.zeros(3)})


def test_checkpoints_are_quiet(tmp_path, config, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    with Workdir(tmp_path, config) as workdir:
        caplog.clear()
        workdir.save("search", 2, {"a": jnp.zeros(3)})
        workdir.latest("search", {"a": jnp.zeros(3)})
    assert caplog.records == []


SAVE = """
import sys
import jax.numpy as jnp, numpy as np
from hume_jax import config as config_lib
from hume_jax.config import common
from hume_jax.workdir import Workdir
config = common.get_config()
config.n_classes = 3
def tree(step):
    rng = np.random.default_rng(step)
    return {"a": jnp.asarray(rng.normal(size=(200, 300)), jnp.float32), "b": (jnp.int32(step),)}
with Workdir(sys.argv[1], config_lib.resolve(config)) as workdir:
    found = workdir.latest("search", tree(0))
    step = 0 if found is None else found[0]
    print(step, flush=True)
    while True:
        step += 1
        workdir.append({"step": step})
        workdir.save("search", step, tree(step))
        workdir.finish()
        print(step, flush=True)
"""


def kill_while_saving(path, repository, rounds, seed):
    """Kills a process that saves in a loop, some time after its first save, and starts it again."""
    chance = random.Random(seed)
    saved = 0
    for _ in range(rounds):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE, path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
        ) as process:
            assert int(process.stdout.readline()) >= saved
            first = int(process.stdout.readline())
            time.sleep(chance.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            saved = max([first, *(int(line) for line in process.stdout.read().split())])
            assert process.stderr.read() == "", "resuming after a kill is quiet"
    return saved


def check_saved(path, config, saved):
    with Workdir(path, config) as workdir:
        like = {"a": jnp.zeros((200, 300), jnp.float32), "b": (jnp.int32(0),)}
        step, state = workdir.latest("search", like)
        # What `finish` has returned from is there; one more may have been finished just then.
        assert step in (saved, saved + 1)
        expected = np.random.default_rng(step).normal(size=(200, 300)).astype(np.float32)
        assert np.asarray(state["a"]).tobytes() == expected.tobytes()
        assert int(state["b"][0]) == step
        workdir.truncate(lambda record: record["step"] <= step)
        steps = [record["step"] for record in workdir.metrics()]
        assert steps == sorted(steps)
        assert steps[-1] == step
        assert set(range(1, step + 1)) == set(steps)
        workdir.save("search", step + 1, like)
    kept = {p.name for p in (pathlib.Path(path) / "checkpoints" / "search").iterdir()}
    assert kept == {str(step), str(step + 1)}, "a half-written checkpoint is cleaned away"


def test_killed_while_saving(tmp_path, config, repository):
    saved = kill_while_saving(tmp_path, repository, rounds=2, seed=0)
    check_saved(tmp_path, config, saved)


@pytest.mark.slow
def test_killed_while_saving_many_times(tmp_path, config, repository):
    saved = kill_while_saving(tmp_path, repository, rounds=8, seed=1)
    check_saved(tmp_path, config, saved)


def test_outdated_checkpoints_are_deleted_while_none_is_moved_there(tmp_path, config, monkeypatch):
    clear = Workdir._clear

    def checked(self, name):
        manager = self._managers.get(name)
        assert manager is None or not manager.is_saving_in_progress()
        clear(self, name)

    monkeypatch.setattr(Workdir, "_clear", checked)
    with Workdir(tmp_path, config) as workdir:
        for step in range(5):
            workdir.save("search", step, {"a": np.zeros((300, 300))})
    kept = {p.name for p in (tmp_path / "checkpoints" / "search").iterdir()}
    assert kept == {"3", "4"}


# ---- other files


def test_files_are_written_whole(tmp_path, config):
    with Workdir(tmp_path, config) as workdir:
        workdir.write_json("results.json", {"acc": np.float64(0.5), "labels": np.arange(2)})
        workdir.write_text("labels.csv", "index,label\n0,é\n")
        workdir.write_npz("tasks.npz", {"theta": jnp.ones((2, 3))})
        with pytest.raises(TypeError, match="object has no place"):
            workdir.write_json("results.json", {"bad": object()})
    assert json.loads((tmp_path / "results.json").read_text()) == {"acc": 0.5, "labels": [0, 1]}
    assert (tmp_path / "labels.csv").read_bytes() == "index,label\n0,é\n".encode()
    with np.load(tmp_path / "tasks.npz") as stored:
        np.testing.assert_array_equal(stored["theta"], np.ones((2, 3)))
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*.part"))


def test_plain():
    value = {
        1: (np.int64(2), np.bool_(True)),
        "f": np.float32(0.1),
        "d": [np.float64(0.1), float("inf")],
        "a": np.array([[1.5, np.nan]], np.float32),
        "s": jnp.float32(0.3),
        "n": None,
    }
    assert plain(value) == {
        "1": [2, True],
        "f": 0.1,
        "d": [0.1, None],
        "a": [[1.5, None]],
        "s": 0.3,
        "n": None,
    }
    assert np.float32(plain(np.float32(1 / 3))) == np.float32(1 / 3)
