"""The parts of a class that is split: a search of its rows by themselves, kept in RUN/split_5/.

Which rows these are is what the run says, whatever else is merged: merges take rows away from a
class that is not among them, and give it none. So a split stays when others are changed.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hume_jax import labelling
from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.representations.store import Dataset, Space, Split

# Which class of which run the folder is of.
_ABOUT = "class.json"
# Fields of the run's config that are not those of a search of some of its rows.
_OWN = ("n_classes", "class_prior", "setting", "seeds", "baselines", "plots", "report")
_WITHOUT = ("data", "images", "encode")


def name(c: int) -> str:
    """What the folder of the parts of a class is called."""
    return f"split_{c}"


def read(folder: Any, model: labelling.Model, c: int, parts: int) -> labelling.Model:
    """Reads the model of the parts of a class.

    Args:
      folder: of the run, on disk or in an object store.
      model: of the run.
      c: the class.
      parts: how many.

    Raises:
      UserError: they have not been searched yet, or for another number of parts or another run.
    """
    own = folder / name(c)
    if not is_finished(folder, model, c, parts):
        raise UserError(
            f"class {c} is split in {folder}/classes.yaml, but its parts have not been searched "
            f"yet: python -m hume_jax.classes --run={folder}"
        )
    return labelling.read(io.BytesIO((own / "model.npz").read_bytes()))


def is_finished(folder: Any, model: labelling.Model, c: int, parts: int) -> bool:
    """Whether the parts of a class are known. Arguments and errors are those of `read`."""
    own = folder / name(c)
    if not (own / _ABOUT).exists():
        return False
    kept = json.loads((own / _ABOUT).read_text())
    if kept["parts"] != parts:
        raise UserError(
            f"{own} holds a split of class {c} in {kept['parts']}, classes.yaml says {parts}: "
            "delete that folder to search anew"
        )
    if kept["model"] != _digest(model):
        raise UserError(
            f"{own} holds a split of class {c} of another search than the one that {folder} holds "
            "now: delete that folder to search anew"
        )
    return (own / "results.json").exists() and (own / "model.npz").exists()


def search(
    folder: Any,
    config: Mapping[str, Any],
    model: labelling.Model,
    c: int,
    parts: int,
    rows: Dataset,
) -> None:
    """Searches the rows of a class for classes of its own, or goes on where that was stopped.

    Args:
      folder: of the run.
      config: of the run, resolved.
      model: of the run.
      c: the class.
      parts: how many.
      rows: of the class, as `rows_of` gives them.

    Raises:
      UserError: as `pipeline.run`, and as `read`.
    """
    from hume_jax import pipeline

    is_finished(folder, model, c, parts)
    own = folder / name(c)
    own.mkdir(parents=True, exist_ok=True)
    about = {"class": c, "parts": parts, "model": _digest(model)}
    write_text(own / _ABOUT, json.dumps(about, indent=2) + "\n")
    try:
        pipeline.run(_config(config, parts), str(own), dataset=rows)
    except UserError as error:
        raise UserError(f"classes.yaml: split of class {c} in {parts}: {error}") from error


def rows_of(dataset: Dataset, labels: Mapping[str, np.ndarray], c: int) -> Dataset:
    """The rows of a class, as train rows of a dataset.

    Args:
      dataset: of the run, as opened.
      labels: the classes of the rows of each searched split, (n,) integers.
      c: the class.
    """
    numbers = {split: np.flatnonzero(own == c) for split, own in labels.items()}
    splits = {split: getattr(dataset, split) for split in labels}

    def joined(field: str) -> Space:
        spaces = {split: getattr(own, field) for split, own in splits.items()}
        of_files = zip(*(space.arrays for space in spaces.values()), strict=True)
        arrays = [
            np.concatenate([a[numbers[split]] for split, a in zip(spaces, own, strict=True)])
            for own in of_files
        ]
        return Space(tuple(arrays), spaces["train"].paths, ())

    n = sum(map(len, numbers.values()))
    return Dataset(Split(joined("phi1"), joined("phi2"), None, n), None)


def write_text(path: Any, text: str) -> None:
    """Writes a text file, whole or not at all, on disk or in an object store."""
    if not isinstance(path, Path):
        path.write_text(text)
        return
    with atomic_write(path) as file:
        file.write(text.encode())


def _config(of_run: Mapping[str, Any], parts: int) -> Any:
    """The config of a search of a class: the run's, with a uniform prior."""
    from hume_jax import config as config_lib

    config = config_lib.common.get_config()
    fields = {
        key: _tuples(value)
        for key, value in config_lib.flatten(of_run).items()
        if key.partition(".")[0] not in (*_OWN, *_WITHOUT)
    }
    fields |= {"n_classes": parts, "plots": False, "baselines": False, "report": False}
    config.update_from_flattened_dict(fields)
    return config_lib.resolve(config)


def _tuples(value: Any) -> Any:
    """Lists, which JSON has in the place of tuples, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _digest(model: labelling.Model) -> str:
    """SHA-256 of a model's arrays."""
    digest = hashlib.sha256()
    for key, array in sorted(labelling.to_arrays(model).items()):
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
