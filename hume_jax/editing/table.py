"""What labels.csv and classes.csv hold, and by which edits the second was made."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hume_jax.editing.edits import Edits
from hume_jax.errors import UserError

# What a run has found, what edits have made of it, and by which edits.
LABELS, CLASSES, ABOUT = "labels.csv", "classes.csv", "classes.json"
# Columns that say what a row is, where they are there.
SAMPLES = ("image", "sample")


class Table(NamedTuple):
    """The rows of one split."""

    labels: np.ndarray  # (n,) int64, -1 for none
    agreement: np.ndarray  # (n,) float64
    margin: np.ndarray  # (n,) float64
    samples: dict[str, list[str]]  # by the column, of those of `SAMPLES` that are there


def read(path: Any) -> dict[str, Table]:
    """Reads a file of labels: the table of each split, in the order of the file.

    Args:
      path: on disk or in an object store.

    Raises:
      UserError: it is not there, or not a file of labels.
    """
    if not path.exists():
        raise UserError(f"{path} is not there: the command that began the run writes it")
    reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8"), newline=""))
    there = [name for name in SAMPLES if name in (reader.fieldnames or ())]
    found: dict[str, dict[str, list[Any]]] = {}
    line = 1
    try:
        for line, row in enumerate(reader, start=1):  # noqa: B007, for the message
            own = found.setdefault(row["split"], {})
            own.setdefault("labels", []).append(int(row["label"]))
            for name in ("agreement", "margin"):
                own.setdefault(name, []).append(float(row[name]))
            for name in there:
                own.setdefault(name, []).append(row[name])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}, row {line} is not one of a file of labels ({error})") from error
    return {
        split: Table(
            np.array(own["labels"], np.int64),
            np.array(own["agreement"]),
            np.array(own["margin"]),
            {name: own[name] for name in there},
        )
        for split, own in found.items()
    }


def summary(folder: Any, edits: Edits) -> Mapping[str, Any] | None:
    """What classes.json says, None unless it was made by these merges and splits of these labels.

    Args:
      folder: of the run, on disk or in an object store.
      edits: as they are now.
    """
    if not (folder / ABOUT).exists():
        return None
    about = json.loads((folder / ABOUT).read_text())
    same = {name: about.get(name) for name in edits.as_json()} == edits.as_json()
    return about if same and about.get("labels") == digest(folder) else None


def digest(folder: Any) -> str:
    """SHA-256 of the labels that a run has found."""
    return hashlib.sha256((folder / LABELS).read_bytes()).hexdigest()
