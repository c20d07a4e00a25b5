"""What the rows of an array are, for people alone: lines of text, or images.

Nothing that searches or scores looks at them.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hume_jax.errors import UserError

if TYPE_CHECKING:
    # A search needs none of what reads images.
    from hume_jax.representations.images.sources import Source

_FORMS = "a .txt file of a line a row, a .json list of texts, or images in a folder, .tar or .zip"


class Samples(NamedTuple):
    """One of the two, in the order of the rows."""

    texts: Sequence[str] | None = None
    images: "Source | None" = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.texts if self.texts is not None else self.images or ())

    @property
    def names(self) -> Sequence[str]:
        """What stands for each row in a table: its text, or the name of its image."""
        if self.texts is not None:
            return self.texts
        return self.images.ids if self.images is not None else ()


def open_samples(path: str) -> Samples:
    """Opens what a field `data.SPLIT.samples` names.

    Args:
      path: a .txt file with one line a row, a .json file with a list of texts, or images in the
        order of the rows: a folder (ordered by relative path), a .tar or .zip file.

    Raises:
      UserError: it is not there, cannot be read, or is none of these.
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix in (".txt", ".json") and not file.is_dir():
        return Samples(texts=_texts(file, suffix))
    if not os.path.exists(file):
        raise UserError(f"{path} is not there (looked in {Path.cwd()}): it may be {_FORMS}")
    if not file.is_dir() and suffix not in (".tar", ".zip"):
        raise UserError(f"{path} cannot say what the rows are: it may be {_FORMS}")
    from hume_jax.representations.images import sources

    return Samples(images=sources.open_images(path, labels=False))


def check(field: str, path: str, n: int) -> None:
    """Raises a `UserError` unless a field of samples has one for each of `n` rows.

    Args:
      field: `data.SPLIT.samples`.
      path: what it names, '' for nothing.
      n: rows of the split's arrays.
    """
    if path and (found := len(open_samples(path))) != n:
        raise UserError(
            f"{field}={path} has {found} samples, the arrays have {n} rows: it must hold the same "
            "samples in the same order"
        )


def _texts(file: Path, suffix: str) -> list[str]:
    try:
        content = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if suffix == ".txt":
        # Not `splitlines`, which also ends lines at characters that a text may hold.
        lines = content.replace("\r\n", "\n").split("\n")
        return lines[:-1] if lines[-1] == "" else lines
    try:
        texts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}): save a list of texts") from error
    if not isinstance(texts, list):
        raise UserError(f"{file} holds a {type(texts).__name__}, it must hold a list of texts")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"{file}: entry {row} is a {type(text).__name__}, each must be a text in quotes"
            )
    return texts
