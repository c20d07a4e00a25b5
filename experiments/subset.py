"""Arrays of some of a dataset's train rows, for ablations: fewer rows, a long tail, rows held out.

    python experiments/subset.py --hold-out=0.25 --out=runs/held_out
    python experiments/subset.py --rows=500 --out=runs/subsets/rows_500
    python experiments/subset.py --long-tail=10 --out=runs/subsets/tail_10

Writes files of the names that the config's arrays have to OUT, so that a config of
`experiments/datasets` reads them with `source=OUT`; rows keep their order. `--hold-out` takes a
share of the train rows as test rows: choices are judged on them while the real test rows stay
unseen. A file that is there and holds anything else is never written over. `--long-tail=R` keeps of
class c (in the order of the labels) the share `R^(-c / (K - 1))`, the largest class being R times
the smallest, as in Cao et al., *Learning Imbalanced Datasets*, NeurIPS 2019. It is the one use that
is made of labels, and no part of a search.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import figures
import numpy as np
from ml_collections import config_dict

from hume_jax.errors import UserError
from hume_jax.representations import store
from hume_jax.representations.arrays import formats

FIELDS = ("phi1", "phi2", "labels")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--rows", type=int, help="how many of the train rows")
    what.add_argument("--long-tail", type=float, help="size of the largest class by the smallest's")
    what.add_argument("--hold-out", type=float, help="share of the train rows that become test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the arrays")
    options = parser.parse_args(arguments)
    figures.check_seed(options.seed)
    return options


def choose(options: argparse.Namespace, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers of each split that is written, ascending.

    Args:
      options: one of `rows`, `long_tail` and `hold_out` is given.
      labels: (n,) of the train rows.

    Raises:
      UserError: more rows than there are, or a number out of bounds.
    """
    n = len(labels)
    order = np.random.default_rng(options.seed).permutation(n)
    if options.rows is not None:
        if not 1 <= options.rows <= n:
            raise UserError(f"--rows={options.rows}: there are {n} train rows")
        return {"train": np.sort(order[: options.rows])}
    if options.long_tail is not None:
        if not 1 <= options.long_tail < np.inf:
            raise UserError(f"--long-tail={options.long_tail:g} must be at least 1")
        return {"train": np.sort(_tail(order, labels, options.long_tail))}
    if not 0 < options.hold_out < 1:
        raise UserError(f"--hold-out={options.hold_out:g} must be between 0 and 1")
    held = max(1, round(n * options.hold_out))
    return {"test": np.sort(order[:held]), "train": np.sort(order[held:])}


def _tail(order: np.ndarray, labels: np.ndarray, ratio: float) -> np.ndarray:
    """The first rows of each class in an order, fewer from class to class."""
    classes = np.unique(labels)
    kept = []
    for c, label in enumerate(classes):
        own = order[labels[order] == label]
        share = ratio ** (-c / max(1, len(classes) - 1))
        kept.append(own[: max(1, round(share * len(own)))])
    return np.concatenate(kept)


def write(config: config_dict.ConfigDict, options: argparse.Namespace) -> str:
    """Writes the arrays; returns what was written, a line a split.

    Raises:
      UserError: fields that are not one `.npy` file each, a file that cannot be read or is in the
        way, or as `choose`.
    """
    paths = {s: {f: _path(config, s, f) for f in FIELDS} for s in ("train", "test")}
    arrays = {field: _open(field, path) for field, path in paths["train"].items()}
    chosen = choose(options, np.asarray(arrays["labels"]))
    found = {
        options.out / paths[split][field].name: np.asarray(array[rows])
        for split, rows in chosen.items()
        for field, array in arrays.items()
    }
    if len(found) < len(chosen) * len(FIELDS):
        raise UserError("files of two fields have one name: both cannot be in one folder")
    # All of them are looked at before the first is written.
    missing = [path for path, array in found.items() if not _holds(path, array)]
    figures.make_folder(options.out)
    for path in missing:
        store.save_array(path, found[path])
    n = len(arrays["labels"])
    return "\n".join(f"{split}: {len(rows)} of {n} train rows" for split, rows in chosen.items())


def _open(field: str, path: pathlib.Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"data.train.{field}: {path} cannot be read ({error})") from error
    return array


def _holds(path: pathlib.Path, array: np.ndarray) -> bool:
    """Whether a file is there already and holds an array.

    Raises:
      UserError: it holds something else: the arrays of the config themselves, it may be.
    """
    if not path.exists():
        return False
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        stored = None
    if stored is None or stored.dtype != array.dtype or not np.array_equal(stored, array):
        raise UserError(f"{path} is there and holds other rows: give another --out")
    return True


def _path(config: config_dict.ConfigDict, split: str, field: str) -> pathlib.Path:
    value = config.data[split][field]
    if not (isinstance(value, str) and value.endswith(".npy")):
        raise UserError(f"data.{split}.{field} is {value!r}: one .npy file is needed")
    return formats.find_array(value)


def main(arguments: Sequence[str]) -> None:
    """Writes the arrays and says how many rows they have."""
    options = parse_arguments(arguments)
    config = figures.load_config(options.config, options.fields)
    print(write(config, options))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
