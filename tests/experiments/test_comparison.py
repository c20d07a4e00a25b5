"""HUME beside the baselines: what is read of finished work, and the intervals."""

import contextlib
import json
import pathlib
import re
import shutil
from typing import Any

import baselines
import comparison
import figures
import kept
import numpy as np
import pairs
import pytest

from hume_jax import planning
from hume_jax.baselines.methods import METHODS
from hume_jax.errors import UserError

K, N = 3, 60


def test_the_interval_covers_the_difference_of_means() -> None:
    """Against the normal approximation for one labelling each, where there is one."""
    rng = np.random.default_rng(0)
    n = 4000
    ours, theirs = rng.random((1, n)) < 0.9, rng.random((1, n)) < 0.8
    mean, low, high = comparison.difference(ours, theirs, seed=0)
    assert mean == pytest.approx(ours.mean() - theirs.mean())
    apart = ours[0].astype(float) - theirs[0]
    half = 1.96 * apart.std() / n**0.5
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_rows_are_paired_and_seeds_are_drawn() -> None:
    right = np.random.default_rng(0).random((1, 500)) < 0.7
    # The same labelling: no difference on any draw of rows.
    assert comparison.difference(right, right, seed=0) == (0, 0, 0)
    # Seeds that differ are a spread of their own, even where every row is drawn alike.
    seeds = np.stack([np.zeros(500, bool), np.ones(500, bool)])
    mean, low, high = comparison.difference(seeds, np.ones((1, 500), bool), seed=0)
    assert (mean, low, high) == pytest.approx((-0.5, -1, 0))


