import contextlib
import io
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hume_jax.errors import UserError
from hume_jax.representations.images import loader, preprocess, sources

SIZE = 4


def picture(i):
    """A PNG that says which row it is."""
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (i % 256, i // 256, 7)).save(file, "PNG")
    return file.getvalue()


class Made:
    """A source of `n` made images; some are broken, some take long."""

    def __init__(self, n, broken=(), slow=()):
        self.name, self.ids = "made", tuple(map(str, range(n)))
        self.labels, self.class_names = None, ()
        self._broken, self._slow = set(broken), set(slow)
        self.seen = []

    def __len__(self):
        return len(self.ids)

    def read(self, i):
        assert type(i) is int
        self.seen.append(i)
        if i in self._slow:
            time.sleep(0.02)
        if i in self._broken:
            if i % 2:
                raise sources.BrokenImage("it is odd")
            return b""
        return picture(i)

    def fingerprint(self):
        return "made"


def prepare(image):
    return np.asarray(image)


def run(source, rows, *, batch=8, threads=2):
    return list(loader.batches(source, rows, prepare, size=SIZE, batch=batch, threads=threads))


def check(found, rows, broken, batch):
    """Everything that holds for a run over `rows`."""
    rows = np.asarray(rows)
    assert len(found) == -(-len(rows) // batch)
    joined = np.concatenate([item.rows for item in found]) if found else np.zeros(0, int)
    np.testing.assert_array_equal(joined[: len(rows)], rows)
    assert (joined[len(rows) :] == -1).all()
    for item in found:
        assert item.pixels.shape == (batch, SIZE, SIZE, 3)
        assert item.pixels.dtype == np.uint8
        assert item.rows.dtype == np.int64
        bad = np.isin(item.rows, [*broken, -1])
        assert not item.pixels[bad].any()
        at = item.rows[~bad]
        expected = np.stack([at % 256, at // 256, np.full_like(at, 7)], axis=-1)
        np.testing.assert_array_equal(item.pixels[~bad][:, 0, 0], expected)
        assert [row for row, _ in item.broken] == [row for row in item.rows if row in broken]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 40])
def test_rows_come_in_order_in_batches_of_one_shape(threads, n):
    check(run(Made(n), range(n), threads=threads), range(n), (), 8)


def test_rows_may_be_any_sequence_of_integers():
    for rows in ([3, 1], (3, 1), np.array([3, 1]), np.array([3, 1], np.int32), range(3, 0, -2)):
        check(run(Made(5), rows), [3, 1], (), 8)


def test_order_holds_where_images_take_different_times():
    source = Made(60, slow=range(0, 60, 7))
    check(run(source, range(60), threads=4), range(60), (), 8)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, 299), max_size=40),
    broken=st.sets(st.integers(0, 299), max_size=200),
    batch=st.integers(1, 11),
    threads=st.integers(0, 3),
)
def test_any_rows_keep_their_place(rows, broken, batch, threads):
    source = Made(300, broken)
    check(run(source, rows, batch=batch, threads=threads), rows, broken, batch)


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_shuffled_rows_of_several_hosts_make_up_the_whole(hosts, rng):
    rows = rng.permutation(101)
    array = np.zeros((101, SIZE, SIZE, 3), np.uint8)
    for host in range(hosts):
        for item in run(Made(101), rows[host::hosts], batch=6):
            real = item.rows >= 0
            array[item.rows[real]] = item.pixels[real]
    np.testing.assert_array_equal(array[:, 0, 0, 0], np.arange(101))


def test_broken_images_are_named_with_their_reason():
    (found,) = run(Made(6, broken=[2, 5]), range(6))
    assert found.broken == ((2, "it is empty"), (5, "it is odd"))


def test_an_error_of_the_source_reaches_the_caller_and_ends_the_threads():
    class Failing(Made):
        def read(self, i):
            if i == 20:
                raise UserError("photos/20.png cannot be read: Input/output error")
            return super().read(i)

    before = set(threading.enumerate())
    with pytest.raises(UserError, match="photos/20.png cannot be read"):
        run(Failing(100), range(100))
    assert_no_more_threads(before)


