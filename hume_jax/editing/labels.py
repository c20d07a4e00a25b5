"""The labels of a run's own rows after the edits of its classes: classes.csv.

labels.csv stays what the run has found. classes.csv is beside it, and classes.json says by which
edits it was made.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hume_jax import prediction
from hume_jax.config import difference
from hume_jax.core.aggregate import Vote
from hume_jax.editing import edits as edits_lib
from hume_jax.editing import parts, table, votes
from hume_jax.editing.edits import Edits
from hume_jax.editing.table import Table
from hume_jax.errors import UserError
from hume_jax.progress import rows_progress
from hume_jax.report import results
from hume_jax.representations import store
from hume_jax.workdir import placed


class Edited(NamedTuple):
    """Labels of the rows of a run."""

    tables: dict[str, Table]  # of each split
    edits: Edits  # by which


def make(run: prediction.Run) -> Edited:
    """Searches the splits that are missing, and labels the run's own rows by its edits.

    Args:
      run: finished. Its arrays are read where classes are merged or split, not for names alone.

    Raises:
      UserError: classes.yaml is not as it may be, arrays that are needed are gone or are others, or
        a class cannot be split.
    """
    folder = placed(run.place)
    edits = edits_lib.read(folder / edits_lib.FILE, run.model.theta.shape[2])
    found = table.read(folder / table.LABELS)
    if not edits.changes:
        return Edited(found, edits)
    for c, n in edits.split.items():
        parts.is_finished(folder, run.model, c, n)  # told before any of them is searched
    dataset = _open(run)
    searched = ["train", "test"] if run.config["setting"] == "transductive" else ["train"]
    of_rows = {split: found[split].labels for split in searched}
    # Rows that were left out have no class, and are not there in the opened arrays.
    of_rows = {split: labels[labels >= 0] for split, labels in of_rows.items()}
    for c, n in edits.split.items():
        if not parts.is_finished(folder, run.model, c, n):
            rows = parts.rows_of(dataset, of_rows, c)
            parts.search(folder, run.config, run.model, c, n, rows)
    run = prediction.edited(run)
    encoded = store.search_spaces(dataset, run.config["search"]["spaces"])
    return Edited(
        {split: _label(run, getattr(encoded, split), old) for split, old in found.items()}, edits
    )


def _open(run: prediction.Run) -> store.Dataset:
    """The arrays of the run, without labels."""
    data = {
        split: {**fields, "labels": "", "samples": ""}
        for split, fields in run.config["data"].items()
    }
    try:
        dataset = store.open_files(data)
    except UserError as error:
        raise UserError(
            f"the arrays of the run in {run.place} are needed to merge or split its classes: "
            f"{error}"
        ) from error
    kept = json.loads((placed(run.place) / "data.json").read_text())
    changes = difference(*map(_without_labels, (kept, store.fingerprint(dataset))))
    if changes:
        raise UserError(
            f"the arrays are not those that the run in {run.place} was made with "
            f"({'; '.join(changes)}): put those back"
        )
    return dataset


def _without_labels(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fingerprint.items() if not name.endswith(".labels")}


def _label(run: prediction.Run, split: store.Split, old: Table) -> Table:
    with rows_progress(split.n, "labels") as done:
        vote = votes.apply(run.model, split.phi1.arrays, run.edits, run.parts, done)
    return Table(
        split.in_files(vote.labels, -1).astype(np.int64),
        split.in_files(vote.agreement, 0),
        split.in_files(vote.margin, 0),
        old.samples,
    )


def write(run: prediction.Run, edited: Edited) -> None:
    """Writes classes.csv, and classes.json that says what it is."""
    folder = placed(run.place)
    named: dict[str, dict[str, Sequence[str]]] = {name: {} for name in table.SAMPLES}
    for split, own in edited.tables.items():
        for name, values in own.samples.items():
            if any(values):
                named[name][split] = values
    of_splits = {
        split: Vote(own.labels, own.agreement, own.margin) for split, own in edited.tables.items()
    }
    text = results.to_csv(of_splits, named["image"], named["sample"], edited.edits.names)
    # Gone while the other is written, for they belong together.
    (folder / table.ABOUT).unlink(missing_ok=True)
    parts.write_text(folder / table.CLASSES, text)
    about = {
        **edited.edits.as_json(),
        "labels": table.digest(folder),
        "classes": [_class(edited, c) for c in edited.edits.numbers],
    }
    parts.write_text(folder / table.ABOUT, json.dumps(about, indent=1) + "\n")


def _class(edited: Edited, c: int) -> dict[str, Any]:
    own = {split: of.labels == c for split, of in edited.tables.items()}
    rows = {split: int(np.count_nonzero(mask)) for split, mask in own.items()}
    sure = [of.agreement[own[split]] for split, of in edited.tables.items()]
    together = np.concatenate(sure)
    return {
        "class": c,
        "of": edited.edits.of(c),
        "rows": rows,
        "agreement": float(np.mean(together)) if len(together) else None,
    }


def read(run: prediction.Run, *, edited: bool = True) -> Edited:
    """Reads the labels of the run's own rows: of classes.csv where classes are merged or split.

    Args:
      run: finished.
      edited: whether its classes.yaml counts.

    Raises:
      UserError: classes.yaml is not as it may be, or says what classes.csv was not made by.
    """
    folder = placed(run.place)
    edits = Edits(run.model.theta.shape[2])
    if edited:
        edits = edits_lib.read(folder / edits_lib.FILE, edits.n_classes)
    if not edits.changes:
        return Edited(table.read(folder / table.LABELS), edits)
    if table.summary(folder, edits) is None or not (folder / table.CLASSES).exists():
        raise UserError(
            f"{folder}/{edits_lib.FILE} merges or splits classes in another way than "
            f"{table.CLASSES} has them: python -m hume_jax.classes --run={folder}"
        )
    return Edited(table.read(folder / table.CLASSES), edits)
