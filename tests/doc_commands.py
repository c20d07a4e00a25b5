"""Stands for `hume`, `python` and schedulers in the shell blocks of the documents.

As `hume ARGUMENTS` it is that command with the arguments of DOC_ARGUMENTS behind its own, and one
encoder more, `tiny`. With DOC_NOTED in the environment nothing is run: commands are noted in that
file, and `check` then reads their flags as the commands would.
"""

import importlib
import json
import os
import pathlib
import runpy
import shlex
import subprocess
import sys

NAMES = ("hume", "python", "sbatch", "gcloud")


def install(folder: pathlib.Path) -> None:
    """Puts programs of these names into a folder, for PATH."""
    for name in NAMES:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)


def main(name: str, arguments: list[str]) -> None:
    if noted := os.environ.get("DOC_NOTED"):
        inner = [a.partition("=")[2] for a in arguments if a.startswith(("--wrap=", "--command="))]
        for command in inner:
            subprocess.run(["bash", "-c", command.replace("srun ", "")], check=True)
        if not inner:
            with open(noted, "a", encoding="utf-8") as file:
                file.write(json.dumps([name, *arguments]) + "\n")
    elif name == "hume":
        sys.path.insert(0, str(pathlib.Path(__file__).parent))
        import tiny_encoder

        from hume_jax import cli
        from hume_jax.representations.encoders import presets

        presets.PRESETS["tiny"] = tiny_encoder.preset
        sys.argv = ["hume", *arguments, *shlex.split(os.environ.get("DOC_ARGUMENTS", ""))]
        cli.run()
    elif name == "python":
        os.execv(sys.executable, [sys.executable, *arguments])
    else:
        sys.exit(f"{name} cannot be run")


def check(commands: list[list[str]]) -> list[str]:
    """What is wrong with the flags of commands, each read by a process that is forked for it."""
    return [fault for command in commands if (fault := _fault(command))]


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
    from hume_jax import command_line, verbs

    name, *arguments = command
    if name == "python" and arguments[0] != "-m":
        _script(*arguments)
        return
    if name == "python":
        module, arguments = arguments[1], arguments[2:]
        (verb,) = [v for v in verbs.VERBS if v.command == f"python -m {module}"]
    else:
        verb, arguments = next(v for v in verbs.VERBS if v.name == arguments[0]), arguments[1:]
    module = importlib.import_module(verb.module)
    getattr(module, "define_flags", lambda: None)()
    if verb.name in ("predict", "report"):
        command_line.parse_plain([name, *arguments])
    elif verb.name == "sweep":
        module.parse_arguments(arguments)
    elif "--list" not in arguments:
        command_line.parse_flags([name, *arguments])


def _script(path: str, *arguments: str) -> None:
    """A script is there, and flags like those in it or in what is beside it."""
    assert pathlib.Path(path).is_file(), f"there is no {path}"
    sources = "".join(p.read_text() for p in pathlib.Path(path).parent.glob("*.py"))
    given = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for argument in given:
        flag = argument.partition("=")[0]
        known = f'"{flag}"' in sources or flag.startswith(("--config.", "--noconfig."))
        assert known or not flag.startswith("--"), f"no script has a flag {flag}"


if __name__ == "__main__":
    if sys.argv[1] == "check":
        json.dump(check(json.load(sys.stdin)), sys.stdout)
    elif sys.argv[1] == "page":
        runpy.run_path(sys.argv[2])
    else:
        main(sys.argv[1], sys.argv[2:])
