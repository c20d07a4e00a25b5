"""The page as a run writes it: beside its results, with its texts, and never in their way."""

import csv
import json
import pathlib

import made_run
import numpy as np
import pytest
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import pipeline
from hume_jax.errors import UserError
from hume_jax.report.page import folder, html
from hume_jax.representations import store

pytestmark = pytest.mark.usefixtures("quickly_compiled")
QUICKSTART = pathlib.Path(pipeline.__file__).parent / "data" / "quickstart"
# The shapes of tests/test_pipeline.py, whose compiled programs this shares.
K, COLUMNS, TASKS = 4, 16, 3
ROWS = {"train": 401, "test": 100}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> config_dict.ConfigDict:
    """`configs/testing.py` on a few rows, with a text for each."""
    base = tmp_path_factory.mktemp("arrays")
    config = config_lib.load("configs/testing.py")
    for split, n in ROWS.items():
        kept = np.flatnonzero(np.load(QUICKSTART / f"labels_{split}.npy") < K)[:n]
        for field in ("phi1", "phi2", "labels"):
            array = np.load(QUICKSTART / f"{field}_{split}.npy")[kept]
            np.save(base / f"{field}_{split}.npy", array[:, :COLUMNS] if array.ndim == 2 else array)
            config.data[split][field] = str(base / f"{field}_{split}.npy")
        texts = [made_run.HOSTILE, *(f"{split} text {i}" for i in range(1, n))]
        (base / f"{split}.json").write_text(json.dumps(texts))
        config.data[split].samples = str(base / f"{split}.json")
    config.update({"report": True, "plots": False, "baselines": False})
    sizes = {"search.subset_size": 1000, "score.rows": 300, "ensemble.fraction": 1.0}
    config.update_from_flattened_dict({"n_classes": K, "n_tasks": TASKS, **sizes})
    return config


def test_run_writes_its_page_and_texts(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned = pipeline.run(config, tmp_path / "run")
    page = (tmp_path / "run" / folder.PAGE).read_text()
    assert "train text" in page
    assert made_run.HOSTILE not in page
    with (tmp_path / "run" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["sample"] == made_run.HOSTILE
    assert rows[ROWS["train"] + 7]["sample"] == "test text 7"
    # What the folder keeps is what the run saw.
    run = folder.open_run(str(tmp_path / "run")).run
    counts = run.arrays["counts"]
    for i, split in enumerate(("train", "test")):
        own = [int(row["label"]) for row in rows if row["split"] == split]
        np.testing.assert_array_equal(counts[i], np.bincount(own, minlength=K))
    assert run.results == json.loads(json.dumps(returned))

    # A page that cannot be drawn costs no results.
    def fail(*_: object) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr(html, "page", fail)
    for name in ("results.json", folder.PAGE):
        (tmp_path / "run" / name).unlink()
    again = pipeline.run(config, tmp_path / "run")
    assert again["ensemble"] == returned["ensemble"]
    assert (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / folder.PAGE).exists()


def test_samples_that_do_not_fit_are_told_by_the_headers(
    config: config_dict.ConfigDict, tmp_path: pathlib.Path
) -> None:
    wrong = config_dict.ConfigDict(config)
    (tmp_path / "few.txt").write_text("a\nb\n")
    wrong.data.test.samples = str(tmp_path / "few.txt")
    with pytest.raises(UserError, match=r"data.test.samples=.* has 2 samples, .* have 100 rows"):
        store.check_headers(wrong.data, 10, "inductive")
    wrong.data.test.update({"phi1": "", "phi2": "", "labels": ""})
    with pytest.raises(UserError, match=r"data.test.phi1' is not given"):
        store.check_headers(wrong.data, K, "inductive")
