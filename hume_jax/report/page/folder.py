"""A run's folder, as the page reads it."""

import csv
import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hume_jax.editing import edits as edits_lib
from hume_jax.editing import table
from hume_jax.editing.edits import Edits
from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.mirror import Mirror
from hume_jax.workdir import placed

ARRAYS = "report.npz"
PAGE = "report.html"


class Run(NamedTuple):
    """What a finished run has left."""

    place: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    arrays: Mapping[str, np.ndarray]  # see `gather.gather`
    edits: Edits = Edits(0)  # of its classes, by hand
    edited: Mapping[str, Any] | None = None  # what they made of its labels, see `editing.table`

    @property
    def name(self) -> str:
        """What the run is called: its folder."""
        return self.place.rstrip("/").rpartition("/")[2]

    def called(self, c: int) -> str:
        """A class in words: its number, and its name if it has one."""
        return f"{c} {name}" if (name := self.edits.name_of_found(c)) else str(c)

    @property
    def called_all(self) -> list[str]:
        """Every class in words; empty where none has a name."""
        return list(map(self.called, range(self.n_classes))) if self.edits.names else []

    @property
    def n_classes(self) -> int:
        """K."""
        return int(self.results["n_classes"])

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in the order of the arrays."""
        return [str(name) for name in self.arrays["splits"]]

    @property
    def searched(self) -> list[str]:
        """The splits whose rows were searched."""
        return self.splits if self.results["setting"] == "transductive" else self.splits[:1]


class Opened(NamedTuple):
    """A run and where its files are."""

    run: Run
    path: Path
    mirror: Mirror | None  # of a folder in an object store

    def write(self, name: str, content: str) -> None:
        """Writes a text file of the folder, whole or not at all."""
        with atomic_write(self.path / name) as file:
            file.write(content.encode())
        if self.mirror is not None:
            self.mirror.push()


def open_run(where: str) -> Opened:
    """Opens the folder of a finished run.

    Args:
      where: the folder, or gs://BUCKET/FOLDER.

    Raises:
      UserError: it is no folder of a run, or of one that is not finished or kept no report.npz.
    """
    place = placed(where)
    mirror = None if isinstance(place, Path) else Mirror(place)
    if mirror is not None:
        mirror.pull()
    path = place if mirror is None else mirror.path
    assert isinstance(path, Path)
    if not (path / "config.json").exists():
        raise UserError(f"{place} is not the folder of a run: there is no config.json in it")
    config = _json(path / "config.json", place)
    if not (path / "results.json").exists():
        raise UserError(
            f"{place} holds a run that is not finished: start it again, it goes on from there"
        )
    results = _json(path / "results.json", place)
    if "runs" in results:
        folders = [run["folder"] for run in results["runs"]]
        raise UserError(
            f"{place} holds a run of {len(folders)} seeds, each with a page of its own: "
            f"--run={place}/{folders[0]}"
        )
    edits = edits_of(path, int(results["n_classes"]))
    run = Run(str(place), config, results, _metrics(path), _arrays(path, place), *edits)
    return Opened(run, path, mirror)


def edits_of(path: Path, n_classes: int) -> tuple[Edits, Mapping[str, Any] | None]:
    """The edits of a run's classes, and what they made of its labels where that is known.

    Args:
      path: the run's folder.
      n_classes: K.

    Raises:
      UserError: classes.yaml is not as it may be.
    """
    edits = edits_lib.read(path / edits_lib.FILE, n_classes)
    return edits, table.summary(path, edits) if edits.changes else None


def _arrays(path: Path, place: object) -> dict[str, np.ndarray]:
    try:
        # Opened here, for NumPy leaves a file open that it cannot read.
        with open(path / ARRAYS, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError as error:
        raise UserError(
            f"{place} holds no {ARRAYS}, which runs with report=True keep: delete "
            f"{place}/results.json and start the run again, it scores anew and searches nothing"
        ) from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{place}/{ARRAYS} is damaged: delete it and {place}/results.json, and start the run "
            "again, it scores anew and searches nothing"
        ) from error


def _json(file: Path, place: object) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place}/{file.name} is not JSON: put it back as it was") from error


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; without those that are torn."""
    file = path / "metrics.jsonl"
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def names(path: Path, wanted: Iterable[tuple[str, int]]) -> dict[str, dict[tuple[str, int], str]]:
    """Reads what rows are called from labels.csv.

    Args:
      path: the run's folder.
      wanted: split and row.

    Returns:
      Under `image` and `sample`, of those that the file has: the name by split and row.
    """
    asked = set(wanted)
    found: dict[str, dict[tuple[str, int], str]] = {}
    with open(path / "labels.csv", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [name for name in ("image", "sample") if name in (reader.fieldnames or ())]
        for row in reader if columns else ():
            key = row["split"], int(row["index"])
            if key in asked:
                for column in columns:
                    if row[column]:
                        found.setdefault(column, {})[key] = row[column]
    return found
