"""SIGTERM outside of the search; tests/test_distributed.py and test_resume.py have it within."""

import os
import pathlib
import signal
import time

import pytest

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


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize("where", ["_report_dropped", "_save"])
def test_a_run_that_is_ended_in_its_last_block_or_after_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = config_lib.load("configs/testing.py")
    config.n_tasks, config.baselines, config.plots = 2, False, False
    config.search.steps = config.log_every = 4
    config.search.anneal_steps = ()
    function = getattr(search_loop._Runner, where)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(search_loop._Runner, where, interrupted)
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
    config = config_lib.load("configs/testing.py")
    config.n_tasks, config.baselines, config.plots = 2, False, False
    compile_block = feeds.FromMemory.compile

    def interrupted(*arguments):
        compile_block(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Preempted, match="the same command"):
        patched.setattr(feeds.FromMemory, "compile", interrupted)
        pipeline.run(config, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not list((tmp_path / "checkpoints").glob("*/*"))
    pipeline.run(config, tmp_path)
    assert (tmp_path / "results.json").exists()


@pytest.mark.usefixtures("quickly_compiled")
def test_a_run_that_is_ended_while_it_scores_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_lib.load("configs/testing.py")
    config.n_tasks, config.baselines, config.plots = 2, False, False
    score = scoring.score_tasks

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return score(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Preempted):
        patched.setattr(scoring, "score_tasks", interrupted)
        pipeline.run(config, tmp_path)
    assert not (tmp_path / "scores.npz").exists()
    searched = (tmp_path / "metrics.jsonl").read_text()
    pipeline.run(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == searched, "it was not searched again"
    assert (tmp_path / "results.json").exists()
