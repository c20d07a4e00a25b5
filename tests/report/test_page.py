"""What the page of a run says, its size and its charts; the browser's view is in test_browser."""

import io
import json
import pathlib
import re
import tarfile

import made_run
import numpy as np
import pytest
import vl_convert
from PIL import Image

from hume_jax.core import aggregate
from hume_jax.errors import UserError
from hume_jax.report import __main__ as command
from hume_jax.report.page import compare, distrust, folder, gather, html, inlined, mapping
from hume_jax.report.page.tables import Column, table


def opened(path: pathlib.Path) -> folder.Run:
    return folder.open_run(str(path)).run


def draw(path: pathlib.Path, given: dict[str, str] | None = None) -> str:
    run = opened(path)
    return html.page(run, inlined.collect(run, path, given))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("runs") / "made"
    made_run.make(path)
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Texts of both splits, one in each form."""
    base = tmp_path_factory.mktemp("texts")
    (base / "train.json").write_text(json.dumps(made_run.texts("train")))
    (base / "test.txt").write_text("\n".join(made_run.texts("test")) + "\n")
    return {"train": str(base / "train.json"), "test": str(base / "test.txt")}


@pytest.fixture(scope="module")
def page(made: pathlib.Path, given: dict[str, str]) -> str:
    return draw(made, given)


def content(page: str) -> dict:
    """The charts and their data."""
    found = re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


# ---- what is kept of a run


def test_tasks_in_other_numbers_agree_with_the_vote_class_by_class() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200).astype(np.int32)
    tasks = np.stack([np.array(p)[labels] for p in ((0, 1, 2), (2, 0, 1))])
    worse = tasks.copy()
    worse[1, np.flatnonzero(labels == 0)[:10]] = 0  # what the second task calls class 1
    vote = aggregate.Vote(labels, np.ones(200, np.float32), np.ones(200, np.float32))
    x = rng.normal(size=(200, 4)).astype(np.float32)
    for found, expected in ((tasks, 1.0), (worse, 1 - 10 / np.sum(labels == 0))):
        part = gather.Part(np.arange(200), 200, found, vote, None, x.__getitem__)
        kept = gather.gather({"train": part}, ["train"], 3, np.eye(2))
        np.testing.assert_allclose(kept["task_class"], [[1, 1, 1], [expected, 1, 1]], rtol=1e-6)
        assert "map_true" not in kept
        assert kept["other"][0] == (-1 if expected == 1 else 1)
        # Where the second task disagrees, its class is next in favour.
        apart = np.flatnonzero(worse[1] != tasks[1]) if expected < 1 else []
        assert np.flatnonzero(kept["map_second"] >= 0).tolist() == list(apart)


def test_more_rows_than_the_map_holds_are_drawn_class_by_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    stratum = rng.choice(4, 5000, p=[0.6, 0.3, 0.098, 0.002])
    drawn = gather._stratified(stratum, 500)
    assert len(np.unique(drawn)) == len(drawn)
    assert 490 <= len(drawn) <= 500
    counts = np.bincount(stratum[drawn], minlength=4)
    assert counts[3] >= min(5, np.sum(stratum == 3))
    np.testing.assert_allclose(counts[:3] / len(drawn), [0.6, 0.3, 0.098], atol=0.02)
    np.testing.assert_array_equal(gather._stratified(stratum, 5000), np.arange(5000))


def test_picks_are_the_most_and_the_least_agreed_rows_of_a_class_and_none_is_both() -> None:
    rng = np.random.default_rng(0)
    label, sure = rng.integers(0, 3, 100), rng.random(100)
    label[label == 2] = 1
    label[:5] = 2
    picks = gather._picks(label, sure, sure, 4)
    for c in (0, 1):
        own = np.sort(sure[label == c])
        np.testing.assert_array_equal(sure[picks[c, 0]], own[::-1][: gather.PICKS])
        np.testing.assert_array_equal(sure[picks[c, 1]], own[: gather.PICKS])
    five = picks[2][picks[2] >= 0]
    assert sorted(five) == [0, 1, 2, 3, 4]
    assert (picks[3] == -1).all()


def test_near_duplicates_are_found_and_counted_once() -> None:
    x = np.random.default_rng(0).normal(size=(400, 40)).astype(np.float32)
    x[7], x[300] = x[3], 1.5 * x[200]
    rows = np.arange(400)
    points = mapping.draw(x.__getitem__, rows)
    a, b, similarity = mapping.near_duplicates(x.__getitem__, rows, points)
    assert list(zip(a.tolist(), b.tolist(), strict=True))[:1] == [(3, 7)]
    assert (similarity >= mapping.SAME).all()
    assert np.all(points.share[:-1] >= points.share[1:] - 1e-9)


# ---- the page


def test_page_is_small_and_asks_for_nothing(page: str) -> None:
    assert len(page.encode()) < html.MOST_BYTES
    # But for what stands in the charts' library, which the browser's test watches.
    own = page.replace(html._library(), "")
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', own)
    assert "://" not in own.replace("https://vega.github.io/schema/", "").replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert "default-src 'none'" in page


def test_texts_of_rows_stand_in_the_page_and_do_nothing(page: str) -> None:
    assert made_run.HOSTILE not in page
    assert "test text number" in page
    points = content(page)["data"]["points"]
    assert points["sample"][0].startswith("</script>")
    assert len(points["sample"]) == sum(made_run.ROWS.values())


def test_every_chart_is_of_the_schema_of_vega_lite(page: str, made: pathlib.Path) -> None:
    drawn = content(page)
    names = {chart["name"] for chart in drawn["charts"]}
    assert names >= {"sizes", "map-class", "map-agreement", "curves", "objective-acc"}
    assert names >= {"objective-agreement", "agreement", "confusion"}
    pair = content(compare.page(compare.open_pair(str(made), str(made))))
    for chart in drawn["charts"] + pair["charts"]:
        columns = {**drawn["data"], **pair["data"]}[chart["data"]]
        values = {
            key: value if isinstance(value, list) else value["numbers"]
            for key, value in columns.items()
        }
        first = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        spec = {**chart["spec"], "width": 400, "datasets": {chart["data"]: first[:300]}}
        assert "<svg" in vl_convert.vegalite_to_svg(spec)


def test_without_labels_there_are_no_scores(tmp_path: pathlib.Path) -> None:
    made_run.make(tmp_path, labels=False)
    page = draw(tmp_path)
    assert 'id="scores"' not in page
    assert "right on" not in page
    names = {chart["name"] for chart in content(page)["charts"]}
    assert not names & {"confusion", "objective-acc"}
    assert "Nothing says what the rows are" in page


def test_one_task_has_no_agreement_to_show(tmp_path: pathlib.Path) -> None:
    made_run.make(tmp_path, tasks=1)
    page = draw(tmp_path)
    assert "agreement" not in {chart["name"] for chart in content(page)["charts"]}
    assert "Only 1 task" in page


def test_images_are_inlined_and_named(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for split, n in made_run.ROWS.items():
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for i in range(n):
                file = io.BytesIO()
                Image.new("RGB", (40, 30), (i % 256, 80, 80)).save(file, "PNG")
                entry = tarfile.TarInfo(f"{i:04d}.png")
                entry.size = file.tell()
                file.seek(0)
                archive.addfile(entry, file)
    page = draw(made, {split: str(tmp_path / f"{split}.tar") for split in made_run.ROWS})
    # Of four classes, 12 and 12 each.
    assert page.count("<img decoding") == 4 * 24
    assert 'title="0' in page
    # Images that are gone are said to be, and the page is drawn.
    run = opened(made)
    gone = inlined.collect(run, made, {"train": str(tmp_path / "gone.tar")})
    assert "gone.tar is not there" in gone.notes[0]
    assert "gone.tar" in html.page(run, gone)


def test_images_give_way_where_classes_are_many(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_run.make(tmp_path, n_classes=100)
    # As if the page were a tenth of the size: the layouts have to give way.
    monkeypatch.setattr(inlined, "_PAGE_BYTES", 400_000)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for split, n in made_run.ROWS.items():
        (tmp_path / split).mkdir()
        for i in range(n):
            Image.fromarray(noise).save(tmp_path / split / f"{i:04d}.png")
    run = opened(tmp_path)
    given = {split: str(tmp_path / split) for split in made_run.ROWS}
    found = inlined.collect(run, tmp_path, given)
    assert found.side < 96
    assert sum(map(len, found.thumbnails.values())) < 400_000


def test_tables_write_numbers_by_their_form_and_what_is_missing_as_a_dash() -> None:
    made = table(
        "t", "c", [Column("A"), Column("B", ".2f"), Column("C", ",d")], [["x", None, 1200]]
    )
    assert made.rows == [["x", "–", "1,200"]]


# ---- what to distrust


def findings(path: pathlib.Path) -> dict[str, distrust.Finding]:
    return {finding.title: finding for finding in distrust.findings(opened(path))}


def test_a_sound_run_has_notes_alone(tmp_path: pathlib.Path) -> None:
    made_run.make(tmp_path, noise=0.02)
    assert {f.level for f in findings(tmp_path).values()} == {"note"}


def test_classes_that_tasks_disagree_on_are_warned_of(tmp_path: pathlib.Path) -> None:
    made_run.make(tmp_path, noise=0.9)
    titles = " ".join(title for title, f in findings(tmp_path).items() if f.level == "warning")
    assert "with less than half of the tasks' votes" in titles
    assert "Searches from different starts agree on" in titles


def test_lost_tasks_copies_and_empty_classes_are_told(tmp_path: pathlib.Path) -> None:
    made_run.make(tmp_path, n_classes=6)
    results = json.loads((tmp_path / "results.json").read_text())
    results |= {"collapsed": [0, 1], "dropped": {"7": 12}, "duplicates": [[2, 3]]}
    results["tasks"][4]["residual"] = 1.0
    (tmp_path / "results.json").write_text(json.dumps(results))
    arrays = dict(np.load(tmp_path / "report.npz"))
    arrays["counts"][:, 5] = 0
    np.savez(tmp_path / "report.npz", **arrays)
    titles = " ".join(findings(tmp_path))
    for part in (
        "2 of 6 tasks collapsed",
        "1 of 6 tasks were dropped",
        "1 group of tasks that found the very same labels",
        "The scores of 1 task are rough",
        "1 class of 6 without a row",
        "pairs of rows are nearly the same",
    ):
        assert part in titles, part


# ---- two runs


def test_a_run_is_the_same_as_itself(made: pathlib.Path) -> None:
    (made / "data.json").write_text(json.dumps({"data.train.phi1": ["x"], "data.test.phi1": ["y"]}))
    pair = compare.open_pair(str(made), str(made))
    assert pair.splits == ["train", "test"]
    assert "are the same" in pair.why
    page = compare.page(pair)
    assert "100.0%" in page
    assert "the two configs are the same" in page
    matches = compare._matches(pair)
    assert matches is not None
    assert {row[4] for row in matches.rows} == {"1.000"}


def test_runs_of_other_numbers_are_matched_by_their_rows(
    made: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    made_run.make(tmp_path / "other", n_classes=4, seed=5, fields={"seed": 5})
    pair = compare.open_pair(str(made), str(tmp_path / "other"))
    assert pair.both is not None
    assert "which nothing here proves" in pair.why
    difference = compare._difference(pair)
    assert difference is not None
    assert ["seed", "0", "5"] in difference.rows


# ---- the command


def test_what_cannot_be_drawn_is_told_in_a_line(made: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no config.json"):
        folder.open_run(str(tmp_path))
    made_run.make(tmp_path)
    (tmp_path / "report.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match="report.npz is damaged"):
        folder.open_run(str(tmp_path))
    (tmp_path / "report.npz").unlink()
    with pytest.raises(UserError, match="holds no report.npz"):
        folder.open_run(str(tmp_path))
    (tmp_path / "results.json").write_text(json.dumps({"runs": [{"folder": "seed_3"}]}))
    with pytest.raises(UserError, match="seed_3"):
        folder.open_run(str(tmp_path))
    (tmp_path / "results.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        folder.open_run(str(tmp_path))
    short = tmp_path / "short.txt"
    short.write_text("one line\n")
    with pytest.raises(UserError, match="has 1 samples, the arrays have 300 rows"):
        command._check_samples(opened(made), "train", str(short))


# ---- names of classes


def test_names_stand_wherever_numbers_of_classes_do(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "named"
    made_run.make(path, noise=0.6)
    plain = draw(path)
    (path / "classes.yaml").write_text("names: {0: church, 1: golf <ball>, 2: dog, 3: horn}")
    page = draw(path)
    words = ["0 church", "1 golf <ball>", "2 dog", "3 horn"]
    for c, name in enumerate(("church", "golf &lt;ball&gt;", "dog", "horn")):
        assert f"<h3>Class {c}: {name}</h3>" in page
        assert f'<option value="{c}">class {c} {name}</option>' in page
        assert f">class {c} {name}</a>" in page  # of what to distrust
        assert f"or class {c} {name}" in page  # of a sample
        assert f"<td>{name}</td>" in page
    for text in ("church", "horn", "After classes.yaml"):
        assert text not in plain
    drawn = content(page)
    assert sorted(drawn["data"]["sizes"]["class"]) == words
    assert sorted(set(drawn["data"]["confusion"]["column"])) == words
    specs = {chart["name"]: chart["spec"] for chart in drawn["charts"]}
    called = [param for param in specs["map-class"]["params"] if param["name"] == "called"]
    assert called[0]["value"] == words
    # What a point is coloured and chosen by stays its number.
    assert set(drawn["data"]["points"]["class"]) == set(range(4))
    points = drawn["data"]["points"]
    rows = [
        {"x": 0, "y": 0, "agreement": 1, "class": c, "second": s, "row": 0, "split": "", "true": 0}
        for c, s in zip(points["class"][:20], points["second"][:20], strict=True)
    ]
    spec = specs["map-class"] | {"datasets": {"points": rows}, "width": 300}
    svg = vl_convert.vegalite_to_svg(spec)
    assert all(word.replace("<", "&lt;").replace(">", "&gt;") in svg for word in words)


def test_the_page_of_a_run_with_a_wrong_file_of_names_is_not_drawn(tmp_path: pathlib.Path) -> None:
    made_run.make(tmp_path / "made")
    (tmp_path / "made" / "classes.yaml").write_text("names: {9: a}")
    with pytest.raises(UserError, match="classes.yaml: names: there is no class 9"):
        opened(tmp_path / "made")
