"""Arrays in an object store: what is copied to this machine, when, and how often."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hume_jax import stores
from hume_jax.errors import UserError
from hume_jax.representations.arrays import checks, copies, formats, side_file

N, D = 1000, 6
ROWS = np.arange(N * D, dtype=np.float32).reshape(N, D)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HUME_JAX_CACHE", str(tmp_path / "cache"))
    # Ranges of 100 rows, so that there are eleven with the header's.
    monkeypatch.setattr(copies, "_RANGE_BYTES", 100 * D * 4 + 3)
    return tmp_path / "cache"


@pytest.fixture
def folder(object_store, request):
    """A folder of this test's own in the store."""
    return f"{object_store}/{request.node.name}"


@pytest.fixture
def ranges(monkeypatch):
    """The ranges that were copied, in the order in which that was begun."""
    found = []
    copy = copies._copy_range

    def counted(url, descriptor, start, stop):
        found.append((start, stop))
        copy(url, descriptor, start, stop)

    monkeypatch.setattr(copies, "_copy_range", counted)
    return found


def put(url, array, tmp_path):
    np.save(tmp_path / "array.npy", array)
    stores.open_path(url).write_bytes((tmp_path / "array.npy").read_bytes())


def test_an_array_is_copied_by_ranges_of_rows_and_once(
    folder, tmp_path, cache, ranges, monkeypatch
):
    url = f"{folder}/a/x.npy"
    put(url, ROWS, tmp_path)
    stored = formats.open_header(url)
    assert (stored.name, stored.shape, stored.dtype) == (url, (N, D), np.float32)
    assert not ranges, "the header alone was asked for"
    np.testing.assert_array_equal(stored.read(), ROWS)
    header = (tmp_path / "array.npy").stat().st_size - ROWS.nbytes
    bounds = [0, *(header + 100 * D * 4 * i for i in range(1, 11))]
    assert sorted(ranges) == list(zip(bounds[:-1], bounds[1:], strict=True))
    place = cache / "gs" / url.removeprefix("gs://")
    assert place == formats.find_array(url)
    assert place.read_bytes() == (tmp_path / "array.npy").read_bytes()
    monkeypatch.setattr(copies, "_read", lambda *_: pytest.fail("the object was read again"))
    assert isinstance(formats.open_array(url), np.memmap)
    assert len(ranges) == 10, "nothing is copied a second time"


def test_a_copy_that_was_interrupted_goes_on(folder, tmp_path, ranges, monkeypatch):
    url = f"{folder}/x.npy"
    put(url, ROWS, tmp_path)
    copy = copies._copy_range
    monkeypatch.setattr(copies, "_READERS", 1)

    def fails(url, descriptor, start, stop):
        if len(ranges) == 4:
            raise UserError("the network is gone")
        copy(url, descriptor, start, stop)

    monkeypatch.setattr(copies, "_copy_range", fails)
    with pytest.raises(UserError, match="network"):
        formats.open_array(url)
    first = set(ranges)
    assert 0 < len(first) < 10
    assert not formats.find_array(url).exists(), "what is not complete has another name"
    known = copies.find(url)[0]
    size = (tmp_path / "array.npy").stat().st_size
    assert copies.missing_bytes(known) == size - sum(b - a for a, b in first)
    ranges.clear()
    monkeypatch.setattr(copies, "_copy_range", copy)
    np.testing.assert_array_equal(formats.open_array(url), ROWS)
    assert not first & set(ranges)
    assert len(first) + len(ranges) == 10


@pytest.mark.slow
def test_killed_while_it_was_copied(folder, tmp_path, repository, ranges):
    """What was recorded as copied is on disk, whenever the process died."""
    url = f"{folder}/x.npy"
    put(url, ROWS, tmp_path)
    script = f"""
import os
from hume_jax.representations.arrays import copies, formats
copies._RANGE_BYTES, copies._READERS = {copies._RANGE_BYTES}, 1
copy = copies._copy_range
def dies(url, descriptor, start, stop):
    if start > {4 * 100 * D * 4}:
        os._exit(9)
    copy(url, descriptor, start, stop)
copies._copy_range = dies
formats.open_array({url!r})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=repository, check=False)
    assert done.returncode == 9
    np.testing.assert_array_equal(formats.open_array(url), ROWS)
    assert 5 <= len(ranges) <= 9


def test_an_object_that_has_changed_is_copied_anew(folder, tmp_path, ranges):
    url = f"{folder}/x.npy"
    put(url, ROWS, tmp_path)
    before = formats.open_array(url)
    put(url, np.concatenate([ROWS, ROWS + 1]), tmp_path)
    np.testing.assert_array_equal(formats.open_array(url), np.concatenate([ROWS, ROWS + 1]))
    np.testing.assert_array_equal(before, ROWS)
    assert len(ranges) == 30


def test_an_object_that_changes_while_it_is_copied(folder, tmp_path, monkeypatch):
    url = f"{folder}/x.npy"
    put(url, ROWS, tmp_path)
    stored = formats.open_header(url)
    put(url, ROWS[:-1], tmp_path)
    with pytest.raises(UserError, match=r"has changed|became shorter"):
        stored.read()
    np.testing.assert_array_equal(formats.open_array(url), ROWS[:-1])


def test_processes_of_one_machine_copy_it_once(folder, tmp_path, cache, repository):
    url = f"{folder}/x.npy"
    put(url, ROWS, tmp_path)
    script = f"""
