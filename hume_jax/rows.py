"""The rows of a search: their values checked, and brought to where its steps read them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import planning
from hume_jax.processes import Processes
from hume_jax.progress import MANY_ROWS, rows_progress
from hume_jax.representations import gather, prepared, store
from hume_jax.representations.arrays.kept import Array
from hume_jax.representations.prepared import InnerMap, Prepared
from hume_jax.representations.scaling import Kind, Statistics
from hume_jax.stored_rows import StoredRows
from hume_jax.workdir import Workdir

# What was computed of the rows, in the run's folder.
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
    config: config_dict.ConfigDict,
    files: store.Dataset,
    rows: str,
    folder: Workdir,
    *,
    first: bool = True,
) -> Checked:
    """Checks all values, in one pass over all files and one over phi1.

    Args:
      config: resolved.
      files: open, not looked at.
      rows: where the search will read them, `memory` or `disk`.
      folder: of the run.
      first: whether this is the process that looks at the values; others take its word.

    Raises:
      UserError: as `store.scan_files` and `store.check_search`; from disk also if an array is
        stored column by column.
    """
    searched = store.search_spaces(files, config.search.spaces)
    splits = store.search_splits(searched, config.setting)
    if rows == "disk":
        for space in (space for split in splits for space in (split.phi1, split.phi2)):
            for array, path in zip(space.arrays, space.paths, strict=True):
                gather.check_order(array, path)
    if not first:
        return Checked(files, searched, (), [])
    if (folder.path / _PREPARED).exists():
        # Checked when that was computed; that the data is the same is checked with the folder.
        with np.load(folder.path / _PREPARED, allow_pickle=False) as arrays:
            found = prepared.from_arrays(arrays)
        return Checked(files, searched, found.phi1, [], found)
    if sum(split.n for split in splits) >= MANY_ROWS:
        logging.info("checking the values of all files")
    given = store.scan_files(files)
    dataset = store.search_spaces(given, config.search.spaces)
    # Whether rows equal the mean shows in the pass that finds it.
    warnings = store.check_search(dataset, config.n_classes, config.setting, normalise=False)
    if not config.encoder.normalise:
        return Checked(given, dataset, prepared.first_space(splits, "stored")[0], warnings)
    total = sum(split.n * len(split.phi1.arrays) for split in splits)
    with rows_progress(total, "phi1") as done:
        statistics, more = prepared.first_space(splits, "rows", done)
    return Checked(given, dataset, statistics, [*warnings, *more])


def prepare(config: config_dict.ConfigDict, checked: Checked, folder: Workdir) -> Prepared:
    """What rows pass through on their way into the search, kept in the run's folder."""
    found = checked.prepared
    if found is None:
        found = maps_of(config, checked)
        folder.write_npz(_PREPARED, prepared.to_arrays(found))
    _log_directions(checked.dataset.train.phi2.paths, found.spaces)
    return found


def shared(maps: Prepared | None, processes: Processes) -> Prepared:
    """What process 0 has computed, on all of them."""
    arrays = processes.share_arrays(prepared.to_arrays(maps) if maps is not None else None)
    return prepared.from_arrays(arrays)


def maps_of(config: config_dict.ConfigDict, checked: Checked) -> Prepared:
    """What rows pass through on their way into the search."""
    splits = store.search_splits(checked.dataset, config.setting)
    arrays = _second_spaces(splits)
    inner, n = _inner(config), sum(split.n for split in splits)
    taken = min(n, config.inner.moment_rows)
    if taken < n:
        logging.info("mean and directions of phi2 are those of %d of its %d rows", taken, n)
    read = taken * len(arrays) if inner["normalised"] or inner["precondition"] else 0
    with rows_progress(read, "phi2") as done:
        maps = [prepared.second_space(a, **inner, done=done) for a in arrays]
    return Prepared(checked.statistics, tuple(maps))


def stored(config: config_dict.ConfigDict, checked: Checked, maps: Prepared) -> StoredRows:
    """The search rows where they lie."""
    splits = store.search_splits(checked.dataset, config.setting)
    return StoredRows(
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
        "sample": settings.moment_rows,
    }


def _log_directions(paths: Sequence[str], spaces: Sequence[InnerMap]) -> None:
    for path, space in zip(paths, spaces, strict=True):
        logging.info(
            "%s: %d directions hold %.4f of the variance, %d left out",
            path, len(space.penalty), space.kept, space.dropped,
        )  # fmt: skip
