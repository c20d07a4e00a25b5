"""`config-fields`: every field of a config, by what `configs/common.py` says, at each build."""

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from hume_jax import config_fields


class ConfigFields(SphinxDirective):
    """A section for each section of a config, a `confval` for each field."""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(line for s in config_fields.sections() for line in _section(s))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _section(section: config_fields.Section) -> Iterator[str]:
    yield f"## {f'`{section.name}`' if section.name else 'The run'}\n"
    if section.comment:
        yield f"{_escaped(section.comment)}\n"
    for field in section.fields:
        yield f"```{{confval}} {field.name}\n:type: {field.type}\n:default: {_default(field)}\n"
        yield f"{_escaped(field.comment)}\n```\n"


def _default(field: config_fields.Field) -> str:
    fast, paper = f"`{field.fast!r}`", f"`{field.paper!r}`"
    return fast if fast == paper else f"{fast}, with `preset=paper` {paper}"


def _escaped(comment: str) -> str:
    """Comments are plain text, in which `_` and `*` stand for themselves."""
    return re.sub(r"(`[^`]*`)|([*_<])", lambda m: m[1] or f"\\{m[2]}", comment)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("config-fields", ConfigFields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
