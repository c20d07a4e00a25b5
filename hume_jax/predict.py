r"""Labels rows that come later, by the vote of a finished run.

    python -m hume_jax.predict --run=WORKDIR --phi1=a.npy --phi2=b.npy --out=labels.csv
    python -m hume_jax.predict --run=WORKDIR --images=photos --out=labels.parquet

Which spaces it asks for is a matter of the run: both, or phi1 or phi2 alone (`search.spaces`). A
flag is given again for each further file of a space, in the order of the run's config. Images (a
folder, .tar, .zip or tfds:NAME/SPLIT) pass through the encoders that the run's own passed through.
Names, merges and splits of classes are those of classes.yaml in the run's folder
(`hume_jax.classes`), if that is there.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from hume_jax import command_line, prediction
from hume_jax.errors import UserError
from hume_jax.files import make_folder

# Other commands have flags of these names too; a process runs one command.
_RUN = flags.DEFINE_string(
    "run", "", "Folder of a finished run, may be gs://...", allow_override=True
)
_PHI1 = flags.DEFINE_multi_string("phi1", [], "Array of the rows to label; once for each file.")
_PHI2 = flags.DEFINE_multi_string("phi2", [], "The same for phi2, where the run reads it.")
_IMAGES = flags.DEFINE_string("images", "", "Images to label, in the place of arrays.")
_OUT = flags.DEFINE_string(
    "out", "labels.csv", "Where labels go: FILE.csv or FILE.parquet.", allow_override=True
)
_EDITS = flags.DEFINE_bool(
    "edits",
    True,
    "Whether names, merges and splits of the run's classes.yaml count.",
    allow_override=True,
)


def main(argv: list[str]) -> None:
    """Labels what the flags say."""
    del argv  # all of it is in FLAGS
    out = Path(_OUT.value).expanduser()
    prediction.check_format(out)
    make_folder(out.parent)
    finished = prediction.open_run(_RUN.value)
    if _EDITS.value:
        finished = prediction.edited(finished)
    rows = prediction.open_rows(finished, _files(finished), _IMAGES.value)
    labels = prediction.label(finished, rows)
    prediction.write(out, labels)
    logging.info("%d rows labelled", len(labels.vote.labels))
    with command_line.printing():
        print(out)


def _files(finished: prediction.Run) -> Sequence[str]:
    """The arrays that the flags name, as the run reads them.

    Raises:
      UserError: one that it needs is missing, one that it does not read is given, or images too.
    """
    given = {"phi1": _PHI1.value, "phi2": _PHI2.value}
    if _IMAGES.value:
        for name, paths in given.items():
            if paths:
                raise UserError(f"--images and --{name} are both given: keep one of them")
        return ()
    for name in finished.spaces:
        if not given[name]:
            raise UserError(
                f"--{name} is not given: the run reads {' and '.join(finished.spaces)} of every "
                f"row, --{name}=FILE.npy (or --images=FOLDER where it encoded images itself)"
            )
    for name, paths in given.items():
        if paths and name not in finished.spaces:
            raise UserError(
                f"--{name} is given, but the run reads {' and '.join(finished.spaces)} alone: "
                "leave it out"
            )
    return [path for name in finished.spaces for path in given[name]]


def run() -> None:
    """`python -m hume_jax.predict`."""
    command_line.run_plain(main)


if __name__ == "__main__":
    run()
