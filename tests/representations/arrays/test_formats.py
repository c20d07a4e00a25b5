"""Every format gives the rows that were saved in it, whatever they are called there."""

import builtins
import json
import pathlib
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from ml_collections import config_dict

from hume_jax.errors import UserError
from hume_jax.representations import store
from hume_jax.representations.arrays import formats, npz, tables

GOLDEN = pathlib.Path(__file__).parent / "golden" / "datasets"
N, D = 12, 3
# What `Format.save` saves.
ROWS = np.arange(N * D, dtype=np.float32).reshape(N, D) / 8 - 2
LABELS = np.arange(N) % 3
NAMES = [("ant", "bee", "cat")[i] for i in LABELS]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(path, message):
    with pytest.raises(UserError, match=message) as error:
        formats.open_array(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def only(*names):
    """Some of the formats."""
    return pytest.mark.parametrize("each_format", names, indirect=True)


def fixed_lists(rows):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


# ---- what is saved is what is read


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_come_back(each_format, dtype):
    path = each_format.save(ROWS.astype(dtype))
    header, array = formats.open_header(path), formats.open_array(path)
    np.testing.assert_array_equal(array, ROWS)
    assert header.shape == array.shape == (N, D)
    assert header.dtype == dtype
    # float64 is read as float32: what is copied anyway is copied so.
    copied = dtype if dtype != np.float64 else np.float32
    assert array.dtype == (dtype if each_format.in_place else copied)
    assert header.memory == (0 if each_format.in_place else array.nbytes)
    assert not array.flags.writeable


@only("npy", "npz", "safetensors")
def test_arrays_are_memory_mapped(each_format):
    assert isinstance(formats.open_array(each_format.save()), np.memmap)


@only("npy", "npz", "safetensors", "arrow", "stream")
def test_what_lies_in_one_piece_takes_no_memory(each_format):
    rows = np.ones((50_000, 16), np.float32)
    if each_format.file.endswith(".arrow"):
        made = pa.table({"x": fixed_lists(rows)})
        opener = pa.ipc.new_stream if each_format.name == "stream" else pa.ipc.new_file
        with opener(each_format.file, made.schema) as file:
            file.write_table(made)
        del made
    else:
        each_format.save(rows)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    array = formats.open_array(each_format.path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.nbytes == rows.nbytes
    assert peak + pa.total_allocated_bytes() - before < rows.nbytes / 10


@only("npz", "npz, compressed")
def test_column_by_column_and_big_endian(each_format):
    each_format.save(np.asfortranarray(ROWS.astype(">f4")))
    np.testing.assert_array_equal(formats.open_array(each_format.path), ROWS)
    each_format.save(np.asfortranarray(ROWS.astype(">f8")))
    np.testing.assert_array_equal(formats.open_array(each_format.path), ROWS)


def test_bfloat16_stays_in_the_file_and_is_read_as_float32():
    import ml_dtypes

    rows = {"x": ROWS.astype(ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(rows, "f.safetensors")
    data = store.open_dataset(section("f.safetensors:x"))
    (kept,) = data.train.phi1.arrays
    assert isinstance(kept, np.memmap)
    assert kept.dtype.itemsize == 2
    out = store.normalise(kept, store.statistics([kept], kind="stored"), "stored")
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, ROWS)


@only("parquet", "npz, compressed")
def test_values_are_decoded_a_part_at_a_time(each_format, monkeypatch):
    each_format.save()
    monkeypatch.setattr(tables, "_BATCH_BYTES", 2 * D * 4)
    monkeypatch.setattr(npz, "_CHUNK", 7)
    np.testing.assert_array_equal(formats.open_array(each_format.path), ROWS)


def test_labels_beside_rows(each_format):
    if each_format.name == "npy":
        np.save("f.npy", LABELS)
    else:
        each_format.save()
    array = formats.open_array(each_format.labels)
    assert array.dtype == np.int64
    np.testing.assert_array_equal(array, LABELS)


@pytest.mark.parametrize(
    "column", [pa.array(NAMES), pa.array(NAMES).dictionary_encode(), pa.array(NAMES, "large_utf8")]
)
def test_class_names_in_columns(column):
    pq.write_table(pa.table({"s": column}), "f.parquet", row_group_size=5)
    np.testing.assert_array_equal(formats.open_array("f.parquet:s"), np.array(NAMES, "S"))


def test_extension_types_are_what_they_store():
    kind = pa.fixed_shape_tensor(pa.float32(), (D,))
    column = pa.ExtensionArray.from_storage(kind, fixed_lists(ROWS))
    pq.write_table(pa.table({"x": column}), "f.parquet")
    np.testing.assert_array_equal(formats.open_array("f.parquet"), ROWS)


def test_columns_with_dots_and_of_sliced_lists():
    sliced = pa.array(list(np.concatenate([-ROWS, ROWS])))[N:]
    pq.write_table(pa.table({"a.b": sliced, "a": pa.array(LABELS)}), "f.parquet")
    np.testing.assert_array_equal(formats.open_array("f.parquet:a.b"), ROWS)
    np.testing.assert_array_equal(formats.open_array("f.parquet:a"), LABELS)


def test_folders_that_hugging_face_datasets_saved():
    """A real one, see experiments/make_datasets_golden.py."""
    for split, n in (("train", 7), ("test", 3)):
        rows = np.arange(n * D).reshape(n, D) / 8
        for column, expected, dtype in (
            ("vector", rows, np.float32),
            ("half", -rows, np.float16),
            ("label", np.arange(n) % 2, np.int64),
            ("name", np.array([b"cat", b"dog"])[np.arange(n) % 2], np.dtype("S3")),
        ):
            array = formats.open_array(f"{GOLDEN / split}:{column}")
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, expected)
    message = fails(f"{GOLDEN}:vector", r"holds several datasets \(train, test\): name one")
    assert "/SPLIT:COLUMN" in message


# ---- which array is meant


@only("npz", "safetensors", "parquet", "arrow", "dataset")
def test_a_name_is_needed_among_several(each_format):
    each_format.save()
    file = each_format.file
    fails(file, f"{file} holds 2 .*s, name one, {file}:NAME: x, y$")
    fails(f"{file}:z", f"{file} holds no .* z; it holds x, y$")


def test_the_nearest_name_is_offered_and_long_lists_are_shortened():
    np.savez("f.npz", **{f"layer{i}": ROWS for i in range(15)})
    message = fails("f.npz:layr3", r"holds no array layr3; did you mean 'layer3'\?")
    assert message.endswith("layer9 and 5 more")


def test_the_name_may_be_left_out_where_there_is_one():
    np.savez("f.npz", ROWS)
    safetensors.numpy.save_file({"x": ROWS}, "f.safetensors")
    pq.write_table(pa.table({"x": fixed_lists(ROWS)}), "f.parquet")
    for path in ("f.npz", "f.npz:arr_0", "f.npz:arr_0.npy", "f.safetensors", "f.parquet"):
        np.testing.assert_array_equal(formats.open_array(path), ROWS)


def test_a_file_wins_over_a_name():
    np.save("a:x.npy", ROWS)
    np.savez("b.npz", x=-ROWS)
    np.savez("b.npz:x.npz", ROWS)
    np.testing.assert_array_equal(formats.open_array("a:x.npy"), ROWS)
    np.testing.assert_array_equal(formats.open_array("b.npz:x"), -ROWS)
    np.testing.assert_array_equal(formats.open_array("b.npz:x.npz"), ROWS)


def test_names_may_hold_colons():
    np.savez("f:1.npz", **{"a:b": ROWS, "b": -ROWS})
    np.testing.assert_array_equal(formats.open_array("f:1.npz:a:b"), ROWS)


def test_an_npy_file_has_no_names():
    np.save("f.npy", ROWS)
    fails("f.npy:x", "f.npy is one array, there is no 'x' in it")


def test_any_other_ending_is_an_npy_file():
    with open("features", "wb") as file:
        np.save(file, ROWS)
    np.testing.assert_array_equal(formats.open_array("features"), ROWS)


@pytest.mark.parametrize(
    ("start", "hint"),
    [(b"PAR1", ".parquet"), (b"ARROW1\0\0", ".arrow"), (b"PK\3\4", ".npz"), (b"\x89HDF", "HDF5")],
)
def test_other_files_under_the_name_of_npy(start, hint):
    pathlib.Path("f.npy").write_bytes(start + bytes(100))
    assert hint in fails("f.npy", "f.npy is not an .npy file: it looks like")


# ---- through the checks of a dataset


def section(phi1, phi2="", labels="", test=None):
    """A data section; phi2 is phi1 unless it is given."""
    train = {"phi1": phi1, "phi2": phi2 or phi1, "labels": labels}
    none = {"phi1": "", "phi2": "", "labels": ""}
    return config_dict.ConfigDict({"train": train, "test": {**none, **(test or {})}})


def refused(data, message):
    with pytest.raises(UserError, match=message) as error:
        store.open_dataset(data)
    return str(error.value)


def test_values_are_checked_in_every_format(each_format):
    bad = ROWS.copy()
    bad[7, 1:] = np.nan
    path = each_format.save(bad)
    message = refused(section(path), "2 of 36 values are NaN or infinite")
    assert message.startswith(f"{path}: ")
    assert "in row 7 " in message


@only("npz, compressed", "parquet", "dataset")
def test_values_beyond_float32_are_infinite_where_float64_is_copied(each_format):
    wide = ROWS.astype(np.float64)
    wide[3, 0] = -1e200
    refused(section(each_format.save(wide)), "1 of 36 values are NaN or infinite .* in row 3 ")


def test_rows_of_zeros_are_counted_in_every_format(each_format):
    zeros = ROWS.copy()
    zeros[5] = 0
    path = each_format.save(zeros)
    data = store.open_dataset(section(path))
    with pytest.raises(UserError, match=f"{path}: 1 of 12 rows have zero norm, more than 1 %"):
        store.check_search(data, 2, "inductive")


def test_a_digest_is_of_the_values(each_format):
    one = store.fingerprint(store.open_dataset(section(each_format.save())))
    np.save("g.npy", ROWS)
    assert one == store.fingerprint(store.open_dataset(section("g.npy")))
    other = each_format.save(ROWS[::-1].copy())
    assert one != store.fingerprint(store.open_dataset(section(other)))


def test_integers_and_vectors_are_told_apart(each_format):
    x, y = each_format.save(), each_format.labels
    if each_format.name != "npy":
        refused(section(y), rf"{y} has shape \(12,\), a representation has two dimensions")
    refused(section(x, labels=x), rf"{x} has shape \(12, 3\), labels have one dimension")


def test_vectors_of_integers_are_refused(each_format):
    path = each_format.save(ROWS.astype(np.int32))
    refused(section(path), f"{path} has dtype int32, a representation is float16 or float32")


def test_headers_are_compared_before_anything_is_read(all_formats, monkeypatch):
    for module, name in ((tables, "_read_rows"), (npz, "_read")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("it was read"))
    parquet = all_formats["parquet"].save()
    archive = all_formats["npz, compressed"].save(ROWS[:-1])
    message = refused(section(parquet, archive), "differ in rows")
    assert f"{parquet} (12, 3) and {archive} (11, 3)" in message
    store.check_headers(section(parquet), 2, "inductive")
    with pytest.raises(UserError, match="more than the 3 columns that"):
        store.check_headers(section(parquet), 4, "inductive")


def test_check_headers_counts_the_test_rows(rng):
    for name in ("a.npy", "b.npy"):
        np.save(name, rng.normal(size=(N, 2 * N)))
    data = section("a.npy", test={"phi1": "b.npy", "phi2": "b.npy"})
    store.check_headers(data, 2 * N, "transductive")
    with pytest.raises(UserError, match=f"more than the {N} searched rows"):
        store.check_headers(data, N + 1, "inductive")
    data.test.phi2 = ""
    with pytest.raises(UserError, match="give data.test.phi1 and data.test.phi2"):
        store.check_headers(data, 2, "transductive")


def test_what_does_not_fit_in_memory_is_not_read(all_formats, monkeypatch):
    parquet = all_formats["parquet"].save()
    archive = all_formats["npz, compressed"].save()
    needed = 2 * ROWS.nbytes
    memory = config_dict.ConfigDict({"available": needed})
    monkeypatch.setattr(formats.psutil, "virtual_memory", lambda: memory)
    store.open_dataset(section(parquet, archive))
    memory.available = needed - 1
    message = refused(section(parquet, archive), "would be read into memory")
    assert message.startswith(f"{parquet}, {archive}: ")
    # Memory-mapped files take none.
    memory.available = 0
    store.open_dataset(section(all_formats["npz"].save()))


@only("npz", "parquet", "dataset")
def test_missing_files_are_named_with_their_part(each_format):
    path = each_format.path
    message = refused(section("gone:x", path), "2 files not found")
    assert f"data.train.phi1=gone:x, data.train.phi2={path} " in message


def test_a_folder_of_something_else():
    pathlib.Path("folder").mkdir()
    refused(section("folder:x"), "folder:x, which is a folder and not one that save_to_disk")
    fails("folder:x", "folder is a folder, and not one that save_to_disk")


# ---- labels


def open_labels(train, test=""):
    """Labels of both splits, as numbers."""
    np.save("x.npy", ROWS)
    given = {"phi1": "x.npy", "labels": test} if test else {}
    data = store.open_dataset(section("x.npy", labels=train, test=given))
    return data.train.labels, None if data.test is None else data.test.labels


def test_class_names_are_numbered_alike_in_both_splits():
    names = np.array(["zebra", "Ärger", "ant", "ant"] * 3)
    np.save("y.npy", names)
    pq.write_table(pa.table({"y": ["mole", "zebra", "ant"] * 4}), "y.parquet")
    train, test = open_labels("y.npy", "y.parquet")
    assert train.dtype == test.dtype == np.int64
    # ant, mole, zebra, Ärger: by code point.
    np.testing.assert_array_equal(train, [2, 3, 0, 0] * 3)
    np.testing.assert_array_equal(test, [1, 2, 0] * 4)
    np.save("y.npy", np.strings.encode(names, "utf-8"))
    np.testing.assert_array_equal(open_labels("y.npy", "y.parquet")[0], train)


def test_one_split_may_go_without_class_names():
    np.save("a.npy", np.array(NAMES))
    np.save("x.npy", ROWS)
    data = store.open_dataset(section("x.npy", test={"phi1": "x.npy", "labels": "a.npy"}))
    assert data.train.labels is None
    np.testing.assert_array_equal(data.test.labels, LABELS)


def test_class_names_and_numbers_do_not_mix():
    np.save("a.npy", np.array(NAMES))
    np.save("b.npy", LABELS)
    with pytest.raises(UserError, match="a.npy holds class names, b.npy numbers"):
        open_labels("b.npy", "a.npy")


def test_class_names_must_be_there_and_short():
    np.save("a.npy", np.array(["ant", "", *NAMES[2:]]))
    with pytest.raises(UserError, match="a.npy has no class name in row 1 "):
        open_labels("a.npy")
    pq.write_table(pa.table({"y": ["ant", None, *NAMES[2:]]}), "a.parquet")
    with pytest.raises(UserError, match="a.parquet: row 1 .* has no value"):
        open_labels("a.parquet")
    pq.write_table(pa.table({"y": [*NAMES[:-1], "a" * 257]}), "a.parquet")
    with pytest.raises(UserError, match="row 11 .* holds a text of 257 bytes: .* at most 256"):
        open_labels("a.parquet")


def test_names_that_are_no_text():
    # Beyond the last code point, and half of a pair.
    for point in (0x110000, 0xD800):
        np.save("a.npy", np.full((N, 1), point, np.uint32).view("<U1")[:, 0])
        with pytest.raises(UserError, match="a.npy holds what is no text"):
            open_labels("a.npy")


def test_class_names_of_another_byte_order():
    np.save("a.npy", np.array(NAMES, ">U5"))
    np.testing.assert_array_equal(open_labels("a.npy")[0], LABELS)


@pytest.mark.parametrize("column", [pa.array(LABELS / 2), pa.array(LABELS == 1)])
def test_labels_of_another_kind(column):
    pq.write_table(pa.table({"y": column}), "a.parquet")
    with pytest.raises(UserError, match="a.parquet has dtype .*, labels are integers or class"):
        open_labels("a.parquet")


# ---- tables that are no arrays


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0, 2.0]] * 7 + [[3.0]] + [[1.0, 2.0]] * 4, "row 7 .* has 1 values, row 0 has 2"),
        ([[1.0, 2.0]] * 7 + [None] + [[1.0, 2.0]] * 4, "row 7 .* has no value"),
        ([None] + [[1.0, 2.0]] * 11, "row 0 .* has no value"),
        ([[1.0, 2.0]] * 7 + [[3.0, None]] + [[1.0, 2.0]] * 4, "row 7 .* has a missing value"),
        ([[]] * 12, r"is empty: its shape is \(12, 0\)"),
        ([], "is empty: it has no rows"),
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_lists_that_are_no_rows(column, message, ending):
    made = pa.table({"x": pa.array(column, pa.list_(pa.float32()))})
    if ending == "parquet":
        pq.write_table(made, "f.parquet", row_group_size=5)
    else:
        with pa.ipc.new_stream("f.arrow", made.schema) as file:
            file.write_table(made, max_chunksize=5)
    assert f"f.{ending}:x" in fails(f"f.{ending}:x", message)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[[1.0]]] * N),
        pa.array([["a"]] * N),
        pa.array([{"a": 1}] * N),
        pa.array([b"a"] * N),
        pa.array([None] * N),
    ],
    ids=["nested", "lists of text", "struct", "bytes", "null"],
)
def test_columns_of_another_kind(column):
    pq.write_table(pa.table({"x": column}), "f.parquet")
    fails("f.parquet", "f.parquet is a column of .*: a representation is a list of float16")


