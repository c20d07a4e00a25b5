import io
import pathlib

import numpy as np
import pytest
from ml_collections import config_dict

from hume_jax.errors import UserError
from hume_jax.representations import store
from hume_jax.representations.arrays import checks, side_file

N, D1, D2 = 40, 6, 5


@pytest.fixture
def arrays(rng):
    return {
        "phi1": rng.normal(size=(N, D1)).astype(np.float32),
        "phi2": rng.normal(size=(N, D2)).astype(np.float16),
        "labels": rng.integers(0, 3, size=N),
    }


@pytest.fixture
def folder(tmp_path, arrays, monkeypatch):
    """The current folder, with the files of both splits; a test changes what it is about."""
    for split in ("train", "test"):
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}_{split}.npy", array)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fields(**changes):
    """The data section, all files given; `train_labels=''` and the like change it."""
    data = {
        split: {name: f"{name}_{split}.npy" for name in ("phi1", "phi2", "labels")}
        for split in ("train", "test")
    }
    for name, value in changes.items():
        split, _, field = name.partition("_")
        data[split][field] = value
    return config_dict.ConfigDict(data)


def fails(message, **changes):
    with pytest.raises(UserError, match=message) as error:
        store.open_dataset(fields(**changes))
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- opening


def test_opens_memory_mapped(folder, arrays):
    data = store.open_dataset(fields())
    assert isinstance(data.train.phi1.arrays[0], np.memmap)
    assert not data.train.phi1.arrays[0].flags.writeable
    np.testing.assert_array_equal(data.train.phi1.arrays[0], arrays["phi1"])
    np.testing.assert_array_equal(data.train.phi2.arrays[0], arrays["phi2"])
    assert data.train.labels.dtype == np.int64
    np.testing.assert_array_equal(data.train.labels, arrays["labels"])
    assert data.test is not None
    assert (data.train.n, data.test.n) == (N, N)
    assert data.train.phi1.columns == D1


def test_test_rows_and_labels_may_be_left_out(folder):
    data = store.open_dataset(fields(train_labels="", test_phi1="", test_phi2="", test_labels=""))
    assert data.test is None
    assert data.train.labels is None
    data = store.open_dataset(fields(test_phi2=""))
    assert data.test.phi2.arrays == ()


def test_several_files_make_up_a_space(folder):
    data = store.open_dataset(
        fields(
            train_phi1=("phi1_train.npy", "phi2_train.npy"),
            test_phi1=("phi1_test.npy", "phi2_test.npy"),
        )
    )
    assert data.train.phi1.columns == D1 + D2
    assert data.train.phi1.paths == ("phi1_train.npy", "phi2_train.npy")


def test_fortran_order_big_endian_and_float64(folder, arrays):
    np.save("phi1_train.npy", np.asfortranarray(arrays["phi1"]))
    np.save("phi2_train.npy", arrays["phi2"].astype(">f4"))
    np.save("phi1_test.npy", arrays["phi1"].astype(np.float64))
    data = store.open_dataset(fields())
    np.testing.assert_array_equal(data.train.phi1.arrays[0], arrays["phi1"])
    stats = store.statistics([data.train.phi2.arrays[0]], kind="scale")
    out = store.normalise(data.train.phi2.arrays[0], stats, "scale")
    assert out.dtype == np.dtype("=f4")


def test_packaged_data_opens_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = store.find_array("hume_jax:quickstart/phi1_train.npy")
    assert path.is_file()
    assert path.is_absolute()


def test_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.find_array("~/a.npy") == tmp_path / "a.npy"


# ---- what is wrong with a file


def test_all_missing_files_are_named(folder):
    pathlib.Path("phi1_train.npy").unlink()
    message = fails("2 files not found", test_phi2="nothing.npy")
    assert "data.train.phi1=phi1_train.npy" in message
    assert "data.test.phi2=nothing.npy" in message
    assert str(folder) in message


def test_missing_published_files_say_how_to_get_them(folder):
    message = fails("1 file not found", train_phi1="data/representations/mocov2/stl10train_l2.npy")
    assert store.ARCHIVE in message
    assert "or encode the images yourself" in message
    assert store.ARCHIVE not in fails("not found", train_phi1="mine.npy")


def test_missing_labels_and_test_files_may_be_left_out(folder):
    assert "--config.FIELD=''" in fails("not found", train_labels="nothing.npy")
    assert "--config.FIELD=''" not in fails("not found", train_phi1="nothing.npy")


@pytest.mark.parametrize("field", ["train_phi1", "train_phi2"])
def test_train_spaces_must_be_given(folder, field):
    fails(f"data.{field.replace('_', '.')}' is not given", **{field: ""})


def test_other_test_files_need_phi1(folder):
    fails("data.test.phi1' is not given", test_phi1="")


def write(name, content):
    pathlib.Path(name).write_bytes(content)


