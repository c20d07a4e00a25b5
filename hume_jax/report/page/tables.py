"""Tables of the page, as its template prints them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MISSING = "–"


class Column(NamedTuple):
    """A column: its title, and how its values are written, '' for text."""

    title: str
    form: str = ""
    help: str = ""


class Table(NamedTuple):
    """A table whose rows are sorted by any column, and saved as CSV."""

    name: str  # its id, and the name of the file it is saved as
    caption: str
    columns: Sequence[Column]
    rows: list[list[str]]
    links: bool = False  # whether the first column names classes, each with a section of its own


def table(
    name: str,
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Any]],
    *,
    links: bool = False,
) -> Table:
    """Writes values as text by their columns; None is a dash."""
    written = [
        [_written(value, column.form) for value, column in zip(row, columns, strict=True)]
        for row in rows
    ]
    return Table(name, caption, columns, written, links)


def _written(value: Any, form: str) -> str:
    if value is None:
        return MISSING
    return format(value, form) if form and not isinstance(value, str) else str(value)