def test_a_wrong_preparation_is_an_error():
    def larger(image):
        return np.zeros((SIZE + 1, SIZE, 3), np.uint8)

    with pytest.raises(ValueError, match=r"shape \(5, 4, 3\) and dtype uint8"):
        list(loader.batches(Made(3), range(3), larger, size=SIZE, batch=2, threads=1))

    def floating(image):
        return np.zeros((SIZE, SIZE, 3))

    with pytest.raises(ValueError, match="dtype float64"):
        list(loader.batches(Made(3), range(3), floating, size=SIZE, batch=2, threads=1))


def assert_no_more_threads(before):
    """Waits a moment: a thread ends after the image it is on."""
    deadline = time.monotonic() + 5
    while left := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.005)


def test_threads_end_with_the_rows():
    before = set(threading.enumerate())
    run(Made(30), range(30), threads=4)
    assert_no_more_threads(before)


def test_threads_end_when_the_caller_stops_early():
    before = set(threading.enumerate())
    source = Made(1000, slow=range(1000))
    found = loader.batches(source, range(1000), prepare, size=SIZE, batch=4, threads=3)
    with contextlib.closing(found):
        next(found)
        assert len(set(threading.enumerate()) - before) == 3
    assert_no_more_threads(before)
    assert len(source.seen) < 50
    # Left without a word, it stops when it is collected.
    found = loader.batches(source, range(1000), prepare, size=SIZE, batch=4, threads=3)
    next(found)
    del found
    assert_no_more_threads(before)


def test_the_next_batches_are_made_while_one_is_in_use():
    source = Made(40)
    found = loader.batches(source, range(40), prepare, size=SIZE, batch=4, threads=2)
    with contextlib.closing(found):
        next(found)
        deadline = time.monotonic() + 5
        while len(source.seen) < 12:
            assert time.monotonic() < deadline, source.seen
            time.sleep(0.005)
        time.sleep(0.05)
        # Two batches ahead and no further, whatever the length of the dataset.
        assert len(source.seen) == 12


def test_photographs_from_an_archive(shared):
    """The images of the archive, its labels and the published preprocessing, in shuffled order."""
    folder = shared / "data/imagenette"
    source = sources.open_images(str(folder / "images96_test.tar"))
    assert list(source.ids) == (folder / "files_test.txt").read_text().split()
    stored = np.load(folder / "labels_test.npy")
    names = (folder / "classes.txt").read_text().lower().replace(" ", "_").split()
    assert [source.class_names[i] for i in source.labels] == [names[i] for i in stored]
    how = preprocess.Preprocessing(112, 98, "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
    rows = np.random.default_rng(0).permutation(len(source))[:50]
    found = list(
        loader.batches(
            source, rows, lambda image: preprocess.crop(image, how), size=98, batch=16, threads=2
        )
    )
    assert not any(item.broken for item in found)
    pixels = np.concatenate([item.pixels for item in found])[:50]
    for i in (0, 17, 49):
        expected = preprocess.crop(sources.decode(source.read(int(rows[i]))), how)
        np.testing.assert_array_equal(pixels[i], expected)


SILENT = """
import io, sys, warnings
warnings.simplefilter("error")
from hume_jax.representations.images import sources, loader
assert not {"grain", "PIL", "tensorflow_datasets"} & set(sys.modules)
from absl import flags
import numpy as np
from PIL import Image
if sys.argv[1] == "parsed":
    flags.FLAGS(["program"])
file = io.BytesIO()
Image.new("RGB", (4, 4)).save(file, "PNG")
with open(sys.argv[2] + "/1.png", "wb") as image:
    image.write(file.getvalue())
source = sources.open_images(sys.argv[2])
found = list(loader.batches(source, [0], np.asarray, size=4, batch=2, threads=2))
assert found[0].rows.tolist() == [0, -1]
assert flags.FLAGS.is_parsed() == (sys.argv[1] == "parsed")
"""


@pytest.mark.parametrize("state", ["parsed", "unparsed"])
def test_what_is_optional_is_imported_late_and_says_nothing(state, tmp_path, repository):
    done = subprocess.run(
        [sys.executable, "-c", SILENT, state, str(tmp_path)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
