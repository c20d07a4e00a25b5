"""Representation spaces on disk: open, check, memory-map, normalise, write.

A space is an (n, d) `.npy` file, float16 or float32 (float64 is read as float32), rows in the
dataset's order; the two spaces of a dataset share their rows. Files are read in blocks; `normalise`
makes the one copy in memory.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.representations import checks, scaling
from hume_jax.representations.scaling import Statistics as Statistics
from hume_jax.representations.scaling import normalise as normalise
from hume_jax.representations.scaling import statistics as statistics

ARCHIVE = "https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip"

# A path that starts so is looked for among the data that comes with the package.
PACKAGE_PREFIX = "hume_jax:"
_PACKAGE_DATA = Path(__file__).resolve().parents[1] / "data"

# Largest share of zero rows that a search accepts.
_ZERO_ROWS = 0.01


class Space(NamedTuple):
    """One representation of the rows of a split, in one or several files."""

    arrays: tuple[np.ndarray, ...]  # (n, d_j) float16, float32 or float64, memory-mapped
    paths: tuple[str, ...]
    scans: tuple[checks.Scan, ...]  # what `open_dataset` saw in each

    @property
    def columns(self) -> int:
        """Columns of all files together."""
        return sum(array.shape[1] for array in self.arrays)


class Split(NamedTuple):
    """The rows of `train` or `test`. A test split may go without phi2 (then it has no arrays)."""

    phi1: Space
    phi2: Space
    labels: np.ndarray | None  # (n,) int64
    n: int


class Dataset(NamedTuple):
    """What the config's `data` section names."""

    train: Split
    test: Split | None


def open_dataset(data: Any) -> Dataset:
    """Opens the files of a dataset and checks them, each read once.

    Args:
      data: the config's `data` section: `train` and `test`, each with `phi1` and `phi2` (a path or
        a tuple of paths) and `labels` (a path), '' for what is not given.

    Returns:
      The splits, memory-mapped; `test` is None if its phi1 is not given.

    Raises:
      UserError: files missing (all of them are named), not arrays of numbers, of the wrong shape
        or dtype, of differing row counts, NaN or infinite values, or labels that do not fit.
    """
    return scan_files(open_files(data))


def scan_files(dataset: Dataset) -> Dataset:
    """Checks the values of a dataset whose files are open, see `open_dataset`."""
    train, test = dataset
    return Dataset(_scan_split(train), None if test is None else _scan_split(test))


def fingerprint(dataset: Dataset) -> dict[str, list[str]]:
    """Says which data a dataset holds: shape, dtype and a digest of some rows of every file.

    Rows spread evenly over the file are read, so it takes no time, and other samples or another
    order of them are seen; a change of single values may not be.

    Args:
      dataset: as opened.

    Returns:
      A text for each file, under the config field that names it.
    """
    found = {}
    for name in ("train", "test"):
        split = getattr(dataset, name)
        if split is not None:
            labels = () if split.labels is None else (split.labels,)
            for field, arrays in (
                ("phi1", split.phi1.arrays),
                ("phi2", split.phi2.arrays),
                ("labels", labels),
            ):
                found[f"data.{name}.{field}"] = [checks.digest(array) for array in arrays]
    return found


def open_files(data: Any) -> Dataset:
    """Opens the files of a dataset and checks what their headers say.

    Takes and returns what `open_dataset` does, at once whatever the size of the files: their values
    are not looked at, and `Space.scans` is empty.
    """
    for name in ("train.phi1", "train.phi2"):
        section, field = name.split(".")
        if not data[section][field]:
            raise UserError(
                f"config field 'data.{name}' is not given: --config.data.{name}=FILE.npy"
            )
    has_test = bool(data["test"]["phi1"])
    if not has_test and (data["test"]["phi2"] or data["test"]["labels"]):
        raise UserError("config field 'data.test.phi1' is not given, other test files are")
    _check_present(data)
    train = _open_split("train", data["train"])
    test = _open_split("test", data["test"]) if has_test else None
    if test is not None:
        _check_same_columns(train.phi1, test.phi1, "phi1")
        if test.phi2.arrays:
            _check_same_columns(train.phi2, test.phi2, "phi2")
    return Dataset(train, test)


