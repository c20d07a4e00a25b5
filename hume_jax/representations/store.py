"""Representation spaces on disk: open, check, memory-map, normalise, write.

A space is an (n, d) array in one of the formats of `formats`, float16 or float32 (float64 is read
as float32), rows in the dataset's order; the two spaces of a dataset share their rows. Files are
read in blocks; `normalise` makes the one copy in memory.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.representations import scaling
from hume_jax.representations.arrays import checks, class_names, formats, headers, side_file
from hume_jax.representations.arrays.formats import find_array as find_array
from hume_jax.representations.arrays.headers import ARCHIVE as ARCHIVE
from hume_jax.representations.arrays.kept import Array, less
from hume_jax.representations.arrays.stored import Stored
from hume_jax.representations.scaling import Statistics as Statistics
from hume_jax.representations.scaling import normalise as normalise
from hume_jax.representations.scaling import statistics as statistics

_NO_TEST_ROWS = (
    "setting=transductive searches the test rows too: give data.test.phi1 and data.test.phi2, or "
    "set setting=inductive"
)
_NO_TEST_PHI2 = (
    "search.spaces={} labels the test rows by {}: give data.test.phi2 too, or set "
    "search.spaces=given"
)


class Space(NamedTuple):
    """One representation of the rows of a split, in one or several files."""

    # (n, d_j) float16, bfloat16, float32 or float64, memory-mapped where the format allows it
    arrays: tuple[Array, ...]
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
    # Row numbers in the files, ascending, of images that could not be read: zeros there, and none
    # of the n rows.
    left_out: np.ndarray = np.zeros(0, np.int64)

    def in_files(self, values: np.ndarray, fill: float) -> np.ndarray:
        """Spreads a value of each row, (n,), over the rows of the files; others are filled."""
        spread = np.full(self.n + len(self.left_out), fill, values.dtype)
        spread[np.setdiff1d(np.arange(len(spread)), self.left_out)] = values
        return spread


# A split whose files are open, or one of which the headers alone were read.
_AnySplit = TypeVar("_AnySplit", Split, headers.Split)


class Dataset(NamedTuple):
    """What the config's `data` section names."""

    train: Split
    test: Split | None


def open_dataset(data: Any) -> Dataset:
    """Opens the files of a dataset and checks them, each read once.

    Args:
      data: the config's `data` section: `train` and `test`, each with `phi1` and `phi2` (a path or
        a tuple of paths) and `labels` (a path), '' for what is not given; paths as in `formats`.

    Returns:
      The splits, memory-mapped; `test` is None if its phi1 is not given.

    Raises:
      UserError: files missing (all of them are named), not arrays of numbers, of the wrong shape
        or dtype, of differing row counts, too large to be read, NaN or infinite values, or labels
        that do not fit.
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

    Takes and returns what `open_dataset` does. What can be memory-mapped is there at once whatever
    its size, the rest is read; values are not looked at, and `Space.scans` is empty. The headers of
    all files are checked before anything is read. Rows of images that could not be read, as the
    side files of encoded arrays say, are left out.
    """
    files = [split for split in headers.open_headers(data) if split is not None]
    formats.check_room(array for split in files for array in split.arrays)
    splits = [_read_split(split) for split in files]
    numbers = class_names.numbers(
        [(file.labels_path, split.labels) for file, split in zip(files, splits, strict=True)]
    )
    train, *test = [
        split._replace(labels=None if labels is None else np.delete(labels, split.left_out))
        for split, labels in zip(splits, numbers, strict=True)
    ]
    return Dataset(train, test[0] if test else None)


def check_headers(
    data: Any,
    n_classes: int,
    setting: str,
    coming: Mapping[str, Stored] | None = None,
    *,
    spaces: str = "given",
) -> None:
    """Checks what `open_files`, `search_spaces` and `check_classes` do, and reads only headers.

    Args:
      data: the config's `data` section.
      n_classes: K.
      setting: `inductive` or `transductive`.
      coming: the headers of arrays that will be there, by their path.
      spaces: as of `search_spaces`.

    Raises:
      UserError: as those three.
    """
    train, test = headers.open_headers(data, coming)
    train, test = _chosen(train, spaces), None if test is None else _chosen(test, spaces)
    n = train.n
    if setting == "transductive":
        if test is None or not test.phi2.arrays:
            raise UserError(_NO_TEST_ROWS)
        n += test.n
    encoder = (train.phi1, train.phi2) if spaces == "both" else (train.phi1,)
    columns = {
        path: array.shape[1]
        for space in encoder
        for path, array in zip(space.paths, space.arrays, strict=True)
    }
    _check_counts(n_classes, n, sum(columns.values()))


def check_present(data: Any, coming: Mapping[str, Stored]) -> None:
    """Looks at the values of the user's own arrays, before others are encoded beside them.

    Those of arrays that were encoded were looked at when they were written.

    Args:
      data: the config's `data` section.
      coming: the arrays that are not there, by their path.

    Raises:
      UserError: some are NaN or infinite, also as float32.
    """
    for split in ("train", "test") if coming else ():
        for name in ("phi1", "phi2"):
            for path in headers.several(data[split][name]):
                file = find_array(path)
                if path not in coming and side_file.read(file) is None:
                    checks.scan(file, formats.open_array(path))