def test_classes_without_a_partner_are_wrong() -> None:
    labels = np.array([[5, 5, 2, 2, 9, 9], [0, 0, 0, 0, 0, 0]])
    row = kept.Row("m", "s", "w", ("a", "b"), labels, (0.0,))
    true = np.array([0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(
        comparison.correct(row, true), [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1]]
    )


def test_rows_of_other_datasets() -> None:
    row = kept.Row("m", "s", "w", ("a",), np.array([[5, 2, 9]]), (0.0,))
    kept.check_rows([row], 3, 10)
    with pytest.raises(UserError, match="m labelled 3 test rows, the config has 5"):
        kept.check_rows([row], 5, 10)
    with pytest.raises(UserError, match="m found 10 classes or more, the config has 9"):
        kept.check_rows([row], 3, 9)


@pytest.fixture
def finished(arrays: list[str], tmp_path: pathlib.Path) -> pathlib.Path:
    """Folders as `main` and `baselines.py` leave them, with labels that are partly wrong."""
    path = next(f for f in arrays if "test.labels" in f).partition("=")[2]
    true = np.unique(np.load(path), return_inverse=True)[1]
    run = tmp_path / "run"
    for seed in (0, 1):
        folder = run / f"seed_{seed}"
        folder.mkdir(parents=True)
        found = (true + seed) % K
        found[: 3 * seed] = (found[: 3 * seed] + 1) % K
        lines = ["index,split,label", "0,train,0"]
        lines += [f"{i},test,{label}" for i, label in enumerate(found)]
        (folder / "labels.csv").write_text("\n".join(lines))
        summary = {
            "tasks": [{}] * 4,
            "seconds": {"compile": 0.5, "search": 1.0 + seed, "score": 0.5},
        }
        (folder / "results.json").write_text(json.dumps(summary))
    data = {"train": {"phi1": "x/a_train.npy", "phi2": ["b_train.npy", "c.npy"]}}
    config = {"data": data, "search": {"spaces": "given"}, "seeds": [0, 1], "seed": 0}
    (run / "config.json").write_text(json.dumps(config))
    # Of all seeds together, which is no result of one.
    (run / "results.json").write_text(json.dumps({"seeds": [0, 1]}))
    other = tmp_path / "baselines"
    other.mkdir()
    rng = np.random.default_rng(0)
    for name, wrong in (("probe-phi1", 0), ("kmeans-phi1", 20), ("turtle-both", 10)):
        test = np.tile(true, (3, 1))
        for task in test:
            rows = rng.choice(len(true), wrong, replace=False)
            task[rows] = (task[rows] + 1) % K
        np.savez(
            other / f"{name}.npz",
            train=test, test=test, score=np.arange(3.0), seconds=np.array([0, 1.0, 2.0]),
            settings=json.dumps({"settings": {"steps": 300} if name != "probe-phi1" else {}}),
        )  # fmt: skip
    return tmp_path


def command(folder: pathlib.Path, arrays: list[str], *more: str) -> list[str]:
    asked = [f"--hume={folder / 'run'}", f"--baselines={folder / 'baselines'}"]
    return ["--config=configs/arrays.py", f"--out={folder / 'out'}", *asked, *more, "--", *arrays]


def test_a_table_of_everything(
    finished: pathlib.Path, arrays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    comparison.main(command(finished, arrays))
    printed = capsys.readouterr().out
    kept = json.loads((finished / "out" / "table.json").read_text())
    rows = {(row["method"], row["what"]): row for row in kept["rows"]}
    hume = rows["HUME", "votes of 4 tasks, 2 seeds"]
    assert hume["acc"] == [1, 0.95]
    assert hume["spaces"] == "a → b+c"
    assert hume["seconds"] == [2, 3]
    kmeans = rows["k-means", "3 single starts"]
    assert kmeans["acc"] == pytest.approx([2 / 3] * 3)
    assert kmeans["seconds"] == [3]
    assert kmeans["difference"][0] == pytest.approx(0.975 - 2 / 3)
    assert kmeans["difference"][1] > 0.1
    assert ("TURTLE, cold start", "vote of 3 starts, 300 of 6000 steps") in rows
    assert ("k-means", "vote of the best 1 of 3 starts") in rows
    # The probe is no vote, and the first row is compared with nothing.
    assert sum(method == "supervised linear probe" for method, _ in rows) == 1
    assert "difference" not in hume
    floor = max(np.mean(row["acc"]) for (name, _), row in rows.items() if name == "k-means")
    assert f"closes {(0.975 - floor) / (1 - floor):.1%} of the gap" in printed
    assert (finished / "out" / "table.md").read_text().strip() in printed
    short = (finished / "out" / "summary.md").read_text().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in short] == [
        "k-means", "TURTLE, cold start", "HUME", "supervised linear probe",
    ]  # fmt: skip
    assert (finished / "out" / "table.png").read_bytes().startswith(b"\x89PNG")


def test_images_that_could_not_be_read_are_no_rows(
    finished: pathlib.Path, arrays: list[str]
) -> None:
    for path in (finished / "run").rglob("labels.csv"):
        path.write_text(path.read_text() + "\n60,test,-1")
    comparison.main(command(finished, arrays))
    table = json.loads((finished / "out" / "table.json").read_text())
    assert table["rows"][0]["acc"] == [1, 0.95]


def test_shares_of_the_gap_in_one_space_and_in_both() -> None:
    rows = [
        ("HUME", "a and b", 0.9), ("k-means", "a", 0.5), ("spherical k-means", "b", 0.6),
        ("supervised linear probe", "a", 1.0), ("k-means", "a+b", 0.8),
    ]  # fmt: skip
    found = [{"method": m, "spaces": s, "acc": [acc]} for m, s, acc in rows]
    (one,) = comparison.closed(found, ("a", "b"))
    # Where the probe finds no more than k-means there is no way to go.
    level = [row | {"acc": [0.6]} for row in found]
    assert comparison.closed(level, ("a", "b")) == []
    assert one == (
        "The first row closes 75.0% of the gap between the best k-means row of one space (0.6000) "
        "and the best probe there (1.0000)."
    )
    found.append({"method": "supervised linear probe", "spaces": "a+b", "acc": [0.92, 0.93]})
    again, both = comparison.closed(found, ("a", "b"))
    assert again == one
    assert "closes 80.0% of the gap between the best k-means row of both spaces (0.8000)" in both


def test_who_votes(
    finished: pathlib.Path, arrays: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All starts, and the better half by their own score, which is lowest for the first."""
    voted = []

    def vote(found: dict[str, np.ndarray], members: np.ndarray, *_: float) -> np.ndarray:
        voted.append(members.tolist())
        # One accuracy that tells the two apart.
        return found["test"][0] if len(members) == 1 else np.zeros_like(found["test"][0])

    monkeypatch.setattr(baselines, "vote", vote)
    comparison.main(command(finished, arrays))
    assert voted == [[0, 1, 2], [0]] * 2
    kept = json.loads((finished / "out" / "table.json").read_text())
    acc = {row["what"]: row["acc"] for row in kept["rows"] if row["method"] == "k-means"}
    assert acc["vote of the best 1 of 3 starts"] == pytest.approx([2 / 3])
    assert acc["vote of 3 starts"][0] < 0.5


def test_rows_are_named_by_what_they_were_made_with(
    finished: pathlib.Path, arrays: list[str]
) -> None:
    path = finished / "run" / "config.json"
    config = json.loads(path.read_text())
    config["encoder"] = {"start": "rows"}
    path.write_text(json.dumps(config))
    path = finished / "baselines" / "kmeans-phi1.npz"
    arrays_of = dict(np.load(path))
    settings = json.loads(str(arrays_of["settings"])) | {"exchanged": True}
    np.savez(path, **{**arrays_of, "settings": json.dumps(settings)})
    comparison.main(command(finished, arrays))
    rows = json.loads((finished / "out" / "table.json").read_text())["rows"]
    assert rows[0]["what"] == "votes of 4 tasks, encoder.start=rows, 2 seeds"
    spaces = {row["method"]: row["spaces"] for row in rows}
    config = figures.load_config("configs/arrays.py", arrays)
    names = pairs.space_names(config.data.train.phi1, config.data.train.phi2)
    assert spaces["supervised linear probe"] == names[0]
    assert spaces["k-means"] == names[1]
    assert spaces["TURTLE, cold start"] == " and ".join(names)


def test_a_run_of_another_setting_is_another_row(finished: pathlib.Path, arrays: list[str]) -> None:
    path = finished / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"setting": "transductive"}))
    comparison.main(command(finished, arrays))
    rows = json.loads((finished / "out" / "table.json").read_text())["rows"]
    assert rows[0]["what"] == "votes of 4 tasks, setting=transductive, 2 seeds"


def test_the_search_of_the_config_stands_first(finished: pathlib.Path, arrays: list[str]) -> None:
    stored = json.loads((finished / "run" / "config.json").read_text())
    train = {name: str(finished / f"{name}_train.npy") for name in ("phi1", "phi2")}
    for spaces in ("first", "both"):
        shutil.copytree(finished / "run", finished / spaces)
        config = stored | {"data": {"train": train}, "search": {"spaces": spaces}}
        (finished / spaces / "config.json").write_text(json.dumps(config))
    runs = [str(finished / name) for name in ("run", "first", "both")]
    for spaces, named in (("both", "phi1 and phi2"), ("first", "phi1")):
        fields = [*arrays, f"--config.search.spaces={spaces}"]
        out = ["--config=configs/arrays.py", f"--out={finished / 'out'}"]
        comparison.main([*out, "--hume", *runs, "--", *fields])
        rows = json.loads((finished / "out" / "table.json").read_text())["rows"]
        assert rows[0]["spaces"] == named
        assert sorted(row["spaces"] for row in rows) == ["a → b+c", "phi1", "phi1 and phi2"]
        assert "difference" not in rows[0]


def test_the_time_of_a_run_that_went_on_is_not_known(
    finished: pathlib.Path, arrays: list[str]
) -> None:
    keep = f"--keep={finished / 'kept'}"
    for seed, expected in ((0, [3.0]), (1, [])):
        path = finished / "run" / f"seed_{seed}" / "results.json"
        found = json.loads(path.read_text())
        found["seconds"]["resumed"] = True
        path.write_text(json.dumps(found))
        comparison.main(command(finished, arrays, keep))
        (row, *_) = json.loads((finished / "out" / "table.json").read_text())["rows"]
        assert row["seconds"] == expected
    table = (finished / "out" / "table.md").read_text().splitlines()
    assert table[2].split("|")[-2].strip() == "-"


def test_baselines_of_other_rows_are_told(finished: pathlib.Path, arrays: list[str]) -> None:
    path = finished / "baselines" / "kmeans-phi1.npz"
    stored = dict(np.load(path))
    settings = json.loads(str(stored["settings"]))
    pair = pairs.load(figures.load_config("configs/arrays.py", arrays))

    def rewrite(**other: Any) -> None:
        changed = {"settings": json.dumps(settings | {"data": pair.made_of | other})}
        np.savez(path, **{**stored, **changed})

    keep = f"--keep={finished / 'kept'}"
    for other in ({"rows": ["(3, 2) float32"]}, {"n_classes": 12}):
        rewrite(**other)
        with pytest.raises(UserError, match="kmeans-phi1.npz was made of other rows"):
            comparison.main(command(finished, arrays, keep))
        assert not (finished / "kept").exists()
    rewrite()
    comparison.main(command(finished, arrays, keep))
    told = "kmeans-phi1.npz was made of other rows or labels, or for another number of classes"
    with pytest.raises(UserError, match=told):
        comparison.main(command(finished, [*arrays, "--config.n_classes=2"]))
    # What learnt from labels is of these too.
    for data, refused in ((pair.made_of, True), (baselines.data_of("probe", pair), False)):
        learnt = {"settings": json.dumps(settings | {"settings": {}, "data": data})}
        np.savez(path.with_name("probe-phi1.npz"), **{**stored, **learnt})
        told = pytest.raises(UserError, match="probe-phi1.npz was made of other rows or labels")
        with told if refused else contextlib.nullcontext():
            comparison.main(command(finished, arrays))
    # What their names do not tell is not written beside the labels that are kept.
    assert all("data" not in json.loads(row.made_with) for row in kept.read(finished / "kept"))


@pytest.mark.parametrize(
    ("method", "asked", "named"),
    [
        ("turtle", {"steps": 300}, ", 300 of 6000 steps"),
        ("spice", {"passes": 0}, ", 20 of 40 steps"),
        ("temi", {"batch": 1024, "n_classes": 1}, ", batch=1024"),
        ("turtle", {"steps": 300, "look": 10}, ", 300 of 6000 steps, look=10"),
        ("kmeans", {}, ""),
    ],
)
def test_settings_that_are_not_the_usual_are_named(
    method: str, asked: dict[str, Any], named: str
) -> None:
    where = pathlib.Path("temi-phi1.npz")
    stored = METHODS[method].settings(2)._asdict() | asked
    assert comparison.changed_settings(method, json.loads(json.dumps(stored)), where) == named
    with pytest.raises(UserError, match="temi-phi1.npz was made when .* had the settings speed"):
        comparison.changed_settings(method, stored | {"speed": 3}, where)


def test_parts_of_what_has_not_finished_are_left_out(
    finished: pathlib.Path, arrays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    comparison.main(command(finished, arrays))
    table = capsys.readouterr().out
    np.savez(finished / "baselines" / "temi-phi1-starts-0-7.npz", test=np.zeros(3))
    comparison.main(command(finished, arrays))
    assert capsys.readouterr().out == table


def test_a_file_that_is_no_result_is_named(finished: pathlib.Path, arrays: list[str]) -> None:
    np.savez(finished / "baselines" / "theirs-scan-phi1-3.npz", test=np.zeros(3))
    with pytest.raises(UserError, match="theirs-scan-phi1-3.npz is no result of baselines.py"):
        comparison.main(command(finished, arrays))


def test_what_is_not_finished_is_named(finished: pathlib.Path, arrays: list[str]) -> None:
    with pytest.raises(UserError, match="has no results of baselines.py"):
        comparison.main(command(finished, arrays, f"--baselines={finished / 'run'}"))
    (finished / "run" / "config.json").unlink()
    with pytest.raises(UserError, match="has no results.json"):
        comparison.main(command(finished, arrays))


def test_labels_are_kept_and_come_back(
    finished: pathlib.Path, arrays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    keep = f"--keep={finished / 'kept'}"
    comparison.main(command(finished, arrays, keep))
    first = capsys.readouterr().out
    config = ["--config=configs/arrays.py", f"--out={finished / 'again'}"]
    comparison.main([*config, keep, "--", *arrays])
    assert capsys.readouterr().out == first
    assert first.index("HUME") < first.index("k-means") < first.index("TURTLE")
    # Each seed has a file of its own, so that one more joins the row.
    names = sorted(path.name for path in (finished / "kept").glob("HUME*"))
    assert names == [f"HUME-a___b_c-votes_of_4_tasks-seed_{seed}.npz" for seed in (0, 1)]
    (finished / "kept" / names[0]).unlink()
    comparison.main([*config, keep, "--", *arrays])
    assert "votes of 4 tasks, seed 1" in capsys.readouterr().out


CONFIGS = {
    "imagenette": "imagenette.py:inner=fixed",
    "imagenette_exchanged": "imagenette.py:phi1=lite2,inner=fixed",
    "clinc150": "clinc150.py",
    "clinc150_exchanged": "clinc150.py",
    "clinc150_domains": "clinc150.py:labels=domains,inner=fixed",
}


@pytest.mark.parametrize("dataset", CONFIGS)
def test_a_new_run_can_join_the_labels_that_are_kept(dataset: str) -> None:
    """They have the fields and, but for what their names tell, the values of now."""
    rows = kept.read(pathlib.Path("docs/labels") / dataset)
    config = figures.load_config(f"experiments/datasets/{CONFIGS[dataset]}")
    titles = {entry.title: name for name, entry in METHODS.items()}
    for row in rows:
        made = json.loads(row.made_with)
        if row.method == kept.HUME:
            assert set(made) == set(figures.PARTS), row.kind
            told = comparison.changed_fields(made, config)
            assert re.fullmatch(rf"votes of \d+ tasks{re.escape(told)}", row.what), row.kind
        else:
            method = titles[row.method]
            assert set(made["settings"]) == set(METHODS[method].settings(2)._asdict()), row.kind
            changed = comparison.changed_settings(method, made["settings"], pathlib.Path())
            assert row.what.partition(",")[1:] == changed.partition(",")[1:], row.kind
            if row.what.startswith("vote"):
                assert made["evenness"] == planning.evenness(config), row.kind


def test_what_cannot_be_one_row_is_named(tmp_path: pathlib.Path) -> None:
    one = kept.Row(kept.HUME, "a", "votes", ("seed 0",), np.array([[0, 300, 2]]), (1.0,), "x")
    kept.write(tmp_path, one)
    (back,) = kept.read(tmp_path)
    np.testing.assert_array_equal(back.labels, one.labels)
    assert back._replace(labels=one.labels) == one
    kept.write(tmp_path, one._replace(names=("seed 1",), made_with="y"))
    with pytest.raises(UserError, match="different settings"):
        kept.read(tmp_path)
    with pytest.raises(UserError, match="holds labels that were made with other settings"):
        kept.write(tmp_path, one._replace(made_with="z"))
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    with pytest.raises(UserError, match="other.npz is no file of labels"):
        kept.read(tmp_path)


def test_a_seed_that_is_there_twice() -> None:
    one = kept.Row(kept.HUME, "a", "votes", ("seed 0",), np.array([[0, 1]]), (1.0,), "x")
    with pytest.raises(UserError, match="HUME, a, votes: seed 0 is there twice: give each run"):
        kept.merge([one, one])


def test_nothing_to_compare(tmp_path: pathlib.Path, arrays: list[str]) -> None:
    out = ["--config=configs/arrays.py", f"--out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="nothing to compare"):
        comparison.main([*out, f"--keep={tmp_path}", "--", *arrays])
    with pytest.raises(UserError, match="--keep=.*nowhere: there is no such folder"):
        comparison.main([*out, f"--keep={tmp_path / 'nowhere'}", "--", *arrays])


def test_a_file_where_labels_should_be_kept(finished: pathlib.Path, arrays: list[str]) -> None:
    (finished / "file").write_text("")
    with pytest.raises(UserError, match="--keep=.*file: no folder can be made there"):
        comparison.main(command(finished, arrays, f"--keep={finished / 'file'}"))


def test_runs_of_one_seed_each_are_one_row(
    finished: pathlib.Path, arrays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((finished / "run" / "config.json").read_text())
    for seed in (0, 1):
        folder = finished / f"run_{seed}"
        shutil.copytree(finished / "run" / f"seed_{seed}", folder)
        (folder / "config.json").write_text(json.dumps({**config, "seeds": [], "seed": seed}))
    comparison.main(command(finished, arrays))
    together = capsys.readouterr().out
    asked = ["--hume", *(str(finished / f"run_{seed}") for seed in (0, 1))]
    asked += [f"--baselines={finished / 'baselines'}", f"--out={finished / 'out'}"]
    comparison.main(["--config=configs/arrays.py", *asked, "--", *arrays])
    assert capsys.readouterr().out == together


def test_votes_of_more_tasks_stand_first() -> None:
    whats = ("votes of 5 tasks", "votes of 64 tasks, inner.steps=3", "votes of 64 tasks")
    one = np.zeros((1, 2), int)
    kmeans = kept.Row("k-means", "a", "vote of 5 starts", ("vote",), one, (1.0,))
    rows = [kmeans, *(kmeans._replace(method="HUME", what=what) for what in whats)]
    assert [row.what for row in sorted(rows, key=kept.place)] == [*whats[::-1], kmeans.what]