from hume_jax.representations.arrays import copies, formats
copy, count = copies._copy_range, []
copies._copy_range = lambda *a: (count.append(a), copy(*a))
assert formats.open_array({url!r}).sum() == {ROWS.sum()}
print(len(count))
"""
    both = [
        subprocess.Popen([sys.executable, "-c", script], cwd=repository, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert sorted(int(p.communicate()[0]) for p in both) == [0, 1]


def test_other_formats_and_what_is_named_in_them(folder, tmp_path):
    np.savez(tmp_path / "x.npz", a=ROWS, b=ROWS + 1)
    pq.write_table(pa.table({"labels": np.arange(N) % 3}), tmp_path / "t.parquet")
    for name in ("x.npz", "t.parquet"):
        stores.open_path(f"{folder}/{name}").write_bytes((tmp_path / name).read_bytes())
    np.testing.assert_array_equal(formats.open_array(f"{folder}/x.npz:b"), ROWS + 1)
    np.testing.assert_array_equal(
        formats.open_array(f"{folder}/t.parquet:labels"), np.arange(N) % 3
    )
    with pytest.raises(UserError, match="holds 2 arrays, name one"):
        formats.open_header(f"{folder}/x.npz")
    # A colon is part of the name where there is such an object.
    put(f"{folder}/a:b.npy", ROWS, tmp_path)
    np.testing.assert_array_equal(formats.open_array(f"{folder}/a:b.npy"), ROWS)
    with pytest.raises(UserError, match="is one array, there is no 'c' in it"):
        formats.open_header(f"{folder}/a:b.npy:c")


def test_what_stands_beside_an_encoded_array_comes_with_it(folder, tmp_path, cache):
    url = f"{folder}/x.npy"
    put(url, ROWS, tmp_path)
    content = {
        "complete": True,
        "digest": checks.digest(ROWS),
        "broken": [[3, "cut short"]],
        "image_table": "images.csv",
        "ids_digest": "abc",
    }
    stores.open_path(f"{url}.json").write_text(json.dumps(content))
    stores.open_path(f"{folder}/images.csv").write_text("id\na\n")
    stored = formats.open_header(url)
    assert stored.images == "abc"
    assert side_file.broken(formats.find_array(url)) == [(3, "cut short")]
    np.testing.assert_array_equal(stored.read(), ROWS)
    assert (formats.find_array(url).parent / "images.csv").read_text() == "id\na\n"
    stores.open_path(f"{url}.json").unlink()
    assert formats.open_header(url).images == ""
    assert not side_file.place(formats.find_array(url)).exists()


def test_what_is_wrong_shows_before_anything_is_copied(folder, tmp_path, ranges, monkeypatch):
    url = f"{folder}/x.npy"
    assert formats.what_is_missing(url) == ""
    with pytest.raises(UserError, match="is not there"):
        formats.open_header(url)
    put(url, ROWS, tmp_path)
    assert formats.what_is_missing(url) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 0, 9))
    with pytest.raises(UserError, match=r"x\.npy: .* GiB are to be copied to .* HUME_JAX_CACHE"):
        formats.open_array(url)
    whole = (tmp_path / "array.npy").read_bytes()
    stores.open_path(url).write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{url} is cut short"):
        formats.open_header(url)
    stores.open_path(url).write_bytes(b"no array")
    with pytest.raises(UserError, match=url):
        formats.open_header(url)
    assert not ranges


def test_a_cache_that_cannot_be_written(folder, tmp_path, cache):
    url = f"{folder}/x.npy"
    put(url, ROWS, tmp_path)
    cache.write_text("a file")
    with pytest.raises(UserError, match="set HUME_JAX_CACHE to a folder that can"):
        formats.open_array(url)


@pytest.mark.parametrize("url", ["gs://", "gs:///x.npy", "gs://bucket/../x.npy"])
def test_no_address(url):
    with pytest.raises(UserError, match="is no path in an object store"):
        copies.find(url)


@pytest.mark.parametrize("path", ["gs:/bucket/x.npy", "hdfs://x/y.npy", "az://b/x.npy"])
def test_addresses_of_no_store_that_is_known(path):
    with pytest.raises(UserError, match="object stores are named gs://BUCKET"):
        formats.open_header(path)


def test_a_store_whose_package_is_not_installed():
    with pytest.raises(UserError, match="pip install s3fs"):
        copies.find("s3://bucket/x.npy")


def test_a_store_that_cannot_be_reached(monkeypatch):
    """Of what a package raises, whatever it is, the first line is shown."""
    with (
        pytest.raises(UserError, match=r"^gs://b/x cannot be reached \(no credentials here\)"),
        stores.reaching("gs://b/x"),
    ):
        raise RuntimeError("no credentials\nhere")


def test_where_copies_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("HUME_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stores.cache_folder() == tmp_path / "hume_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert stores.cache_folder() == tmp_path / ".cache" / "hume_jax"
