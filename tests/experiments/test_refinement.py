"""One more search from the vote of a run."""

import figures
import jax
import numpy as np
import pytest
import refinement
import votes

from hume_jax import config as config_lib
from hume_jax import pipeline, scoring
from hume_jax.core import aggregate, search, task_encoder
from hume_jax.errors import UserError
from hume_jax.report import results

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_compiled")]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two seeds and three tasks."""
    config = config_lib.load("configs/testing.py")
    config.n_tasks, config.seeds = 3, (0, 1)
    config.baselines = config.plots = False
    config.encoder.start = "clusters"  # In so few steps nothing else is found.
    config.ensemble.update({"select": "all", "vote": "soft"})
    folder = tmp_path_factory.mktemp("run") / "run"
    pipeline.run(config, folder)
    return folder


@pytest.fixture(scope="module")
def run(workdir):
    return votes.read_run(workdir / "seed_0")


def test_the_encoder_begins_at_the_labelling(run):
    """Without a step it finds the rows nearest to the mean of each class."""
    problem = figures.build(run.config)
    labels, _ = votes.vote(run, votes.Voters())
    theta = refinement.refine(problem, 0, labels, problem.settings, steps=0)
    assert theta.shape == (1, problem.data.phi1.shape[-1], 10)
    gram = theta[0].T @ theta[0]
    np.testing.assert_allclose(gram, np.eye(10), atol=1e-4)
    found, test = refinement.labelled(run, theta)
    assert test is not None
    assert len(test) == len(run.test[0])
    # Of rows as the search has them, in the order of the files.
    dealt = np.asarray(problem.data.phi1)
    rows = dealt.swapaxes(0, 1).reshape(-1, dealt.shape[-1])[: len(labels)]
    means = np.stack([rows[labels == k].mean(0) for k in range(10)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    noise = task_encoder.init(jax.random.key(0), rows.shape[1], 10)
    left, _, right = np.linalg.svd(means.T + 0.1 * noise, full_matrices=False)
    np.testing.assert_allclose(theta[0], left @ right, atol=1e-4)
    np.testing.assert_array_equal(found, (rows @ theta[0]).argmax(1))
    assert np.mean(found == labels) > 0.9


def test_the_end_of_a_search_is_at_its_last_rate_and_temperature(run):
    settings = figures.build(run.config).settings
    ends = search.schedules(refinement.end(settings))
    for schedule, ended in zip(search.schedules(settings), ends, strict=True):
        last = float(schedule(10**6))
        assert float(ended(0)) == pytest.approx(last)
        assert float(ended(10**6)) == pytest.approx(last)


def test_the_table(workdir, tmp_path, capsys, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring, "score_tasks", stopped)
        refinement.main([str(workdir), f"--out={tmp_path}"])
    # It goes on where it was stopped: nothing is searched again, with labels or without.
    monkeypatch.setattr(refinement, "refine", stopped)
    refinement.main([str(workdir), "--blind", f"--out={tmp_path}"])
    capsys.readouterr()
    refinement.main([str(workdir), f"--out={tmp_path}"])
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    vote, *again = lines[2:]
    assert vote[0] == "the vote of 3 tasks"
    assert vote[6] == "1.0000 ± 0.0000"
    assert [row[0] for row in again] == list(refinement.AGAIN)
    folders = figures.seed_folders(workdir)
    found = np.stack([results.read_labels(folder / "labels.csv", "train") for folder in folders])
    agreed = aggregate.agreement_matrix(found, 10)[0, 1]
    assert float(vote[1]) == pytest.approx(agreed, abs=1e-4)
    accuracy = [figures.read_json(f / "results.json")["ensemble"]["test"]["acc"] for f in folders]
    assert float(vote[5].split()[0]) == pytest.approx(np.mean(accuracy), abs=1e-4)
    assert (tmp_path / "table.png").stat().st_size > 1000
    # A search from the vote stays nearer to it than the vote of another seed is.
    assert all(float(row[6].split()[0]) > agreed for row in again)


@pytest.mark.slow
def test_labels_may_stay_unopened(workdir, tmp_path):
    refinement.main([str(workdir / "seed_0"), "--blind", f"--out={tmp_path}"])
    for line in (tmp_path / "table.csv").read_text().splitlines()[1:]:
        assert line.split(",")[4:6] == ["-", "-"]


def test_runs_that_are_not_finished(tmp_path):
    with pytest.raises(UserError, match=r"has no results\.json"):
        refinement.main([str(tmp_path), f"--out={tmp_path}"])
