"""Docstrings as they are written here, plain text that is read in an editor, for Sphinx."""

import re
from typing import Any

from sphinx.application import Sphinx

# A name in single backticks is code. An argument's description may run over the end of a line.
_CODE = re.compile(r"(?<![`\w])`([^`]+)`(?![`_])")


def process(app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Marks code as code; a module's examples, which are indented, and tables stay as they are."""
    text = _CODE.sub(lambda m: f"``{' '.join(m[1].split())}``", "\n".join(lines))
    paragraphs = text.split("\n\n")
    if kind == "module":
        paragraphs = [_literal(paragraph) for paragraph in paragraphs]
    lines[:] = "\n\n".join(paragraphs).split("\n")


def _literal(paragraph: str) -> str:
    if paragraph.startswith(("    ", "|")):
        return "::\n\n" + "\n".join(f"    {line}" for line in paragraph.split("\n"))
    return paragraph


def setup(app: Sphinx) -> dict[str, Any]:
    """Runs before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
