"""From images to the arrays that a config names: what is missing is encoded, what is there is kept.

An array that `data.SPLIT.phi1` or `phi2` names and that is not there is made from the images of
`images.SPLIT` by the encoder of `encode.phi1` or `phi2`. Stopped at any moment, the same command
goes on with the rows that are not on disk yet.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import config_dict

import hume_jax
from hume_jax import encoded_arrays, parallel
from hume_jax.encoded_arrays import Array
from hume_jax.errors import UserError
from hume_jax.files import existing_folder
from hume_jax.preemption import ending
from hume_jax.processes import ALONE, Processes
from hume_jax.progress import count
from hume_jax.representations.arrays import formats, side_file
from hume_jax.representations.arrays.stored import Stored
from hume_jax.representations.encode import broken_image, encode
from hume_jax.representations.encoders import hub, presets
from hume_jax.representations.images import loader, naming, sources, tfds_images
from hume_jax.representations.images.table import ImageTable

# Where `encode.threads` leaves it open: more only wait for the disk.
_MOST_THREADS = 16


class Job(NamedTuple):
    """What is to be done for the images of a split."""

    split: str
    source: sources.Source | None  # None: they are gone, and all arrays are there
    missing: tuple[Array, ...]  # also those that are there but for images since mended
    table: ImageTable


def ensure(
    config: config_dict.ConfigDict,
    processes: Processes = ALONE,
    check: Callable[[config_dict.ConfigDict, Mapping[str, Stored]], None] = lambda *_: None,
) -> config_dict.ConfigDict:
    """Encodes what is missing of the arrays that a config asks for.

    Args:
      config: resolved.
      processes: which part of the rows is this process's.
      check: called with the config and the headers of the arrays to come, by path, when all that
        is known of images, encoders and disk is good, and before the first image is encoded.

    Returns:
      The config with the paths of all arrays, and of the labels that came with the images.

    Raises:
      UserError: whatever is wrong with images, encoders, weights or disk, before any long work;
        an image that cannot be read, unless `images.broken` is `skip`.
      Preempted: by SIGTERM, to any of the processes; what was encoded is kept.
    """
    with ending(processes):
        parallel.check_devices()
        with processes.together():
            config, jobs = _prepare(config, check)
        processes.agree(_work(config, jobs))
        for job in jobs:
            for array in job.missing:
                _encode(config, job, array, processes)
        return _with_labels(config, jobs, processes)


def _prepare(
    config: config_dict.ConfigDict,
    check: Callable[[config_dict.ConfigDict, Mapping[str, Stored]], None],
) -> tuple[config_dict.ConfigDict, list[Job]]:
    """Finds out what is missing, and all that can be wrong before it is encoded."""
    config, arrays = encoded_arrays.fill(config)
    if not arrays:
        logging.warning(
            "images.train=%s is not used, nor are labels of it: neither encode.phi1 nor "
            "encode.phi2 names an encoder",
            config.images.train or config.images.test,
        )
    missing = [array for array in arrays if not _is_there(array)]
    if missing:
        loader.check_installed()
    # A dataset of tfds may be downloaded and prepared when it is opened, which takes longer than
    # to get weights; a folder or archive does not.
    prepares = False
    for where in dict.fromkeys(config.images[array.split] for array in missing):
        if where.startswith(tfds_images.PREFIX):
            settings, prepares = config.images, True
            tfds_images.check(where, settings.labels, settings.label, settings.tfds_folder)
    _check_loads(missing if prepares else [a for a in missing if not presets.parse(a.spec).weights])
    jobs = [
        _job(config, split, [array for array in arrays if array.split == split])
        for split in dict.fromkeys(array.split for array in arrays)
    ]
    coming = _coming(config, jobs)
    check(config, coming)
    _check_disk(jobs, coming)
    if not prepares:
        # The first is read next in any case.
        _check_loads([array for job in jobs for array in job.missing][1:])
    return config, jobs


def _check_loads(arrays: Sequence[Array]) -> None:
    """Finds out what is wrong with weights; they are read once more when their turn comes."""
    for spec in dict.fromkeys(array.spec for array in arrays):
        presets.load(presets.parse(spec))


def _job(config: config_dict.ConfigDict, split: str, arrays: Sequence[Array]) -> Job:
    """Opens the images of a split, and compares with them what was encoded before."""
    # One array may be both phi1 and phi2.
    different = {array.path.absolute(): array for array in arrays}.values()
    missing = {array for array in different if not _is_there(array)}
    begun = [array for array in arrays if side_file.read(array.path) is not None]
    source = _open(config.images, split, must=bool(missing)) if missing or begun else None
    if source is not None:
        for array in begun:
            _check_same(array, _identity(array, source, config.encode.dtype))
    skip = config.images.broken == "skip"
    missing |= {a for a in different if a not in missing and _is_mended(a, source, skip)}
    for array in begun:
        encoder = presets.parse(array.spec)
        if encoder.sha256 is not None:
            _check_weights(array, encoder.sha256)
        weights = Path(encoder.weights).expanduser()
        if weights.is_file():
            _check_weights(array, hub.local(weights).sha256)
    table = ImageTable(encoded_arrays.folder_of(config, split), config.images.label)
    return Job(split, source, tuple(a for a in different if a in missing), table)


def _is_there(array: Array) -> bool:
    """Whether all rows are on disk: a finished array, or a file of the user's own."""
    content = side_file.read(array.path)
    if array.path.is_dir():
        raise UserError(
            f"{array.path}, where the array of {array.field} would be, is a folder: set "
            f"{array.field} to FILE.npy"
        )
    if not array.path.exists() or (content is not None and not content["complete"]):
        return False
    # Refused here if it is not what its side file says.
    formats.open_header(array.path)
    return True