def search_splits(dataset: Dataset, setting: str) -> tuple[Split, ...]:
    """Returns the splits whose rows are searched: train, or train then test if transductive."""
    if setting == "inductive":
        return (dataset.train,)
    if dataset.test is None or not dataset.test.phi2.arrays:
        raise UserError(
            "setting=transductive searches the test rows too: give data.test.phi1 and "
            "data.test.phi2, or set setting=inductive"
        )
    return (dataset.train, dataset.test)


def check_search(
    dataset: Dataset, n_classes: int, setting: str, *, normalise: bool = True
) -> list[str]:
    """Checks that the searched rows can be divided into `n_classes` classes.

    Args:
      dataset: as opened.
      n_classes: K.
      setting: `inductive` or `transductive`.
      normalise: whether phi1 will be centred, as `encoder.normalise` says.

    Returns:
      Warnings, one line each.

    Raises:
      UserError: K < 2, K > n, K > d1, all rows of a file identical (all its columns constant), more
        than 1 % of the rows of zero norm, or a transductive search without test rows.
    """
    check_classes(dataset, n_classes, setting)
    splits = search_splits(dataset, setting)
    n = sum(split.n for split in splits)
    warnings = []
    for name in ("phi1", "phi2"):
        spaces = [getattr(split, name) for split in splits]
        for j in range(len(spaces[0].arrays)):
            warnings += _check_values(name, spaces, j, n)
            if name == "phi1" and normalise:
                warnings += _check_centred(
                    [space.arrays[j] for space in spaces], spaces[0].paths[j]
                )
    return warnings


def check_classes(dataset: Dataset, n_classes: int, setting: str) -> None:
    """Checks the number of classes against the shapes, as `check_search` does."""
    n = sum(split.n for split in search_splits(dataset, setting))
    columns = dataset.train.phi1.columns
    if n_classes < 2:
        raise UserError(f"n_classes is {n_classes}, there must be at least 2 classes")
    if n_classes > n:
        raise UserError(f"n_classes is {n_classes}, more than the {n} searched rows")
    if n_classes > columns:
        raise UserError(
            f"n_classes is {n_classes}, more than the {columns} columns of phi1: there are no "
            f"{n_classes} orthonormal columns; take a wider phi1 or fewer classes"
        )


def save_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes an .npy file whole or not at all."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def find_array(path: str) -> Path:
    """Returns where a path of the config points: `hume_jax:NAME` is data of the package."""
    if path.startswith(PACKAGE_PREFIX):
        return _PACKAGE_DATA / path.removeprefix(PACKAGE_PREFIX)
    return Path(path).expanduser()


