"""The blocks of code in the documents, and what is said above them about running them.

A comment directly above a block says what is done with it:

    <!-- not run: REASON -->              it is looked at, not run; the reasons are counted
    <!-- runs with: ARGUMENTS -->         its commands get these too, to take seconds
    <!-- runs with stand-ins: MODULE -->  `tests/stand_ins/MODULE.py` for a package that is not here
"""

import pathlib
import re
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHELLS = ("sh", "bash", "console")
_COMMENT = re.compile(r"<!-- (not run|runs with|runs with stand-ins):(.*?)-->", re.DOTALL)


class Block(NamedTuple):
    """A block of code."""

    place: str  # of its first line, 'docs/start.md:7'
    section: str  # the heading above it
    language: str  # '' of an indented one
    text: str
    said: dict[str, str]  # by the comment above it

    @property
    def not_run(self) -> str:
        """The reason, '' if it is run."""
        return self.said.get("not run", "")


def pages() -> list[str]:
    """Every document that is read as Markdown, by its path within the repository."""
    found = [p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts]
    return sorted(p.relative_to(ROOT).as_posix() for p in found) + ["README.md"]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in their order."""
    found, heading, above = [], "", ""
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[i + 1].content
        if token.type in ("fence", "code_block"):
            said = {name: text.strip() for name, text in _COMMENT.findall(above)}
            line = token.map[0] + 1 if token.map else 0
            language = token.info.split()[0] if token.info else ""
            found.append(Block(f"{page}:{line}", heading, language, token.content, said))
        above = token.content if token.type == "html_block" else ""
    return found


def code_spans(page: str) -> list[str]:
    """What stands in single backticks."""
    tokens = MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
    return [c.content for t in tokens for c in t.children or () if c.type == "code_inline"]
