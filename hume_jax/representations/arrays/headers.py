"""The files of a dataset by their headers: all there, of numbers, of shapes that fit together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hume_jax.errors import UserError
from hume_jax.representations import samples
from hume_jax.representations.arrays import checks, formats, side_file
from hume_jax.representations.arrays.formats import find_array
from hume_jax.representations.arrays.stored import Stored

ARCHIVE = "https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip"


class Space(NamedTuple):
    """One representation of the rows of a split, in one or several files."""

    arrays: tuple[Stored, ...]  # (n, d_j)
    paths: tuple[str, ...]


class Split(NamedTuple):
    """The files of `train` or `test`."""

    phi1: Space
    phi2: Space
    labels: Stored | None  # (n,)
    labels_path: str
    n: int

    @property
    def arrays(self) -> tuple[Stored, ...]:
        """All arrays."""
        labels = () if self.labels is None else (self.labels,)
        return (*self.phi1.arrays, *self.phi2.arrays, *labels)


def open_headers(
    data: Any, coming: Mapping[str, Stored] | None = None
) -> tuple[Split, Split | None]:
    """Reads the headers of a dataset's files.

    Args:
      data: the config's `data` section, see `store.open_dataset`.
      coming: the headers of arrays that will be there, by their path.

    Returns:
      train, and test if it is given.

    Raises:
      UserError: files missing (all of them are named), not arrays of numbers, of the wrong shape
        or dtype, of differing row counts, or encoded from differing images.
    """
    for name in ("train.phi1", "train.phi2"):
        section, field = name.split(".")
        if not data[section][field]:
            raise UserError(
                f"config field 'data.{name}' is not given: --config.data.{name}=FILE.npy"
            )
    has_test = bool(data["test"]["phi1"])
    if not has_test and any(data["test"].get(field) for field in ("phi2", "labels", "samples")):
        raise UserError("config field 'data.test.phi1' is not given, other test files are")
    coming = coming or {}
    _check_present(data, coming)
    train = _open_split("train", data["train"], coming)
    if not has_test:
        return train, None
    test = _open_split("test", data["test"], coming)
    _check_same_columns(train.phi1, test.phi1, "phi1")
    if test.phi2.arrays:
        _check_same_columns(train.phi2, test.phi2, "phi2")
    return train, test


def several(value: str | Sequence[str]) -> tuple[str, ...]:
    """Returns what a field names: one path or encoder, several, or with '' none."""
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(value)


def _check_present(data: Any, coming: Mapping[str, Stored]) -> None:
    """Raises one error that names every file that is not there."""
    missing = [
        (f"data.{split}.{field}", path, instead)
        for split in ("train", "test")
        for field in ("phi1", "phi2", "labels")
        for path in several(data[split][field])
        if path not in coming and (instead := formats.what_is_missing(path)) is not None
    ]
    if not missing:
        return
    count = "1 file" if len(missing) == 1 else f"{len(missing)} files"
    listed = ", ".join(f"{field}={path}{instead}" for field, path, instead in missing)
    text = f"{count} not found: {listed} (looked in {Path.cwd()})"
    if any(path.startswith(("data/representations/", "data/labels/")) for _, path, _ in missing):
        text += f". Either get the authors' arrays, {ARCHIVE}, and unzip them here, or encode the"
        text += " images yourself and give your .npy files, one row for each image, with"
        text += f" --config.{missing[0][0]}=FILE and so on"
    else:
        text += f": set --config.{missing[0][0]}=FILE to an array that is there"
    optional = [field for field, _, _ in missing if field.endswith("labels") or field.count("test")]
    if len(optional) == len(missing):
        text += "; labels and test files may also be left out, --config.FIELD=''"
    raise UserError(text)


def _open_split(name: str, fields: Any, coming: Mapping[str, Stored]) -> Split:
    phi1, phi2 = (_open_space(several(fields[field]), coming) for field in ("phi1", "phi2"))
    first, n = phi1.paths[0], phi1.arrays[0].shape[0]
    for space in (phi1, phi2):
        for path, array in zip(space.paths, space.arrays, strict=True):
            if array.shape[0] != n:
                raise UserError(
                    f"{first} {phi1.arrays[0].shape} and {path} {array.shape} differ in rows: "
                    f"the {name} files must hold the same samples in the same order"
                )
    _check_same_images([*phi1.arrays, *phi2.arrays], name)
    labels, labels_path = None, fields["labels"]
    if labels_path:
        labels = coming.get(labels_path) or formats.open_header(labels_path, checks.LABELS_HINT)
        checks.check_labels(find_array(labels_path), labels, n, find_array(first))
    samples.check(f"data.{name}.samples", fields.get("samples", ""), n)
    return Split(phi1, phi2, labels, labels_path, n)


def _check_same_images(arrays: Sequence[Stored], name: str) -> None:
    """Raises a `UserError` if two arrays were encoded from images of other names or order."""
    encoded = [array for array in arrays if array.images]
    for array in encoded:
        if array.images != encoded[0].images:
            raise UserError(
                f"{encoded[0].name} and {array.name} were encoded from other images, or from the "
                f"same in another order, as the files beside them say: the {name} files must hold "
                "the same samples in the same order; encode both from one list of images, or, if "
                f"only the names differ, delete {side_file.place(Path(array.name))}"
            )


def _open_space(paths: tuple[str, ...], coming: Mapping[str, Stored]) -> Space:
    arrays = []
    for path in paths:
        arrays.append(coming.get(path) or formats.open_header(path))
        checks.check_space(find_array(path), arrays[-1])
    return Space(tuple(arrays), paths)


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
