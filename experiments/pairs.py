"""A pair of spaces of a config, as the methods of `hume_jax.baselines` take them."""

from typing import NamedTuple

import numpy as np
from ml_collections import config_dict

from hume_jax import planning
from hume_jax.errors import UserError
from hume_jax.representations import store
from hume_jax.representations.prepare import joined_rows, space_statistics

SPLITS = ("train", "test")


class Pair(NamedTuple):
    """Rows as the search sees them: centred by the train rows, of unit norm."""

    names: tuple[str, str]  # of phi1 and phi2
    spaces: dict[str, tuple[np.ndarray, np.ndarray]]  # split -> phi1 and phi2, (n, d_i) float32
    labels: dict[str, np.ndarray]  # split -> (n,) true labels, for the scores
    n_classes: int
    evenness: float  # of the classes of a soft vote


def load(config: config_dict.ConfigDict, *, exchanged: bool = False) -> Pair:
    """Reads the arrays of a config.

    Args:
      config: resolved, inductive, with labels of both splits.
      exchanged: whether phi1 and phi2 change places.

    Raises:
      UserError: rows or labels are missing, or there are more classes than train rows.
    """
    splits, labels = open_splits(config)
    if not 2 <= config.n_classes <= splits["train"].n:
        raise UserError(
            f"n_classes is {config.n_classes}: there must be at least 2 classes, and no more than "
            f"the {splits['train'].n} train rows"
        )
    fields = ("phi2", "phi1") if exchanged else ("phi1", "phi2")
    rows: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for field in fields:
        stats = space_statistics([getattr(splits["train"], field)], "rows")
        for name in SPLITS:
            rows[name].append(joined_rows(getattr(splits[name], field).arrays, stats, "rows"))
    return Pair(
        names=(space_name(config.data.train[fields[0]]), space_name(config.data.train[fields[1]])),
        spaces={name: (both[0], both[1]) for name, both in rows.items()},
        labels=labels,
        n_classes=config.n_classes,
        evenness=planning.evenness(config),
    )


def open_splits(
    config: config_dict.ConfigDict,
) -> tuple[dict[str, store.Split], dict[str, np.ndarray]]:
    """Opens both splits and their labels, without reading rows.

    Args:
      config: resolved.

    Raises:
      UserError: rows or labels are missing.
    """
    splits, labels = {}, {}
    for name, split in zip(SPLITS, store.open_dataset(config.data), strict=True):
        spaces = (split.phi1.arrays, split.phi2.arrays) if split else ()
        if split is None or not all(spaces) or split.labels is None:
            raise UserError(f"data.{name}.phi1, phi2 and labels are needed for the scores")
        splits[name], labels[name] = split, split.labels
    return splits, labels


def space_name(paths: str | tuple[str, ...]) -> str:
    """A short name of a space, from the names of its files."""
    files = [paths] if isinstance(paths, str) else paths
    names = (file.rpartition("/")[2].partition(".")[0] for file in files)
    return "+".join(name.removesuffix("_train") for name in names)


def choose(pair: Pair, split: str, which: str) -> tuple[np.ndarray, ...]:
    """The spaces that a method looks at.

    Args:
      pair: both spaces.
      split: `train` or `test`.
      which: `phi1`, `phi2`, `joined` (one space of both, columns side by side) or `both`.
    """
    phi1, phi2 = pair.spaces[split]
    if which == "joined":
        return (np.concatenate([phi1, phi2], axis=1) * np.float32(0.5**0.5),)
    return {"phi1": (phi1,), "phi2": (phi2,), "both": (phi1, phi2)}[which]
