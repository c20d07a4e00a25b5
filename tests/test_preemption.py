"""SIGTERM outside of the search; tests/test_distributed.py and test_resume.py have it within."""

import os
import pathlib
import signal
import time
from typing import Any

import pytest
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import feeds, pipeline, scoring, search_loop
from hume_jax.errors import Preempted
from hume_jax.preemption import Watch, ending
from hume_jax.processes import ALONE


def test_work_is_ended_at_once_and_what_listened_before_listens_again():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="what was finished is kept"), ending():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) == before
    with ending():
        pass
    assert signal.getsignal(signal.SIGTERM) == before


class Last:
    """Told to end where an exception goes no further: while it is taken away."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("then", ["works on", "is done", "searches"])
def test_an_end_that_nobody_heard_of_is_told_again(monkeypatch, then):
    monkeypatch.setattr("hume_jax.preemption._AGAIN", 1)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Preempted), ending():
        last = Last()
        del last
        if then == "works on":
            time.sleep(10)
            pytest.fail("it was not told again")
        if then == "searches":
            with Watch(ALONE) as watch:
                time.sleep(1.5)
                assert watch.asked()
                raise Preempted("with its state saved")
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.alarm(0) == 0


def test_what_a_watch_was_not_asked_about_is_passed_on():
    with pytest.raises(Preempted), ending(), Watch(ALONE):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyError), ending(), Watch(ALONE) as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.asked()
        raise KeyError


def two_tasks() -> config_dict.ConfigDict:
    config = config_lib.load("configs/testing.py")
    config.n_tasks, config.baselines, config.plots = 2, False, False
    return config


def told_in(patched: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Has SIGTERM come where a function of a module or class is called."""
    function = getattr(owner, name)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    patched.setattr(owner, name, interrupted)


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("where", ["_report_dropped", "_save"])
def test_a_run_that_is_ended_in_its_last_block_or_after_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = two_tasks()
    config.search.steps = config.log_every = 4
    config.search.anneal_steps = ()
    with monkeypatch.context() as patched:
        told_in(patched, search_loop._Runner, where)
        with pytest.raises(Preempted, match=r"stopped by SIGTERM after .*step"):
            pipeline.run(config, tmp_path)
    assert not (tmp_path / "scores.npz").exists()
    searched = (tmp_path / "metrics.jsonl").read_text()
    pipeline.run(config, tmp_path)
    assert (tmp_path / "results.json").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == searched, "it was not searched again"


@pytest.mark.usefixtures("quickly_compiled")
def test_a_run_that_is_ended_while_it_is_compiled_takes_no_step(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = two_tasks()
    with monkeypatch.context() as patched, pytest.raises(Preempted, match="the same command"):
        told_in(patched, feeds.FromMemory, "compile")
        pipeline.run(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not list((tmp_path / "checkpoints").glob("*/*"))
    pipeline.run(config, tmp_path)
    assert (tmp_path / "results.json").exists()


@pytest.mark.usefixtures("quickly_compiled")
def test_a_run_that_is_ended_while_it_scores_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = two_tasks()
    with monkeypatch.context() as patched, pytest.raises(Preempted):
        told_in(patched, scoring, "score_tasks")
        pipeline.run(config, tmp_path)
    assert not (tmp_path / "scores.npz").exists()
    searched = (tmp_path / "metrics.jsonl").read_text()
    pipeline.run(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == searched, "it was not searched again"
    assert (tmp_path / "results.json").exists()
