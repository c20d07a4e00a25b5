"""`hume VERB`: the commands of the package under one name.

    hume run --config=configs/quickstart.py
    hume encode --list
    hume VERB --help

`hume VERB` is the same as `python -m hume_jax.VERB`, and imports no other command.
"""

import importlib
import sys
from collections.abc import Sequence

import hume_jax
from hume_jax import config_checks
from hume_jax.errors import UserError
from hume_jax.verbs import VERBS


def usage() -> str:
    """Returns what `hume --help` prints."""
    width = max(len(verb.name) for verb in VERBS)
    return "\n".join(
        [
            f"hume_jax {hume_jax.__version__}: finds the classes of a dataset without labels, from "
            "two\nrepresentations of it.",
            "",
            "usage: hume VERB [--FLAG=VALUE ...]",
            "",
            *(f"  {verb.name:<{width}}  {verb.does}" for verb in VERBS),
            "",
            "hume VERB --help lists the flags of a verb and the config fields that it reads.",
            "",
            "  hume run --config=configs/quickstart.py",
            "  hume run --config=configs/arrays.py --config.n_classes=10 \\",
            "      --config.data.train.phi1=a.npy --config.data.train.phi2=b.npy",
        ]
    )


def module_of(name: str) -> str:
    """Returns the module of a verb.

    Raises:
      UserError: there is no such verb.
    """
    for verb in VERBS:
        if verb.name == name:
            return verb.module
    known = [verb.name for verb in VERBS]
    if name.startswith("-"):
        raise UserError(f"the verb comes first, hume VERB {name}: one of {', '.join(known)}")
    # Of the module's name, as in `python -m hume_jax.choose_k`, the verb is near enough.
    hint = config_checks.suggest(name, known)
    raise UserError(f"unknown verb {name!r}{hint}; there are {', '.join(known)}")


def main(arguments: Sequence[str]) -> None:
    """Does what `hume ARGUMENTS` asks for.

    Args:
      arguments: the command line without the name of the program.

    Raises:
      UserError: there is no such verb.
    """
    if not arguments or arguments[0] in ("--help", "-h", "-?", "help"):
        print(usage())
        return
    if arguments[0] in ("--version", "-V", "version"):
        print(f"hume_jax {hume_jax.__version__}")
        return
    name, *rest = arguments
    module = module_of(name)
    # The name that its messages and its help go by.
    sys.argv = [f"hume {name}", *rest]
    importlib.import_module(module).run()


def run() -> None:
    """The console script `hume`."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
