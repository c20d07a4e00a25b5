"""Images as a list of encoded files: a folder, a .tar or .zip of one, a TFDS dataset."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from hume_jax.errors import UserError
from hume_jax.representations.images import archives, naming, tfds_images, tfds_prepare
from hume_jax.representations.images.archives import ArchiveFile
from hume_jax.representations.images.decoding import BrokenImage as BrokenImage
from hume_jax.representations.images.decoding import decode as decode
from hume_jax.representations.images.folder import FolderImages
from hume_jax.representations.images.tar import TarImages
from hume_jax.representations.images.zip import ZipImages

_HEAD = 8
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # of an archive with and without members


class Source(Protocol):
    """A list of encoded images, of which any thread may read any one.

    Labels are there for scores alone; nothing that encodes or searches may look at them.
    """

    @property
    def name(self) -> str:
        """What the user typed."""

    @property
    def ids(self) -> Sequence[str]:
        """What each image is called, no two the same."""

    @property
    def labels(self) -> np.ndarray | None:
        """(n,) int64 class of each image, None if unknown.

        Those of a TFDS dataset stand in the records of its images: they are collected as images
        are read, and asking for them reads what has not been read.
        """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, () if they have none."""

    @property
    def has_own_numbers(self) -> bool:
        """Whether a class has its number by definition, not by which others there are."""

    def __len__(self) -> int:
        """The number of images."""

    def read(self, i: int) -> bytes:
        """Returns image i as it is stored.

        Raises:
          BrokenImage: there is nothing to decode, and the message says why.
          UserError: the source itself cannot be read.
        """

    def fingerprint(self) -> str:
        """Returns a text that changes when the list of images does."""


def are_there(where: str, tfds_folder: str = "") -> bool:
    """Whether there are images to open, good or not; arguments as of `open_images`."""
    if where.startswith(tfds_images.PREFIX):
        return tfds_images.is_prepared(where, tfds_folder)
    return os.path.exists(Path(where).expanduser())


def open_images(
    where: str, *, labels: bool = True, label_key: str = "", tfds_folder: str = ""
) -> Source:
    """Opens a list of images; none of them is looked at.

    * A folder: its images and those of the folders in it, ordered by relative path.
    * A .tar (uncompressed) or .zip file: in the order of the archive. What it is, its content says.
    * `tfds:NAME[/CONFIG][:VERSION]/SPLIT`: a TensorFlow dataset, prepared if need be.

    In folders and archives an image is what ends in one of `naming.SUFFIXES`. Its class is the
    folder it lies in, where all lie in one, see `naming.classes`.

    Args:
      where: one of the above.
      labels: whether to read classes.
      label_key: TFDS only, the feature that holds the class, by default `label`.
      tfds_folder: TFDS only, where prepared datasets lie, by default where TFDS looks.

    Returns:
      The images.

    Raises:
      UserError: nothing is there, it cannot be read, is damaged, or holds no images.
    """
    if where.startswith(tfds_images.PREFIX):
        return tfds_images.TfdsImages(where, labels, label_key, tfds_folder)
    if label_key:
        raise UserError(
            f"images.label={label_key} is for tfds:NAME/SPLIT: leave it out, {where} has one "
            "labelling, the names of its folders"
        )
    path = Path(where).expanduser()
    if os.path.isdir(path):
        return FolderImages(where, labels)
    if not os.path.exists(path):
        meant = f"{tfds_images.PREFIX}{where}"
        raise UserError(
            f"there is no {where} (looked in {Path.cwd()}): give a folder of images, a .tar or "
            f".zip file of one, or {tfds_images.FORM}"
            f"{f'; did you mean {meant}?' if tfds_prepare.is_known(where) else ''}"
        )
    if not os.path.isfile(path):
        raise UserError(f"{where} is neither a folder nor a regular file")
    if naming.is_image(path.name):
        raise UserError(f"{where} is a single image: give the folder that it lies in")
    head = ArchiveFile(where).read(0, _HEAD)
    archives.check_kind(where, head)
    return (ZipImages if head.startswith(_ZIP) else TarImages)(where, labels)