def _is_mended(array: Array, source: sources.Source | None, skip: bool) -> bool:
    """Whether a finished array has rows of zeros for images that can be read by now.

    Raises:
      UserError: some still cannot be, and are not to be skipped.
    """
    rows = [row for row, _ in side_file.broken(array.path)]
    if source is None:
        if rows and not skip:
            raise UserError(
                f"{array.path} holds {count(len(rows), 'row')} of zeros, of images that were "
                "broken and are not there any more: set images.broken=skip to take it as it is"
            )
        return False
    still = [(row, why) for row in rows if (why := _why_broken(source, row))]
    if still and not skip:
        raise broken_image(source, *still[0])
    return len(still) < len(rows)


def _why_broken(source: sources.Source, row: int) -> str:
    """What is wrong with an image, '' if nothing is."""
    try:
        sources.decode(source.read(row))
    except sources.BrokenImage as error:
        return str(error)
    return ""


def _open(settings: Any, split: str, must: bool) -> sources.Source | None:
    """The images of a split; None where they are gone and none of them is needed."""
    where, folder = settings[split], settings.tfds_folder
    if not must and not sources.are_there(where, folder):
        logging.info("%s is not there; going on with the arrays encoded from it", where)
        return None
    return sources.open_images(
        where, labels=settings.labels, label_key=settings.label, tfds_folder=folder
    )


def _identity(array: Array, source: sources.Source, dtype: str) -> dict[str, Any]:
    """What must be the same for rows to belong together."""
    return {
        "encoder": presets.meaning(presets.parse(array.spec)),
        "rows": len(source),
        "images_digest": source.fingerprint(),
        "dtype": dtype,
        # As JSON gives it back.
        "preprocessing": json.loads(json.dumps(presets.parse(array.spec).preprocessing._asdict())),
    }


def _check_same(array: Array, identity: Mapping[str, Any]) -> None:
    """Checks that an array, whole or not, was made as the config says."""
    content = side_file.read(array.path) or {}
    for name, value in identity.items():
        if content.get(name) != value:
            raise UserError(
                f"{array.path} was encoded with {name} {content.get(name)!r}, now it is {value!r}: "
                f"delete it and {side_file.place(array.path)} to encode anew, or set {array.field} "
                "or encode.folder to another place"
            )


def _check_weights(array: Array, sha256: str) -> None:
    """Checks that an array, whole or not, was made with the weights that are there now."""
    content = side_file.read(array.path) or {}
    before = content.get("weights", {}).get("sha256", sha256)
    if before != sha256:
        raise UserError(
            f"{array.path} was encoded with other weights (SHA-256 {before}) than those of "
            f"{array.spec!r} (SHA-256 {sha256}): delete it and {side_file.place(array.path)} to "
            "encode anew"
        )


