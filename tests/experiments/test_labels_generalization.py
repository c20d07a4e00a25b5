"""Scores of found and of given labels, on the same folds."""

import json
import pathlib

import kept
import labels_generalization
import numpy as np
import pytest

from hume_jax import scoring
from hume_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def given(arrays: list[str]) -> np.ndarray:
    path = next(field for field in arrays if "test.labels" in field).partition("=")[2]
    return np.unique(np.load(path), return_inverse=True)[1]


def command(folder: pathlib.Path, arrays: list[str]) -> list[str]:
    asked = ["--config=configs/arrays.py", f"--keep={folder / 'kept'}", f"--out={folder / 'out'}"]
    return [*asked, "--", *arrays]


def test_found_labels_beside_the_given_ones(
    arrays: list[str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = given(arrays)
    # The given classes by other numbers, and labels without sense.
    noise = np.random.default_rng(0).permutation(true)
    votes = kept.Row(kept.HUME, "a and b", "votes of 4 tasks", ("seed 0", "seed 1"),
                     np.stack([(true + 1) % 3, noise]), (1.0, 1.0))  # fmt: skip
    kept.write(tmp_path / "kept", votes)
    single = votes._replace(method="SCAN", what="2 single starts")
    kept.write(tmp_path / "kept", single)
    probe = votes._replace(method="supervised linear probe", what="2 single starts")
    kept.write(tmp_path / "kept", probe)
    labels_generalization.main(command(tmp_path, arrays))
    found = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["method"] for row in found] == ["HUME", "supervised linear probe", "given labels"]
    hume, last = found[0], found[-1]
    assert hume["acc"][0] == last["acc"][0] == 1
    for score in ("objective", "heldout_ce", "cv_accuracy", "entropy"):
        # Scores do not depend on the numbers of the classes.
        assert hume[score][0] == pytest.approx(last[score][0], rel=1e-3)
    assert hume["cv_accuracy"][1] < 0.6 < 0.9 < last["cv_accuracy"][0]
    assert hume["objective"][1] > last["objective"][0]
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() == capsys.readouterr().out.strip()
    assert table.splitlines()[-1].startswith("| given labels")
    assert (tmp_path / "out" / "table.png").read_bytes().startswith(b"\x89PNG")
    # What was scored is read again.
    monkeypatch.setattr(scoring, "score_tasks", None)
    labels_generalization.main(command(tmp_path, arrays))
    assert table.strip() == capsys.readouterr().out.strip()
    # Other labels are scored.
    monkeypatch.undo()
    kept.write(tmp_path / "kept", probe._replace(labels=1 - probe.labels % 2))
    labels_generalization.main(command(tmp_path, arrays))
    assert table.strip() != capsys.readouterr().out.strip()


def test_classes_in_pieces_and_of_two() -> None:
    given = np.repeat([0, 1, 2], 4)
    assert labels_generalization.missed_classes(np.repeat([2, 0, 1], 4), given) == (0, 0)
    # Of the first class no found one holds half; one holds half of both others.
    found = np.array([0, 1, 2, 3, 4, 4, 4, 0, 4, 4, 1, 2])
    assert labels_generalization.missed_classes(found, given) == (1, 1)


def test_what_will_not_do_is_told(arrays: list[str], tmp_path: pathlib.Path) -> None:
    row = kept.Row("SCAN", "a", "2 single starts", ("a", "b"), np.zeros((2, 60), int), (1.0,))
    kept.write(tmp_path / "kept", row)
    with pytest.raises(UserError, match="holds no votes: comparison.py --keep writes them"):
        labels_generalization.main(command(tmp_path, arrays))
    kept.write(tmp_path / "kept", row._replace(what="vote", labels=np.zeros((1, 7), int)))
    with pytest.raises(UserError, match="SCAN labelled 7 test rows, the config has 60"):
        labels_generalization.main(command(tmp_path, arrays))
    kept.write(tmp_path / "kept", row._replace(what="vote", labels=np.full((1, 60), 5)))
    with pytest.raises(UserError, match="SCAN found 6 classes or more, the config has 3"):
        labels_generalization.main(command(tmp_path, arrays))
