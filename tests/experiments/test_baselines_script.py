"""The table of baselines: what is asked for, what is kept, what is told."""

import json
import pathlib

import baselines
import numpy as np
import pairs
import pytest

from hume_jax.baselines import running
from hume_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def command(out: pathlib.Path, fields: list[str], *more: str) -> list[str]:
    return ["--config=configs/arrays.py", f"--out={out}", "--starts=3", *more, "--", *fields]


SOME = ("--methods", "kmeans", "turtle", "probe", "--spaces", "phi1", "both")
SHORT = ("--set", "turtle.steps=40", "turtle.learning_rate=0.05", "kmeans.starts=2")


def test_a_table_a_picture_and_labels_that_are_kept(
    tmp_path: pathlib.Path, arrays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    baselines.main(command(out, arrays, *SOME, *SHORT))
    printed = capsys.readouterr().out
    assert (out / "table.md").read_text() == printed
    assert len((out / "table.csv").read_text().splitlines()) == 1 + 4
    assert (out / "table.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "table.json").read_text())
    assert list(found) == [
        "k-means, phi1", "TURTLE, cold start, phi1", "TURTLE, cold start, both",
        "supervised linear probe, phi1",
    ]  # fmt: skip
    assert found["k-means, phi1"]["single"]["acc"] == [1.0] * 3
    assert found["TURTLE, cold start, both"]["vote_own"]["acc"] > 0.95
    assert "vote_own" not in found["supervised linear probe, phi1"]
    assert found["supervised linear probe, phi1"]["chosen"]["acc"] > 0.95
    with np.load(out / "kmeans-phi1.npz", allow_pickle=False) as kept:
        assert kept["test"].shape == (3, 60)

    # What is finished is not run again.
    (out / "kmeans-phi1.npz").rename(out / "kept")
    np.savez(
        out / "kmeans-phi1.npz", **{**np.load(out / "kept"), "seconds": np.array([0, 0, 77.7])}
    )
    baselines.main(command(out, arrays, *SOME, *SHORT))
    assert "77.7" in capsys.readouterr().out
    with pytest.raises(UserError, match="kmeans-phi1.npz was made with other settings"):
        baselines.main(command(out, arrays, *SOME, *SHORT[:3]))


def test_starts_a_few_at_a_time_find_the_same_and_survive_a_kill(
    tmp_path: pathlib.Path, arrays: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--methods", "turtle", "--spaces", "phi1", *SHORT)
    baselines.main(command(tmp_path / "all", arrays, *asked))
    whole = np.load(tmp_path / "all" / "turtle-phi1.npz", allow_pickle=False)

    fit, ran = running.fit, []

    def killed_at(start: int):
        def run(method, settings, data, tasks, *more, **others):
            if tasks[0] == start:
                raise KeyboardInterrupt
            ran.append(tasks.tolist())
            return fit(method, settings, data, tasks, *more, **others)

        return run

    out = tmp_path / "parts"
    monkeypatch.setattr(running, "fit", killed_at(2))
    with pytest.raises(KeyboardInterrupt):
        baselines.main(command(out, arrays, *asked, "--at-a-time=2"))
    assert [path.name for path in out.iterdir()] == ["turtle-phi1-starts-0-1.npz"]
    monkeypatch.setattr(running, "fit", killed_at(-1))
    baselines.main(command(out, arrays, *asked, "--at-a-time=2"))
    assert ran == [[0, 1], [2]]
    parts = np.load(out / "turtle-phi1.npz", allow_pickle=False)
    for split in ("train", "test"):
        np.testing.assert_array_equal(parts[split], whole[split])
    np.testing.assert_allclose(parts["score"], whole["score"], rtol=1e-4)
    assert parts["seconds"].shape == whole["seconds"].shape == (3,)
    assert not list(out.glob("*starts*"))


def test_what_learnt_from_other_labels_is_not_taken(
    tmp_path: pathlib.Path, arrays: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--methods", "kmeans", "probe", "--spaces", "phi1", *SHORT)
    out, labels = tmp_path / "out", tmp_path / "labels_train.npy"
    baselines.main(command(out, arrays, *asked))
    np.save(labels, np.load(labels) // 2)
    # Labels of train rows are no part of what k-means finds.
    baselines.main(command(out, arrays, *asked[:2], *asked[3:]))
    capsys.readouterr()
    told = "probe-phi1.npz was made with other settings, or of other rows or labels"
    with pytest.raises(UserError, match=told):
        baselines.main(command(out, arrays, *asked))


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("kmeans", "kmean.starts=2", "no method is called 'kmean'"),
        ("kmeans", "kmeans.start=2", "kmeans has no number called 'start'"),
        ("kmeans", "kmeans.starts=two", "--set kmeans.starts=two: invalid literal"),
        ("probe", "probe.penalties=1", "probe has no number called 'penalties'"),
        ("scan", "scan.batch=0", "--set scan.batch=0: it must be at least 1"),
        ("twist", "twist.passes=0", "--set twist.passes=0: it must be at least 1"),
        ("twist", "twist.learning_rate=-1", "it must be at least 0"),
        ("twist", "twist.learning_rate=nan", "it must be at least 0, and finite"),
        ("twist", "twist.learning_rate=inf", "it must be at least 0, and finite"),
        ("spice", "spice.neighbours=0", "it must be at least 1"),
        ("kmeans", "kmeans.starts=0", "it must be at least 1"),
        ("fine_tune", "fine_tune.hidden=0", "it must be at least 1"),
        ("turtle", "turtle.look=0", "it must be at least 1"),
        ("temi", "temi.temperature=0", "a temperature must be above 0"),
        ("spice", "spice.sure_share=3", "it is a share, and must be at most 1"),
        ("kmeans", "kmeans.n_classes=12", "the config or the method's name decides n_classes"),
        ("turtle", "turtle.warm=1", "the config or the method's name decides warm"),
    ],
)
def test_settings_that_will_not_do(method: str, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        baselines.settings_of(method, 3, [change])


def test_settings_of_methods() -> None:
    temi = baselines.settings_of("temi", 3, ["temi.together=1", "temi.passes=4", "scan.passes=9"])
    assert (temi.together, temi.passes) == (True, 4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        # Of a method that would come last.
        (("--methods", "kmeans", "--set", "twist.pases=3"), "twist has no number called 'pases'"),
        (("--methods", "kmeans", "--spaces", "both"), "twist, turtle, turtle_warm take two spaces"),
        (("--methods", "kmeans", "--starts=0"), "--starts=0: it must be at least 1"),
        (("--methods", "kmeans", "--seed=-1"), "--seed=-1: it must be from 0 to 2147483647"),
        (
            ("--methods", "kmeans", "--", "--config.setting=transductive"),
            "setting=transductive: the",
        ),
        (("--methods", "kmeans", "--at-a-time=0"), "--at-a-time=0: it must be at least 1"),
        (
            ("--methods", "temi", "--at-a-time=2", "--set", "temi.together=1"),
            "heads of temi.together=1 share weights",
        ),
        (("--methods", "probe", "--", "--config.n_classes=2"), "the train labels have 3 classes"),
        (("--methods", "kmeans", "--", "--config.n_classes=5000"), "no more than the [0-9]+ train"),
    ],
)
def test_what_will_not_do_is_told_before_anything_runs(
    tmp_path: pathlib.Path, arrays: list[str], asked: tuple[str, ...], message: str
) -> None:
    fields = [*arrays, *(field for field in asked if field.startswith("--config."))]
    own = [word for word in asked if word != "--" and not word.startswith("--config.")]
    with pytest.raises(UserError, match=message):
        baselines.main(command(tmp_path / "out", fields, *own))
    assert not list(tmp_path.rglob("*.npz"))


def test_an_out_that_can_be_no_folder(tmp_path: pathlib.Path, arrays: list[str]) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"--out={out}: no folder can be made there"):
            baselines.main(command(out, arrays, "--methods", "kmeans"))


def test_labels_are_needed_for_the_scores(tmp_path: pathlib.Path, arrays: list[str]) -> None:
    few = [field for field in arrays if "test.labels" not in field]
    with pytest.raises(UserError, match="data.test.labels is needed for the scores"):
        baselines.main(command(tmp_path / "out", few, "--methods", "kmeans"))
    few = [field for field in arrays if ".test." not in field]
    with pytest.raises(UserError, match="data.test.phi1 and phi2 are needed"):
        baselines.main(command(tmp_path / "out", few, "--methods", "kmeans"))


def test_rows_that_were_written_over_are_others(tmp_path: pathlib.Path, arrays: list[str]) -> None:
    asked = command(tmp_path / "out", arrays, "--methods", "kmeans", *SHORT)
    baselines.main(asked)
    path = pathlib.Path(next(f for f in arrays if "train.phi1" in f).partition("=")[2])
    np.save(path, np.load(path)[::-1])
    told = "kmeans-phi1.npz was made with other settings, or of other rows or labels"
    with pytest.raises(UserError, match=told):
        baselines.main(asked)


def test_a_start_that_diverged_is_never_the_best() -> None:
    scores = np.array([1.0, np.nan, 0.5, 2.0], np.float32)
    assert baselines.best(scores) == 2
    assert baselines.better_half(scores).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("phi1", "phi2", "names"),
    [
        ("x/effnet_lite0_train.npy", "x/clip_train.npy", ("effnet_lite0", "clip")),
        ("vit_v1.5_train.npy", "vit_v1.6_train.npy", ("vit_v1.5", "vit_v1.6")),
        ("data/mocov2/stl10train.npy", "data/dino/stl10train.npy", ("mocov2", "dino")),
        (("a_train.npy", "b_train.npy"), "c.npy", ("a+b", "c")),
        ("a_train.npy", "a_train.npy", ("a", "a")),
    ],
)
def test_names_of_spaces(phi1: str, phi2: str, names: tuple[str, str]) -> None:
    assert pairs.space_names(phi1, phi2) == names


def test_arrays_of_one_file_are_named_apart(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "all.npz", vit=np.zeros(2), clip=np.zeros(2))
    assert pairs.space_names(f"{tmp_path}/all.npz:vit", f"{tmp_path}/all.npz:clip") == (
        "vit",
        "clip",
    )
