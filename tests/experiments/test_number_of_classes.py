"""Draws of classes, and how often their number was found."""

import pathlib

import number_of_classes as script
import numpy as np
import pytest

from hume_jax.evaluation.n_classes import Recommendation

CASE = script.Case("imagenette", 3, 96, "2,3,4")


@pytest.fixture
def source(rng: np.random.Generator, tmp_path: pathlib.Path) -> pathlib.Path:
    """Rows of five well separated classes, in the files of Imagenette's train split."""
    folder = tmp_path / "data" / "imagenette"
    folder.mkdir(parents=True)
    labels = np.arange(200) % 5
    np.save(folder / "labels_train.npy", labels)
    for name in script.SPACES["imagenette"]:
        rows = 8 * rng.normal(size=(5, 130))[labels] + rng.normal(size=(200, 130))
        np.save(folder / f"{name}_train.npy", rows.astype(np.float16))
    return folder.parent


def test_a_draw_is_two_arrays_of_some_classes(source: pathlib.Path) -> None:
    spaces = script.spaces_of(CASE, 0, source)
    assert [space.shape for space in spaces] == [(96, 128), (96, 128)]
    again, other = script.spaces_of(CASE, 0, source), script.spaces_of(CASE, 1, source)
    np.testing.assert_array_equal(spaces[0], again[0])
    assert not np.array_equal(spaces[0], other[0])


def test_a_gaussian_has_the_covariance_and_no_classes(source: pathlib.Path) -> None:
    cloud = np.hstack(script.spaces_of(CASE._replace(classes=0, rows=200), 0, source))
    rows = np.hstack(script.spaces_of(CASE._replace(classes=5, rows=200), 0, source))
    largest = [np.linalg.eigvalsh(np.cov(x.astype(np.float64).T))[-1] for x in (cloud, rows)]
    assert largest[0] == pytest.approx(largest[1], rel=0.3)


def test_hits_are_counted_and_results_kept(
    source: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = iter((3, None, 4))

    def recommend(*arguments: object, **more: object) -> Recommendation:
        value = next(answers)
        return Recommendation(value, (3, 4), {3: 1.0}, 1.0, value or 3, 0.9, 0.1, "")

    monkeypatch.setattr(script, "CASES", {"imagenette3": CASE})
    monkeypatch.setattr(script.choose_k, "recommend", recommend)
    flags = [f"--source={source}", f"--out={tmp_path / 'out'}", "--draws", "0", "1", "2"]
    flags += ["--cases", "imagenette3"]
    # The second time everything is there.
    for _ in range(2):
        script.main(flags)
    script.main([*flags, "--baselines"])
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]
    row = ["imagenette3", "3", "2,3,4", "choose_k", "3", "1", "2", "1", "3, none, 4", "2 of 2"]
    assert lines.count(row) == 3
    found = [line for line in lines if line[3:4] == ["k-means, agreement of halves"]]
    # Classes so far apart are found by k-means too.
    assert found[0][5] == "3"
    # A method that names no number is counted as well.
    assert {line[4] for line in lines if line[0:1] == ["imagenette3"]} == {"3"}
    assert (tmp_path / "out" / "summary.csv").is_file()
