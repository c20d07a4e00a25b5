r"""Names, merges and splits the classes of a finished run, as its classes.yaml says.

    python -m hume_jax.classes --run=WORKDIR --template
    python -m hume_jax.classes --run=WORKDIR

The first writes WORKDIR/classes.yaml with the sizes of the classes, to be filled in by hand:

    names: {0: church, 4: golf ball}
    merge: [[2, 7], [1, 3, 9]]      # each list becomes one class, under its lowest number
    split: {5: 2}                   # class 5 is searched for two classes of its own

The second searches the splits that are new (each in WORKDIR/split_5; stopped at any moment, the
same command goes on), writes WORKDIR/classes.csv, the labels after all that, and draws the page
anew. labels.csv stays what the run has found. `python -m hume_jax.predict` and
`python -m hume_jax.reliable` read classes.yaml by themselves.
"""

import sys
from collections import Counter
from typing import Any

from absl import flags, logging

from hume_jax import command_line, prediction
from hume_jax.editing import edits, labels, parts, table
from hume_jax.errors import UserError
from hume_jax.workdir import placed

# Other commands have flags of these names too; a process runs one command.
_RUN = flags.DEFINE_string(
    "run", "", "Folder of a finished run, may be gs://...", allow_override=True
)
_TEMPLATE = flags.DEFINE_bool(
    "template", False, "Write a classes.yaml to begin with, if there is none."
)


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    del argv  # all of it is in FLAGS
    finished = prediction.open_run(_RUN.value)
    file = placed(finished.place) / edits.FILE
    if _TEMPLATE.value:
        _write_template(finished, file)
        return
    if not file.exists():
        raise UserError(f"there is no {file}: --template writes one to begin with")
    try:
        edited = labels.make(finished)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    labels.write(finished, edited)
    page = _draw(finished)
    with command_line.printing():
        print(f"{finished.place}/{table.CLASSES}")
        if page:
            print(page)


def _write_template(finished: prediction.Run, file: Any) -> None:
    if file.exists():
        raise UserError(f"{file} is there already: it is written by hand, and stays as it is")
    found = table.read(placed(finished.place) / table.LABELS)
    sizes: Counter[int] = Counter()
    for own in found.values():
        sizes.update(own.labels.tolist())
    text = edits.template(finished.model.theta.shape[2], sizes)
    parts.write_text(file, text)
    with command_line.printing():
        print(file)


def _draw(finished: prediction.Run) -> str:
    """Draws the page of the run anew, if it has one; says where it is."""
    from hume_jax.report.page import folder, writing

    if not (placed(finished.place) / folder.ARRAYS).exists():
        logging.info("the run has no page: it was made with report=False")
        return ""
    return writing.redraw(folder.open_run(finished.place))


def run() -> None:
    """`python -m hume_jax.classes`."""
    command_line.run_plain(main)


if __name__ == "__main__":
    run()