def npz_bytes():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an .npy file"),
        (b"1,2,3\n4,5,6\n", "not an .npy file"),
        (npz_bytes(), "looks like an .npz archive"),
        (b"\x93NUMPY\x01\x00\x10\x00nonsense", "header is damaged"),
        (b"\x93NUMPY\x07\x00\x10\x00nonsense", "holds no plain array|header is damaged"),
    ],
)
@pytest.mark.parametrize("field", ["phi1", "labels"])
def test_not_an_npy_file(folder, content, message, field):
    write(f"{field}_train.npy", content)
    assert f"{field}_train.npy" in fails(message)


def test_cut_short(folder):
    whole = pathlib.Path("phi2_test.npy").read_bytes()
    write("phi2_test.npy", whole[:-10])
    assert "phi2_test.npy" in fails("is cut short")


def test_folder_in_place_of_a_file(folder):
    (folder / "sub.npy").mkdir()
    fails("not found: data.train.phi1=sub.npy, which is a folder", train_phi1="sub.npy")


def test_broken_link_in_place_of_a_file(folder):
    (folder / "link.npy").symlink_to("gone.npy")
    fails("data.test.phi2=link.npy, which is a broken link to gone.npy", test_phi2="link.npy")


def test_object_arrays(folder, save_objects):
    save_objects("phi1_train.npy", (2,))
    assert "phi1_train.npy" in fails("holds Python objects .*float32")


def test_object_labels_have_their_own_hint(folder, save_objects):
    save_objects("labels_train.npy", (N,))
    assert "float" not in fails("labels_train.npy holds Python objects .* one integer for each")


def test_unsigned_labels_are_kept_right_or_refused(folder):
    labels = np.arange(N, dtype=np.uint64)
    np.save("labels_train.npy", labels)
    np.testing.assert_array_equal(store.open_dataset(fields()).train.labels, np.arange(N))
    labels[-1] = 2**63
    np.save("labels_train.npy", labels)
    fails(f"labels_train.npy holds the label {2**63}, labels are less than 2")


@pytest.mark.parametrize("shape", [(N,), (N, 2, 3), ()])
def test_wrong_number_of_dimensions(folder, shape):
    np.save("phi2_train.npy", np.zeros(shape, np.float32))
    message = fails("two dimensions")
    assert str(shape) in message
    assert "phi2_train.npy" in message


@pytest.mark.parametrize("shape", [(0, D1), (N, 0)])
def test_empty(folder, shape):
    np.save("phi1_train.npy", np.zeros(shape, np.float32))
    fails("is empty")


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.complex64, "S3", "U2", "f4,f4"])
def test_wrong_dtype(folder, dtype):
    np.save("phi1_train.npy", np.zeros((N, D1), dtype))
    fails(r"float16 or float32 \(float64 is read as float32\)")


def test_differing_rows_show_both_shapes(folder, arrays):
    np.save("phi2_train.npy", arrays["phi2"][:-1])
    message = fails("differ in rows")
    assert f"phi1_train.npy ({N}, {D1})" in message
    assert f"phi2_train.npy ({N - 1}, {D2})" in message


def test_differing_columns_of_train_and_test(folder, arrays):
    np.save("phi1_test.npy", arrays["phi1"][:, :-1])
    message = fails("differ in columns")
    assert f"({N}, {D1})" in message
    assert f"({N}, {D1 - 1})" in message
    fails("has 2 files", train_phi1=("phi1_train.npy", "phi1_train.npy"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_not_finite(folder, arrays, bad, block_bytes, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK_BYTES", block_bytes)
    arrays["phi2"][17, 1:3] = bad
    arrays["phi2"][30, 0] = np.nan
    np.save("phi2_test.npy", arrays["phi2"])
    message = fails("NaN or infinite")
    assert f"phi2_test.npy: 3 of {N * D2} values" in message
    assert "first in row 17 " in message


def test_float64_beyond_float32(folder, arrays):
    wide = arrays["phi1"].astype(np.float64)
    wide[3, 3] = 1e200
    np.save("phi1_train.npy", wide)
    fails("1 of .* values are NaN or infinite as float32, the first in row 3")


def test_large_but_finite_values_are_not_called_infinite(folder, arrays):
    arrays["phi1"][3, 3] = 1e30  # its square is infinite in float32
    np.save("phi1_train.npy", arrays["phi1"])
    store.open_dataset(fields())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(N - 1, int), f"holds {N - 1} labels, .*phi1_train.npy has {N} rows"),
        (np.zeros((N, 1), int), r"has shape \(40, 1\), labels have one dimension"),
        (np.zeros(N), "dtype float64, labels are integers"),
        (np.zeros(N, "U3"), "labels are integers"),
        (np.zeros(N, bool), "labels are integers"),
    ],
)
def test_labels_that_do_not_fit(folder, labels, message):
    np.save("labels_train.npy", labels)
    fails(message)


# ---- whether a search can be made


def search(n_classes=3, setting="inductive", normalise=True, **changes):
    return store.check_search(
        store.open_dataset(fields(**changes)), n_classes, setting, normalise=normalise
    )


def test_good_data_gives_no_warning(folder):
    assert search() == []
    assert search(setting="transductive") == []


