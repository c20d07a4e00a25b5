"""What people make of found classes, by hand: names, merges and splits, in `classes.yaml`.

    names: {0: church, 4: golf ball}
    merge: [[2, 7], [1, 3, 9]]
    split: {5: 2}

Class numbers never shift, so labels of before and after can be compared. Merged classes take the
lowest of their numbers, and the others stay unused. The parts of a split class take its number, the
largest of them, and then K, K+1, ..., split by split in the order of the file. Names are those of
the classes after merges and splits.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import yaml

from hume_jax.errors import UserError

FILE = "classes.yaml"
_KEYS = ("names", "merge", "split")


class Edits(NamedTuple):
    """What a file of edits says."""

    n_classes: int  # K, of the run
    names: Mapping[int, str] = {}
    merge: tuple[tuple[int, ...], ...] = ()  # ascending numbers each
    split: Mapping[int, int] = {}  # number of parts, in the order of the file

    @property
    def changes(self) -> bool:
        """Whether labels are others than those of the run."""
        return bool(self.merge or self.split)

    @property
    def merged(self) -> dict[int, int]:
        """Class of the run -> the class that it is merged into, of those that are unused then."""
        return {c: group[0] for group in self.merge for c in group[1:]}

    @property
    def parts(self) -> dict[int, list[int]]:
        """Class of the run -> the numbers of its parts, of those that are split."""
        found, free = {}, self.n_classes
        for c, parts in self.split.items():
            found[c] = [c, *range(free, free + parts - 1)]
            free += parts - 1
        return found

    @property
    def numbers(self) -> list[int]:
        """The classes that there are after the edits, ascending."""
        added = [c for own in self.parts.values() for c in own[1:]]
        return [c for c in range(self.n_classes) if c not in self.merged] + added

    def becomes(self, c: int) -> list[int]:
        """The classes after the edits that a class of the run is, or is a part of."""
        return self.parts.get(c) or [self.merged.get(c, c)]

    def of(self, c: int) -> list[int]:
        """The classes of the run that a class after the edits is made of, or is a part of."""
        return [old for old in range(self.n_classes) if c in self.becomes(old)]

    def name_of_found(self, c: int) -> str:
        """What a class of the run is called by the names of what it becomes; '' for none.

        Of a split class these are the parts, and dots stand for those without a name.
        """
        own = self.becomes(c)
        named = [self.names[new] for new in own if new in self.names]
        return " / ".join([*named, *(["…"] if 0 < len(named) < len(own) else [])])

    def as_json(self) -> dict[str, Any]:
        """Merges and splits, as they are compared with those that a file was made by."""
        merge = sorted(list(group) for group in self.merge)
        return {"merge": merge, "split": [[c, parts] for c, parts in self.split.items()]}


class _File(Protocol):
    """A path on disk or in an object store."""

    def exists(self) -> bool:
        """Whether it is there."""
        ...

    def read_bytes(self) -> bytes:
        """What it holds."""
        ...


def read(path: _File, n_classes: int) -> Edits:
    """Reads a file of edits; none if it is not there.

    Args:
      path: RUN/classes.yaml.
      n_classes: K of the run.

    Raises:
      UserError: it is no YAML, or a key or a value in it is not what it may be.
    """
    if not path.exists():
        return Edits(n_classes)
    try:
        content = yaml.load(path.read_bytes().decode("utf-8"), _Loader)  # noqa: S506, a safe one
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{where}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    return parse(content, n_classes, str(path))


class _Loader(yaml.SafeLoader):
    """Plain values alone; a key that stands twice is an error, where YAML would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Returns a mapping."""
        found = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands there twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                found.add(key)
        return super().construct_mapping(node, deep=deep)


def parse(content: Any, n_classes: int, where: str = FILE) -> Edits:
    """Checks edits.

    Args:
      content: as YAML or JSON has them: `names`, `merge` and `split`, none of which must be there.
      n_classes: K of the run.
      where: the file, for messages.

    Raises:
      UserError: a key or a value is not what it may be.
    """
    if content is None:
        return Edits(n_classes)
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no keys: it may have {', '.join(_KEYS)}")
    for key in content:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {key!r}; it may have {', '.join(_KEYS)}")
    edits = Edits(n_classes, merge=_merge(content.get("merge"), n_classes, f"{where}: merge"))
    edits = edits._replace(split=_split(content.get("split"), edits, f"{where}: split"))
    return edits._replace(names=_names(content.get("names"), edits, f"{where}: names"))


def _merge(given: Any, n_classes: int, where: str) -> tuple[tuple[int, ...], ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(group, list) for group in given):
        raise UserError(f"{where} is {given!r}: it must be a list of lists, [[2, 7], [1, 3]]")
    seen: set[int] = set()
    for group in given:
        for c in group:
            _check_number(c, range(n_classes), where, f"0 to {n_classes - 1}")
            if c in seen:
                raise UserError(f"{where}: class {c} is there twice")
            seen.add(c)
        if len(group) < 2:
            raise UserError(f"{where}: {group} needs two classes or more")
    if len(given) == 1 and len(seen) == n_classes:
        raise UserError(f"{where}: all {n_classes} classes in one leave nothing to tell apart")
    return tuple(tuple(sorted(group)) for group in given)


def _split(given: Any, edits: Edits, where: str) -> dict[int, int]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{where} is {given!r}: it must say class: parts, {{5: 2}}")
    merged = {c for group in edits.merge for c in group}
    for c, parts in given.items():
        _check_number(c, range(edits.n_classes), where, f"0 to {edits.n_classes - 1}")
        if c in merged:
            raise UserError(f"{where}: class {c} is merged too: it can be one of the two")
        if type(parts) is not int or parts < 2:
            raise UserError(f"{where}: {c} is {parts!r}, it must be a number of parts, 2 or more")
    return dict(given)


def _names(given: Any, edits: Edits, where: str) -> dict[int, str]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{where} is {given!r}: it must say class: name, {{0: church}}")
    found: dict[int, str] = {}
    for c, name in given.items():
        if c in edits.merged and type(c) is int:
            raise UserError(
                f"{where}: class {c} is merged into {edits.merged[c]}: name class {edits.merged[c]}"
            )
        _check_number(c, edits.numbers, where, f"0 to {edits.numbers[-1]}")
        if not isinstance(name, str):
            raise UserError(f"{where}: {c} is {name!r}, which is no text: put it in quotes")
        text = " ".join(name.split())
        if not text:
            raise UserError(f"{where}: {c} has an empty name: leave it out")
        for other, taken in found.items():
            if taken == text:
                raise UserError(
                    f"{where}: classes {other} and {c} are both {text!r}: merge them, or give each "
                    "a name of its own"
                )
        found[c] = text
    return found


def _check_number(c: Any, known: Sequence[int], where: str, text: str) -> None:
    # True and False are integers of Python.
    if type(c) is not int or c not in known:
        raise UserError(f"{where}: there is no class {c!r}, they are numbered {text}")


def template(n_classes: int, sizes: Mapping[int, int]) -> str:
    """A file to begin with, in which all is a comment.

    Args:
      n_classes: K of the run.
      sizes: rows of each class that has some.
    """
    lines = [
        "# Names, merges and splits of the classes of this run. Take the # away where a line is to",
        "# count, then run: python -m hume_jax.classes --run=THIS_FOLDER",
        "#",
        "# Names of the classes as they are after merges and splits.",
        "names:",
        *(f"#  {c}: name  # {sizes.get(c, 0):,} rows" for c in range(n_classes)),
        "",
        "# Each list becomes one class, under its lowest number; the other numbers stay unused.",
        "#merge: [[2, 7], [1, 3]]" if n_classes > 7 else "#merge: [[0, 1]]",
        "",
        "# A class is searched for so many classes of its own. The largest keeps its number, the",
        f"# others take {n_classes} and what follows.",
        "#split: {0: 2}",
    ]
    return "\n".join(lines) + "\n"
