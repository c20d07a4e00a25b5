"""What the scripts of this folder share: configs, the search's inputs, tables, files of results."""

import argparse
import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags, logging
from ml_collections import config_dict

from hume_jax import command_line, config_checks, memory, parallel, planning, rows

# Of the package, under the name that the scripts have for what they share.
from hume_jax import config as config_lib
from hume_jax.core import search
from hume_jax.errors import UserError
from hume_jax.files import make_folder as make_folder
from hume_jax.files import read_json as read_json
from hume_jax.report import results
from hume_jax.report.plots import draw_methods as draw_methods
from hume_jax.report.plots import write_png as write_png
from hume_jax.report.tables import spread as spread
from hume_jax.report.tables import table as table
from hume_jax.report.tables import write_table as write_table
from hume_jax.representations import store
from hume_jax.representations.prepared import first_space
from hume_jax.stored_rows import hold

# Under the name that the scripts have for it.
load_config = config_lib.load_resolved

# The scripts run in the folder of the checkout, as their docstrings show.
IMAGENETTE = "experiments/datasets/imagenette.py"
# Fields of a config that tell kinds of runs apart.
PARTS = ("setting", "class_prior", "n_classes", "encoder", "search", "inner", "ensemble")


class Problem(NamedTuple):
    """What the steps of a search work on, as `hume_jax.pipeline` prepares it."""

    data: search.Data
    settings: search.Search
    log_prior: np.ndarray  # (K,) float32
    rows: int  # searched rows


def add_config(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds `--config` and, behind `--`, the fields of it to a command line."""
    parser.add_argument(
        "--config",
        default=default,
        required=default is None,
        help="config file, FILE.py or FILE.py:variant (default: %(default)s)",
    )
    parser.add_argument(
        "fields",
        nargs="*",
        metavar="-- --config.FIELD=VALUE",
        help="fields of the config, behind a lone --",
    )


def check_seed(seed: int) -> None:
    """Raises a `UserError` if a seed is out of the range that a config's must be in."""
    if not 0 <= seed <= config_checks.LAST_SEED:
        raise UserError(f"--seed={seed}: it must be from 0 to {config_checks.LAST_SEED}")


def check_repeats(repeats: int) -> None:
    """Raises a `UserError` if there is nothing to time."""
    if repeats < 1:
        raise UserError(f"--repeats={repeats}: it must be at least 1")


def check_torch(python: str) -> None:
    """Raises a `UserError` if there is no such program, of `--torch-python`."""
    if not shutil.which(python):
        raise UserError(
            f"--torch-python={python}: no such program; give the path of a Python that has PyTorch"
        )


def check_checkout(name: str, folder: pathlib.Path) -> None:
    """Raises a `UserError` if there is no such folder, of the flag `--NAME`."""
    if not folder.is_dir():
        raise UserError(f"--{name}={folder}: no such folder; clone the repository first")


def use_precision() -> None:
    """Has products of matrices computed as `hume_jax.main` has, but for the inner fit's own."""
    jax.config.update("jax_default_matmul_precision", "highest")


def build(config: config_dict.ConfigDict) -> Problem:
    """Opens a config's arrays and prepares them for the steps of the search.

    Args:
      config: resolved.
    """
    files = store.open_dataset(config.data)
    dataset = store.search_spaces(files, config.search.spaces)
    splits = store.search_splits(dataset, config.setting)
    statistics, _ = first_space(splits, rows.kind(config))
    checked = rows.Checked(files, dataset, statistics, [])
    maps = rows.maps_of(config, checked)
    n = sum(split.n for split in splits)
    plan = planning.make_plan(config, n, dataset.train.phi1.columns, maps.widths)
    data = hold(rows.stored(config, checked, maps), parallel.own_mesh(), storage=plan.storage)
    log_prior = np.log(planning.class_prior(config)).astype(np.float32)
    return Problem(data, plan.settings, log_prior, n)


def shape_of(problem: Problem) -> memory.Shape:
    """The sizes of a search."""
    shards, depth, columns = problem.data.phi1.shape
    settings = problem.settings
    return memory.Shape(
        shards * depth,
        shards * settings.train_rows,
        shards * settings.test_rows,
        columns,
        tuple(space.x.shape[-1] for space in problem.data.spaces),
    )


def device() -> str:
    """What the figures were taken on, in words."""
    found = jax.devices()[0]
    if found.platform != "cpu":
        return found.device_kind
    return f"{cores()} CPU core{'s' if cores() > 1 else ''}"


def cores() -> int:
    """That this process may use."""
    # It may be held to fewer than there are, where the system has such a thing.
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(allowed(0))


def stored_config(workdir: pathlib.Path) -> config_dict.ConfigDict:
    """The resolved config of a run, as its workdir keeps it."""
    return config_dict.ConfigDict(_with_tuples(read_json(workdir / "config.json")))


def _with_tuples(value: Any) -> Any:
    """Lists, which JSON knows alone, are tuples in a config."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def seed_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders of the seeds of a finished run; of a run of one seed its own."""
    runs = read_json(workdir / "results.json").get("runs", [])
    return [workdir / f"seed_{run['seed']}" for run in runs] or [workdir]


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a result, whole or not at all."""
    make_folder(path.parent)
    results.write_results(path, values)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the script with one line and status 2 on an error that the user can mend.

    Where there is no terminal, what it does in the meantime is logged as by `hume_jax.main`.
    """
    _show_log()
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _show_log() -> None:
    """Log lines go to standard error; without it, those of progress are left out."""
    command_line.hush_backends()
    # The scripts have command lines of their own; the log waits for absl's to be read.
    flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
