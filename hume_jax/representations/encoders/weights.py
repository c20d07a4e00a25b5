"""Parameters from published weights, with every tensor of the file accounted for."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from hume_jax.errors import UserError
from hume_jax.representations.encoders.tensor_files import TensorFile
from hume_jax.representations.encoders.tensor_files import read as read

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_DAMAGED = "not finite"
# Names of one list in a message.
_LISTED = 6


class Rule(NamedTuple):
    """Where one parameter comes from."""

    names: tuple[str, ...]  # tensors of the file, in the order `build` takes them
    shapes: tuple[tuple[int, ...], ...]  # what each must have in the file; -1 is any size
    build: Callable[..., np.ndarray]  # float32 arrays of the file -> the parameter in our layout


# Under the path of the parameter, joined by "/": "block_0/attention/qkv/kernel".
Rules = Mapping[str, Rule]


def assemble(
    rules: Rules, tensors: Mapping[str, np.ndarray], *, where: str, ignored: Sequence[str] = ()
) -> dict[str, Any]:
    """Builds a model's parameters, with every tensor accounted for.

    Args:
      rules: where each parameter comes from.
      tensors: of the file, under its names; of a `TensorFile`, shapes are checked before anything
        is read.
      where: names the file in messages.
      ignored: regular expressions of whole names that may be there without being used.

    Returns:
      The parameters as nested dicts of float32 arrays.

    Raises:
      UserError: one message that lists, by name, the tensors that no rule uses and `ignored` does
        not cover, those that are missing and those of another shape; or, where all are as they
        should be, those that do not hold finite floating-point numbers. Or what a rule finds wrong.
    """
    expected = _expected(rules)
    wrong = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": _unexpected(tensors, expected, ignored),
        "of another shape": _misshapen(tensors, expected),
    }
    _raise_if_any(wrong, where)
    params: dict[str, Any] = {}
    wrong = {"not floating-point": [], _DAMAGED: []}
    for key, rule in rules.items():
        arrays = [_as_float32(name, tensors[name], wrong) for name in rule.names]
        *levels, last = key.split("/")
        node = params
        for level in levels:
            node = node.setdefault(level, {})
        try:
            node[last] = np.ascontiguousarray(rule.build(*arrays), dtype=np.float32)
        except UserError as error:
            raise UserError(f"{where}, {', '.join(rule.names)}: {error}") from error
    _raise_if_any(wrong, where)
    return params


def _expected(rules: Rules) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that rules use, under its name."""
    pairs = [zip(rule.names, rule.shapes, strict=True) for rule in rules.values()]
    return {name: tuple(shape) for pair in pairs for name, shape in pair}


def _unexpected(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any], ignored: Sequence[str]
) -> list[str]:
    patterns = [re.compile(pattern) for pattern in ignored]
    return [
        name
        for name in tensors
        if name not in expected and not any(pattern.fullmatch(name) for pattern in patterns)
    ]


def _misshapen(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    found = []
    for name, shape in expected.items():
        if name not in tensors:
            continue
        in_file = tensors.shape(name) if isinstance(tensors, TensorFile) else tensors[name].shape
        fits = len(in_file) == len(shape) and all(
            size in (-1, there) for size, there in zip(shape, in_file, strict=True)
        )
        if not fits:
            found.append(f"{name} {tuple(in_file)} instead of {shape}")
    return found


def _as_float32(name: str, array: np.ndarray, wrong: dict[str, list[str]]) -> np.ndarray:
    """Converts a tensor, and writes down its name where it cannot be a weight."""
    if array.dtype.name not in _FLOATS:
        wrong["not floating-point"].append(f"{name} ({array.dtype.name})")
        return np.zeros(array.shape, np.float32)
    with np.errstate(over="ignore"):
        values = np.asarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        wrong[_DAMAGED].append(name)
    return values


def unknown_layout(kind: str, wanted: Sequence[str], names: Collection[str]) -> UserError:
    """Returns the error about a file whose names are in none of the layouts of a kind of model.

    Args:
      kind: of model.
      wanted: a tensor of each layout.
      names: of the file's tensors.
    """
    return UserError(
        f"these weights are in no known layout of a {kind}; missing: {' or '.join(wanted)}; "
        f"unexpected: {_listed(sorted(names)) or 'none, the file is empty'}. Give the weights of "
        "this encoder, or the encoder of these weights"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def _raise_if_any(wrong: Mapping[str, Sequence[str]], where: str) -> None:
    # One tensor may serve several parameters.
    found = {what: list(dict.fromkeys(names)) for what, names in wrong.items() if names}
    if not found:
        return
    for what, names in found.items():
        if len(names) > _LISTED:
            # All of them, ahead of the line that says how many.
            logging.info("%s: %d %s: %s", where, len(names), what, ", ".join(names))
    told = "; ".join(f"{len(names)} {what}: {_listed(names)}" for what, names in found.items())
    if list(found) == [_DAMAGED]:
        # The tensors are those of this encoder, and what is in one of them cannot be meant.
        raise UserError(
            f"{where} is damaged, or was saved so; of its tensors, {told}. Get the file anew"
        )
    raise UserError(
        f"{where} does not fit this model; of its tensors, {told}. "
        "Give the weights of this encoder, or the encoder of these weights"
    )
