"""Files of every format that arrays may have, for the tests of opening them."""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

N, D = 12, 3
# Every number is exact in float16 and bfloat16.
ROWS = np.arange(N * D, dtype=np.float32).reshape(N, D) / 8 - 2
LABELS = np.arange(N) % 3


class Format(NamedTuple):
    """One way to save rows, as `x`, and integers beside them, as `y`."""

    name: str
    write: Callable[[str, np.ndarray], None]
    path: str  # to the rows
    in_place: bool  # whether they are used where they lie in the file

    @property
    def file(self) -> str:
        """Where it is saved."""
        return self.path.partition(":")[0]

    @property
    def labels(self) -> str:
        """The path to the integers."""
        return self.path.replace(":x", ":y")

    def save(self, rows: np.ndarray = ROWS) -> str:
        """Saves rows in the current folder and returns the path to them."""
        self.write(self.file, rows)
        return self.path


def _npz(path, rows):
    np.savez(path, x=rows, y=LABELS)


def _compressed(path, rows):
    np.savez_compressed(path, x=rows, y=LABELS)


def _safetensors(path, rows):
    import safetensors.numpy

    safetensors.numpy.save_file({"x": np.ascontiguousarray(rows), "y": LABELS}, path)


def _table(rows, fixed):
    import pyarrow as pa

    kind = pa.from_numpy_dtype(rows.dtype)
    lists = pa.array(list(rows), pa.list_(kind, rows.shape[1] if fixed else -1))
    return pa.table({"x": lists, "y": pa.array(LABELS)})


def _parquet(fixed):
    def write(path, rows):
        import pyarrow.parquet as pq

        pq.write_table(_table(rows, fixed), path, row_group_size=5)

    return write


def _arrow(opener, fixed, size=None):
    def write(path, rows):
        import pyarrow as pa

        table = _table(rows, fixed)
        with getattr(pa.ipc, opener)(path, table.schema) as file:
            file.write_table(table, max_chunksize=size)

    return write


def _feather(path, rows):
    import pyarrow.feather

    pyarrow.feather.write_feather(_table(rows, fixed=False), path)  # compressed


def _dataset(path, rows):
    """What `datasets` writes, as far as it matters: streams and the file that names them."""
    import pyarrow as pa

    folder = pathlib.Path(path)
    folder.mkdir(exist_ok=True)
    table, names = _table(rows, fixed=False), ["a.arrow", "b.arrow"]
    for name, part in zip(names, (table.slice(0, 5), table.slice(5)), strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as file:
            file.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))


FORMATS = {
    made.name: made
    for made in (
        Format("npy", np.save, "f.npy", True),
        Format("npz", _npz, "f.npz:x", True),
        Format("npz, compressed", _compressed, "f.npz:x", False),
        Format("safetensors", _safetensors, "f.safetensors:x", True),
        Format("parquet", _parquet(fixed=False), "f.parquet:x", False),
        Format("parquet, fixed lists", _parquet(fixed=True), "f.parquet:x", False),
        Format("arrow", _arrow("new_file", fixed=False), "f.arrow:x", True),
        Format("arrow, batches", _arrow("new_file", fixed=True, size=5), "f.arrow:x", False),
        Format("stream", _arrow("new_stream", fixed=True), "f.arrow:x", True),
        Format("stream, batches", _arrow("new_stream", fixed=False, size=5), "f.arrow:x", False),
        Format("feather", _feather, "f.feather:x", True),
        Format("dataset", _dataset, "folder:x", False),
    )
}


@pytest.fixture(scope="session")
def all_formats() -> dict[str, Format]:
    """Every format by its name."""
    return FORMATS


@pytest.fixture(scope="session", params=FORMATS)
def each_format(request: pytest.FixtureRequest) -> Format:
    """Every format in turn, or those that a test names (`indirect=True`)."""
    return FORMATS[request.param]
