"""A pair of spaces of a config, as the methods of `hume_jax.baselines` take them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from hume_jax import planning
from hume_jax.errors import UserError
from hume_jax.representations import store
from hume_jax.representations.arrays import formats
from hume_jax.representations.prepare import joined_rows, space_statistics

SPLITS = ("train", "test")


class Pair(NamedTuple):
    """Rows as the search sees them: centred by the train rows, of unit norm."""

    names: tuple[str, str]  # of phi1 and phi2
    spaces: dict[str, tuple[np.ndarray, np.ndarray]]  # split -> phi1 and phi2, (n, d_i) float32
    labels: dict[str, np.ndarray]  # split -> (n,) true labels, for the scores; {} if not asked for
    n_classes: int
    evenness: float  # of the classes of a soft vote
    made_of: dict[str, Any]  # what labels found here follow from: K, and a digest of every array


def load(config: config_dict.ConfigDict, *, exchanged: bool = False, labels: bool = True) -> Pair:
    """Reads the arrays of a config.

    Args:
      config: resolved, inductive.
      exchanged: whether phi1 and phi2 change places.
      labels: whether labels are read, which both splits must have then.

    Raises:
      UserError: rows or labels are missing, there are more classes than train rows, or the config
        is transductive.
    """
    if config.setting != "inductive":
        raise UserError(
            f"setting={config.setting}: the other methods see train rows alone, so leave it at "
            "'inductive'"
        )
    splits, given = open_splits(config, labels=labels)
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
        names=space_names(config.data.train[fields[0]], config.data.train[fields[1]]),
        spaces={name: (both[0], both[1]) for name, both in rows.items()},
        labels=given,
        n_classes=config.n_classes,
        evenness=planning.evenness(config),
        made_of={
            "n_classes": config.n_classes,
            "rows": {
                field: found
                for field, found in store.fingerprint(store.Dataset(**splits)).items()
                if not field.endswith("labels")
            },
        },
    )


def open_splits(
    config: config_dict.ConfigDict, *, labels: bool = True
) -> tuple[dict[str, store.Split], dict[str, np.ndarray]]:
    """Opens both splits and their labels, without reading rows.

    Args:
      config: resolved.
      labels: whether labels are opened; without, those that are returned are {}.

    Raises:
      UserError: rows or labels are missing.
    """
    data = config.data
    if not labels:
        data = data.copy_and_resolve_references()
        data.train.labels = data.test.labels = ""
    splits, given = {}, {}
    for name, split in zip(SPLITS, store.open_dataset(data), strict=True):
        spaces = (split.phi1.arrays, split.phi2.arrays) if split else ()
        if split is None or not all(spaces):
            raise UserError(f"data.{name}.phi1 and phi2 are needed: both splits are labelled")
        if labels and split.labels is None:
            raise UserError(f"data.{name}.labels is needed for the scores")
        splits[name] = split
        if split.labels is not None:
            given[name] = split.labels
    return splits, given


def space_names(phi1: str | Sequence[str], phi2: str | Sequence[str]) -> tuple[str, str]:
    """Short names of two spaces: of the arrays in their files, or of the files or their folders.

    Args:
      phi1: file of the train rows, or several that are joined.
      phi2: the same of the other space.

    Returns:
      The first of these names that tell the spaces apart.
    """
    both = [[phi] if isinstance(phi, str) else phi for phi in (phi1, phi2)]
    parts = [[formats.locate(path) for path in paths] for paths in both]
    found = [
        ("+".join(map(name, parts[0])), "+".join(map(name, parts[1])))
        for name in (_array_name, _file_name, _folder_name)
    ]
    return next((names for names in found if names[0] != names[1]), found[0])


def _array_name(place: formats.Address) -> str:
    return place.member or _file_name(place)


def _file_name(place: formats.Address) -> str:
    return place.file.stem.removesuffix("_train")


def _folder_name(place: formats.Address) -> str:
    return place.file.parent.name


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
