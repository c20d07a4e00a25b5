"""The page in a browser: what a reader does with it, on a screen and on a phone, by keyboard."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import browser
import made_run
import pytest
import yaml

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason=f"needs one of {', '.join(browser.NAMES)} on the path"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """A run's page, one with names of classes, and that of two runs, as the command writes them."""
    base = tmp_path_factory.mktemp("pages")
    for split in made_run.ROWS:
        (base / f"{split}.json").write_text(json.dumps(made_run.texts(split)))
    made_run.make(base / "a")
    made_run.make(base / "b", n_classes=5, seed=3)
    made_run.make(base / "named")
    names = {0: made_run.HOSTILE, 2: "a name that is longer than there is room for on an axis"}
    (base / "named" / "classes.yaml").write_text(yaml.safe_dump({"names": names}))
    command = [sys.executable, "-m", "hume_jax.report"]
    samples = [f"--{split}_samples={base / split}.json" for split in made_run.ROWS]
    pair = ["--compare", "a", "b", "--out=pair.html"]
    for arguments, printed in (
        (["--run=a", *samples], f"{base / 'a'}/report.html"),
        (pair, "pair.html"),
        (["--run=named"], f"{base / 'named'}/report.html"),
    ):
        done = subprocess.run(
            [*command, *arguments], cwd=base, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, printed), done.stderr[-2000:]
    return {
        "run": base / "a" / "report.html",
        "pair": base / "pair.html",
        "named": base / "named" / "report.html",
    }


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(chromium: browser.Browser) -> Iterator[browser.Page]:
    """A page; nothing may go wrong on it, and nothing but itself may be asked for."""
    page = chromium.page()
    yield page
    assert page.errors == []
    asked = [url for url in page.requests if not url.startswith(("data:", "blob:"))]
    assert len(asked) == 1
    assert asked[0].startswith("file://")
    page.call("Page.close")


@pytest.mark.parametrize("which", ["run", "pair", "named"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_page_draws_its_charts_and_fits_the_screen(
    page: browser.Page, pages: dict[str, pathlib.Path], which: str, width: int, dark: bool
) -> None:
    page.open(pages[which], width, dark=dark)
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    empty = (
        "[...document.querySelectorAll('.draw')].filter(d => d.offsetParent && !d.querySelector("
    )
    assert page.evaluate(f"{empty}'svg, canvas')).length") == 0
    drawn = page.evaluate("document.querySelectorAll('.draw svg, .draw canvas').length")
    assert drawn == (3 if which == "pair" else 7)
    assert page.evaluate("document.title") != "hit"


def test_every_control_chart_and_table_has_a_name(
    page: browser.Page, pages: dict[str, pathlib.Path]
) -> None:
    page.open(pages["run"])
    # As a screen reader is told.
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    seen = [n for n in nodes if not n["ignored"]]
    named = ("button", "link", "image", "table", "combobox", "searchbox", "heading", "region")
    for node in seen:
        if node["role"]["value"] in named:
            assert node.get("name", {}).get("value"), node
    roles = {node["role"]["value"] for node in seen}
    assert roles >= {"main", "navigation", "banner", "contentinfo", "table", "searchbox"}
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].filter(h => h.offsetParent)"
        ".map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_table_is_sorted_by_a_click_and_by_a_key(
    page: browser.Page, pages: dict[str, pathlib.Path]
) -> None:
    page.open(pages["run"])
    head = "document.querySelectorAll('#tasks-table thead th')[3]"
    cells = (
        "[...document.querySelectorAll('#tasks-table tbody tr')].map(r => r.cells[3].textContent)"
    )
    before = [float(text) for text in page.evaluate(cells)]
    assert before == sorted(before, reverse=True)
    page.evaluate(f"{head}.querySelector('button').click()")
    assert page.evaluate(f"{head}.getAttribute('aria-sort')") == "descending"
    page.evaluate(f"{head}.querySelector('button').focus()")
    page.press("Enter", 13, "\r")
    assert page.evaluate(f"{head}.getAttribute('aria-sort')") == "ascending"
    assert [float(text) for text in page.evaluate(cells)] == sorted(before)
    assert "ascending" in page.evaluate("document.getElementById('said').textContent")


def test_theme_changes_the_charts_too(page: browser.Page, pages: dict[str, pathlib.Path]) -> None:
    page.open(pages["run"])
    colour = "document.querySelector('#chart-sizes svg').style.backgroundColor"
    light = page.evaluate(colour)
    page.evaluate("document.getElementById('theme').click()")
    page.wait("document.documentElement.dataset.drawn == 'dark'")
    assert page.evaluate("document.getElementById('theme').textContent") == "Light theme"
    assert page.evaluate(colour) != light
    page.evaluate("localStorage.clear()")


def test_classes_are_found_and_the_map_shows_one(
    page: browser.Page, pages: dict[str, pathlib.Path]
) -> None:
    page.open(pages["run"])
    shown = "[...document.querySelectorAll('details.class')].filter(d => !d.hidden).map(d => d.id)"
    typed = (
        "(t => {{ const f = document.getElementById('find'); f.value = t;"
        " f.dispatchEvent(new Event('input')); }})({!r})"
    )
    page.evaluate(typed.format("2"))
    assert page.evaluate(shown) == ["class-2"]
    page.evaluate(typed.format("text number"))
    assert len(page.evaluate(shown)) == 4
    page.evaluate(typed.format("nowhere"))
    assert page.evaluate("document.getElementById('found').textContent") == "0 of 4 classes"
    # A link to a class shows it all the same.
    page.evaluate("location.hash = '#class-3'")
    page.wait(f"{shown}.includes('class-3')")
    choose = "(s => {{ s.value = {!r}; s.dispatchEvent(new Event('change')); }})"
    page.evaluate(choose.format("1") + "(document.getElementById('map-class-choice'))")
    page.evaluate(choose.format("map-agreement") + "(document.getElementById('map-colour'))")
    page.wait("!!document.querySelector('#chart-map-agreement canvas')")


def test_pointing_at_a_bar_tells_of_it(page: browser.Page, pages: dict[str, pathlib.Path]) -> None:
    page.open(pages["run"])
    box = page.evaluate(
        "(b => { b.scrollIntoView({block: 'center', behavior: 'instant'});"
        " const r = b.getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })"
        "(document.querySelector('#chart-sizes .mark-rect path'))"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    page.wait("!!document.querySelector('#vg-tooltip-element.visible')")
    assert "agreement" in page.evaluate("document.querySelector('#vg-tooltip-element').textContent")


def test_charts_and_tables_are_saved(
    page: browser.Page, pages: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    page.open(pages["run"])
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for selector, name, start in (
        ("[data-csv=classes-table]", "classes-table.csv", b"Class,Train rows,Test rows,Agreement"),
        ("[data-chart=sizes][data-save=svg]", "sizes.svg", b"<svg"),
        ("[data-chart=map-class][data-save=png]", "map-class.png", b"\x89PNG"),
    ):
        page.evaluate(f"document.querySelector('{selector}').click()")
        saved = tmp_path / name
        for _ in range(200):
            if saved.exists() and saved.stat().st_size:
                break
            page.evaluate("new Promise(done => setTimeout(done, 25))")
        assert saved.read_bytes().startswith(start)


def test_arguments_that_are_wrong_are_told_in_a_line(tmp_path: pathlib.Path) -> None:
    for arguments, said in (
        ([], "error: no run: give --run=WORKDIR, or --compare RUN_A RUN_B"),
        (["--compare", "a"], "error: --compare takes the folders of two runs"),
        (["--run=none"], "is not the folder of a run"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "hume_jax.report", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
