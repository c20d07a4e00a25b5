"""Tables of several runs: Markdown to read, CSV to go on with."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hume_jax.files import atomic_write


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table, columns aligned for reading as plain text too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def write_table(
    folder: Path, head: Sequence[str], rows: Sequence[Sequence[str]], name: str = "table"
) -> str:
    """Writes NAME.md and NAME.csv of a folder; returns the Markdown."""
    text = table(head, rows)
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([head, *rows])
    for end, content in (("md", f"{text}\n"), ("csv", lines.getvalue())):
        with atomic_write(folder / f"{name}.{end}") as file:
            file.write(content.encode())
    return text


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Formats a mean and, of more than one value, the standard deviation of a sample."""
    if not values:
        return "-"
    text = f"{np.mean(values):.{digits}f}"
    return text + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")
