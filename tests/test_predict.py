"""Rows that come later, labelled by the folder of a run."""

import csv
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_encoder
from PIL import Image

from hume_jax import config as config_lib
from hume_jax import encoding, labelling, pipeline, prediction
from hume_jax.errors import UserError
from hume_jax.representations.encoders import presets

pytestmark = pytest.mark.usefixtures("quickly_compiled")

K, ROWS = 3, 120
SMALL = {
    "n_classes": K,
    "n_tasks": 2,
    "search.steps": 4,
    "search.anneal_steps": (2,),
    "search.subset_size": 100,
    "score.folds": 3,
    "plots": False,
    "baselines": False,
}


def configured(**fields: Any) -> Any:
    config = config_lib.load("configs/arrays.py")
    config.update_from_flattened_dict(SMALL | fields)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two arrays, and a run that found their classes."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    true = rng.integers(0, K, ROWS)
    fields = {}
    for name, d in (("phi1", 6), ("phi2", 5)):
        rows = rng.normal(size=(K, d))[true] * 3 + rng.normal(size=(ROWS, d))
        np.save(folder / f"{name}.npy", rows.astype(np.float32))
        fields[f"data.train.{name}"] = str(folder / f"{name}.npy")
    pipeline.run(configured(**fields), folder / "run")
    return folder


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predict(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hume_jax.predict", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_labels_of_the_runs_own_rows_are_those_that_it_wrote(folder: pathlib.Path) -> None:
    """As a user types it."""
    given = ("--run=run", "--phi1=phi1.npy", "--phi2=phi2.npy", "--out=new/labels.csv")
    done = predict(folder, *given)
    assert (done.returncode, done.stdout) == (0, "new/labels.csv\n"), done.stderr
    ours, theirs = rows_of(folder / "new/labels.csv"), rows_of(folder / "run/labels.csv")
    assert list(ours[0]) == ["index", "label", "agreement", "margin"]
    assert ours == [{name: row[name] for name in ours[0]} for row in theirs]


def test_parquet_holds_the_same(folder: pathlib.Path) -> None:
    import pyarrow.parquet as pq

    run = prediction.open_run(str(folder / "run"))
    rows = prediction.open_rows(run, [str(folder / f"{name}.npy") for name in ("phi1", "phi2")])
    prediction.write(folder / "labels.parquet", prediction.label(run, rows))
    table = pq.read_table(folder / "labels.parquet").to_pydict()
    theirs = rows_of(folder / "run/labels.csv")
    assert table["index"] == list(range(ROWS))
    assert table["label"] == [int(row["label"]) for row in theirs]
    np.testing.assert_allclose(table["margin"], [float(row["margin"]) for row in theirs], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no run: give --run=WORKDIR"),
        (("--run=nowhere",), "--run=nowhere is not the folder of a run"),
        (("--run=run",), "--phi1 is not given: the run reads phi1 and phi2"),
        (("--run=run", "--images=p", "--phi1=phi1.npy"), "both given: keep one"),
        (("--run=run", "--out=labels.txt"), "neither FILE.csv nor FILE.parquet"),
        (("--run=run", "--config=configs/arrays.py"), "unknown command line flag 'config'"),
        (("--run=run", "--ph1=a.npy"), "unknown command line flag 'ph1'"),
        (("--run=run", "phi1.npy"), "unexpected argument 'phi1.npy'"),
        (("--run=run", "--images=photos"), "did not encode all of phi1 itself"),
        (("--run=run", "--phi1=phi2.npy", "--phi2=phi1.npy"), "phi2.npy has 5 columns"),
        (("--run=run", "--phi1=gone.npy", "--phi2=phi2.npy"), "gone.npy"),
        (("--run=part", "--phi1=phi1.npy"), "is not finished, it has no results.json"),
        (("--run=seeds",), "has several seeds, each with labels of its own: --run=seeds/seed_4"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: tuple[str, ...],
    says: str,
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[..., str],
) -> None:
    from hume_jax import predict as command

    monkeypatch.chdir(folder)
    for name, seeds in (("part", []), ("seeds", [4, 5])):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps({"seeds": seeds}))
    (folder / "part" / "model.npz").touch()
    assert says in mistake(command, *arguments)


@pytest.fixture(scope="module")
def photographs(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, pytest.MonkeyPatch]:
    """A run that encoded its images itself."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(40):
        level = (40, 120, 200)[i % K]
        path = folder / "photos" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.clip(rng.normal(level, 20, (40, 44, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    tiny_encoder.write_weights(folder / "tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", tiny_encoder.preset)
        patch.chdir(folder)
        config = config_lib.load("configs/images.py")
        config.update_from_flattened_dict(
            SMALL
            | {
                "images.train": "photos",
                "encode.phi1": "tiny:weights=tiny.safetensors",
                "encode.phi2": "tiny:weights=tiny.safetensors,size=42",
                "encode.dtype": "float32",
            }
        )
        encoded = encoding.ensure(config_lib.resolve(config))
        pipeline.run(encoded, folder / "run")
        yield folder


@pytest.mark.slow
def test_images_pass_through_the_encoders_of_the_run(
    photographs: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same pictures in another folder get the same labels."""
    (photographs / "new").mkdir()
    for path in sorted((photographs / "photos").iterdir())[:10]:
        (photographs / "new" / path.name).write_bytes(path.read_bytes())
    (photographs / "new" / "05.png").write_bytes(b"torn")
    config = json.loads((photographs / "run" / "config.json").read_text())
    config["images"]["broken"] = "skip"
    run = prediction.open_run(str(photographs / "run"))._replace(config=config)
    labels = prediction.label(run, prediction.open_rows(run, (), "new"))
    assert labels.names == [f"{i:02d}.png" for i in range(10)]
    theirs = [int(row["label"]) for row in rows_of(photographs / "run" / "labels.csv")[:10]]
    theirs[5] = -1
    assert labels.vote.labels.tolist() == theirs
    assert labels.vote.agreement[5] == labels.vote.margin[5] == 0
    prediction.write(photographs / "new.csv", labels)
    assert rows_of(photographs / "new.csv")[5] == {
        "index": "5",
        "label": "-1",
        "agreement": "0.000000",
        "margin": "0.000000",
        "image": "05.png",
    }


@pytest.mark.slow
def test_other_weights_under_the_same_name_are_refused(photographs: pathlib.Path) -> None:
    run = prediction.open_run(str(photographs / "run"))
    tiny_encoder.write_weights(photographs / "tiny.safetensors", seed=1)
    (photographs / "others").mkdir()
    Image.new("RGB", (40, 40)).save(photographs / "others" / "a.png")
    try:
        with pytest.raises(UserError, match="SHA-256"):
            prediction.open_rows(run, (), "others")
    finally:
        tiny_encoder.write_weights(photographs / "tiny.safetensors")


@pytest.mark.slow
def test_a_space_that_the_run_does_not_read_is_not_asked_for(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    fields = {f"data.train.{name}": str(folder / f"{name}.npy") for name in ("phi1", "phi2")}
    pipeline.run(configured(**fields, **{"search.spaces": "given"}), tmp_path / "run")
    run = prediction.open_run(str(tmp_path / "run"))
    assert run.spaces == ("phi1",)
    rows = prediction.open_rows(run, [str(folder / "phi1.npy")])
    expected = [int(row["label"]) for row in rows_of(tmp_path / "run" / "labels.csv")]
    assert prediction.label(run, rows).vote.labels.tolist() == expected


def test_nan_is_told_by_its_row(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    broken = np.load(folder / "phi1.npy")
    broken[7, 1] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    run = prediction.open_run(str(folder / "run"))
    with pytest.raises(UserError, match=r"broken.npy: 1 of 720 values .* row 7"):
        prediction.open_rows(run, [str(tmp_path / "broken.npy"), str(folder / "phi2.npy")])


def test_model_files_are_read_without_pickle(folder: pathlib.Path) -> None:
    model = labelling.read(folder / "run" / "model.npz")
    assert model.theta.shape == (2, 11, K)
