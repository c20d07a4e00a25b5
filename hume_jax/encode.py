r"""Encodes images to the arrays that a config names, and does nothing else.

    python -m hume_jax.encode --config=configs/images.py --config.images.train=photos
    python -m hume_jax.encode --config=configs/stl10.py:phi2=clip
    python -m hume_jax.encode --list

`hume_jax.main` does the same before it searches. Stopped at any moment, the same command goes on
with the rows that are not on disk yet. Several hosts share the rows; they run the same command, on
a file system that all of them see:

    python -m hume_jax.encode --config=... --distributed=auto
    python -m hume_jax.encode --config=... --distributed=10.0.0.1:1234 --processes=2 --process=0
"""

import re
import sys

from absl import flags

from hume_jax import command_line
from hume_jax import config as config_lib
from hume_jax.errors import UserError
from hume_jax.processes import leave

flags.adopt_module_key_flags(command_line)
# For --help; read before the flags are parsed, since it needs no config.
flags.DEFINE_bool("list", False, "Print the encoders that there are, and do nothing else.")
_LIST = re.compile(r"--?list(=(1|t|true|y|yes))?", re.IGNORECASE)


def main(argv: list[str]) -> None:
    """Encodes what the flags say."""
    del argv  # all of it is in FLAGS
    config, _ = command_line.given()
    config = config_lib.resolve(config, search=False)
    if not any(config.encode[name] for name in ("phi1", "phi2")):
        raise UserError(
            "nothing to encode: name an encoder, --config.encode.phi1=dinov2_vits14, and images, "
            "--config.images.train=FOLDER (--list names the encoders)"
        )
    encoding = command_line.load_encoding()
    with command_line.joined() as processes:
        try:
            config = encoding.ensure(config, processes)
        except KeyboardInterrupt:
            print("stopped; the same command goes on with the images left", file=sys.stderr)
            leave(130)
    if processes.first:
        with command_line.printing():
            for split in ("train", "test"):
                for name, value in config.data[split].items():
                    if value:
                        print(f"data.{split}.{name}: {value}")


def show_presets(argv: list[str]) -> None:
    """Prints the encoders that there are."""
    del argv
    command_line.load_encoding()
    from hume_jax.representations.encoders import presets

    with command_line.printing():
        print(presets.describe())


def run() -> None:
    """`python -m hume_jax.encode`."""
    if any(_LIST.fullmatch(argument) for argument in sys.argv[1:]):
        command_line.guarded(show_presets)(sys.argv)
    else:
        command_line.run(main, sections=("images", "encode", "data"))


if __name__ == "__main__":
    run()
