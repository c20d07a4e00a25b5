"""Stands for `hume`, `python` and schedulers in the shell blocks of the documents.

As `hume ARGUMENTS` it is that command, where it takes a config with the arguments of DOC_ARGUMENTS
behind its own, and with one encoder more, `tiny`. Programs of `note_instead` run nothing: they note
what they were told, and `check` reads the flags of that as the commands would.
"""

import importlib
import json
import os
import pathlib
import shlex
import sys

from hume_jax import command_line, verbs

# Each program's name and arguments, apart by one character, and a second one at their end.
_APART, _END = "\037", "\036"
_NOTE = """#!/bin/sh
for argument; do
    # What schedulers are to start is noted in their place.
    case $argument in --wrap=*|--command=*) exec bash -c "${argument#*=}";; esac
done
# At once: commands may run side by side.
printf '%s\\036' "$(printf '%s\\037' NAME "$@")" >> NOTED
"""
_PROGRAMS = ("hume", "python", "sbatch", "gcloud")


def install(folder: pathlib.Path) -> None:
    """Puts `hume` and `python` into a folder, for PATH."""
    _write(folder / "hume", f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" hume "$@"\n')
    _write(folder / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')


def note_instead(folder: pathlib.Path, noted: pathlib.Path) -> None:
    """Puts programs into a folder that note in a file what they were told."""
    for name in _PROGRAMS:
        _write(folder / name, _NOTE.replace("NAME", name).replace("NOTED", shlex.quote(str(noted))))
    _write(folder / "srun", '#!/bin/sh\nexec "$@"\n')


def _write(program: pathlib.Path, text: str) -> None:
    program.write_text(text)
    program.chmod(0o755)


def read(noted: pathlib.Path) -> list[list[str]]:
    """The commands that were noted."""
    return [c.split(_APART)[:-1] for c in noted.read_text(encoding="utf-8").split(_END)[:-1]]


def main(arguments: list[str]) -> None:
    """`hume`, as it is typed in the documents."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import tiny_encoder

    from hume_jax import cli
    from hume_jax.representations.encoders import presets

    presets.PRESETS["tiny"] = tiny_encoder.preset
    # Those of fields: what takes no config has none.
    configured = any(argument.startswith("--config=") for argument in arguments)
    more = shlex.split(os.environ.get("DOC_ARGUMENTS", "")) if configured else []
    sys.argv = ["hume", *arguments, *more]
    cli.run()


def check(commands: list[list[str]]) -> list[str]:
    """What is wrong with the flags of commands, each read by a process that is forked for it."""
    # Most are of these, whose import takes long, without JAX: its threads do not stand a fork.
    often = ("run", "sweep", "encode", "")
    seldom = [command for command in commands if _verb(command) not in often]
    found = [_fault(command) for command in seldom]
    # Not before, for verbs may have flags of one name.
    for module in ("main", "sweep", "encode"):
        importlib.import_module(f"hume_jax.{module}")
    found += [_fault(command) for command in commands if _verb(command) in often]
    return list(filter(None, found))


def _verb(command: list[str]) -> str:
    """The verb of a command, '' of a script."""
    name, *arguments = command
    if name == "hume":
        return arguments[0]
    by_module = {verb.command.split()[-1]: verb.name for verb in verbs.VERBS}
    return by_module[arguments[1]] if arguments[0] == "-m" else ""


def _fault(command: list[str]) -> str:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            _read_flags(command)
        except BaseException as error:  # noqa: BLE001, whatever it is, it is told
            os.write(write, f"{shlex.join(command)}: {error!r}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as file:
        return file.read().decode()


def _read_flags(command: list[str]) -> None:
    name, *arguments = command
    if not (called := _verb(command)):
        _script(*arguments)
        return
    (verb,) = [verb for verb in verbs.VERBS if verb.name == called]
    arguments = arguments[2:] if name == "python" else arguments[1:]
    # Fields of a config are looked for there.
    sys.argv = [name, *arguments]
    module = importlib.import_module(verb.module)
    getattr(module, "define_flags", lambda: None)()
    if verb.name == "sweep":
        module.parse_arguments(arguments)
    elif any(argument.startswith("--config") for argument in arguments):
        command_line.parse_flags(sys.argv)
    elif "--list" not in arguments:
        command_line.parse_plain(sys.argv)


def _script(path: str, *arguments: str) -> None:
    """A script is there, and flags like those in it or in what is beside it."""
    assert pathlib.Path(path).is_file(), f"there is no {path}"
    sources = "".join(p.read_text() for p in pathlib.Path(path).parent.glob("*.py"))
    given = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for argument in given:
        flag = argument.partition("=")[0]
        # Some are made of names: f"--{name}".
        known = (
            f'"{flag}"' in sources
            or f'"{flag[2:]}"' in sources
            or flag.startswith(("--config.", "--noconfig."))
        )
        assert known or not flag.startswith("--"), f"no script has a flag {flag}"


if __name__ == "__main__":
    if sys.argv[1] == "check":
        json.dump(check(json.load(sys.stdin)), sys.stdout)
    else:
        main(sys.argv[2:])
