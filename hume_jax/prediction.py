"""Rows labelled by the model that a run has left in its folder, and the file that tells them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from hume_jax import config as config_lib
from hume_jax import labelling
from hume_jax.core import aggregate
from hume_jax.editing import edits as edits_lib
from hume_jax.editing import parts, votes
from hume_jax.editing.edits import Edits
from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.progress import rows_progress
from hume_jax.representations import store
from hume_jax.representations.arrays import checks, formats, headers, side_file
from hume_jax.representations.arrays.kept import Array, less
from hume_jax.representations.images import table
from hume_jax.workdir import placed

# What a run's folder holds for this module.
MODEL = "model.npz"
ENCODERS = "encoders.json"
# Which of phi1 and phi2 task encoders read, by `search.spaces`.
SPACES: dict[str, tuple[str, ...]] = {
    "given": ("phi1",),
    "both": ("phi1", "phi2"),
    "first": ("phi1",),
    "second": ("phi2",),
}


class Run(NamedTuple):
    """What a finished run has left to label by."""

    place: str
    config: dict[str, Any]  # resolved
    model: labelling.Model
    # Of phi1 and phi2, the spec of the encoder of each file with the SHA-256 of its weights; '' of
    # a file of the user's own.
    encoders: dict[str, list[str]]
    edits: Edits  # of its classes, by hand; none by `open_run`
    parts: Mapping[int, labelling.Model] = {}  # of each class that they split

    @property
    def spaces(self) -> tuple[str, ...]:
        """Which of phi1 and phi2 the task encoders read."""
        return SPACES[self.config["search"]["spaces"]]


class Rows(NamedTuple):
    """Rows to label."""

    arrays: tuple[Array, ...]  # (n, d_j) each, as stored
    names: list[str] | None  # of their images
    total: int  # with those left out
    left_out: np.ndarray  # (m,) int64, ascending: of images that could not be read


class Labels(NamedTuple):
    """Labels of rows."""

    vote: aggregate.Vote  # class -1 and no agreement for rows that were left out
    names: list[str] | None  # of their images
    classes: Mapping[int, str] = {}  # names of classes, where some are given


def encoders_of(data: Any) -> dict[str, list[str]]:
    """What made the files of a dataset, as `Run.encoders`: what is kept with a run.

    Args:
      data: the config's `data` section.
    """
    found = {}
    for name in ("phi1", "phi2"):
        files = map(store.find_array, headers.several(data["train"][name]))
        found[name] = [_spec(side_file.read(file)) for file in files]
    return found


def _spec(content: dict[str, Any] | None) -> str:
    """The spec of an encoder that takes no other weights than those that were used."""
    if content is None or "spec" not in content:
        return ""
    spec, sha256 = content["spec"], content.get("weights", {}).get("sha256")
    if sha256 is None or "sha256=" in spec:
        return spec
    return f"{spec}{',' if ':' in spec else ':'}sha256={sha256}"


def open_run(place: str) -> Run:
    """Reads what a run has left to label by.

    Raises:
      UserError: no folder is given, it is no run's, or the run is not finished.
    """
    if not place:
        raise UserError("no run: give --run=WORKDIR, the folder of a finished run")
    folder = placed(place)
    files = {name: folder / name for name in ("config.json", MODEL, "results.json", ENCODERS)}
    if not files["config.json"].exists():
        raise UserError(f"--run={place} is not the folder of a run: it has no config.json")
    config = json.loads(files["config.json"].read_text())
    if config["seeds"]:
        parts = " or ".join(f"--run={place}/seed_{seed}" for seed in config["seeds"])
        raise UserError(
            f"the run in {place} has several seeds, each with labels of its own: {parts}"
        )
    for name in (MODEL, "results.json"):
        if not files[name].exists():
            raise UserError(
                f"the run in {place} is not finished, it has no {name}: the command that began it "
                "goes on with it"
            )
    model = labelling.read(io.BytesIO(files[MODEL].read_bytes()))
    # Runs of before there was such a file named theirs in the config alone.
    known = files[ENCODERS].exists()
    encoders = json.loads(files[ENCODERS].read_text()) if known else {"phi1": [], "phi2": []}
    return Run(str(folder), config, model, encoders, Edits(model.theta.shape[2]))


def edited(run: Run) -> Run:
    """A run with the edits of its classes, of `classes.yaml` in its folder, if that is there.

    Raises:
      UserError: the file is not as it may be, or a class that it splits has not been searched yet.
    """
    folder = placed(run.place)
    edits = edits_lib.read(folder / edits_lib.FILE, run.model.theta.shape[2])
    models = {c: parts.read(folder, run.model, c, n) for c, n in edits.split.items()}
    return run._replace(edits=edits, parts=models)


def open_rows(run: Run, files: Sequence[str], images: str = "") -> Rows:
    """Opens the rows to label, and looks at all their values.

    Args:
      run: that labels them.
      files: arrays, those of phi1 and then those of phi2, of which the run reads; or none.
      images: in their place; encoded first, what is encoded already is kept.

    Raises:
      UserError: arrays that are missing, damaged, of other widths or row counts, or of NaN; images
        that cannot be encoded as the run's were.
    """
    if images:
        files = _encoded(run, images)
    stored = [formats.open_header(file) for file in files]
    for file, array in zip(files, stored, strict=True):
        checks.check_space(store.find_array(file), array)
    found = [store.find_array(file) for file in files]
    left_out = np.unique([row for f in found for row, _ in side_file.broken(f)]).astype(np.int64)
    total = stored[0].shape[0]
    arrays = [array.read() for array in stored]
    labelling.check(run.model, arrays, files)
    kept = tuple(less(array, left_out) for array in arrays)
    return Rows(kept, table.names(files), total, left_out)


def _encoded(run: Run, images: str) -> list[str]:
    """Encodes images as those of the run were, and returns the arrays that the run reads."""
    from hume_jax import command_line

    for name in run.spaces:
        specs = run.encoders[name]
        if not specs or not all(specs):
            raise UserError(
                f"the run in {run.place} did not encode all of {name} itself, so it knows no "
                f"encoder for --images: encode them as you did then, and give --{name}=FILE.npy"
            )
    config = config_lib.common.get_config()
    values = {
        "n_classes": 2,  # not looked at
        "images.train": images,
        "images.labels": False,
        **{f"images.{name}": run.config["images"][name] for name in ("broken", "tfds_folder")},
        **{f"encode.{name}": value for name, value in run.config["encode"].items()},
        # Spaces that the run does not read are not encoded.
        **{
            f"encode.{name}": tuple(run.encoders[name]) if name in run.spaces else ""
            for name in ("phi1", "phi2")
        },
    }
    config.update_from_flattened_dict(values)
    done = command_line.load_encoding().ensure(config_lib.resolve(config, search=False))
    return [path for name in run.spaces for path in headers.several(done.data.train[name])]


def label(run: Run, rows: Rows) -> Labels:
    """The run's vote for each row, with the edits of its classes."""
    with rows_progress(len(rows.arrays[0]), "labels") as done:
        vote = votes.apply(run.model, rows.arrays, run.edits, run.parts, done)
    if len(rows.left_out):
        kept = np.setdiff1d(np.arange(rows.total), rows.left_out)
        whole = aggregate.Vote(
            np.full(rows.total, -1, np.int32), *np.zeros((2, rows.total), np.float32)
        )
        for all_rows, some in zip(whole, vote, strict=True):
            all_rows[kept] = some
        vote = whole
    return Labels(vote, rows.names, run.edits.names)


