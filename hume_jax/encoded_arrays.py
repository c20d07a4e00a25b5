"""Which arrays the images and encoders of a config give, and where each of them lies."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import config_dict

from hume_jax import stores
from hume_jax.errors import UserError
from hume_jax.progress import count
from hume_jax.representations import store
from hume_jax.representations.arrays import headers
from hume_jax.representations.encoders import presets


class Array(NamedTuple):
    """One array to have."""

    field: str  # of the config, "data.train.phi1"
    split: str
    spec: str  # of the encoder
    name: str  # the path as the config has it
    path: Path


def fill(config: config_dict.ConfigDict) -> tuple[config_dict.ConfigDict, list[Array]]:
    """Says where every encoded array lies.

    Args:
      config: resolved.

    Returns:
      The config with a path in every field of `data` that images and an encoder are given for,
      and these arrays.

    Raises:
      UserError: an encoder without images or the other way round, an unknown encoder, or as many
        paths as encoders are not given.
    """
    values = config.to_dict()
    arrays: list[Array] = []
    for name in ("phi1", "phi2"):
        specs = headers.several(values["encode"][name])
        if not any(specs):
            continue
        for spec in filter(None, specs):
            presets.parse(spec)
        stores.check_local(values["encode"]["folder"], "encode.folder")
        if not any(values["images"][split] for split in ("train", "test")):
            raise UserError(
                f"config field 'encode.{name}' names an encoder, but 'images.train' no images: "
                "--config.images.train=FOLDER, FILE.tar, FILE.zip or tfds:NAME/SPLIT"
            )
        for split in ("train", "test"):
            if values["images"][split]:
                stores.check_local(values["images"][split], f"images.{split}")
                arrays += _fill_field(values, split, name, specs)
    _check_places(arrays)
    return config_dict.ConfigDict(values).lock(), arrays


def _check_places(arrays: Sequence[Array]) -> None:
    """Checks that no two different arrays go to one file."""
    places: dict[Path, Array] = {}
    for array in arrays:
        other = places.setdefault(array.path.absolute(), array)
        if (other.split, other.spec) != (array.split, array.spec):
            raise UserError(
                f"{array.name} is meant for {other.field} ({other.spec!r} of images.{other.split}) "
                f"and for {array.field} ({array.spec!r} of images.{array.split}): name two files"
            )


def _fill_field(values: dict[str, Any], split: str, name: str, specs: tuple[str, ...]) -> list:
    field, section = f"data.{split}.{name}", values["data"][split]
    given = headers.several(section[name]) or ("",) * len(specs)
    if len(given) != len(specs):
        raise UserError(
            f"config field {field!r} names {count(len(given), 'array')}, 'encode.{name}' "
            f"{count(len(specs), 'encoder')}: give one path for each encoder, or none"
        )
    paths, found = [], []
    for path, spec in zip(given, specs, strict=True):
        if spec:
            stores.check_local(path, field)
        if not path and not spec:
            raise UserError(
                f"config field {field!r} is {given}: where 'encode.{name}' has '' for an encoder, "
                "it gives the path of an array of your own"
            )
        if not path:
            place = str(folder_of(values, split) / f"{presets.slug(presets.parse(spec))}.npy")
        elif spec and not path.endswith(".npy"):
            raise UserError(f"config field {field!r} is {path!r}: encoded arrays are .npy files")
        else:
            place = path
        paths.append(place)
        if spec:
            found.append(Array(field, split, spec, place, store.find_array(place)))
    section[name] = paths[0] if len(paths) == 1 else tuple(paths)
    return found


def folder_of(values: Any, split: str) -> Path:
    """Where what is made from the images of a split lies: named for them, and unlike any other."""
    where = values["images"][split]
    stem = _stem(where)
    full = where if where.startswith("tfds:") else str(Path(where).expanduser().resolve())
    digest = hashlib.sha256(full.encode()).hexdigest()[:6]
    return Path(values["encode"]["folder"]).expanduser() / f"{stem}-{digest}"


def _stem(where: str) -> str:
    """A file name for images: `tfds:stl10/train` -> stl10-train, `a/b.tar` -> b."""
    name = where.removeprefix("tfds:")
    if name == where:
        name = re.sub(r"\.(tar|zip)$", "", Path(where).expanduser().resolve().name)
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "images"
