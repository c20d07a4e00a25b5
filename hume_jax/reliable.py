r"""Lists the surest rows of a finished run with their classes, for semi-supervised training.

    python -m hume_jax.reliable --run=WORKDIR --out=reliable.csv
    python -m hume_jax.reliable --run=WORKDIR --out=reliable.txt --per_class=40 --balanced

A row counts as sure if its agreement and its margin reach what is asked; they are listed class by
class, the surest of each first. What is written goes by the name of --out:

    .csv, .parquet   index, split, label, name, agreement, margin; image or text where known
    .txt             a line a row, `IMAGE LABEL`, or `INDEX LABEL` where images are not known
    .npz             arrays `index` and `label`, int64: what code takes that indexes a dataset

Merges, splits and names of classes are those of classes.yaml (`hume_jax.classes`).
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging

from hume_jax import command_line, prediction
from hume_jax.core import selection
from hume_jax.editing import labels
from hume_jax.errors import UserError
from hume_jax.files import atomic_write, make_folder
from hume_jax.progress import count

# Other commands have flags of these names too; a process runs one command.
_RUN = flags.DEFINE_string(
    "run", "", "Folder of a finished run, may be gs://...", allow_override=True
)
_OUT = flags.DEFINE_string(
    "out",
    "reliable.csv",
    "Where the list goes: FILE.csv, .parquet, .txt or .npz.",
    allow_override=True,
)
_AGREEMENT = flags.DEFINE_float(
    "agreement", selection.AGREEMENT, "Least share of the votes for the class, 0 to 1."
)
_MARGIN = flags.DEFINE_float(
    "margin", selection.MARGIN, "Least share of the votes ahead of the next class, 0 to 1."
)
_PER_CLASS = flags.DEFINE_integer("per_class", None, "Take no more rows of a class than this.")
_BALANCED = flags.DEFINE_bool(
    "balanced", False, "Take as many of each class as the class with the fewest has."
)
_SPLIT = flags.DEFINE_enum("split", "train", ["train", "test"], "Whose rows.")
_EDITS = flags.DEFINE_bool(
    "edits",
    True,
    "Whether names, merges and splits of the run's classes.yaml count.",
    allow_override=True,
)
_FORMS = (".csv", ".parquet", ".txt", ".npz")


def main(argv: list[str]) -> None:
    """Lists what the flags say."""
    del argv  # all of it is in FLAGS
    out = Path(_OUT.value).expanduser()
    if out.suffix not in _FORMS:
        raise UserError(f"--out={out} is none of FILE{', FILE'.join(_FORMS)}")
    if out.suffix == ".parquet":
        prediction.check_format(out)
    for flag in (_AGREEMENT, _MARGIN):
        if not 0 <= flag.value <= 1:
            raise UserError(f"--{flag.name}={flag.value}: it must be from 0 to 1")
    if _PER_CLASS.value is not None and _PER_CLASS.value < 1:
        raise UserError(f"--per_class={_PER_CLASS.value}: it must be at least 1")
    make_folder(out.parent)
    edited = labels.read(prediction.open_run(_RUN.value), edited=_EDITS.value)
    if _SPLIT.value not in edited.tables:
        raise UserError(f"--split={_SPLIT.value}: the run has no {_SPLIT.value} rows")
    table = edited.tables[_SPLIT.value]
    found = selection.reliable(
        table.labels,
        table.agreement,
        table.margin,
        least_agreement=_AGREEMENT.value,
        least_margin=_MARGIN.value,
        per_class=_PER_CLASS.value,
        balanced=_BALANCED.value,
    )
    if not len(found.rows):
        raise UserError(
            f"no {_SPLIT.value} row has an agreement of {_AGREEMENT.value} and a margin of "
            f"{_MARGIN.value}: lower --agreement and --margin"
        )
    if found.short:
        logging.warning("%s", selection.told(found))
    _write(out, _columns(edited, found.rows))
    classes = len(np.unique(table.labels[found.rows]))
    logging.info(
        "%d of %d %s rows are listed, of %s",
        len(found.rows), len(table.labels), _SPLIT.value, count(classes, "class", "classes"),
    )  # fmt: skip
    with command_line.printing():
        print(out)


def _columns(edited: labels.Edited, rows: np.ndarray) -> dict[str, Any]:
    table = edited.tables[_SPLIT.value]
    numbers = table.labels[rows]
    names = edited.edits.names
    return {
        "index": rows,
        "split": [_SPLIT.value] * len(rows),
        "label": numbers,
        **({"name": [names.get(c, "") for c in numbers.tolist()]} if names else {}),
        "agreement": table.agreement[rows],
        "margin": table.margin[rows],
        **{name: [values[i] for i in rows] for name, values in table.samples.items()},
    }


def _write(out: Path, columns: dict[str, Any]) -> None:
    if out.suffix in (".csv", ".parquet"):
        prediction.write_columns(out, columns)
        return
    with atomic_write(out) as file:
        if out.suffix == ".npz":
            np.savez(file, index=columns["index"], label=columns["label"])
            return
        known = any(columns.get("image", ()))
        lines = zip(columns["image" if known else "index"], columns["label"], strict=True)
        file.write("".join(f"{row} {label}\n" for row, label in lines).encode())


def run() -> None:
    """`python -m hume_jax.reliable`."""
    command_line.run_plain(main)


if __name__ == "__main__":
    run()
