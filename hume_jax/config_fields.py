"""Every config field with what `configs/common.py` says about it: for `--help` and the documents.

The text of a field is the comment above the line that makes it, so there is one place to write it.
"""

import ast
import functools
import io
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from hume_jax import config as config_lib

# A field that a preset fills stands there once for each of them, `fast.n_tasks, paper.n_tasks = `.
_PRESETS = ("fast", "paper")


class Field(NamedTuple):
    """A field of a config."""

    name: str  # dotted, as in --config.NAME
    type: str  # 'bool', 'int', 'float', 'str', 'tuple', or several with '|' between
    comment: str  # what it is, in sentences
    fast: Any  # value under `preset=fast`, None if there is none
    paper: Any  # value under `preset=paper`


class Section(NamedTuple):
    """Fields that belong together."""

    name: str  # what their names begin with, '' for the fields of the config itself
    comment: str  # what they are about, in sentences
    fields: tuple[Field, ...]


class _Statement(NamedTuple):
    """An assignment to attributes, the comment above it, and what they may be the names of."""

    names: tuple[str, ...]
    comment: str  # '' where there is none


def sections(config: config_dict.ConfigDict | None = None) -> list[Section]:
    """Lists all fields of a config, section by section, in the order of `configs/common.py`.

    Args:
      config: whose values are given, presets not yet filled in, as `config.load` returns it; those
        of `configs/common.py` without it.

    Returns:
      The fields that can be set by `--config.NAME=VALUE`, which are all but those of `presets`.
      Those without a section come first; those of a section within a section, such as
      `data.train`, belong to the outer one.
    """
    shared = config_lib.common.get_config()
    config = shared if config is None else config
    values = config_lib.flatten(config)
    presets = config_lib.flatten(config.get("presets", {}))
    comments = _comments()
    found: dict[str, list[Field]] = {name: [] for name in ("", *_names(shared))}
    known = [name for name in config_lib.flatten(shared) if not name.startswith("presets.")]
    # One that no line makes by its name is there too, and seen to have no comment.
    for name in sorted(known, key=[*comments, *known].index):
        given = values.get(name)
        fast, paper = (presets.get(f"{p}.{name}") if given is None else given for p in _PRESETS)
        section = name.partition(".")[0] if "." in name else ""
        found[section].append(Field(name, _type(shared, name), comments.get(name, ""), fast, paper))
    return [Section(name, comments.get(name, ""), tuple(each)) for name, each in found.items()]


def _names(config: config_dict.ConfigDict) -> list[str]:
    """The sections, in the order in which `get_config` makes them."""
    there = {n for n in config if isinstance(config[n], config_dict.ConfigDict)} - {"presets"}
    return [name for statement in _statements() for name in statement.names if name in there]


def _type(config: config_dict.ConfigDict, name: str) -> str:
    *outer, last = name.split(".")
    kind = functools.reduce(lambda section, part: section[part], outer, config).get_type(last)
    return " | ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))


def _comments() -> dict[str, str]:
    """The comment of each name, of fields and sections, in the order of the lines."""
    comments: dict[str, str] = {}
    for statement in _statements():
        for name in statement.names:
            comments[name] = comments.get(name) or statement.comment
    return comments


@functools.cache
def _statements() -> tuple[_Statement, ...]:
    """The assignments to attributes in `configs/common.py`.

    What `get_config` itself adds to a section follows what is there; else from top to bottom.
    """
    path = config_lib.config_folder() / "common.py"
    text = path.read_text(encoding="utf-8")
    tree, comments = ast.parse(text), _own_lines(text)
    made = _made_by(tree)
    own: list[_Statement] = []
    parts: list[_Statement] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            prefix = f"{made[node.name]}." if made.get(node.name) else ""
            block = _in_block(node.body, (prefix,), comments)
            (own if node.name == "get_config" else parts).extend(block)
    first = [statement for statement in own if "." not in statement.names[0]]
    return (*first, *parts, *(statement for statement in own if statement not in first))


def _in_block(
    block: Sequence[ast.stmt], prefixes: Sequence[str], comments: Mapping[int, str]
) -> Iterator[_Statement]:
    last, ended = "", 0
    for statement in block:
        if isinstance(statement, ast.For):
            yield from _in_block(statement.body, _inside(statement, prefixes), comments)
        if not isinstance(statement, ast.Assign):
            continue
        above = _above(statement.lineno, comments)
        # Lines that follow each other share what stands above the first.
        if not above and statement.lineno == ended + 1:
            above = last
        last, ended = above, statement.end_lineno or statement.lineno
        paths = dict.fromkeys(filter(None, map(_path, _targets(statement))))
        if paths:
            yield _Statement(tuple(p + path for path in paths for p in prefixes), above)


def _inside(loop: ast.For, prefixes: Sequence[str]) -> Sequence[str]:
    """Prefixes within a loop that makes sections of a section: `for split in ("train", "test")`."""
    over = loop.iter.elts if isinstance(loop.iter, ast.Tuple) else []
    names = [str(each.value) for each in over if isinstance(each, ast.Constant)]
    return [f"{prefix}{name}." for prefix in prefixes for name in names] or prefixes


def _targets(statement: ast.Assign) -> Iterator[ast.expr]:
    for target in statement.targets:
        yield from target.elts if isinstance(target, ast.Tuple) else (target,)


def _path(target: ast.expr) -> str:
    """`a.b` of `config.a.b`, '' of what is no attribute of a variable."""
    parts: list[str] = []
    while isinstance(target, ast.Attribute):
        parts.insert(0, target.attr)
        target = target.value
    return ".".join(parts) if isinstance(target, ast.Name) else ""


def _made_by(tree: ast.Module) -> dict[str, str]:
    """Which section each function returns: `config.mesh = _mesh()`."""
    return {
        node.value.func.id: _path(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and not node.value.args
    }


def _own_lines(text: str) -> dict[int, str]:
    """The comments that have a line to themselves, by its number."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokens
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
    }


def _above(line: int, comments: Mapping[int, str]) -> str:
    first = line
    while first - 1 in comments:
        first -= 1
    return " ".join(comments[number] for number in range(first, line))
