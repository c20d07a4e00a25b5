"""Finds TFDS datasets, and prepares those that are not there; only this needs TensorFlow."""

import importlib.util
import logging as stdlib_logging
import os
import shutil
from pathlib import Path
from typing import Any

from absl import logging

from hume_jax.config_checks import suggest
from hume_jax.errors import UserError
from hume_jax.files import existing_folder

FORMAT = "array_record"

# The archive, what is unpacked from it, and the records made of that; of archives that were got by
# hand only the last is still to come.
_COPIES = 3
_SECONDS = 20.0


def load() -> Any:
    """Imports TFDS; it does not import TensorFlow.

    Raises:
      UserError: it is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f'datasets of TFDS need it to be installed ({error}): pip install "hume_jax[images]"'
        ) from error
    # It warns of folders that are not there yet, of which a message here says more.
    logging.get_absl_logger().addFilter(_not_of_tfds)
    return tensorflow_datasets


def _not_of_tfds(record: Any) -> bool:
    return "tensorflow_datasets" not in record.pathname or record.levelno >= stdlib_logging.ERROR


def is_known(dataset: str) -> bool:
    """Whether NAME/SPLIT, NAME:VERSION/SPLIT and the like is of a dataset that TFDS knows."""
    name, slash, _ = dataset.partition("/")
    try:
        return bool(slash) and name.partition(":")[0] in load().list_builders(
            with_community_datasets=False
        )
    except UserError:
        return False


def find(where: str, dataset: str, folder: str) -> Any:
    """Finds a dataset by name, prepared or not.

    Args:
      where: as the user named it.
      dataset: NAME[/CONFIG][:VERSION].
      folder: where prepared datasets lie, '' for where TFDS looks.

    Returns:
      Its `tfds.core.DatasetBuilder`.

    Raises:
      UserError: no such dataset, config or version, with the nearest name.
    """
    tfds = load()
    name, config = dataset.split(":")[0].partition("/")[::2]
    options = {"data_dir": os.path.expanduser(folder)} if folder else {}
    try:
        # Without a format, which would have to be the one that is there.
        return tfds.builder(dataset, **options)
    except (ValueError, AssertionError, LookupError, OSError, RuntimeError, ImportError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        if name not in known:
            there = _prepared(_folder(folder))
            near = f"; there is {', '.join(there[name])}" if name in there else ""
            raise UserError(
                f"{where}: TFDS {tfds.__version__} knows no dataset {name!r}, and none of that "
                f"name, config and version is prepared in {_folder(folder)} (see "
                f"images.tfds_folder){near or suggest(name, [*known, *there], most=3)}"
            ) from error
        configs = list(tfds.builder_cls(name).builder_configs)
        if config and config not in configs:
            listed = f"it has {', '.join(configs[:10])}" if configs else "it has none"
            raise UserError(
                f"{where}: {name} has no config {config!r}, {listed}{suggest(config, configs)}"
            ) from error
        raise UserError(f"{where} cannot be opened: {_last_line(error)}") from error


def check(where: str, builder: Any) -> None:
    """Finds out whether a dataset is there or can be prepared; nothing is downloaded.

    Args:
      where: as the user named it.
      builder: as found.

    Raises:
      UserError: it is there in another format, TensorFlow is missing, the disk is too small, or
        there is no network.
    """
    if builder.is_prepared():
        _check_format(where, builder)
        return
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{where} is not prepared in {builder.data_dir}, and to prepare it TFDS needs "
            f'TensorFlow: pip install "hume_jax[prepare]", or run {_command(builder)} on another '
            f"machine and copy its folder {builder.data_dir} here; images.tfds_folder says where "
            "to look"
        )
    _check_disk(where, builder)
    _check_network(where, builder)


def prepare(where: str, builder: Any) -> None:
    """Downloads and writes a dataset as array_record files, if it is not there.

    TFDS shows the progress.

    Args:
      where: as the user named it.
      builder: as found.

    Raises:
      UserError: as of `check`, or the download fails, or must be made by hand.
    """
    check(where, builder)
    if builder.is_prepared():
        return
    tfds = load()
    errors = tfds.core.download
    try:
        builder.download_and_prepare(file_format=FORMAT)
    except (
        OSError,
        ValueError,
        AssertionError,
        RuntimeError,
        ImportError,
        errors.util.DownloadError,
        errors.download_manager.NonMatchingChecksumError,
        errors.extractor.ExtractError,
    ) as error:
        by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
        hint = f"; its files must be got by hand: {by_hand}" if by_hand else ""
        raise UserError(f"{where} could not be prepared: {error}{hint}") from error


def _check_format(where: str, builder: Any) -> None:
    formats = {kind.value for kind in builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise UserError(
            f"{where} is prepared in {builder.data_dir} as {', '.join(sorted(formats))}, only "
            f"{FORMAT} can be read without TensorFlow: set images.tfds_folder to another folder "
            f"and prepare it there, {_command(builder)} --data_dir=FOLDER"
        )


def _check_disk(where: str, builder: Any) -> None:
    """Raises a `UserError` where the dataset will not fit, as far as its size is known."""
    sizes = [int(known.size or 0) for known in (builder.url_infos or {}).values()]
    copies = 1 if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else _COPIES
    needed = max(copies * sum(sizes), int(builder.info.download_size + builder.info.dataset_size))
    free = shutil.disk_usage(existing_folder(Path(builder.data_dir))).free
    if needed > free:
        raise UserError(
            f"{where} needs about {needed / 1e9:.1f} GB in {builder.data_dir} to be prepared, "
            f"{free / 1e9:.1f} GB are free: set images.tfds_folder to a larger disk"
        )


def _check_network(where: str, builder: Any) -> None:
    """Raises a `UserError` if the first download cannot be reached; TFDS would try for minutes."""
    import requests

    url = next((url for url in builder.url_infos or {} if url.startswith("http")), "")
    if not url or builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    try:
        requests.head(url, timeout=_SECONDS).close()
    except requests.RequestException as error:
        raise UserError(
            f"{where} is not prepared in {builder.data_dir} and cannot be downloaded, {url} does "
            f"not answer: run {_command(builder)} where there is a network and copy its folder "
            f"{builder.data_dir} here"
        ) from error


def _command(builder: Any) -> str:
    config = f" --config={builder.builder_config.name}" if builder.builder_config else ""
    return f"`tfds build {builder.name}{config} --file_format={FORMAT}`"


def _folder(folder: str) -> str:
    return folder or str(load().core.constants.DATA_DIR)


def _prepared(folder: str) -> dict[str, list[str]]:
    """What lies in a folder of prepared datasets: their names, and how each can be given."""
    found: dict[str, list[str]] = {}
    root = Path(folder).expanduser()
    # NAME/VERSION, or NAME/CONFIG/VERSION.
    for about in sorted(
        [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    ):
        name, *config, version = about.parent.relative_to(root).parts
        found.setdefault(name, []).append(f"tfds:{'/'.join([name, *config])}:{version}/SPLIT")
    return found


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
