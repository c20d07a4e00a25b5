"""Values of a baseline's settings, judged by its own loss."""

import csv
import json
import pathlib
import re

import baseline_settings
import figures
import numpy as np
import pytest

from hume_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def run(out: pathlib.Path, arrays: list[str], *grid: str) -> None:
    options = ["--config=configs/arrays.py", f"--out={out}", "--starts=2", "--grid", *grid]
    baseline_settings.main([*options, "--", *arrays])


def test_values_are_judged_by_the_own_score(
    arrays: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, grid = tmp_path / "out", ("kmeans.steps=1,50", "spherical_kmeans.starts=1")
    run(out, arrays, *grid)
    with (out / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["field"], row["value"]) for row in rows] == [
        ("k-means", "steps", "1"),
        ("k-means", "steps", "50"),
        ("spherical k-means", "starts", "1"),
    ]
    # The loss of k-means falls with every step.
    assert [row["own score"].startswith("**") for row in rows] == [False, True, True]
    short, long = (float(re.findall(r"[\d.]+", row["own score"])[0]) for row in rows[:2])
    assert long < short
    printed = capsys.readouterr().out
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"kmeans.steps.png", "spherical_kmeans.starts.png"}
    # What is stored is not made again.
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    assert len(times) == 3
    run(out, arrays, *grid)
    assert capsys.readouterr().out == printed
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.npz")} == times
    with pytest.raises(UserError, match="was made with other settings"):
        run(out, [*arrays, "--config.seed=1"], *grid)


def test_what_the_other_settings_are_at(arrays: list[str], tmp_path: pathlib.Path) -> None:
    given = ["--config=configs/arrays.py", f"--out={tmp_path}", "--starts=2"]
    grid = ["--set", "kmeans.starts=3", "scan.passes=2", "--grid", "kmeans.steps=1"]
    baseline_settings.main([*given, *grid, "--", *arrays])
    with np.load(tmp_path / "kmeans-phi1-steps=1.npz") as stored:
        settings = json.loads(str(stored["settings"]))["settings"]
    assert (settings["starts"], settings["steps"]) == (3, 1)
    with pytest.raises(UserError, match="scan has no number called 'pases'"):
        baseline_settings.main([*given, *grid, "--set", "scan.pases=2", "--", *arrays])


def test_other_spaces_are_other_results(arrays: list[str], tmp_path: pathlib.Path) -> None:
    tables = []
    for spaces in ("phi1", "joined"):
        run(tmp_path, arrays, "kmeans.steps=2", f"--spaces={spaces}")
        tables.append((tmp_path / "table.md").read_text())
    assert tables[0] != tables[1]


def test_no_labels_are_needed(arrays: list[str], tmp_path: pathlib.Path) -> None:
    run(tmp_path, [field for field in arrays if ".labels=" not in field], "kmeans.steps=2")
    assert "k-means" in (tmp_path / "table.md").read_text()


def value(score: float, agreement: float) -> baseline_settings.Value:
    cells = ["-"] * len(baseline_settings.HEAD)
    return baseline_settings.Value(np.full(2, score), np.full(2, agreement), cells)


@pytest.mark.parametrize(
    ("values", "decided"),
    [
        # Scores, agreements; which value is in bold, and in which column.
        ([(2.0, 0.9), (1.0, 0.8), (3.0, 0.7)], (1, "own score")),
        ([(1.0, 0.8), (1.0, 0.9), (1.0, 0.7)], (1, "agreement of the starts")),
        ([(1.0, float("nan"))], (0, "own score")),
        # The starts of the first diverged.
        ([(float("nan"), 0.9), (2.0, 0.8), (1.0, 0.7)], (2, "own score")),
    ],
)
def test_starts_that_agree_decide_where_the_score_does_not(
    values: list[tuple[float, float]], decided: tuple[int, str]
) -> None:
    found = [value(*each) for each in values]
    column = baseline_settings.choose(found)
    bold = [
        (i, baseline_settings.HEAD[place])
        for i, each in enumerate(found)
        for place, cell in enumerate(each.cells)
        if cell.startswith("**")
    ]
    assert bold == [decided]
    assert column == decided[1]


def test_the_picture_is_of_what_decided(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(figures, "draw_methods", lambda *given: drawn.append(given))
    values = [("0", value(1.0, 0.8)), ("20", value(1.0, 0.9))]
    for column in ("own score", "agreement of the starts"):
        baseline_settings.draw(tmp_path / "a.png", "spice", "passes", values, column)
    (_, own, lower), (_, agreements, higher) = drawn
    assert own == [("passes = 0", [1.0, 1.0], 1.0), ("passes = 20", [1.0, 1.0], 1.0)]
    assert agreements == [("passes = 0", [0.8, 0.8], 0.8), ("passes = 20", [0.9, 0.9], 0.9)]
    assert lower == "own score of SPICE (lower is better)"
    assert higher == "agreement of the starts of SPICE (higher is better)"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("kmeans=3", "not of the form METHOD.FIELD=VALUE"),
        ("probe.steps=3", "there are the methods kmeans, spherical_kmeans"),
        ("kmeans.speed=3", "kmeans has no number called 'speed'"),
    ],
)
def test_a_grid_that_will_not_do(
    arrays: list[str], tmp_path: pathlib.Path, grid: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", arrays, grid)
