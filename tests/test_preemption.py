"""SIGTERM outside of the search; tests/test_distributed.py and test_resume.py have it within."""

import os
import pathlib
import signal
import time

import pytest

from hume_jax import config as config_lib
from hume_jax import pipeline, scoring
from hume_jax.errors import Preempted
from hume_jax.preemption import ending


def test_work_is_ended_at_once_and_what_listened_before_listens_again():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="what was finished is kept"), ending():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) == before
    with ending():
        pass
    assert signal.getsignal(signal.SIGTERM) == before


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