def _paths(value: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(value)


def _check_present(data: Any) -> None:
    """Raises one error that names every file that is not there."""
    missing = [
        (f"data.{split}.{field}", path)
        for split in ("train", "test")
        for field in ("phi1", "phi2", "labels")
        for path in _paths(data[split][field])
        # Not Path.is_file, which raises where a folder on the way may not be read.
        if not os.path.isfile(find_array(path))
    ]
    if not missing:
        return
    count = "1 file" if len(missing) == 1 else f"{len(missing)} files"
    listed = ", ".join(f"{field}={path}{_instead(path)}" for field, path in missing)
    text = f"{count} not found: {listed} (looked in {Path.cwd()})"
    if any(path.startswith(("data/representations/", "data/labels/")) for _, path in missing):
        text += f". Either get the authors' arrays, {ARCHIVE}, and unzip them here, or encode the"
        text += " images yourself and give your .npy files, one row for each image, with"
        text += f" --config.{missing[0][0]}=FILE and so on"
    else:
        text += f": set --config.{missing[0][0]}=FILE to an .npy file that is there"
    optional = [field for field, _ in missing if field.endswith("labels") or field.count("test")]
    if len(optional) == len(missing):
        text += "; labels and test files may also be left out, --config.FIELD=''"
    raise UserError(text)


def _instead(path: str) -> str:
    """Says what stands where a file is missing."""
    found = find_array(path)
    if os.path.isdir(found):
        return ", which is a folder"
    if os.path.islink(found):
        return f", which is a broken link to {os.readlink(found)}"
    return ", which is not a regular file" if os.path.exists(found) else ""


def _open_split(name: str, fields: Any) -> Split:
    phi1, phi2 = (_open_space(_paths(fields[field])) for field in ("phi1", "phi2"))
    n = len(phi1.arrays[0])
    first = phi1.paths[0]
    for space in (phi1, phi2):
        for path, array in zip(space.paths, space.arrays, strict=True):
            if len(array) != n:
                raise UserError(
                    f"{first} {phi1.arrays[0].shape} and {path} {array.shape} differ in rows: "
                    f"the {name} files must hold the same samples in the same order"
                )
    labels = None
    if fields["labels"]:
        labels_path = find_array(fields["labels"])
        stored = checks.open_array(labels_path, checks.LABELS_HINT)
        checks.check_labels(labels_path, stored, n, find_array(first))
        labels = np.asarray(stored, dtype=np.int64)
    return Split(phi1, phi2, labels, n)


def _scan_split(split: Split) -> Split:
    return split._replace(phi1=_scan_space(split.phi1), phi2=_scan_space(split.phi2))


def _scan_space(space: Space) -> Space:
    files = zip(space.paths, space.arrays, strict=True)
    return space._replace(scans=tuple(checks.scan(find_array(path), a) for path, a in files))


def _open_space(paths: tuple[str, ...]) -> Space:
    arrays = []
    for path in paths:
        array = checks.open_array(find_array(path))
        checks.check_space(find_array(path), array)
        arrays.append(array)
    return Space(tuple(arrays), paths, ())


def _check_same_columns(train: Space, test: Space, name: str) -> None:
    if len(train.arrays) != len(test.arrays):
        raise UserError(
            f"data.train.{name} has {len(train.arrays)} files, data.test.{name} has "
            f"{len(test.arrays)}: give the same spaces for both"
        )
    for j, (a, b) in enumerate(zip(train.arrays, test.arrays, strict=True)):
        if a.shape[1] != b.shape[1]:
            raise UserError(
                f"{train.paths[j]} {a.shape} and {test.paths[j]} {b.shape} differ in columns: "
                f"{name} must come from the same model for train and test"
            )


def _constant(scans: Sequence[checks.Scan]) -> np.ndarray:
    constant = scans[0].constant.copy()
    for scan in scans[1:]:
        constant &= scan.constant & (scan.first == scans[0].first)
    return constant


def _check_values(name: str, spaces: Sequence[Space], j: int, n: int) -> list[str]:
    """Looks for constant columns and rows stored as zeros in file j of a space."""
    path, scans = spaces[0].paths[j], [space.scans[j] for space in spaces]
    constant = int(np.count_nonzero(_constant(scans)))
    if constant == len(scans[0].constant):
        raise UserError(
            f"{path}: all {n} rows are identical, every column is constant: "
            f"there is nothing to tell apart in {name}"
        )
    warnings = []
    if constant:
        warnings.append(f"{path}: {constant} of {len(scans[0].constant)} columns are constant")
    zero_rows = sum(scan.zero_rows for scan in scans)
    return warnings + _judge_zero_rows(zero_rows, n, path, "zero norm")


def _check_centred(arrays: Sequence[np.ndarray], path: str) -> list[str]:
    """Looks for rows that equal the mean, which unit norm cannot be given to."""
    mean = scaling.statistics(arrays, kind="rows").mean
    n = sum(len(array) for array in arrays)
    zero_rows = 0
    for array in arrays:
        for _, block in checks.blocks(array):
            zero_rows += int(np.count_nonzero(scaling.is_zero(block - mean, block, mean)))
    return _judge_zero_rows(zero_rows, n, path, "zero norm once the mean is taken off")


def _judge_zero_rows(zero_rows: int, n: int, path: str, what: str) -> list[str]:
    text = f"{path}: {zero_rows} of {n} rows have {what}"
    if zero_rows > _ZERO_ROWS * n:
        raise UserError(f"{text}, more than 1 %: encode these samples again or leave them out")
    return [text] if zero_rows else []
