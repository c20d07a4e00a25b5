"""Tables of a page come from files."""

import pathlib

import fill_tables
import pytest

from hume_jax.errors import UserError


def test_a_table_takes_its_place_and_a_missing_one_leaves_it(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, page = tmp_path / "table.md", tmp_path / "page.md"
    table.write_text("| a |\n| - |\n")
    parts = [f"<!-- table: {path} -->\nold\n<!-- end of table -->" for path in (table, "gone.md")]
    page.write_text("before\n" + "\nbetween\n".join(parts) + "\nafter")
    for _ in range(2):
        fill_tables.main([str(page)])
    begin, end = f"<!-- table: {table} -->", "<!-- end of table -->"
    filled = f"before\n{begin}\n\n| a |\n| - |\n\n{end}\nbetween\n{parts[1]}\nafter"
    assert page.read_text() == filled
    assert "gone.md is not there" in capsys.readouterr().err


def test_a_beginning_without_an_end(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="needs an"):
        fill_tables.fill("<!-- table: a.md -->\n")
    with pytest.raises(UserError, match="no such file"):
        fill_tables.main([str(tmp_path / "none.md")])
    with pytest.raises(UserError, match="no such file"):
        fill_tables.main([str(tmp_path)])