def test_a_column_that_stands_there_twice():
    made = pa.table([fixed_lists(ROWS), fixed_lists(ROWS)], names=["x", "x"])
    pq.write_table(made, "f.parquet")
    fails("f.parquet:x", "f.parquet holds 2 columns of the name x")


def test_shards_that_do_not_fit_together(all_formats):
    path = all_formats["dataset"].save()
    made = pa.table({"x": fixed_lists(ROWS)})
    with pa.ipc.new_stream("folder/b.arrow", made.schema) as file:
        file.write_table(made)
    fails(path, "folder/b.arrow and folder/a.arrow differ in their columns")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_data_files": [{"filename": "../a.arrow"}]}, "does not name files of its folder"),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "does not name files of its folder"),
        ({"_data_files": [{"filename": 3}]}, "does not name files of its folder"),
        ({"_data_files": ["a.arrow"]}, "does not name files of its folder"),
        ({"_data_files": []}, "does not name files of its folder"),
        ({"_data_files": 3}, "does not name files of its folder"),
        ({"_data_files": [{"filename": "c.arrow"}]}, "folder lacks c.arrow"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "is a selection of rows"),
        ([], "holds no JSON object"),
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_states_of_datasets_that_name_no_files(all_formats, change, message):
    path = all_formats["dataset"].save()
    state = pathlib.Path("folder/state.json")
    content = {**json.loads(state.read_text()), **change} if isinstance(change, dict) else change
    state.write_text(content if isinstance(content, str) else json.dumps(content))
    assert "folder" in fails(path, message)


def test_old_feather():
    pathlib.Path("f.feather").write_bytes(b"FEA1" + bytes(100))
    fails("f.feather:x", "f.feather is of Feather version 1")


@pytest.mark.parametrize(
    ("each_format", "package"),
    [("safetensors", "safetensors"), ("parquet", "pyarrow"), ("dataset", "pyarrow")],
    indirect=["each_format"],
)
def test_a_missing_package_is_named_with_its_extra(each_format, package, monkeypatch):
    path, original = each_format.save(), builtins.__import__

    def without(wanted, *rest):
        if wanted.partition(".")[0] == package:
            raise ImportError(wanted)
        return original(wanted, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert 'pip install "hume_jax[arrays]"' in fails(path, f"needs {package} to be read")