def _work(config: config_dict.ConfigDict, jobs: Sequence[Job]) -> dict[str, Any]:
    """What is to be done, for the processes of a run to compare."""
    work: dict[str, Any] = {}
    for job in jobs:
        for array in job.missing:
            assert job.source is not None
            identity = _identity(array, job.source, config.encode.dtype)
            work |= {f"{array.field}: file": array.name}
            work |= {f"{array.field}: {name}": value for name, value in identity.items()}
    return work


def _coming(config: config_dict.ConfigDict, jobs: Sequence[Job]) -> dict[str, Stored]:
    """The headers of the arrays that are not there yet, by the path that the config names."""
    found = {}
    for job in jobs:
        if job.source is None:
            continue
        for array in job.missing:
            shape = (len(job.source), presets.width(presets.parse(array.spec)))
            found[array.name] = Stored(
                array.name,
                shape,
                np.dtype(config.encode.dtype),
                functools.partial(_not_there, array.name),
                images=naming.digest(job.source.ids),
            )
    return found


def _not_there(name: str) -> np.ndarray:
    raise FileNotFoundError(name)


def _check_disk(jobs: Sequence[Job], coming: Mapping[str, Stored]) -> None:
    """Checks that all arrays that are not begun yet fit, disk by disk."""
    needed: dict[int, tuple[Path, int]] = {}
    for array in (array for job in jobs for array in job.missing if not _is_there(array)):
        folder = existing_folder(array.path.absolute().parent)
        if not side_file.part(array.path).exists():
            header, disk = coming[array.name], folder.stat().st_dev
            size = header.shape[0] * header.shape[1] * header.dtype.itemsize
            needed[disk] = (folder, needed.get(disk, (folder, 0))[1] + size)
    for folder, total in needed.values():
        free = shutil.disk_usage(folder).free
        if total > free:
            raise UserError(
                f"the arrays to encode take {total / 2**30:.3g} GiB, {folder} has "
                f"{free / 2**30:.3g} GiB free: set encode.folder to another disk"
            )


def _encode(config: config_dict.ConfigDict, job: Job, array: Array, processes: Processes) -> None:
    assert job.source is not None
    encoder = presets.parse(array.spec)
    with processes.together():
        params, fetched = presets.load(encoder)
        _check_weights(array, fetched.sha256)
    processes.agree({f"weights of {array.field} with SHA-256": fetched.sha256})
    description = {
        **_identity(array, job.source, config.encode.dtype),
        "spec": array.spec,
        "columns": presets.width(encoder),
        "images": config.images[job.split],
        # From the array's folder, so that both may be moved together.
        "image_table": os.path.relpath(job.table.rows.absolute(), array.path.absolute().parent),
        "ids_digest": naming.digest(job.source.ids),
        "unit_norm": encoder.unit_norm,
        "weights": {
            "source": encoder.weights,
            "commit": fetched.commit,
            "sha256": fetched.sha256,
            "licence": presets.licence(encoder),
        },
        "versions": {"hume_jax": hume_jax.__version__, "jax": jax.__version__},
    }
    encode(
        job.source,
        encoder,
        params,
        array.path,
        description,
        dtype=config.encode.dtype,
        batch=config.encode.batch,
        threads=config.encode.threads or min(_MOST_THREADS, os.cpu_count() or 1),
        skip_broken=config.images.broken == "skip",
        again=_is_there(array),
        processes=processes,
    )


def _with_labels(
    config: config_dict.ConfigDict, jobs: Sequence[Job], processes: Processes
) -> config_dict.ConfigDict:
    """Writes the tables of images and their labels, and names the labels in the config."""
    values = config.to_dict()
    for job in jobs:
        section = values["data"][job.split]
        # Last, for the labels of a tfds dataset come with the images.
        with processes.together():
            if job.source is not None and processes.number == 0:
                job.table.write(job.source)
        if not section["labels"] and config.images.labels and job.table.labels.exists():
            section["labels"] = str(job.table.labels)
    return config_dict.ConfigDict(values).lock()
