"""Docstrings as they are written here, plain text that is read in an editor, for Sphinx."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from sphinx.application import Sphinx

# A name in single backticks is code. An argument's description may run over the end of a line.
_CODE = re.compile(r"(?<![`\w])`([^`]+)`(?![`_])")


def process(app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Marks code as code; a module's examples, which are indented, and tables stay as they are."""
    text = _CODE.sub(lambda m: f"``{' '.join(m[1].split())}``", "\n".join(lines))
    paragraphs = text.split("\n\n")
    if kind == "module":
        paragraphs = list(_literal(paragraphs))
    lines[:] = "\n\n".join(paragraphs).split("\n")


def _literal(paragraphs: Iterable[str]) -> Iterator[str]:
    for as_it_is, several in groupby(paragraphs, lambda text: text.startswith(("    ", "|"))):
        if as_it_is:
            yield "::"
            yield from (textwrap.indent(each, "    ") for each in several)
        else:
            yield from several


def setup(app: Sphinx) -> dict[str, Any]:
    """Runs before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
