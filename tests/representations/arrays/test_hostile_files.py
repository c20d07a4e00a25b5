"""Files from anywhere: the array, or one line that names the file. Never a crash or a large array.

What is read is also small against the file, so a few bytes that claim gigabytes do not get them.
"""

import contextlib
import io
import json
import pathlib
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import config_dict

from hume_jax.errors import UserError
from hume_jax.representations.arrays import formats, table_files

ROWS = np.arange(36, dtype=np.float32).reshape(12, 3) / 8 - 2
MEMORY = 32 * 2**20
# The most that deflate makes of a byte; tables keep their runs and dictionaries less well.
RATIO = 1032
GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}"

# The folder is the same for all examples of a test, and each overwrites the file before it.
bounded = settings(
    deadline=None,
    derandomize=True,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def small_memory():
    """Fails where Python, NumPy or pyarrow came to hold much."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    assert pa.total_allocated_bytes() < MEMORY


def fails(path, message):
    with small_memory(), pytest.raises(UserError, match=message) as error:
        formats.open_array(path)
    assert path.partition(":")[0] in str(error.value)
    return str(error.value)


def write(path, content):
    """Writes the file of a path, which it returns."""
    pathlib.Path(path.partition(":")[0]).write_bytes(content)
    return path


def opened(path):
    """The array that lies in a file, or what is said of it."""
    with small_memory():
        try:
            return formats.open_array(path)
        except UserError as error:
            return str(error)


def check(content, path, refused=False):
    """Opens bytes as a file, and checks that it ends as it may."""
    found = opened(write(path, content))
    if isinstance(found, str):
        assert path.partition(":")[0] in found
        assert found.isprintable()
        assert len(found) < 500
        return
    assert not refused, found
    assert found.size
    assert not found.dtype.hasobject
    assert found.nbytes <= RATIO * len(content)
    # Every byte of it can be read.
    assert len(found.tobytes()) == found.nbytes


# ---- .npy headers


def header(text, version=(1, 0), length=None):
    encoded = text.encode("latin1", "replace")
    length_bytes = 2 if version == (1, 0) else 4
    size = min(len(encoded) if length is None else length, 256**length_bytes - 1)
    return b"\x93NUMPY" + bytes(version) + size.to_bytes(length_bytes, "little") + encoded


sizes = st.one_of(
    st.integers(-2, 12),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, True, 1.0, None, "3"]),
)
shapes = st.one_of(
    st.lists(sizes, max_size=4).map(tuple), st.lists(sizes, max_size=70).map(tuple), sizes
)
codes = ["<f4", ">f8", "<f2", "|O", "<U3", "<U999999999", "|S0", "|V8", "<M8[s]", "f4,f4"]
codes += ["(2,3)f4", "(0,)f4"]
structures = [[("a", "<f4")], [("a", "|O")], [("", "V4"), ("b", "<f4")], ("<f4", (2,)), 3, []]
dtypes = st.one_of(
    st.sampled_from(codes),
    st.sampled_from(structures),
    st.text("<>|=biufcmMOSUV0123456789,()[]s ", max_size=8),
)
literals = st.builds(
    lambda descr, fortran, shape, more: repr(
        {"descr": descr, "fortran_order": fortran, "shape": shape, **more}
    ),
    dtypes,
    st.sampled_from([True, False, 1, None]),
    shapes,
    st.sampled_from([{}, {}, {}, {"more": 1}]),
)
pieces = ["'descr'", "'shape'", "'<f4'", "3L", *"{}():,-#'\\\n"]
texts = st.one_of(
    st.binary(max_size=200).map(lambda text: text.decode("latin1")),
    st.lists(st.sampled_from(pieces)).map("".join),
    # What has brought parsers of Python down.
    st.builds(
        lambda piece, times: GOOD.replace("(3, 4)", f"{piece * times}1"),
        st.sampled_from(["(", "[", "-", "~", "{1:", "not ", "1+", "'a' ", "\\\n"]),
        st.sampled_from([1, 90, 201, 3000, 9000]),
    ),
)
versions = st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (0, 0), (9, 9)])


@bounded
@given(literals, versions, st.binary(max_size=300))
def test_npy_headers_of_any_shape_and_dtype(text, version, body):
    check(header(text, version) + body, "f.npy")


@bounded
@given(texts, versions, st.sampled_from([None, None, 0, 10_000, 10_001, 65_535]))
def test_npy_headers_of_any_text(text, version, length):
    check(header(text, version, length), "f.npy")


@pytest.mark.parametrize("piece", ["-", "not ", "1+", "("])
@pytest.mark.parametrize("times", [90, 3000, 4500])
def test_npy_headers_too_deep_for_a_parser(piece, times):
    text = GOOD.replace("(3, 4)", f"{piece * times}1")[:9999]
    fails(write("f.npy", header(text)), "header is damaged")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("shape", ["(3, 4)", "(3L, 4L)"], ids=["now", "of Python 2"])
def test_npy_headers_that_are_sound(version, shape):
    path = write("f.npy", header(GOOD.replace("(3, 4)", shape), version) + bytes(48))
    assert formats.open_array(path).shape == (3, 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(-3, -4)", r"the \.npy header is damaged: it claims the shape \(-3, -4\)"),
        ("(True, 4)", "it claims the shape"),
        (f"({'1, ' * 33})", "it claims the shape"),
        (f"({2**62}, 8)", "is cut short"),
        (f"({2**32}, {2**32})", "is cut short"),  # 2**64 is 0 in 64 bits
        ("(3, 4.0)", "shape is not valid"),
        ("(1,) * 3", "header is damaged"),
        ("(0, 4)", "is empty"),
    ],
)
def test_npy_shapes(shape, message):
    fails(write("f.npy", header(GOOD.replace("(3, 4)", shape)) + bytes(48)), message)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("'(2, 2)f4'", "is an array in itself"),
        ("'|O'", "holds Python objects"),
        ("[('a', '|O')]", "holds Python objects"),
        ("'|S0'", "is empty"),
        ("'<U100000000'", "is cut short"),
        ("'nonsense'", "header is damaged"),
        ("3", "header is damaged"),
    ],
)
def test_npy_dtypes(dtype, message):
    fails(write("f.npy", header(GOOD.replace("'<f4'", dtype)) + bytes(48)), message)


def test_npy_versions_and_lengths():
    fails(write("f.npy", header(GOOD, (3, 0))), r"\.npy format \(3, 0\) holds no plain array")
    fails(write("f.npy", header(GOOD, (2, 0), 2**32 - 1)), "said to be 4294967295 bytes long")


# ---- .npz archives


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(*members, method=zipfile.ZIP_STORED):
    """Writes an archive of `(name, bytes)`; names may be any."""
    with warnings.catch_warnings(), zipfile.ZipFile("f.npz", "w", method) as file:
        warnings.simplefilter("ignore")  # of names given twice
        for name, content in members:
            file.writestr(name, content)


def patch(at, form, value):
    """Changes a field of the first entry of the archive's table of contents."""
    content = bytearray(pathlib.Path("f.npz").read_bytes())
    struct.pack_into(form, content, content.index(b"PK\x01\x02") + at, value)
    pathlib.Path("f.npz").write_bytes(content)


def test_objects_in_an_archive(save_objects):
    save_objects("o.npy", (2,))
    archive(("x.npy", pathlib.Path("o.npy").read_bytes()))
    fails("f.npz:x", "f.npz:x holds Python objects")


def test_names_that_lead_elsewhere_are_only_names(folder):
    archive(("../x.npy", npy(ROWS)), ("/tmp/x.npy", npy(-ROWS)), ("\x1b[2Jx.npy", npy(ROWS)))
    np.testing.assert_array_equal(formats.open_array("f.npz:../x"), ROWS)
    np.testing.assert_array_equal(formats.open_array("f.npz:/tmp/x"), -ROWS)
    assert "\x1b" not in fails("f.npz", "holds 3 arrays")
    assert [path.name for path in folder.iterdir()] == ["f.npz"]


def test_what_is_no_array_in_an_archive():
    archive(("readme.txt", b"hello"))
    fails("f.npz", "f.npz holds no array")
    archive(("x.npy", b"hello"))
    fails("f.npz:x", "f.npz:x is not an .npy file")
    archive()
    fails("f.npz:x", "f.npz holds no array")


def test_a_name_given_twice():
    archive(("x.npy", npy(ROWS)), ("x.npy", npy(-ROWS)))
    fails("f.npz:x", "f.npz holds 2 arrays of the name x")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_compress(method):
    archive(("x.npy", npy(ROWS)), method=method)
    fails("f.npz", f"compressed by method {method} of zip: save it with np.savez")


def test_an_encrypted_member():
    archive(("x.npy", npy(ROWS)))
    patch(8, "<H", 1)
    fails("f.npz:x", "f.npz:x is encrypted")


@pytest.mark.parametrize(
    ("method", "size"), [(zipfile.ZIP_DEFLATED, 2**32 - 2), (zipfile.ZIP_STORED, 2**20)]
)
def test_a_member_that_claims_more_than_its_bytes_can_hold(method, size):
    archive(("x.npy", npy(ROWS)), method=method)
    patch(24, "<I", size)
    fails("f.npz", f"bytes of the file cannot hold the {size} that it claims")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_claims_more_than_its_member(method):
    archive(("x.npy", npy(ROWS)[:-4]), method=method)
    fails("f.npz", "f.npz is cut short: 268 bytes, its header asks for 272")


def test_a_bomb_behind_a_small_header():
    """50 MB of zeros, of which the header speaks of 144 bytes; nothing of it is unpacked."""
    archive(("x.npy", npy(ROWS) + bytes(50 * 10**6)), method=zipfile.ZIP_DEFLATED)
    assert pathlib.Path("f.npz").stat().st_size < 10**6
    fails("f.npz", "holds 50000272 bytes, its header asks for 272")


def test_a_bomb_that_is_an_array_has_to_fit_in_memory(monkeypatch):
    archive(("x.npy", npy(np.zeros((10**6, 13), np.float32))), method=zipfile.ZIP_DEFLATED)
    memory = config_dict.ConfigDict({"available": 10**7})
    monkeypatch.setattr(formats.psutil, "virtual_memory", lambda: memory)
    fails("f.npz", "f.npz: 0.0 GiB would be read into memory")


def test_a_wrong_checksum():
    archive(("x.npy", npy(ROWS)), method=zipfile.ZIP_DEFLATED)
    patch(16, "<I", 12345)
    fails("f.npz:x", "Bad CRC-32")


members = st.tuples(
    st.one_of(
        st.text(max_size=20).map(lambda name: f"{name}.npy"),
        st.sampled_from(["x.npy", "../../x.npy", "/x.npy", "x.npy/", ".npy", "x.npy\0y"]),
    ),
    st.one_of(
        st.just(npy(ROWS)),
        st.binary(max_size=50),
        st.builds(lambda text, body: header(text) + body, literals, st.binary(max_size=60)),
    ),
)


@bounded
@given(
    st.lists(members, max_size=3),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.sampled_from(["f.npz", "f.npz:x", "f.npz:../../x", "f.npz:", "f.npz:x.npy/"]),
)
def test_archives_of_any_members(found, method, path):
    archive(*found, method=method)
    check(pathlib.Path("f.npz").read_bytes(), path)


# ---- .safetensors


@pytest.mark.parametrize(
    "content",
    [
        {"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**62]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2]}},
        {"x": 3},
        [],
    ],
)
def test_headers_of_safetensors_that_lie(content):
    encoded = json.dumps(content).encode()
    whole = len(encoded).to_bytes(8, "little") + encoded + bytes(8)
    check(whole, "f.safetensors", refused=True)


@pytest.mark.parametrize("length", [0, 3, 10**8, 2**63, 2**64 - 1])
def test_lengths_of_headers_of_safetensors(length):
    check(length.to_bytes(8, "little") + b"{}" + bytes(8), "f.safetensors", refused=True)


def test_empty_tensors_and_numbers_that_numpy_lacks():
    import ml_dtypes

    found = {"x": ROWS.astype(ml_dtypes.float8_e4m3fn), "y": ROWS[:0]}
    safetensors.numpy.save_file(found, "f.safetensors")
    fails("f.safetensors:x", "f.safetensors:x has dtype F8_E4M3: save it as F16 or F32")
    fails("f.safetensors:y", r"f.safetensors:y is empty: its shape is \(0, 3\)")


# ---- every format, cut short or damaged anywhere

FILES = ["npy", "npz", "npz, compressed", "safetensors", "parquet", "parquet, fixed lists", "arrow"]
FILES += ["arrow, batches", "stream", "stream, batches", "feather"]
each_file = pytest.mark.parametrize("each_format", FILES, indirect=True)


@each_file
def test_a_file_cut_short_anywhere_is_refused(each_format):
    path = each_format.save()
    content = pathlib.Path(each_format.file).read_bytes()
    size = len(content)
    # Every byte of the ends, and some between.
    for end in sorted({*range(30), *range(30, size - 30, 37), *range(size - 30, size)}):
        check(content[:end], path, refused=True)
    check(content, path)


@each_file
def test_a_damaged_file_gives_an_array_or_one_line(each_format):
    path = each_format.save()
    content = pathlib.Path(each_format.file).read_bytes()
    extremes = st.sampled_from([b"\xff" * 4, bytes(4), b"\xff" * 7 + b"\x7f", bytes(8)])
    new = st.one_of(st.binary(min_size=1, max_size=4), extremes)

    @bounded
    @given(st.lists(st.tuples(st.integers(0, len(content) - 1), new), min_size=1, max_size=4))
    def damage(changes):
        changed = bytearray(content)
        for at, value in changes:
            changed[at : at + len(value)] = value
        check(bytes(changed), path)

    damage()


@bounded
@given(
    st.sampled_from(["npy", "npz", "safetensors", "parquet", "arrow", "feather"]),
    st.sampled_from([b"", b"\x93NUMPY", b"PK\3\4", b"PAR1", b"ARROW1", b"\xff" * 4]),
    st.binary(max_size=100),
)
def test_any_bytes_under_any_ending(ending, start, content):
    check(start + content, f"f.{ending}", refused=True)


@pytest.mark.parametrize("each_format", ["arrow", "stream, batches"], indirect=True)
def test_lists_that_lie_outside_of_their_column(each_format):
    """All of one length, so only a look at the offsets themselves can tell."""
    path = each_format.save()
    content = pathlib.Path(each_format.file).read_bytes()
    offsets = np.arange(0, 16, 3, dtype=np.int32)  # of the first five rows
    assert offsets.tobytes() in content
    shifted = (offsets + 10**6).tobytes()
    write(path, content.replace(offsets.tobytes(), shifted))
    fails(path, "may be damaged or cut short: .*[Oo]ffset")


def test_rows_are_counted_as_they_are_read(all_formats, monkeypatch):
    for name in ("parquet", "arrow, batches"):
        path = all_formats[name].save()
        for method in (table_files.Parquet, table_files.Arrow):
            monkeypatch.setattr(method, "rows", lambda *_: len(ROWS) + 1)
        for column in (path, all_formats[name].labels):
            fails(column, f"{column} is damaged: it has 12 rows, its header says 13")


def test_a_dataset_with_a_shard_cut_short(all_formats):
    path = all_formats["dataset"].save()
    shard = pathlib.Path("folder/b.arrow")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "folder/b.arrow" in fails(path, "cut short")
