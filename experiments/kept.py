"""What methods said of a dataset's test rows, in files small enough to stay in the repository.

A run that took an hour leaves a few thousand labels. `comparison.py --keep=docs/labels/DATASET`
writes them there, so that a later method is compared with it by the same bootstrap without running
it again, and every figure of a table can be computed anew. A file holds the labels of one or more
runs of one kind, e.g. of the votes of one seed; files of the same kind are read as one row.
"""

import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import figures
import numpy as np

from hume_jax.baselines.methods import METHODS
from hume_jax.errors import UserError
from hume_jax.files import atomic_write

HUME = "HUME"
_FIELDS = ("method", "spaces", "what", "names", "labels", "seconds", "made_with")


class Row(NamedTuple):
    """The labels of G runs of one kind."""

    method: str
    spaces: str
    what: str  # e.g. 'votes of 64 tasks' or 'single starts'
    names: tuple[str, ...]  # G, of the runs, e.g. 'seed 0'
    labels: np.ndarray  # (G, n) integers, of the test rows
    seconds: tuple[float, ...]  # G, of each run, or one for all together; NaN: not known
    made_with: str = ""  # fields of the config, or settings, as JSON

    @property
    def kind(self) -> tuple[str, str, str]:
        """Rows of one kind are one row of a table."""
        return self.method, self.spaces, self.what


def write(folder: pathlib.Path, row: Row) -> None:
    """Writes a row, a file for each of HUME's seeds and one for all starts of another method.

    Raises:
      UserError: a file that is there holds what was made with other settings, or no folder can be
        made.
    """
    figures.make_folder(folder, "--keep")
    if row.method == HUME:
        for i, name in enumerate(row.names):
            seconds = row.seconds[i : i + 1] if len(row.seconds) > 1 else row.seconds
            one = row._replace(names=(name,), labels=row.labels[i : i + 1], seconds=seconds)
            _write(folder, one, name)
    else:
        _write(folder, row, "")


def _write(folder: pathlib.Path, row: Row, name: str) -> None:
    words = [*row.kind, name]
    stem = "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words if word)
    narrow = np.min_scalar_type(int(row.labels.max()))
    path = folder / f"{stem}.npz"
    if path.exists() and _read(path).made_with != row.made_with:
        raise UserError(
            f"{path} holds labels that were made with other settings: delete it if they are no "
            "longer wanted, or give another --keep"
        )
    with atomic_write(path) as file:
        np.savez_compressed(file, **{**row._asdict(), "labels": row.labels.astype(narrow)})


def read(folder: pathlib.Path) -> list[Row]:
    """All rows of a folder, as `merge` has them.

    Raises:
      UserError: there is no such folder, or a file that is no row.
    """
    if not folder.is_dir():
        raise UserError(f"--keep={folder}: there is no such folder")
    return merge(_read(path) for path in sorted(folder.glob("*.npz")))


def merge(rows: Iterable[Row]) -> list[Row]:
    """Rows of one kind as one row, in the order of their kinds.

    Raises:
      UserError: runs of one kind of one name, of other rows or made with other settings.
    """
    found = sorted(rows, key=lambda row: row.kind)
    return [_merge(kind, list(same)) for kind, same in itertools.groupby(found, lambda r: r.kind)]


def check_rows(rows: Iterable[Row], n: int, n_classes: int) -> None:
    """Checks that rows can be of one dataset.

    Raises:
      UserError: one labels another number of test rows than n, or more classes than K.
    """
    for row in rows:
        if row.labels.shape[1] != n:
            raise UserError(
                f"{row.what}: {row.method} labelled {row.labels.shape[1]} test rows, the config "
                f"has {n}: all labels must be of one dataset"
            )
        if row.labels.max() >= n_classes:
            raise UserError(
                f"{row.what}: {row.method} found {row.labels.max() + 1} classes or more, the "
                f"config has {n_classes}: all labels must be of one dataset"
            )


def place(row: Row) -> tuple[Any, ...]:
    """Where a row stands: HUME first, then methods as `hume_jax.baselines.methods` lists them.

    Votes of more of HUME's tasks stand before those of fewer.
    """
    titles = [entry.title for entry in METHODS.values()]
    number = titles.index(row.method) if row.method in titles else -1
    of_hume = row.method == HUME
    tasks = re.match(r"votes of (\d+) ", row.what) if of_hume else None
    fewer = -int(tasks[1]) if tasks else 0
    return number, of_hume and " → " in row.spaces, row.spaces, fewer, row.what


def _read(path: pathlib.Path) -> Row:
    with np.load(path, allow_pickle=False) as stored:
        if set(stored.files) != set(_FIELDS):
            raise UserError(f"{path} is no file of labels: it should hold {', '.join(_FIELDS)}")
        values = {field: stored[field] for field in _FIELDS}
    texts = {field: str(values[field]) for field in ("method", "spaces", "what", "made_with")}
    return Row(
        names=tuple(map(str, values["names"])),
        labels=values["labels"].astype(np.int64),
        seconds=tuple(map(float, values["seconds"])),
        **texts,
    )


def _merge(kind: tuple[str, str, str], rows: Sequence[Row]) -> Row:
    names = [name for row in rows for name in row.names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{', '.join(kind)}: {twice} is there twice: give each run once")
    for what, values in (("rows", {r.labels.shape[1] for r in rows}), ("settings", _made(rows))):
        if len(values) > 1:
            raise UserError(f"{', '.join(kind)}: runs of one kind with different {what}: {values}")
    return rows[0]._replace(
        names=tuple(itertools.chain.from_iterable(row.names for row in rows)),
        labels=np.concatenate([row.labels for row in rows]),
        seconds=tuple(itertools.chain.from_iterable(row.seconds for row in rows)),
    )


def _made(rows: Iterable[Row]) -> set[str]:
    return {row.made_with for row in rows}
