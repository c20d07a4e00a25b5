"""What stands beside an encoded array: ``FILE.npy.json`` says what made it and whether it is whole.

An array without such a file is the user's own and is taken as it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.representations.arrays import checks

# What to do about rows that are not all there.
GO_ON = "the same `python -m hume_jax.encode` command goes on with it"


def place(array: Path) -> Path:
    """Returns where the side file of an array lies."""
    return array.with_name(f"{array.name}.json")


def part(array: Path) -> Path:
    """Returns where the rows lie until all of them are there."""
    return array.with_name(f"{array.name}.part")


def read(array: Path) -> dict[str, Any] | None:
    """Reads the side file of an array.

    Args:
      array: the array's file, which need not be there.

    Returns:
      What it says, or None if there is none.

    Raises:
      UserError: it is not what this package wrote.
    """
    path = place(array)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise UserError(
            f"{path} cannot be read, what is named as its folder is a file: set encode.folder, or "
            "the array's path, to another place"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: delete it and {array}, and encode again") from error
    if not isinstance(content, dict) or not isinstance(content.get("complete"), bool):
        raise UserError(f"{path} is no side file of an array: delete it, or name the array anew")
    return content


def check_whole(file: Path) -> None:
    """Raises a `UserError` about a file in which the rows of an array are still being gathered."""
    array = file.with_suffix("")
    if file == part(array) and read(array) is not None:
        raise UserError(f"{file} is half-written: {GO_ON}, until {array} is there")


def broken(array: Path) -> list[tuple[int, str]]:
    """Returns the rows of zeros of a finished array whose images were broken, and why they were."""
    return [(row, why) for row, why in (read(array) or {}).get("broken", ())]


def write(array: Path, content: Mapping[str, Any]) -> None:
    """Writes the side file of an array, whole or not at all."""
    with atomic_write(place(array)) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def check(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Checks an opened array against its side file, if it has one.

    Args:
      path: the array's file.
      array: what it holds.

    Returns:
      What the side file says, nothing if there is none.

    Raises:
      UserError: the rows are not all there yet, they are not those that were encoded, or the side
        file names broken ones that cannot be.
    """
    content = read(path)
    if content is None:
        return {}
    if not content["complete"]:
        raise UserError(
            f"{path} is half-written: {GO_ON}, or delete it, {place(path)} and {part(path)}"
        )
    if not _names_rows(content.get("broken", []), len(array)):
        raise UserError(f"{place(path)} is damaged: delete it and {path}, and encode again")
    if content.get("digest") != checks.digest(array):
        raise UserError(
            f"{path} is not the array that {place(path)} describes: delete both and encode again, "
            "or delete the latter if the array is your own"
        )
    return content


def _names_rows(broken: object, n: int) -> bool:
    """Whether this is a list of rows, each with a reason."""
    return isinstance(broken, list) and all(
        isinstance(entry, list)
        and [type(part) for part in entry] == [int, str]
        and 0 <= entry[0] < n
        for entry in broken
    )
