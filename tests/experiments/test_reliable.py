"""The table of the surest rows, of a finished run."""

import pathlib

import numpy as np
import pytest
import reliable

from hume_jax import config as config_lib
from hume_jax import pipeline
from hume_jax.errors import UserError
from hume_jax.report import results

# Slow for its run.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_compiled")]


def finished(folder: pathlib.Path, tasks: int) -> pathlib.Path:
    config = config_lib.load("configs/testing.py")
    config.n_tasks = tasks
    config.baselines = config.plots = False
    config.ensemble.select = "all"
    pipeline.run(config, folder)
    return folder


def test_the_table(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(tmp_path / "run", 4)
    reliable.main([str(run), f"--out={tmp_path / 'out'}"])
    text = (tmp_path / "out" / "table.md").read_text()
    assert text == capsys.readouterr().out.rstrip("\n") + "\n"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| 0")
    ]
    # All rows: their ACC is that of the run, and every class has as many as the smallest.
    labels = results.read_labels(run / "labels.csv", "train")
    truth = np.load(pathlib.Path(pipeline.__file__).parent / "data/quickstart/labels_train.npy")
    score = results.score_splits({"train": labels}, {"train": truth})["train"]["acc"]
    assert lines[0][:3] == ["0", "0", "1.000"]
    assert float(lines[0][4]) == pytest.approx(score, abs=1e-4)
    shares = [float(line[2]) for line in lines if line[1] == "0"]
    assert shares == sorted(shares, reverse=True)
    few = finished(tmp_path / "few", 2)
    with pytest.raises(UserError, match="it takes 4 to halve them"):
        reliable.of_run(str(few))
