r"""Finds the classes of a dataset from two representations of it, as a config file says.

    python -m hume_jax.main --config=configs/quickstart.py
    python -m hume_jax.main --config=configs/stl10.py:transductive,phi2=clip --workdir=runs/stl10
    python -m hume_jax.main --config=configs/arrays.py --config.data.train.phi1=a.npy \
        --config.data.train.phi2=b.npy --config.n_classes=10
    python -m hume_jax.main --config=configs/images.py --config.images.train=photos \
        --config.n_classes=10

Arrays that are missing are encoded from the images first (`hume_jax.encode` does that alone).
Started again with the same command, a run goes on from where it stopped. Several hosts run the same
command, with a workdir that all of them see (--workdir=gs://BUCKET/FOLDER is one):

    python -m hume_jax.main --config=... --workdir=... --distributed=auto
    python -m hume_jax.main --config=... --workdir=... --distributed=10.0.0.1:1234 --processes=2 \
        --process=0
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_dict

from hume_jax import command_line, config_checks
from hume_jax import config as config_lib
from hume_jax.errors import UserError
from hume_jax.processes import leave
from hume_jax.representations import store
from hume_jax.representations.arrays.stored import Stored
from hume_jax.workdir import Workdir, placed

if TYPE_CHECKING:
    from hume_jax.processes import Processes

flags.adopt_module_key_flags(command_line)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder, may be gs://... (default: runs/CONFIG-HASH).",
)
_PROFILE = flags.DEFINE_bool(
    "profile",
    False,
    "Trace some steps, and print where their time goes.",
)


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    del argv  # all of it is in FLAGS
    config, spec = command_line.given()
    config = config_lib.resolve(config)
    # Others check this too, but loading them takes longer than all that is checked here.
    if config_lib.has_images(config):
        config_lib.check_images(config)
    else:
        _check(config)
    with command_line.joined() as processes:
        _run(config, spec, processes)


def _run(config: config_dict.ConfigDict, spec: str, processes: "Processes") -> None:
    if config_lib.has_images(config):
        config = _encoded(config, spec, processes)
        _check(config)
    workdir = _WORKDIR.value or str(config_lib.default_workdir(spec, config))
    from hume_jax import pipeline
    from hume_jax.report import results

    try:
        summary = pipeline.run(config, workdir, processes, _PROFILE.value)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        leave(130)
    if not processes.first:
        return
    kept = ["results", "labels", *(["plots"] if config.plots else [])]
    place = placed(workdir)
    with command_line.printing():
        print(results.seeds_table(summary) if config.seeds else results.table(summary))
        print(f"\n{', '.join(kept[:-1])} and {kept[-1]}: {place}")
        if config.report:
            for folder in [f"seed_{seed}" for seed in config.seeds] or [""]:
                print(f"to look at: {place / folder / 'report.html'}")


def _encoded(
    config: config_dict.ConfigDict, spec: str, processes: "Processes"
) -> config_dict.ConfigDict:
    """Encodes the arrays that are missing, once they are known to fit what the search needs."""

    def check(config: config_dict.ConfigDict, coming: Mapping[str, Stored]) -> None:
        _check(config, coming)
        workdir = Workdir(_WORKDIR.value or config_lib.default_workdir(spec, config), config)
        workdir.check()
        for images in (config.images.train, config.images.test):
            if (
                config.plots
                and images
                and workdir.path.is_relative_to(Path(images).expanduser().resolve())
            ):
                raise UserError(
                    f"workdir {workdir.path} lies among the images of {images}, of which its plots "
                    "would be some: set --workdir to another folder"
                )
        store.check_present(config.data, coming)

    try:
        return command_line.load_encoding().ensure(config, processes, check=check)
    except UserError as error:
        if not config_lib.load(spec).images.train:
            raise
        # The images are of the config file's own choice.
        raise UserError(
            f"{error}; {spec.partition(':')[0]} says at its beginning what it needs, and what else "
            "it takes"
        ) from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on with the images left", file=sys.stderr)
        leave(130)


def _check(config: config_dict.ConfigDict, coming: Mapping[str, Stored] | None = None) -> None:
    # The least number will do where one is to be chosen.
    number = 2 if config.n_classes == config_checks.AUTO else config.n_classes
    store.check_headers(config.data, number, config.setting, coming, spaces=config.search.spaces)


def run() -> None:
    """`python -m hume_jax.main`."""
    command_line.run(main)


if __name__ == "__main__":
    run()
