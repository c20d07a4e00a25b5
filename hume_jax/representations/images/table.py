"""Which image each row of an encoded array is: a table, and the labels that came with them."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.representations import store
from hume_jax.representations.arrays import side_file
from hume_jax.representations.images import naming

if TYPE_CHECKING:
    # A search needs none of what reads images.
    from hume_jax.representations.images import sources


class ImageTable:
    """The files beside the arrays of one list of images."""

    def __init__(self, folder: Path, label: str = "") -> None:
        """Names the files.

        Args:
          folder: of the arrays.
          label: which labels of the images, where there are several.
        """
        suffix = f".{label}" if label else ""
        self.rows = folder / f"images{suffix}.csv"
        self.labels = folder / f"labels{suffix}.npy"
        # Which images they are of; written last.
        self._about = folder / f"images{suffix}.json"

    def write(self, source: "sources.Source") -> None:
        """Writes `images.csv` (row, id, label, class), and the labels; what is there stays.

        Labels are the numbers that a dataset gives its classes; where folders are classes, of which
        another split may have others, they are their names.

        Args:
          source: the images; the arrays beside the table are known to be of them.

        Raises:
          UserError: the files cannot be written.
        """
        about = {"images_digest": source.fingerprint()}
        known = self.rows.exists() and _read_json(self._about) == about
        if known and (self.labels.exists() or source.labels is None):
            return
        try:
            self._write(source)
            with atomic_write(self._about) as file:
                file.write((json.dumps(about) + "\n").encode())
        except OSError as error:
            raise UserError(f"{self.rows} cannot be written: {error.strerror}") from error

    def _write(self, source: "sources.Source") -> None:
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        # What an earlier list of images left here.
        self._about.unlink(missing_ok=True)
        self.labels.unlink(missing_ok=True)
        # Once: of a tfds dataset, asking looks which records have been read.
        numbers, names = source.labels, source.class_names
        labels = numbers
        if numbers is not None and not source.has_own_numbers:
            labels = np.array(names)[numbers]
        if labels is not None:
            store.save_array(self.labels, labels)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "id", "label", "class"])
        for row, name in enumerate(source.ids):
            if labels is None or numbers is None:
                writer.writerow([row, name, "", ""])
                continue
            number = int(numbers[row])
            writer.writerow([row, name, labels[row], names[number] if number < len(names) else ""])
        with atomic_write(self.rows) as file:
            file.write(text.getvalue().encode())


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def ids(table: Path) -> list[str]:
    """Reads the ids of a table's rows, in order; none if it is no such table."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            return [row["id"] for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, csv.Error):
        return []


def names(paths: Sequence[str]) -> list[str] | None:
    """Finds what the images of some rows are called.

    Args:
      paths: arrays of these rows.

    Returns:
      The name of each row's image, None unless one of the arrays was encoded from images and the
      table of these very images is there.
    """
    for path in map(store.find_array, paths):
        content = side_file.read(path) or {}
        found = ids(path.parent / content.get("image_table", ""))
        if found and naming.digest(found) == content.get("ids_digest"):
            return found
    return None
