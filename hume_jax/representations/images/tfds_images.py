"""Images of a TensorFlow dataset (TFDS), read without TensorFlow."""

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from hume_jax.config_checks import suggest
from hume_jax.errors import UserError
from hume_jax.representations.images import naming, tfds_prepare

PREFIX = "tfds:"
FORM = "tfds:NAME[/CONFIG][:VERSION]/SPLIT"

# A split may be a slice, `train[:10%]`, or a sum, `train+test`, as TFDS writes them.
_SPEC = re.compile(r"tfds:(?P<dataset>[^/:]+(/[^/:]+)?(:\d[\w.*]*)?)/(?P<split>[^/]+)")
_LABEL_KEY = "label"
# Bytes of a file that are looked at, thrice.
_SAMPLED = 2**16
# What the reader of the records raises over damaged files.
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class _Keys(NamedTuple):
    """Features of a dataset that are read."""

    image: str
    label: str  # '' for none


def is_prepared(where: str, folder: str) -> bool:
    """Whether a dataset is there to be read.

    Args:
      where: `FORM`.
      folder: where prepared datasets lie, '' for where TFDS looks.
    """
    found = _SPEC.fullmatch(where)
    try:
        return (
            found is not None and tfds_prepare.find(where, found["dataset"], folder).is_prepared()
        )
    except UserError:
        return False


def check(where: str, labels: bool, label_key: str, folder: str) -> None:
    """Raises a `UserError` where `TfdsImages` would, as far as is known before it is prepared."""
    found = _parse(where)
    builder = tfds_prepare.find(where, found["dataset"], folder)
    _keys(where, builder.info.features, label_key if labels else None)
    tfds_prepare.check(where, builder)
    if builder.is_prepared():
        _check_split(where, builder.info, found["split"])


def _parse(where: str) -> re.Match[str]:
    found = _SPEC.fullmatch(where)
    if not found:
        raise UserError(f"{where!r} is not of the form {FORM}, e.g. tfds:stl10/train")
    return found


