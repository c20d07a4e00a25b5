"""The rows of a search: their values checked, and brought to where its steps read them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import planning
from hume_jax.core import search
from hume_jax.disk_feed import DiskRows
from hume_jax.progress import Progress
from hume_jax.representations import gather, prepared, store
from hume_jax.representations.arrays.kept import Array
from hume_jax.representations.prepare import InnerRows, inner_rows, joined_rows, space_statistics
from hume_jax.representations.prepared import InnerMap, Prepared
from hume_jax.representations.scaling import Kind, Statistics
from hume_jax.workdir import Workdir

# What a search from disk has computed of its rows, in the run's folder.
_PREPARED = "prepared.npz"


class Checked(NamedTuple):
    """A dataset whose values were checked."""

    given: store.Dataset
    dataset: store.Dataset  # the spaces that the search sees
    statistics: tuple[Statistics, ...]  # of each file of phi1, over the searched rows
    warnings: list[str]
    prepared: Prepared | None = None  # if an earlier process of the run computed it


def kind(config: config_dict.ConfigDict) -> Kind:
    """How phi1 is normalised."""
    return "rows" if config.encoder.normalise else "stored"


def check(
    config: config_dict.ConfigDict, files: store.Dataset, rows: str, folder: Workdir
) -> Checked:
    """Checks all values. From disk that takes one pass over all files and one over phi1.

    Args:
      config: resolved.
      files: open, not looked at.
      rows: where the search will read them, `memory` or `disk`.
      folder: of the run.

    Raises:
      UserError: as `store.scan_files` and `store.check_search`; from disk also if an array is
        stored column by column.
    """
    if rows == "memory":
        given = store.scan_files(files)
        dataset = store.search_spaces(given, config.search.spaces)
        warnings = store.check_search(
            dataset, config.n_classes, config.setting, normalise=config.encoder.normalise
        )
        phi1 = [split.phi1 for split in store.search_splits(dataset, config.setting)]
        return Checked(given, dataset, space_statistics(phi1, kind(config)), warnings)
    searched = store.search_spaces(files, config.search.spaces)
    splits = store.search_splits(searched, config.setting)
    for space in (space for split in splits for space in (split.phi1, split.phi2)):
        for array, path in zip(space.arrays, space.paths, strict=True):
            gather.check_order(array, path)
    if (folder.path / _PREPARED).exists():
        # Checked when that was computed; that the data is the same is checked with the folder.
        with np.load(folder.path / _PREPARED, allow_pickle=False) as arrays:
            found = prepared.from_arrays(arrays)
        return Checked(files, searched, found.phi1, [], found)
    logging.info("checking the values of all files")
    given = store.scan_files(files)
    dataset = store.search_spaces(given, config.search.spaces)
    # Whether rows equal the mean shows in the pass that finds it.
    warnings = store.check_search(dataset, config.n_classes, config.setting, normalise=False)
    if not config.encoder.normalise:
        return Checked(given, dataset, prepared.first_space(splits, "stored")[0], warnings)
    total = sum(split.n * len(split.phi1.arrays) for split in splits)
    with Progress(total, "phi1", unit="rows") as progress:
        statistics, more = prepared.first_space(splits, "rows", progress.update)
    return Checked(given, dataset, statistics, [*warnings, *more])


def in_memory(config: config_dict.ConfigDict, checked: Checked) -> search.Data:
    """All search rows as the algorithm reads them."""
    splits = store.search_splits(checked.dataset, config.setting)
    parts = [joined_rows(s.phi1.arrays, checked.statistics, kind(config)) for s in splits]
    phi1 = parts[0] if len(parts) == 1 else np.concatenate(parts)
    inner = [inner_rows(arrays, **_inner(config)) for arrays in _second_spaces(splits)]
    _log_directions(splits[0].phi2.paths, inner)
    shards = planning.shard_count(config, len(phi1))
    return search.make_data(phi1, [(space.x, space.penalty) for space in inner], shards)


def prepare(config: config_dict.ConfigDict, checked: Checked, folder: Workdir) -> Prepared:
    """What rows pass through when a step reads them from disk, kept in the run's folder."""
    found = checked.prepared
    splits = store.search_splits(checked.dataset, config.setting)
    if found is None:
        arrays = _second_spaces(splits)
        inner, n = _inner(config), sum(split.n for split in splits)
        if inner["normalised"] or inner["precondition"]:
            with Progress(n * len(arrays), "phi2", unit="rows") as progress:
                maps = [prepared.second_space(a, **inner, done=progress.update) for a in arrays]
        else:
            maps = [prepared.second_space(a, **inner) for a in arrays]
        found = Prepared(checked.statistics, tuple(maps))
        folder.write_npz(_PREPARED, prepared.to_arrays(found))
    _log_directions(splits[0].phi2.paths, found.spaces)
    return found


def on_disk(config: config_dict.ConfigDict, checked: Checked, maps: Prepared) -> DiskRows:
    """The search rows where they lie."""
    splits = store.search_splits(checked.dataset, config.setting)
    return DiskRows(
        tuple(map(gather.Stack, zip(*(split.phi1.arrays for split in splits), strict=True))),
        tuple(map(gather.Stack, _second_spaces(splits))),
        prepared.changes(maps, kind(config)),
        planning.shard_count(config, sum(split.n for split in splits)),
    )


def _second_spaces(splits: Sequence[store.Split]) -> list[tuple[Array, ...]]:
    """The searched rows of each second space, one array a split."""
    return list(zip(*(split.phi2.arrays for split in splits), strict=True))


def _inner(config: config_dict.ConfigDict) -> dict[str, Any]:
    """How rows become those of the inner fit."""
    settings = config.inner
    return {
        "normalised": settings.normalise,
        "precondition": settings.precondition,
        "directions": settings.directions,
        "floor": settings.variance_floor,
        "penalty": settings.penalty,
    }


def _log_directions(paths: Sequence[str], spaces: Sequence[InnerRows | InnerMap]) -> None:
    for path, space in zip(paths, spaces, strict=True):
        logging.info(
            "%s: %d directions hold %.4f of the variance, %d left out",
            path, len(space.penalty), space.kept, space.dropped,
        )  # fmt: skip
