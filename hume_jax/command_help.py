"""What `--help` prints: examples, the flags of a command, and the config fields that it reads."""

import argparse
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import config_fields
from hume_jax.verbs import VERBS

_NARROWEST, _WIDEST = 40, 100
# Flags stand beside what they do up to this width, above it where they are longer.
_FLAG = 20


class Option(NamedTuple):
    """A flag of a command."""

    flag: str  # as it is written, '--process=N'
    text: str  # what it does, and its default


def of_module(module: types.ModuleType) -> list[Option]:
    """Lists the flags that a command defines by absl, or takes over from a module that it uses."""
    return [_of_flag(flag) for flag in flags.FLAGS.get_key_flags_for_module(module)]


def of_parser(parser: argparse.ArgumentParser) -> list[Option]:
    """Lists the flags of a command that reads them by argparse."""
    options = []
    for action in parser._actions:
        if action.option_strings and action.help is not argparse.SUPPRESS and action.dest != "help":
            kind = action.type if isinstance(action.type, type) else str
            form = "|".join(map(str, action.choices)) if action.choices else _form(kind)
            value = "" if action.nargs == 0 else f"={form}"
            options.append(
                Option(
                    action.option_strings[-1] + value, _with_default(action.help, action.default)
                )
            )
    return options


def asked_for(arguments: Collection[str]) -> bool:
    """Whether a command line asks for this help, and not for absl's `--helpfull`."""
    return any(re.fullmatch(r"--?(help(short)?|h|\?)", argument) for argument in arguments)


def program(module: types.ModuleType) -> str:
    """How the command is called: `hume VERB`, or `python -m hume_jax.MODULE`."""
    name = sys.argv[0]
    if name.startswith("hume "):
        return name
    # Started by its own name, the module has that in `__spec__` alone.
    found = module.__spec__.name if module.__spec__ else name
    return f"python -m {found.removesuffix('.__main__')}"


def page(
    doc: str,
    command: str,
    options: Collection[Option],
    *,
    config: config_dict.ConfigDict | None = None,
    sections: Collection[str] | None = None,
    width: int = 0,
) -> str:
    """Puts the help of a command together.

    Args:
      doc: the docstring of its module: what it does, and examples, which are indented.
      command: as `program` gives it.
      options: its flags.
      config: whose values the fields have, that of a file where one was named; else both presets'.
      sections: those of the fields that the command reads, '' for the ones outside a section; None
        for all, () for none.
      width: of the lines, that of the terminal where it is 0.

    Returns:
      Lines of text.
    """
    width = width or min(max(_NARROWEST, shutil.get_terminal_size().columns), _WIDEST)
    reads = sections is None or bool(sections)
    usage = f"usage: {command} [--FLAG=VALUE ...]"
    if reads:
        usage += " [--config.FIELD=VALUE ...]"
    blocks = [_fill(usage, width, after="    "), *_reflowed(_called(doc, command), width)]
    blocks += ["Flags:", _listed(options, width)]
    if reads:
        preset = config.preset if config is not None else None
        blocks.append(_intro(preset, width))
        for section in config_fields.sections(config):
            if sections is None or section.name in sections:
                blocks += _of_section(section, preset, command, width)
    return "\n\n".join(blocks)


def show(
    module: types.ModuleType,
    options: Collection[Option],
    sections: Collection[str] | None,
    arguments: list[str],
) -> None:
    """Prints the help of a command.

    Args:
      module: of the command, which has the docstring.
      options: its flags.
      sections: as for `page`.
      arguments: of the command line; a config file among them gives its values.

    Raises:
      UserError: there is no such config file, or it cannot be loaded.
    """
    config = config_lib.load(spec) if (spec := _config_of(arguments)) else None
    doc = module.__doc__ or ""
    print(page(doc, program(module), options, config=config, sections=sections))


def _called(text: str, command: str) -> str:
    """A text whose commands are called as this one is."""
    if command.startswith("hume "):
        for verb in VERBS:
            text = re.sub(rf"{re.escape(verb.command)}\b", f"hume {verb.name}", text)
    return text


def _config_of(arguments: list[str]) -> str:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(=(?P<spec>.*))?", argument, re.DOTALL):
            spec = match["spec"] if match[1] else following
            return "" if asked_for([spec]) else spec
    return ""


def _of_flag(flag: flags.Flag[Any]) -> Option:
    if flag.boolean:
        form = ""
    elif flag.name == "config":
        form = "=FILE.py"
    elif isinstance(flag, flags.EnumFlag):
        form = f"={'|'.join(flag.parser.enum_values)}"
    else:
        form = f"={_form({'int': int, 'float': float}.get(flag.flag_type(), str))}"
    # absl puts the choices before what it is given as help, and a sentence on lists behind it.
    text = re.sub(
        r"^<[^>]*>: |;\s+repeat this option to specify a list of values$", "", flag.help or ""
    )
    return Option(f"--{flag.name}{form}", _with_default(text, flag.default))


def _form(kind: type) -> str:
    return {int: "N", float: "NUMBER"}.get(kind, "VALUE")


def _with_default(text: str | None, default: Any) -> str:
    text = " ".join((text or "").split())
    if not default or default == argparse.SUPPRESS or "default" in text:
        return text
    return f"{text.rstrip('.')} (default: {default})."


def _reflowed(doc: str, width: int) -> Iterator[str]:
    """Fills paragraphs and points of a list; what is indented, the commands, stays as it is."""
    for block in textwrap.dedent(doc.strip()).split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith(" "):
            yield block
            continue
        for points, group in groupby(lines, key=lambda line: line.startswith(("* ", "  "))):
            text = "\n".join(group)
            parts = re.split(r"\n(?=\* )", text) if points else [text]
            hanging = "  " if points else ""
            yield "\n".join(_fill(part, width, after=hanging) for part in parts)


def _listed(options: Collection[Option], width: int) -> str:
    lines = []
    for flag, text in options:
        first = f"  {flag:<{_FLAG}}  "
        if len(flag) > _FLAG:
            lines.append(f"  {flag}")
            first = " " * (_FLAG + 4)
        lines.append(_fill(text, width, first, " " * (_FLAG + 4)))
    return "\n".join(lines)


def _intro(preset: str | None, width: int) -> str:
    text = "Fields of the config, set by --config.FIELD=VALUE, with "
    if preset is not None:
        return _fill(f"{text}the values of this file and preset={preset}:", width)
    text += "their defaults, and in brackets those of preset=paper where they differ"
    return _fill(f"{text} (--config=FILE.py --help: those of the file):", width)


def _of_section(
    section: config_fields.Section, preset: str | None, command: str, width: int
) -> Iterator[str]:
    if section.name:
        yield _fill(f"{section.name}: {section.comment}".rstrip(": "), width)

    def told(field: config_fields.Field) -> tuple[str, str]:
        return _called(field.comment, command), _values(field, preset)

    # What is said of several fields in one comment is printed once.
    for (comment, values), group in groupby(section.fields, key=told):
        names = ", ".join(field.name for field in group)
        yield f"  {names} = {values}\n" + _fill(comment, width, "      ", "      ")


def _values(field: config_fields.Field, preset: str | None) -> str:
    if preset is not None:
        return _text(field.paper if preset == "paper" else field.fast)
    fast, paper = _text(field.fast), _text(field.paper)
    return fast if fast == paper else f"{fast} (paper: {paper})"


def _text(value: Any) -> str:
    """A value as a flag takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"({','.join(map(repr, value))})"
    return str(value) if value != "" else "''"


def _fill(text: str, width: int, first: str = "", after: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=after,
        break_long_words=False,
        break_on_hyphens=False,
    )
