"""What the commands share: the config's flags, and each mistake answered with one line."""

import contextlib
import errno
import functools
import logging
import os
import re
import signal
import sys
import traceback
import types
from collections.abc import Callable, Collection, Iterator
from typing import NoReturn, TypeVar

from absl import app, flags
from ml_collections import config_dict, config_flags
from ml_collections.config_flags import config_path

from hume_jax import command_help, joining, processes
from hume_jax import config as config_lib
from hume_jax.errors import LostProcess, Preempted, UserError

_T = TypeVar("_T")
# What a field of each type takes, in words.
_TAKES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: 'numbers in brackets and quotes, "(10,20)"',
    config_lib.NUMBER: "a whole number, or auto",
    config_lib.PRIOR: 'numbers in brackets and quotes, "(0.2,0.8)", or estimate',
}
# Of a disk that takes no more.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
FLAGS = flags.FLAGS

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The config, FILE.py or FILE.py:variant.",
    lock_config=True,
)

_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Several hosts: auto, or HOST:PORT of process 0.",
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many, with --distributed=HOST:PORT.")
_PROCESS = flags.DEFINE_integer("process", 0, "Which of them this is, counted from 0.")

# What is left to absl; `command_help` has the help of a command.
_HELP = re.compile(r"--?help(full|xml)$")
_FIELD = re.compile(r"--?(no)?config\.(?P<name>[^=]+)")


def given() -> tuple[config_dict.ConfigDict, str]:
    """Returns the config that the flags give, not resolved, and how `--config` names it."""
    return _CONFIG.value, config_flags.get_config_filename(FLAGS["config"])


def load_encoding() -> types.ModuleType:
    """Imports what encodes images.

    Raises:
      UserError: a package that it needs is not installed.
    """
    try:
        from hume_jax import encoding
    except ImportError as error:
        raise UserError(
            f'encoding images needs more packages ({error}): pip install "hume_jax[images]"'
        ) from error
    return encoding


@contextlib.contextmanager
def joined() -> Iterator[processes.Processes]:
    """The processes of a run, joined as the flags say, before anything asks for a device.

    Several end by `Preempted` where SIGTERM comes to one of them; for a process by itself it is
    soon enough that its work listens.
    """
    found = joining.start(_DISTRIBUTED.value, _PROCESSES.value, _PROCESS.value)
    if found.total == 1:
        yield found
        return
    from hume_jax import preemption  # with JAX, which a process by itself does not need yet

    # What comes once they leave, after the block, changes nothing: they wait for each other then.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with preemption.ending(found):
        yield found


def run(main: Callable[[list[str]], None], sections: Collection[str] | None = None) -> None:
    """Runs a command, or prints its help where that is asked for.

    Args:
      main: it is given the arguments that are left once the flags are read.
      sections: of the config that the command reads, for its help; None for all.
    """
    module = sys.modules[main.__module__]
    if helped(module, lambda: command_help.of_module(module), sections):
        return
    hush_backends()
    app.run(guarded(main), flags_parser=guarded(parse_flags))


def run_plain(main: Callable[[list[str]], None], *, arguments: bool = False) -> None:
    """Runs a command that takes no config, or prints its help where that is asked for.

    Args:
      main: it is given what is left once the flags are read.
      arguments: whether it takes some beside its flags, which may stand before them.
    """
    module = sys.modules[main.__module__]
    if helped(module, lambda: command_help.of_module(module), ()):
        return
    hush_backends()
    parse = functools.partial(parse_plain, arguments=arguments)
    app.run(guarded(main), flags_parser=guarded(parse))


def parse_plain(argv: list[str], *, arguments: bool = False) -> list[str]:
    """Reads the flags of a command that takes no config, which may stand behind other arguments.

    Args:
      argv: the command line, as in `sys.argv`.
      arguments: whether others than flags may be left.

    Returns:
      What is left of it, the name of the program first.

    Raises:
      UserError: an unknown flag, a value that is not of its type, or an argument that is no flag.
    """
    # They are known, since this module is there, but nobody would look at them.
    others = {flag.name for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])}
    for arg in argv:
        if (match := re.match(r"--?(\w+)", arg)) and match[1] in others:
            raise UserError(f"unknown command line flag {match[1]!r}")
    FLAGS.set_gnu_getopt()
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        text = str(error)
        raise UserError(text[:1].lower() + text[1:]) from error
    return rest if arguments else _no_arguments(rest)


def _no_arguments(rest: list[str]) -> list[str]:
    """What is left of a command line, once it is known to be the name of the program alone."""
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    return rest


