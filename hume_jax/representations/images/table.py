"""Which image each row of an encoded array is: a table, and the labels that came with them."""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hume_jax.files import atomic_write
from hume_jax.representations import store
from hume_jax.representations.arrays import side_file

if TYPE_CHECKING:
    # A search needs none of what reads images.
    from hume_jax.representations.images import sources


class ImageTable:
    """The files beside the arrays of one list of images."""

    def __init__(self, folder: Path) -> None:
        """Names the files.

        Args:
          folder: of the arrays.
        """
        self.rows = folder / "images.csv"
        self.labels = folder / "labels.npy"

    def write(self, source: "sources.Source", labels: Path) -> None:
        """Writes `images.csv` (row, id, label, class), and the labels; what is there stays.

        Args:
          source: the images; the arrays beside the table are known to be of them.
          labels: where their labels go, if they have some.
        """
        known = self.rows.exists() and ids(self.rows) == list(source.ids)
        if known and (labels.exists() or not _labelled(self.rows)):
            return
        if not known:
            # What an earlier list of images left here.
            self.labels.unlink(missing_ok=True)
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        if source.labels is not None and not labels.exists():
            labels.parent.mkdir(parents=True, exist_ok=True)
            store.save_array(labels, source.labels)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "id", "label", "class"])
        for row, name in enumerate(source.ids):
            label = None if source.labels is None else int(source.labels[row])
            writer.writerow([row, name, *_class(source, label)])
        with atomic_write(self.rows) as file:
            file.write(text.getvalue().encode())


def _labelled(table: Path) -> bool:
    """Whether the first row of a table has a label."""
    with table.open(encoding="utf-8", newline="") as file:
        return any(row["label"] for row in itertools.islice(csv.DictReader(file), 1))


def _class(source: "sources.Source", label: int | None) -> tuple[str, str]:
    if label is None:
        return "", ""
    return str(label), source.class_names[label] if label < len(source.class_names) else ""


def ids(table: Path) -> list[str]:
    """Reads the ids of a table's rows, in order."""
    with table.open(encoding="utf-8", newline="") as file:
        return [row["id"] for row in csv.DictReader(file)]


def names(paths: Sequence[str], n: int) -> list[str] | None:
    """Finds what the images of some rows are called.

    Args:
      paths: arrays of these rows.
      n: number of rows.

    Returns:
      The name of each row's image, None unless one of the arrays was encoded from images.
    """
    for path in paths:
        content = side_file.read(store.find_array(path)) or {}
        table = Path(content.get("image_table", ""))
        if table.is_file() and len(found := ids(table)) == n:
            return found
    return None