def search_spaces(dataset: Dataset, spaces: str) -> Dataset:
    """The spaces that a search sees, in the places of those that were given.

    Args:
      dataset: as opened.
      spaces: `given`: phi1 for the task encoder, phi2 for the inner fit; `both`: all files of
        phi1 and phi2 joined for the task encoder, and each of them for an inner fit of its own;
        `first` or `second`: phi1 or phi2 alone for both.

    Raises:
      UserError: `both` or `second`, and test rows without phi2.
    """
    train, test = dataset
    train, test = _chosen(train, spaces), None if test is None else _chosen(test, spaces)
    if spaces != "both":
        return Dataset(train, test)
    return Dataset(_all_files(train), None if test is None else _all_files(test))


def _chosen(split: _AnySplit, spaces: str) -> _AnySplit:
    """A split with phi1 or phi2 in the place of both, where one is searched alone."""
    if spaces in ("both", "second") and not split.phi2.arrays:
        raise UserError(
            _NO_TEST_PHI2.format(spaces, {"second": "phi2"}.get(spaces, "phi1 and phi2"))
        )
    if spaces == "first":
        return split._replace(phi2=split.phi1)
    return split._replace(phi1=split.phi2) if spaces == "second" else split


def _all_files(split: Split) -> Split:
    """A split with all of its files in the place of phi1 and of phi2, each once."""
    spaces = (split.phi1, split.phi2)
    paths = [path for space in spaces for path in space.paths]
    first = [i for i, path in enumerate(paths) if path not in paths[:i]]

    def pick(parts: list[Any]) -> tuple[Any, ...]:
        # Nothing was seen yet of files that were just opened.
        return tuple(parts[i] for i in first) if parts else ()

    joined = Space(
        pick([array for space in spaces for array in space.arrays]),
        pick(paths),
        pick([scan for space in spaces for scan in space.scans]),
    )
    return split._replace(phi1=joined, phi2=joined)


def search_splits(dataset: Dataset, setting: str) -> tuple[Split, ...]:
    """Returns the splits whose rows are searched: train, or train then test if transductive."""
    if setting == "inductive":
        return (dataset.train,)
    if dataset.test is None or not dataset.test.phi2.arrays:
        raise UserError(_NO_TEST_ROWS)
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
    warnings = _tell_left_out(dataset)
    for name in ("phi1", "phi2"):
        spaces = [getattr(split, name) for split in splits]
        for j in range(len(spaces[0].arrays)):
            warnings += _check_values(name, spaces, j, n)
            if name == "phi1" and normalise:
                warnings += _check_centred(
                    [space.arrays[j] for space in spaces], spaces[0].paths[j]
                )
    # A file may be in both spaces.
    return list(dict.fromkeys(warnings))


def check_classes(dataset: Dataset, n_classes: int, setting: str) -> None:
    """Checks the number of classes against the shapes, as `check_search` does."""
    n = sum(split.n for split in search_splits(dataset, setting))
    _check_counts(n_classes, n, dataset.train.phi1.columns)


def _check_counts(n_classes: int, n: int, columns: int) -> None:
    if n_classes < 2:
        raise UserError(f"n_classes is {n_classes}, there must be at least 2 classes")
    if n_classes > n:
        raise UserError(f"n_classes is {n_classes}, more than the {n} searched rows")
    if n_classes > columns:
        raise UserError(
            f"n_classes is {n_classes}, more than the {columns} columns that the task "
            f"encoder reads: there are no {n_classes} orthonormal columns; take wider "
            "representations or fewer classes"
        )


def save_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes an .npy file whole or not at all."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def _read_split(split: headers.Split) -> Split:
    left_out = _broken_rows(split)
    phi1, phi2 = (
        Space(tuple(less(array.read(), left_out) for array in space.arrays), space.paths, ())
        for space in (split.phi1, split.phi2)
    )
    labels = None if split.labels is None else split.labels.read()
    return Split(phi1, phi2, labels, split.n - len(left_out), left_out)


def _broken_rows(split: headers.Split) -> np.ndarray:
    """The rows of images that could not be read in one of the spaces, ascending."""
    files = [find_array(path) for space in (split.phi1, split.phi2) for path in space.paths]
    rows = np.unique([row for file in files for row, _ in side_file.broken(file)]).astype(np.int64)
    if len(rows) == split.n:
        raise UserError(
            f"{' and '.join(map(str, files))}: no row is left, each is of an image that could not "
            "be read for one of them: mend the images and encode again"
        )
    return rows


def _tell_left_out(dataset: Dataset) -> list[str]:
    """A line for each split that has less rows than its files."""
    found = []
    for split in dataset:
        if split is not None and len(split.left_out):
            files = map(find_array, (*split.phi1.paths, *split.phi2.paths))
            listed = " and ".join(str(side_file.place(f)) for f in files if side_file.broken(f))
            found.append(
                f"{len(split.left_out)} of {split.n + len(split.left_out)} rows are left out, of "
                f"images that could not be read: {listed}"
            )
    return found


def _scan_split(split: Split) -> Split:
    return split._replace(phi1=_scan_space(split.phi1), phi2=_scan_space(split.phi2))


def _scan_space(space: Space) -> Space:
    files = zip(space.paths, space.arrays, strict=True)
    return space._replace(scans=tuple(checks.scan(find_array(path), a) for path, a in files))


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
    return warnings + scaling.judge_zero_rows(zero_rows, n, path, "zero norm")


def _check_centred(arrays: Sequence[Array], path: str) -> list[str]:
    """Looks for rows that equal the mean, which unit norm cannot be given to."""
    mean = scaling.statistics(arrays, kind="rows").mean
    n = sum(len(array) for array in arrays)
    zero_rows = 0
    for array in arrays:
        for _, block in checks.blocks(array):
            zero_rows += int(np.count_nonzero(scaling.is_zero(block - mean, block, mean)))
    return scaling.judge_zero_rows(zero_rows, n, path, scaling.ZERO_ONCE_CENTRED)