def check_format(out: Path) -> None:
    """Raises a `UserError` unless a file of this name can be written by `write`."""
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={out} is neither FILE.csv nor FILE.parquet")
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise UserError(
                f'--out={out} needs pyarrow ({error}): pip install "hume_jax[arrays]", or FILE.csv'
            ) from error


def write(out: Path, labels: Labels) -> None:
    """Writes labels to a file, whole or not at all; a row of it is a row of the arrays.

    Args:
      out: FILE.csv or FILE.parquet.
      labels: of all rows.
    """
    vote = labels.vote
    columns: dict[str, Any] = {"index": np.arange(len(vote.labels)), "label": vote.labels}
    if labels.classes:
        columns["name"] = [labels.classes.get(c, "") for c in vote.labels.tolist()]
    columns |= {"agreement": vote.agreement, "margin": vote.margin}
    if labels.names is not None:
        columns["image"] = labels.names
    write_columns(out, columns)


def write_columns(out: Path, columns: Mapping[str, Any]) -> None:
    """Writes a table of rows, whole or not at all.

    Args:
      out: FILE.csv or FILE.parquet.
      columns: values of all rows, under the titles.
    """
    with atomic_write(out) as file:
        (_write_parquet if out.suffix == ".parquet" else _write_csv)(file, columns)


def _write_csv(file: IO[bytes], columns: Mapping[str, Any]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    shares = [name for name in columns if name in ("agreement", "margin")]
    # As labels.csv of a run has them.
    shown = {**columns} | {name: [f"{share:.6f}" for share in columns[name]] for name in shares}
    writer.writerows(zip(*shown.values(), strict=True))
    text.flush()
    text.detach()


def _write_parquet(file: IO[bytes], columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), file)
