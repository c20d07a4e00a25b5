"""Votes of the tasks of finished runs: who votes, and how; the run's own is among them."""

import json
import re
import shutil

import numpy as np
import pytest
import scored
import votes
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import pipeline, planning, scoring
from hume_jax.core import aggregate
from hume_jax.errors import UserError
from hume_jax.report import results

# Slow for its two runs.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_compiled")]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two seeds and five tasks."""
    return finished(tmp_path_factory.mktemp("run") / "run")


def finished(folder, **ensemble):
    config = config_lib.load("configs/testing.py")
    config.n_tasks, config.seeds = 5, (0, 1)
    config.baselines = config.plots = False
    config.ensemble.update({"select": "all", "vote": "soft", **ensemble})
    pipeline.run(config, folder)
    return folder


@pytest.fixture(scope="module")
def runs(workdir):
    return [votes.read_run(folder) for folder in votes.figures.seed_folders(workdir)]


def test_the_vote_of_a_run_is_among_them(workdir, runs):
    for seed, run in enumerate(runs):
        found = votes.vote(run, votes.Voters())
        for split, labels in zip(("train", "test"), found, strict=True):
            kept = results.read_labels(workdir / f"seed_{seed}" / "labels.csv", split)
            np.testing.assert_array_equal(labels, kept)


def test_a_vote_of_the_majority_is_that_of_a_run_with_it(tmp_path, runs):
    finished(tmp_path / "hard", vote="hard")
    train, test = votes.vote(runs[1], votes.Voters(vote="hard"))
    for split, labels in (("train", train), ("test", test)):
        kept = results.read_labels(tmp_path / "hard" / "seed_1" / "labels.csv", split)
        np.testing.assert_array_equal(labels, kept)


def test_the_first_task_alone_is_that_task(runs):
    labels, _ = votes.vote(runs[0], votes.Voters(first=1, vote="hard"))
    matrix = aggregate.agreement_matrix(np.stack([labels, runs[0].train[0]]), 10)
    assert matrix[0, 1] == 1


def test_who_votes(runs):
    run = runs[0]
    best = np.argsort(run.scores["objective"])
    assert not run.scores["collapsed"].any()
    assert votes.chosen(run, votes.Voters(select="objective", share=0.0)).tolist() == [best[0]]
    half = votes.chosen(run, votes.Voters(select="objective", share=0.4))
    assert half.tolist() == sorted(best[:2])
    # Five tasks are quarters of two, two and one.
    counted = votes.chosen(run, votes.Voters(counted=True))
    often = np.bincount(counted, minlength=5)
    assert often[best].tolist() == [4, 4, 3, 3, 2]


def test_the_table(workdir, tmp_path, capsys):
    votes.main([str(workdir), f"--out={tmp_path}"])
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    lines = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    # Of five tasks there are no first 16.
    assert [row[0] for row in lines[2:7]] == ["first 1", "first 4", *["all 5"] * 3]
    assert [row[1] for row in lines[4:8]] == [
        "soft", "soft, even classes", "soft, classes as they come", "hard",
    ]  # fmt: skip
    everyone = lines[4]
    agreed = float(everyone[2])
    folders = [workdir / f"seed_{seed}" for seed in (0, 1)]
    found = np.stack([results.read_labels(folder / "labels.csv", "train") for folder in folders])
    assert agreed == pytest.approx(aggregate.agreement_matrix(found, 10)[0, 1], abs=1e-4)
    accuracy = np.mean(
        [votes.figures.read_json(f / "results.json")["ensemble"]["test"]["acc"] for f in folders]
    )
    assert float(everyone[5].split()[0]) == pytest.approx(accuracy, abs=1e-4)
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_scores_are_made_and_kept_by_parts(runs, tmp_path, monkeypatch):
    config, train, labels = runs[0].config, runs[0].dataset.train, runs[0].train
    log_prior = np.log(planning.class_prior(config)).astype(np.float32)
    together = scoring.score_tasks(config, (train,), labels, log_prior)
    monkeypatch.setattr(scored, "_AT_A_TIME", 2)
    found = scored.scores(tmp_path, config, train, labels)
    for name, values in together.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "scores").glob("*.npz"))) == 3
    # With another setting of the scores nothing of it is taken.
    other = config_dict.ConfigDict(config)
    other.score.penalty *= 100
    changed = scored.scores(tmp_path, other, train, labels)
    assert not np.allclose(changed["heldout_ce"], found["heldout_ce"], rtol=1e-3)


def test_labels_may_stay_unopened(workdir, tmp_path):
    votes.main([str(workdir / "seed_0"), "--blind", f"--out={tmp_path}"])
    lines = (tmp_path / "table.csv").read_text().splitlines()[1:]
    # Of one run there is no agreement either.
    assert all(re.fullmatch(r".+,-,\d\.\d{4},-,-", line) for line in lines)


def test_runs_that_will_not_do(workdir, tmp_path):
    with pytest.raises(UserError, match=r"has no results\.json"):
        votes.main([str(tmp_path), f"--out={tmp_path}"])

    def changed(name, section, field, value):
        """The second seed, as if it had been made by another setting."""
        shutil.copytree(workdir / "seed_1", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config[section][field] = value
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    # A run of another temperature is no further seed.
    other = changed("other", "encoder", "temperature", 0.9)
    with pytest.raises(UserError, match=r"other and .*seed_0 differ in encoder.temperature"):
        votes.main([str(workdir / "seed_0"), str(other), f"--out={tmp_path}"])
    half = changed("half", "ensemble", "select", "agreement")
    with pytest.raises(UserError, match=r"ensemble\.select=agreement"):
        votes.main([str(half), f"--out={tmp_path}"])