def helped(
    module: types.ModuleType,
    options: Callable[[], list[command_help.Option]],
    sections: Collection[str] | None = None,
) -> bool:
    """Prints the help of a command where that is asked for, and says whether it was.

    Args:
      module: of the command.
      options: gives its flags.
      sections: of the config that it reads; None for all, () for none.
    """
    if not command_help.asked_for(sys.argv[1:]):
        return False
    with printing():
        guarded(lambda argv: command_help.show(module, options(), sections, argv))(sys.argv[1:])
    return True


def hush_backends() -> None:
    """Keeps from the log what this machine does not have, and whose service SIGTERM is not yet."""
    for name in ("jax._src.xla_bridge", "faiss"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("jax._src.distributed").addFilter(
        lambda record: "preemption service" not in record.getMessage()
    )


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the flags, answering each mistake with one line.

    Args:
      argv: the command line, as in `sys.argv`.

    Returns:
      What is left of it: the name of the program.

    Raises:
      UserError: no config, or one that cannot be loaded; an unknown flag or field; a value that is
        not of its field's type.
    """
    argv = FLAGS.read_flags_from_files(argv, force_gnu=False)
    if any(_HELP.match(arg) for arg in argv):
        return FLAGS(argv)
    at, spec = _find_config(argv)
    # Loaded here first: `config_flags` wraps what goes wrong in a traceback of its own.
    config = config_lib.load(spec)
    for arg in argv:
        if match := _FIELD.match(arg):
            config_lib.check_field(match["name"], config)
    name, colon, variant = spec.partition(":")
    argv = [*argv[:at], f"--config={config_lib.locate(name)}{colon}{variant}", *argv[at + 1 :]]
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        raise UserError(_tidy(str(error), config)) from error
    return _no_arguments(rest)


def _find_config(argv: list[str]) -> tuple[int, str]:
    """Returns where --config stands, as one argument, and what it says."""
    found = [i for i, arg in enumerate(argv) if re.match(r"--?config(=|$)", arg)]
    if not found:
        raise UserError(
            "no config: give --config=configs/quickstart.py, or another of "
            f"{', '.join(config_lib.names())}"
        )
    if len(found) > 1:
        raise UserError("--config is given twice")
    at = found[0]
    flag, equals, spec = argv[at].partition("=")
    if not equals and at + 1 < len(argv):
        spec = argv.pop(at + 1)
    if not spec:
        raise UserError(f"{flag} needs a file: --config=configs/quickstart.py")
    return at, spec


def _tidy(text: str, config: config_dict.ConfigDict) -> str:
    """Rewords what absl says about a field's value: `flag --config.n_tasks=x: invalid ...`."""
    match = re.match(r"flag --config\.([^=]+)=(.*?): ", text, re.DOTALL)
    if not match:
        return text[:1].lower() + text[1:]
    kind = config_path.get_type(match[1], config)
    takes = _TAKES.get(kind, "paths: a.npy, or \"('a.npy','b.npy')\" in quotes")
    return f"config field {match[1]!r} cannot be {match[2]!r}: it takes {takes}"


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """For what a command prints at its end: a reader such as `head` may have seen enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left to flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def guarded(function: Callable[[list[str]], _T]) -> Callable[[list[str]], _T]:
    """Turns a `UserError` into one line and exit status 2; nothing is left open by then.

    `Preempted` ends with its own status. A process of several that ends by whatever error does not
    keep the others waiting for it.
    """

    def call(argv: list[str]) -> _T:
        try:
            return _told(function, argv)
        except LostProcess as error:
            error.end()
        except Preempted as stop:
            print(stop, file=sys.stderr)
            processes.leave(Preempted.STATUS)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            _exit(2)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                _fail(1)
            where = f" to {error.filename}" if error.filename else ""
            print(
                f"error: cannot write{where}: {error.strerror}; make room, or choose another "
                "place: the same command goes on from what is on disk",
                file=sys.stderr,
            )
            _exit(2)
        except KeyboardInterrupt:
            _fail(130)
        except Exception:  # noqa: BLE001, it is raised again, or printed whole
            _fail(1)

    return call


def _told(function: Callable[[list[str]], _T], argv: list[str]) -> _T:
    """Calls a function, whose errors, once the processes are told to end, say no more than that."""
    try:
        return function(argv)
    except Preempted:
        raise
    except Exception as error:
        if not processes.stopping():
            raise
        logging.info("at the end: %s", error)
        raise Preempted from error


def _fail(status: int) -> NoReturn:
    """Ends by the exception of now, as Python does, but for others that wait for this process."""
    if not processes.in_company():
        raise  # noqa: PLE0704
    traceback.print_exc()
    processes.leave(status)


def _exit(status: int) -> NoReturn:
    if processes.in_company():
        processes.leave(status)
    sys.exit(status)
