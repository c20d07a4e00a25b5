"""Where the time of a block of steps goes: a trace of it, and a table of its parts."""

import contextlib
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

# The scopes that `core` names, in the order of a step.
PARTS = ("split", "labels", "inner_fit", "adjoint", "held_out", "update")
OTHER = "other"
KINDS = ("products", "exchanges", "rest")
# What holds other operations, which have events of their own.
_CONTAINERS = ("while", "call", "conditional")
_EXCHANGES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = .*? (?P<op>[a-z][\w-]*)\(")
_SCOPE = re.compile(r'op_name="(?P<scope>[^"]*)"')


class Operation(NamedTuple):
    """What an instruction of a compiled program belongs to."""

    part: str  # of `PARTS`, or `OTHER`
    kind: str  # of `KINDS`


@contextlib.contextmanager
def traced(folder: Path) -> Iterator[None]:
    """Traces what runs within, for TensorBoard or Perfetto, to a folder of its own."""
    options = jax.profiler.ProfileOptions()
    # Calls of Python would be most of the events, of which the trace holds a million.
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield


def operations(programs: Iterable[str]) -> dict[str, Operation | None]:
    """The operations of compiled programs by the names of their instructions, None for containers.

    Args:
      programs: their texts, as `jax.stages.Compiled.as_text`.
    """
    found: dict[str, Operation | None] = {}
    for line in (line for text in programs for line in text.splitlines()):
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        scope = _SCOPE.search(line)
        path = scope["scope"] if scope else ""
        code = instruction["op"]
        container = code in _CONTAINERS
        found[instruction["name"]] = (
            None if container else Operation(_part(path), _kind(code, line))
        )
    return found


def _part(path: str) -> str:
    names = [name for name in re.findall(r"\w+", path) if name in PARTS]
    if not names:
        return OTHER
    # Reverse mode through the steps of the fit.
    return "adjoint" if names[-1] == "inner_fit" and "transpose(" in path else names[-1]


def _kind(code: str, line: str) -> str:
    if code == "dot" or "dot_general" in line or "gemm" in line:
        return "products"
    return "exchanges" if code.startswith(_EXCHANGES) else "rest"


def seconds_of(folder: Path, known: Mapping[str, Operation | None]) -> dict[Operation, float]:
    """Seconds of the operations that the newest trace of a folder has, summed over threads.

    Args:
      folder: that `traced` was given.
      known: as `operations` returns them.
    """
    files = sorted(folder.glob("plugins/profile/*/*.trace.json.gz"))
    with gzip.open(files[-1], "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    found: dict[Operation, float] = {}
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if event.get("ph") != "X" or name is None:
            continue
        operation = known.get(name, Operation(OTHER, "rest"))
        if operation is not None:
            found[operation] = found.get(operation, 0.0) + event.get("dur", 0) / 1e6
    return found


def summary(found: Mapping[Operation, float], steps: int, wall: float) -> dict[str, Any]:
    """What `lines` prints and the run keeps.

    Args:
      found: as `seconds_of` returns it.
      steps: that were traced.
      wall: seconds that they took.
    """
    total = sum(found.values())
    parts = {
        part: {kind: found.get(Operation(part, kind), 0.0) / steps for kind in KINDS}
        for part in (*PARTS, OTHER)
    }
    return {
        "steps": steps,
        "seconds_per_step": wall / steps,
        "operations_per_step": total / steps,
        "parts": parts,
    }


def lines(summed: Mapping[str, Any]) -> Sequence[str]:
    """A table of parts by kinds: seconds of a step, and shares."""
    total = summed["operations_per_step"] or 1.0
    head = f"{'part':<12}" + "".join(f"{kind:>12}" for kind in KINDS) + f"{'share':>9}"
    rows = []
    for part, kinds in summed["parts"].items():
        cells = "".join(f"{kinds[kind]:>12.4f}" for kind in KINDS)
        rows.append(f"{part:<12}{cells}{sum(kinds.values()) / total:>9.1%}")
    sums = [sum(kinds[kind] for kinds in summed["parts"].values()) for kind in KINDS]
    rows.append(f"{'all':<12}" + "".join(f"{value:>12.4f}" for value in sums) + f"{1:>9.0%}")
    return [
        f"{summed['steps']} steps of {summed['seconds_per_step']:.4g} s while traced, which takes "
        "longer than without; seconds of a step's operations, summed over threads:",
        head,
        *rows,
    ]