@pytest.mark.parametrize(
    ("n_classes", "message"),
    [
        (1, "at least 2"),
        (0, "at least 2"),
        (D1 + 1, f"more than the {D1} columns that"),
        (N + 1, f"more than the {N} searched rows"),
    ],
)
def test_number_of_classes(folder, n_classes, message):
    with pytest.raises(UserError, match=message):
        search(n_classes)
    search(D1)


def test_transductive_counts_and_needs_the_test_rows(folder):
    with pytest.raises(UserError, match="give data.test.phi1 and data.test.phi2"):
        search(setting="transductive", test_phi2="")
    with pytest.raises(UserError, match=f"the {2 * N} searched rows"):
        search(2 * N + 1, setting="transductive")


@pytest.mark.parametrize("field", ["phi1", "phi2"])
def test_all_rows_identical(folder, arrays, field):
    same = np.repeat(arrays[field][:1], N, axis=0)
    np.save(f"{field}_train.npy", same)
    with pytest.raises(UserError, match=f"{field}_train.npy: all {N} rows are identical"):
        search()


def test_constant_in_train_but_not_with_test(folder, arrays):
    for split, value in (("train", 1.0), ("test", 2.0)):
        arrays["phi2"][:, 0] = value
        np.save(f"phi2_{split}.npy", arrays["phi2"])
    assert search() == [f"phi2_train.npy: 1 of {D2} columns are constant"]
    assert search(setting="transductive") == []


def encoded(path, array, broken):
    np.save(path, array)
    listed = [[row, "it is empty"] for row in broken]
    about = {"complete": True, "broken": listed, "digest": checks.digest(array)}
    side_file.write(pathlib.Path(path), about)


def test_rows_of_broken_images_are_left_out(folder, arrays):
    whole = store.fingerprint(store.open_files(fields()))
    for name, broken in (("phi1", [0, 7]), ("phi2", [7, 39])):
        arrays[name][broken] = 0
        encoded(f"{name}_train.npy", arrays[name], broken)
    dataset = store.open_dataset(fields())
    gone = [0, 7, 39]
    assert dataset.train.n == N - 3
    np.testing.assert_array_equal(dataset.train.left_out, gone)
    for space, name in ((dataset.train.phi1, "phi1"), (dataset.train.phi2, "phi2")):
        np.testing.assert_array_equal(space.arrays[0][:], np.delete(arrays[name], gone, axis=0))
        assert space.scans[0].zero_rows == 0
    np.testing.assert_array_equal(dataset.train.labels, np.delete(arrays["labels"], gone))
    spread = dataset.train.in_files(dataset.train.labels, -1)
    assert list(np.flatnonzero(spread == -1)) == gone
    # A run that was begun does not go on with an image more.
    assert store.fingerprint(dataset)["data.train.phi1"] != whole["data.train.phi1"]
    assert store.fingerprint(dataset)["data.test.phi1"] == whole["data.test.phi1"]
    with pytest.raises(UserError, match=f"n_classes is {N - 2}, more than the {N - 3} searched"):
        store.check_search(dataset, N - 2, "inductive")
    # The number of a row is that of the file.
    arrays["phi1"][9] = np.nan
    encoded("phi1_train.npy", arrays["phi1"], [0, 7])
    fails("the first in row 9 ")


def test_no_row_is_left_of_broken_images(folder, arrays):
    for name, broken in (("phi1", range(20)), ("phi2", range(15, N))):
        encoded(f"{name}_train.npy", arrays[name], list(broken))
    fails("phi1_train.npy and phi2_train.npy: no row is left, each is of an image that could not")


@pytest.mark.parametrize("field", ["phi1", "phi2"])
def test_zero_rows(tmp_path, rng, monkeypatch, field):
    monkeypatch.chdir(tmp_path)
    n = 300
    made = {name: rng.normal(size=(n, D1)).astype(np.float32) for name in ("phi1", "phi2")}
    no_test = {"train_labels": "", "test_phi1": "", "test_phi2": "", "test_labels": ""}
    for count in (3, 4):
        made[field][:count] = 0
        for name, array in made.items():
            np.save(f"{name}_train.npy", array)
        if count == 3:
            assert search(**no_test) == [f"{field}_train.npy: 3 of 300 rows have zero norm"]
        else:
            with pytest.raises(UserError, match="4 of 300 rows have zero norm, more than 1 %"):
                search(**no_test)


def test_rows_equal_to_the_mean(tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    half = rng.normal(size=(100, D1)).astype(np.float32)
    centre = np.full((20, D1), 3.0, np.float32)
    np.save("phi1_train.npy", np.concatenate([3 + half, 3 - half, centre]).astype(np.float64))
    np.save("phi2_train.npy", rng.normal(size=(220, D2)).astype(np.float32))
    no_test = {"train_labels": "", "test_phi1": "", "test_phi2": "", "test_labels": ""}
    with pytest.raises(UserError, match="20 of 220 rows have zero norm once the mean is taken off"):
        search(**no_test)
    assert search(normalise=False, **no_test) == []


# ---- writing


def test_save_array_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.npy"
    store.save_array(path, np.arange(3))
    with pytest.raises(ValueError, match="allow_pickle"):
        store.save_array(path, np.array([object()]))
    np.testing.assert_array_equal(np.load(path), np.arange(3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
