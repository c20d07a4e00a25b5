"""Folders that `save_to_disk` of Hugging Face `datasets` wrote: which files they are made of.

`datasets` itself is not needed: such a folder holds Arrow streams and a JSON file that names them.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from hume_jax.errors import UserError
from hume_jax.representations.arrays.stored import printable, reason

# Of one dataset, of a dictionary of datasets.
_STATE, _DICTIONARY = "state.json", "dataset_dict.json"
_LARGEST_JSON = 16 * 2**20


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a saved dataset, or a dictionary of several."""
    with contextlib.suppress(OSError):
        return (folder / _STATE).is_file() or (folder / _DICTIONARY).is_file()
    return False


def shards(folder: Path) -> tuple[Path, ...]:
    """Returns the Arrow streams that make up a dataset, in order.

    Args:
      folder: of one dataset.

    Raises:
      UserError: it holds several datasets, or none, or files of it are missing.
    """
    if not is_dataset(folder):
        raise UserError(f"{folder} is a folder, and not one that save_to_disk of datasets wrote")
    if not (folder / _STATE).is_file():
        splits = _json(folder / _DICTIONARY).get("splits")
        listed = ", ".join(printable(str(split)) for split in splits or ())
        raise UserError(
            f"{folder} holds several datasets ({listed}): name one, {folder}/SPLIT:COLUMN"
        )
    state = _json(folder / _STATE)
    # Older versions kept a selection of rows beside all rows.
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"{folder} is a selection of rows: call flatten_indices() on the dataset before "
            "save_to_disk"
        )
    files = state.get("_data_files")
    entries = files if isinstance(files, list) and files else [None]
    return tuple(_shard(folder, entry) for entry in entries)


def _shard(folder: Path, entry: Any) -> Path:
    name = entry.get("filename") if isinstance(entry, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise UserError(f"{folder / _STATE} does not name files of its folder: save it again")
    if not (folder / name).is_file():
        raise UserError(f"{folder} lacks {name}, which its {_STATE} names: copy all of it")
    return folder / name


def _json(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.loads(file.read(_LARGEST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({reason(error)}): save the dataset again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, it holds no JSON object: save the dataset again")
    return content
