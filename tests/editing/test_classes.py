"""Merges, splits and names of a run's classes: on its own rows, on new ones, on its page."""

import csv
import io
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from hume_jax import config as config_lib
from hume_jax import labelling, pipeline, prediction
from hume_jax.core import aggregate
from hume_jax.editing import edits as edits_lib
from hume_jax.editing import labels, parts, votes
from hume_jax.editing.edits import Edits
from hume_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")
K = 4
ROWS = {"train": 160, "test": 60}
EDITS = "names: {0: both, 4: 'half, of a class'}\nmerge: [[3, 0]]\nsplit: {1: 2}\n"
SMALL = {
    "n_classes": K,
    "n_tasks": 3,
    "search.steps": 4,
    "search.anneal_steps": (2,),
    "search.subset_size": 100,
    "score.folds": 3,
    "plots": False,
    "baselines": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two arrays a split, and a run that searched both splits."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    config = config_lib.load("configs/arrays.py")
    config.update_from_flattened_dict(SMALL | {"setting": "transductive"})
    centres = {"phi1": rng.normal(size=(K, 7)), "phi2": rng.normal(size=(K, 5))}
    for split, n in ROWS.items():
        true = rng.integers(0, K, n)
        for name, own in centres.items():
            rows = own[true] + rng.normal(size=(n, own.shape[1]))
            np.save(folder / f"{name}_{split}.npy", rows.astype(np.float32))
            config.data[split][name] = str(folder / f"{name}_{split}.npy")
        (folder / f"{split}.txt").write_text("".join(f"text {i}\n" for i in range(n)))
        config.data[split].samples = str(folder / f"{split}.txt")
    pipeline.run(config, folder / "run")
    return folder


@pytest.fixture(scope="module")
def edited(made: pathlib.Path) -> pathlib.Path:
    """A copy of the run that was edited, as a user does it."""
    shutil.copytree(made / "run", made / "edited")
    (made / "edited" / "classes.yaml").write_text(EDITS)
    done = subprocess.run(
        [sys.executable, "-m", "hume_jax.classes", "--run=edited"],
        cwd=made,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = made / "edited"
    assert done.stdout == f"{folder}/classes.csv\n{folder}/report.html\n"
    return folder


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def arrays_of(folder: pathlib.Path, split: str) -> list[np.ndarray]:
    return [np.load(folder / f"{name}_{split}.npy") for name in ("phi1", "phi2")]


@pytest.mark.parametrize("soft", [True, False])
def test_votes_of_merged_classes_add_up(made: pathlib.Path, soft: bool) -> None:
    model = labelling.read(made / "run" / "model.npz")
    if not soft:
        model = model._replace(tables=None, weights=None)
    tasks = np.random.default_rng(1).integers(0, K, (3, 50))
    vote = votes.merged_vote(model, tasks, Edits(K, merge=((0, 3),)))
    for row in range(50):
        own = np.zeros(K)
        for task in range(3):
            if soft:
                own += model.tables[task, tasks[task, row]].astype(float) / 3
            else:
                own[tasks[task, row]] += 1 / 3
        own = own * model.weights / (own * model.weights).sum() if soft else own
        by_class = {0: own[0] + own[3], 1: own[1], 2: own[2]}
        winner = max(by_class, key=lambda c: (round(by_class[c], 12), -c))
        first, second, _ = sorted(by_class.values(), reverse=True)
        assert vote.labels[row] == winner
        np.testing.assert_allclose(vote.agreement[row], first, rtol=1e-6)
        np.testing.assert_allclose(vote.margin[row], first - second, atol=1e-6)
    plain = votes.merged_vote(model, tasks, Edits(K))
    for ours, theirs in zip(plain, labelling.vote(model, tasks), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_parts_share_the_votes_of_their_class() -> None:
    vote = aggregate.Vote(
        np.array([1, 0, 1], np.int32), np.array([0.8, 0.9, 0.6]), np.array([0.7, 0.8, 0.2])
    )
    inner = aggregate.Vote(np.array([1, 0]), np.array([0.75, 1.0]), np.array([0.5, 1.0]))
    votes._divide(vote, np.array([0, 2]), inner, [1, 5])
    assert vote.labels.tolist() == [5, 0, 1]
    np.testing.assert_allclose(vote.agreement, [0.6, 0.9, 0.6])
    # The next share of row 0 is that of the other part, of row 2 that of another class.
    np.testing.assert_allclose(vote.margin, [0.4, 0.8, 0.2])


def test_classes_csv_has_the_edits_and_labels_csv_has_not(
    made: pathlib.Path, edited: pathlib.Path
) -> None:
    assert (edited / "labels.csv").read_bytes() == (made / "run" / "labels.csv").read_bytes()
    before, after = rows_of(edited / "labels.csv"), rows_of(edited / "classes.csv")
    assert list(after[0]) == ["index", "split", "label", "name", "agreement", "margin", "sample"]
    assert [row["sample"] for row in after] == [row["sample"] for row in before]
    became = {(old["label"], new["label"]) for old, new in zip(before, after, strict=True)}
    # A row may join the classes that stand together now; no other changes its class.
    assert {("0", "0"), ("3", "0"), ("2", "2"), ("1", "1"), ("1", "4")} <= became
    assert all(new == "0" for old, new in became if new not in {old, "4"})
    assert {old for old, new in became if new == "4"} == {"1"}
    names = {row["label"]: row["name"] for row in after}
    assert names == {"0": "both", "1": "", "2": "", "4": "half, of a class"}
    about = json.loads((edited / "classes.json").read_text())
    assert [entry["class"] for entry in about["classes"]] == [0, 1, 2, 4]
    assert [entry["of"] for entry in about["classes"]] == [[0, 3], [1], [2], [1]]
    for entry in about["classes"]:
        for split, n in entry["rows"].items():
            own = [r for r in after if (r["split"], int(r["label"])) == (split, entry["class"])]
            assert n == len(own)
    # The parts of a class are of its rows in both splits, for both were searched.
    class_1 = sum(row["label"] == "1" for row in before)
    part = json.loads((edited / "split_1" / "results.json").read_text())
    assert sum(part["ensemble"]["class_counts"]) == class_1


def test_predict_gives_the_runs_own_rows_what_classes_csv_has(
    made: pathlib.Path,
    edited: pathlib.Path,
    command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hume_jax import predict

    monkeypatch.chdir(made)
    for split in ROWS:
        given = ("--run=edited", f"--phi1=phi1_{split}.npy", f"--phi2=phi2_{split}.npy")
        command(predict, *given, "--out=new.csv")
        theirs = [row for row in rows_of(edited / "classes.csv") if row["split"] == split]
        ours = rows_of(made / "new.csv")
        assert list(ours[0]) == ["index", "label", "name", "agreement", "margin"]
        assert ours == [{name: row[name] for name in ours[0]} for row in theirs]
    command(predict, *given, "--out=new.csv", "--noedits")
    theirs = [row for row in rows_of(edited / "labels.csv") if row["split"] == "test"]
    ours = rows_of(made / "new.csv")
    assert list(ours[0]) == ["index", "label", "agreement", "margin"]
    assert ours == [{name: row[name] for name in ours[0]} for row in theirs]


def test_names_in_parquet(edited: pathlib.Path, made: pathlib.Path) -> None:
    import pyarrow.parquet as pq

    run = prediction.edited(prediction.open_run(str(edited)))
    files = [str(made / f"{name}_test.npy") for name in ("phi1", "phi2")]
    prediction.write(made / "new.parquet", prediction.label(run, prediction.open_rows(run, files)))
    table = pq.read_table(made / "new.parquet").to_pydict()
    assert set(table["name"]) <= {"both", "", "half, of a class"}
    assert table["name"] == [run.edits.names.get(c, "") for c in table["label"]]


@pytest.mark.slow
def test_a_split_that_is_finished_is_used_again_and_one_that_is_not_goes_on(
    edited: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(edited, tmp_path / "run")
    run = prediction.open_run(str(tmp_path / "run"))
    expected = (edited / "classes.csv").read_bytes()
    searched = []
    original = pipeline.run
    monkeypatch.setattr(
        pipeline, "run", lambda *given, **more: searched.append(0) or original(*given, **more)
    )
    (tmp_path / "run" / "classes.csv").unlink()
    labels.write(run, labels.make(run))
    assert (tmp_path / "run" / "classes.csv").read_bytes() == expected
    assert not searched
    # As it is left by a kill after the search; what is found again is the same.
    for name in ("results.json", "model.npz", "labels.csv"):
        (tmp_path / "run" / "split_1" / name).unlink()
    with pytest.raises(UserError, match="its parts have not been searched yet: python -m hume_jax"):
        prediction.edited(run)
    labels.write(run, labels.make(run))
    assert (tmp_path / "run" / "classes.csv").read_bytes() == expected
    assert searched


def test_a_split_of_other_parts_or_of_another_run_is_refused(
    edited: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(edited, tmp_path / "run")
    run = prediction.open_run(str(tmp_path / "run"))
    (tmp_path / "run" / "classes.yaml").write_text("split: {1: 3}")
    for opened in (labels.make, prediction.edited):
        with pytest.raises(UserError, match=r"holds a split of class 1 in 2, .* says 3: delete"):
            opened(run)
    (tmp_path / "run" / "classes.yaml").write_text("split: {1: 2}")
    other = run._replace(model=run.model._replace(theta=run.model.theta[:, :, ::-1]))
    with pytest.raises(UserError, match="of another search than the one that"):
        labels.make(other)


def test_arrays_that_are_gone_or_others_are_told(
    made: pathlib.Path, edited: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = prediction.open_run(str(edited))
    data = json.loads(json.dumps(run.config["data"]))
    data["train"]["phi1"] = "gone.npy"
    with pytest.raises(UserError, match=r"are needed to merge or split its classes: .*gone.npy"):
        labels.make(run._replace(config=run.config | {"data": data}))
    np.save(tmp_path / "other.npy", arrays_of(made, "train")[0][::-1])
    data["train"]["phi1"] = str(tmp_path / "other.npy")
    with pytest.raises(
        UserError, match=r"are not those that the run in .* was made with \(data.tr"
    ):
        labels.make(run._replace(config=run.config | {"data": data}))


def test_a_class_that_cannot_be_split(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "classes.yaml").write_text("split: {3: 200}")
    run = prediction.open_run(str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"classes.yaml: split of class 3 in 200: n_classes is 200"):
        labels.make(run)


def test_names_alone_need_no_arrays(
    made: pathlib.Path,
    tmp_path: pathlib.Path,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from hume_jax import classes

    shutil.copytree(made / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for fields in config["data"].values():
        fields.update({"phi1": "gone.npy", "phi2": "gone.npy"})
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    given = f"--run={tmp_path / 'run'}"
    command(classes, given, "--template")
    file = tmp_path / "run" / "classes.yaml"
    assert f"rows\n#  {K - 1}: name  # " in file.read_text()
    with pytest.raises(SystemExit):
        command(classes, given, "--template")
    assert f"{file} is there already" in capsys.readouterr().err
    file.write_text("names: {2: <b>cat</b> & co}")
    command(classes, given)
    before, after = rows_of(tmp_path / "run/labels.csv"), rows_of(tmp_path / "run/classes.csv")
    named = [row.pop("name") for row in after]
    assert before == after
    assert {row["label"] for row, name in zip(after, named, strict=True) if name} == {"2"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Class 2: &lt;b&gt;cat&lt;/b&gt; &amp; co" in page
    assert "<b>cat" not in page
    assert "After classes.yaml" not in page


def test_the_page_tells_merges_and_splits(edited: pathlib.Path) -> None:
    page = (edited / "report.html").read_text()
    assert "Classes 0 and 3 become class 0. Class 1 is split in 2: 1 and 4." in page
    assert "The 4 classes after merges and splits." in page
    for text in ("Class 0: both", "Class 3: both", "Class 1: half, of a class / …", ">class 2<"):
        assert text in page


def test_what_classes_csv_was_not_made_by_is_refused(
    edited: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    from hume_jax.report.page import edited as on_page
    from hume_jax.report.page import folder

    shutil.copytree(edited, tmp_path / "run")
    run = prediction.open_run(str(tmp_path / "run"))
    assert labels.read(run).edits.names
    assert set(labels.read(run, edited=False).tables["train"].labels) == set(range(K))
    # Other names change no label.
    file = tmp_path / "run" / edits_lib.FILE
    file.write_text(EDITS.replace("both", "either"))
    assert labels.read(run).edits.names[0] == "either"
    file.write_text(EDITS.replace("[[3, 0]]", "[[2, 0]]"))
    with pytest.raises(UserError, match=r"in another way than classes.csv has them: python -m"):
        labels.read(run)
    opened = folder.open_run(str(tmp_path / "run")).run
    assert on_page.classes(opened) is None
    assert "is not known yet: python -m hume_jax.classes" in on_page.note(opened)
    file.write_text(EDITS)
    (tmp_path / "run" / "labels.csv").write_text("index,split,label,agreement,margin\n")
    with pytest.raises(UserError, match="in another way"):
        labels.read(run)


@pytest.mark.slow
@pytest.mark.parametrize("spaces", ["given", "second"])
def test_a_seed_of_several_and_one_space_alone(
    made: pathlib.Path, tmp_path: pathlib.Path, spaces: str
) -> None:
    """Test rows have no phi2 where encoders do not read it, and nobody searches them."""
    config = config_lib.load("configs/arrays.py")
    config.update_from_flattened_dict(
        SMALL | {"search.spaces": spaces, "seeds": (0, 1), "ensemble.vote": "hard"}
    )
    for split in ROWS:
        for name in ("phi1", "phi2")[: 2 if split == "train" or spaces == "second" else 1]:
            config.data[split][name] = str(made / f"{name}_{split}.npy")
    pipeline.run(config, tmp_path / "run")
    folder = tmp_path / "run" / "seed_1"
    (folder / "classes.yaml").write_text(EDITS)
    run = prediction.open_run(str(folder))
    edited = labels.make(run)
    labels.write(run, edited)
    run = prediction.edited(run)
    for split in ROWS:
        (name,) = run.spaces
        rows = prediction.open_rows(run, [str(made / f"{name}_{split}.npy")])
        vote = prediction.label(run, rows).vote
        np.testing.assert_array_equal(vote.labels, edited.tables[split].labels)
        np.testing.assert_array_equal(vote.margin, edited.tables[split].margin)
        assert set(np.unique(vote.labels)) <= set(edited.edits.numbers)
    assert (edited.tables["train"].labels == 4).any()


@pytest.mark.slow
def test_a_run_in_an_object_store(
    made: pathlib.Path,
    edited: pathlib.Path,
    object_store: str,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from etils import epath

    from hume_jax import classes, reliable

    place = epath.Path(object_store) / "edited"
    made_by_edits = ("classes.csv", "classes.json", "report.html", ".lock")
    for file in edited.iterdir():
        if file.is_file() and file.name not in made_by_edits:
            (place / file.name).write_bytes(file.read_bytes())
    command(classes, f"--run={place}")
    assert capsys.readouterr().out == f"{place}/classes.csv\n{place}/report.html\n"
    assert (place / "classes.csv").read_bytes() == (edited / "classes.csv").read_bytes()
    assert "Class 1: half, of a class" in (place / "report.html").read_text()
    assert prediction.edited(prediction.open_run(str(place))).parts.keys() == {1}
    out = made / "store.npz"
    command(reliable, f"--run={place}", f"--out={out}", "--agreement=0", "--margin=0")
    with np.load(out) as arrays:
        assert set(arrays["label"]) == {0, 1, 2, 4}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no run: give --run=WORKDIR"),
        (("--run=nowhere",), "--run=nowhere is not the folder of a run"),
        (("--run=run",), "classes.yaml: --template writes one to begin with"),
        (("--run=run", "more"), "unexpected argument 'more'"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: tuple[str, ...],
    says: str,
    made: pathlib.Path,
    mistake: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hume_jax import classes

    monkeypatch.chdir(made)
    assert says in mistake(classes, *arguments)


# ---- the surest rows


def test_reliable_rows_as_a_user_asks_for_them(made: pathlib.Path, edited: pathlib.Path) -> None:
    asked = ["--run=edited", "--out=out/sure.csv", "--agreement=0.4", "--margin=0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "hume_jax.reliable", *asked, "--per_class=9"],
        cwd=made,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "out/sure.csv\n"), done.stderr
    every = [row for row in rows_of(edited / "classes.csv") if row["split"] == "train"]
    found = rows_of(made / "out" / "sure.csv")
    assert list(found[0]) == list(every[0])
    assert all(row == every[int(row["index"])] for row in found)
    for c in ("0", "1", "2", "4"):
        sure = [
            row
            for row in every
            if row["label"] == c and float(row["agreement"]) >= 0.4 and float(row["margin"]) >= 0.1
        ]
        ranked = sorted(sure, key=lambda r: (-float(r["margin"]), -float(r["agreement"])))
        assert [row for row in found if row["label"] == c] == ranked[:9]


def test_reliable_rows_in_every_form(
    made: pathlib.Path,
    tmp_path: pathlib.Path,
    command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pyarrow.parquet as pq

    from hume_jax import reliable

    given = (f"--run={made / 'run'}", "--agreement=0", "--margin=0", "--split=test", "--balanced")
    for form in ("csv", "parquet", "txt", "npz"):
        command(reliable, *given, f"--out={tmp_path / 'sure'}.{form}")
    rows = rows_of(tmp_path / "sure.csv")
    counts = np.bincount([int(row["label"]) for row in rows])
    every = [r for r in rows_of(made / "run" / "labels.csv") if r["split"] == "test"]
    assert set(counts) == {np.bincount([int(row["label"]) for row in every]).min()}
    pairs = [(int(row["index"]), int(row["label"])) for row in rows]
    table = pq.read_table(tmp_path / "sure.parquet").to_pydict()
    assert list(zip(table["index"], table["label"], strict=True)) == pairs
    assert table["sample"] == [row["sample"] for row in rows]
    with np.load(tmp_path / "sure.npz") as arrays:
        assert list(zip(arrays["index"], arrays["label"], strict=True)) == pairs
    lines = (tmp_path / "sure.txt").read_text().splitlines()
    assert lines == [f"{index} {label}" for index, label in pairs]


def test_names_of_images_stand_in_a_list(tmp_path: pathlib.Path) -> None:
    from hume_jax import reliable

    columns = {"index": [4, 2], "label": [0, 1], "image": ["a b.png", "c.png"]}
    reliable._write(tmp_path / "sure.txt", columns)
    assert (tmp_path / "sure.txt").read_text() == "a b.png 0\nc.png 1\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no run: give --run=WORKDIR"),
        (("--run=run", "--out=a.json"), "--out=a.json is none of FILE.csv, FILE.parquet"),
        (("--run=run", "--agreement=80"), "--agreement=80.0: it must be from 0 to 1"),
        (("--run=run", "--per_class=0"), "--per_class=0: it must be at least 1"),
        (("--run=run", "--split=all"), "--split=all: value should be one of"),
        (("--run=run", "--margin=1", "--agreement=1"), "no train row has an agreement of 1.0"),
    ],
)
def test_mistakes_of_reliable(
    arguments: tuple[str, ...],
    says: str,
    made: pathlib.Path,
    mistake: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hume_jax import reliable

    monkeypatch.chdir(made)
    assert says in mistake(reliable, *arguments)


def test_a_folder_of_parts_says_what_it_is_of(edited: pathlib.Path) -> None:
    about = json.loads((edited / parts.name(1) / "class.json").read_text())
    assert (about["class"], about["parts"], len(about["model"])) == (1, 2, 64)
