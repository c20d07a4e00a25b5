"""The poster's tables: published columns, ours, and what is said where arrays are missing."""

import json
import pathlib

import poster
import pytest

from hume_jax.errors import UserError


def test_without_arrays_the_published_columns_stand_and_commands_are_given(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poster.main(["supervised", "large_scale", f"--out={tmp_path}", "--seeds", "0", "1"])
    printed = capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in printed.splitlines() if "|" in line}
    cells = [cell.strip() for cell in lines["HUME, transductive"].split("|")[2:-1]]
    assert cells[::2] == ["93.2 / 86.0", "89.2 / 79.2", "56.7 / 39.6"]
    assert set(cells[1::2]) == {"not run: arrays needed"}
    assert "41.1 / 29.5" in lines["Self-classifier"]
    assert (
        "    python -m hume_jax.main --config=configs/stl10.py:transductive "
        "'--config.seeds=(0,1,)' --noconfig.baselines "
    ) in printed
    assert "--methods scan twist self_classifier --starts=2" in printed
    assert "stl10 was not run: config field 'data.train.phi1' is not given" in printed
    notes = (tmp_path / "supervised_notes.md").read_text()
    assert notes in printed
    assert "Published: arXiv:2311.02940" in notes
    assert "Ours: seeds 0 1 of HUME" in notes
    for name in ("supervised", "large_scale"):
        for end in ("md", "csv", "json", "png"):
            assert (tmp_path / f"{name}.{end}").stat().st_size > 0


def test_variants_of_a_config_are_datasets_of_their_own(tmp_path: pathlib.Path) -> None:
    asked = ["configs/stl10.py", "configs/stl10.py:phi2=clip"]
    poster.main(["supervised", "--config", *asked, f"--out={tmp_path}"])
    cells = json.loads((tmp_path / "supervised.json").read_text())
    assert list(cells) == ["stl10", "stl10-phi2=clip"]
    assert len({command for cell in cells.values() for command in cell["commands"]}) == 6
    # The poster's figures are of one pair of representations.
    assert cells["stl10"]["published"]
    assert not cells["stl10-phi2=clip"]["published"]
    assert "Published" in (tmp_path / "supervised_notes.md").read_text()
    poster.main(["supervised", f"--config={asked[1]}", f"--out={tmp_path / 'other'}"])
    assert "Published" not in (tmp_path / "other" / "supervised_notes.md").read_text()
    for same in ("preset=paper", "phi2=dino"):
        assert poster.published(f"configs/stl10.py:{same}") == poster.published("configs/stl10.py")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--set", "foo.bar=1"), "no method is called 'foo'"),
        (("--seeds", "0", "1", "0"), "--seeds 0 1 0: one is given twice"),
    ],
)
def test_what_will_not_do_is_told_at_once(
    tmp_path: pathlib.Path, asked: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        poster.main(["baselines", f"--out={tmp_path}", *asked])


def test_a_wrong_config_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.py"):
        poster.main(["baselines", "--config=nothing.py", f"--out={tmp_path}"])


def test_arrays_that_will_not_do_are_no_missing_ones(
    arrays: list[str], tmp_path: pathlib.Path
) -> None:
    fields = [field.removeprefix("--config.") for field in arrays]
    without = [field for field in fields if "test.labels" not in field]
    asked = ["supervised", "--config=configs/arrays.py", f"--out={tmp_path}", "--field"]
    with pytest.raises(UserError, match="data.test.labels is needed for the scores"):
        poster.main([*asked, *without])
    # A file that is named and not there is one.
    poster.main([*asked, *without, f"data.test.labels={tmp_path / 'labels.npy'}"])
    assert "not run: arrays needed" in (tmp_path / "supervised.md").read_text()


@pytest.mark.slow
def test_on_arrays_that_are_there(
    arrays: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "poster"
    fields = [field.removeprefix("--config.") for field in arrays]
    small = ["n_tasks=2", "search.steps=6", "search.anneal_steps=(3,4)", "plots=False"]
    asked = [
        "supervised", "baselines", "--config=configs/arrays.py", f"--out={out}",
        "--set", "spice.passes=2", "--field", *fields, *small,
    ]  # fmt: skip
    poster.main(asked)
    first = capsys.readouterr().out
    assert "not run" not in first
    found = json.loads((out / "supervised.json").read_text())["arrays"]
    assert found["published"] == {}
    # Three well separated classes.
    assert min(found["ours"]["probe"]["acc"]) > 95
    for setting in ("inductive", "transductive"):
        folder = out / "arrays" / setting
        assert json.loads((folder / "config.json").read_text())["setting"] == setting
        results = json.loads((folder / "seed_0" / "results.json").read_text())
        acc = results["ensemble"]["test"]["acc"]
        assert found["ours"][setting]["acc"] == pytest.approx([100 * acc])
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    poster.main(asked)
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")} == times