class TfdsImages:
    """The images of a split of a TFDS dataset, in its order, see `sources.Source`.

    The records are read at random places, so they must be array_record files. Ids are row numbers.
    """

    has_own_numbers = True

    def __init__(self, where: str, labels: bool, label_key: str, folder: str) -> None:
        """Finds the dataset, and prepares it if it is not there.

        Args:
          where: `FORM`.
          labels: whether to read classes.
          label_key: the feature that holds the class, '' for `label` if there is one.
          folder: where prepared datasets lie, '' for where TFDS looks.

        Raises:
          UserError: no such dataset, config, version, split or feature; not prepared and it cannot
            be; prepared in another file format.
        """
        found = _parse(where)
        self.name = where
        builder = tfds_prepare.find(where, found["dataset"], folder)
        keys = _keys(where, builder.info.features, label_key if labels else None)
        tfds_prepare.prepare(where, builder)
        self._records = _records(where, builder, found["split"], keys)
        self._keys = keys
        info = builder.info
        self._full_name, self._split = info.full_name, found["split"]
        self._parts = info.splits[self._split].file_instructions
        self._fingerprint = ""
        self.ids: Sequence[str] = tuple(map(str, range(len(self._records))))
        self._labels = np.zeros(len(self.ids), np.int64)
        self._is_read = np.zeros(len(self.ids), bool)
        self.class_names: tuple[str, ...] = (
            tuple(getattr(info.features[keys.label], "names", None) or ()) if keys.label else ()
        )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    def read(self, i: int) -> bytes:
        """Returns image i as it is encoded in its record, and notes its label.

        Raises:
          UserError: the record cannot be read.
        """
        try:
            record = self._records[i]
            # A file that is cut short gives empty records.
            image = b"".join([record[self._keys.image]])
            if self._keys.label:
                self._labels[i] = record[self._keys.label]
                self._is_read[i] = True
        except _UNREADABLE as error:
            raise UserError(
                f"{self.name}: record {i} cannot be read, copy or prepare the dataset again: "
                f"{error}"
            ) from error
        return image

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) int64, or None where there are none or some are -1, TFDS's sign for unknown.

        Asked before all images were read, it reads those left.
        """
        if not self._keys.label:
            return None
        for i in np.flatnonzero(~self._is_read):
            self.read(int(i))
        if self._labels.size and self._labels.min() < 0:
            logging.info("%s: some images have no label, so there are no scores", self.name)
            return None
        return self._labels

    def fingerprint(self) -> str:
        """Returns a hash of the dataset's name, config, version, split, and parts of its files.

        Raises:
          UserError: a file cannot be read.
        """
        if not self._fingerprint:
            try:
                parts = [
                    (part.basename(), part.skip, part.take, _sampled(part.filename))
                    for part in self._parts
                ]
            except OSError as error:
                raise UserError(
                    f"{self.name} cannot be read, copy or prepare the dataset again: {error}"
                ) from error
            self._fingerprint = naming.digest(map(str, (self._full_name, self._split, *parts)))
        return self._fingerprint


def _keys(where: str, features: Any, label_key: str | None) -> _Keys:
    """Finds the features; `label_key` is None for no label, '' for the usual one."""
    tfds = tfds_prepare.load()
    kinds = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    images = [key for key, kind in kinds.items() if isinstance(kind, tfds.features.Image)]
    image = "image" if "image" in images else "".join(images)
    if image not in images:
        raise UserError(
            f"{where}: its features are {', '.join(kinds) or features}, with "
            f"{'several images' if images else 'no image'}: such a dataset cannot be read"
        )
    if kinds[image].np_dtype != np.uint8:
        raise UserError(f"{where}: its images are {kinds[image].np_dtype}, not 8 bits a channel")
    if label_key is None:
        return _Keys(image, "")
    able = [key for key, kind in kinds.items() if not kind.shape and _is_integer(kind)]
    if label_key and label_key not in able:
        raise UserError(
            f"{where} has no integer feature {label_key!r} for labels, only "
            f"{', '.join(able) or 'none'}{suggest(label_key, able)}"
        )
    return _Keys(image, label_key or (_LABEL_KEY if _LABEL_KEY in able else ""))


def _is_integer(kind: Any) -> bool:
    return bool(np.issubdtype(kind.np_dtype, np.integer))


def _records(where: str, builder: Any, split: str, keys: _Keys) -> Sequence[Any]:
    """Opens the records; of all their features only the label is decoded."""
    tfds = tfds_prepare.load()
    containers = (tfds.features.FeaturesDict, tfds.features.Sequence, tfds.features.Dataset)
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, kind in builder.info.features.items()
        if key != keys.label and not isinstance(kind, containers)
    }
    _check_split(where, builder.info, split)
    try:
        return builder.as_data_source(split, decoders=decoders, file_format=tfds_prepare.FORMAT)
    except ImportError as error:
        raise UserError(
            f"{where} needs the package array_record to be read, which is missing here: {error}"
        ) from error


def _check_split(where: str, info: Any, split: str) -> None:
    known = sorted(info.splits)
    try:
        count = info.splits[split].num_examples
    except (ValueError, LookupError, AssertionError) as error:
        raise UserError(
            f"{where}: there is no split {split!r}, only {', '.join(known)}, and parts of them as "
            f"in train[:10%]{suggest(split, known)}"
        ) from error
    if not count:
        raise UserError(f"{where}: the split {split!r} holds no images")


def _sampled(file: str) -> str:
    """Returns a hash of a file's size, and of what stands at its beginning, middle and end."""
    content = hashlib.sha256()
    with tfds_prepare.load().core.Path(file).open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        content.update(str(size).encode())
        for at in (0, size // 2, max(0, size - _SAMPLED)):
            stream.seek(at)
            content.update(stream.read(_SAMPLED))
    return content.hexdigest()
