import collections
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image

from hume_jax.errors import UserError
from hume_jax.representations.images import loader, sources, tfds_images

N_TRAIN, N_TEST = 40, 9


def photo(i):
    """A PNG whose red is i."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (i, 0, 0)).save(file, "PNG")
    return file.getvalue()


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Prepared without TensorFlow, since its images are encoded already."""

    VERSION = tfds.core.Version("1.2.0")
    pkg_dir_path = pathlib.Path(__file__).parent

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["cat", "dog", "fox"]),
            "coarse_label": tfds.features.ClassLabel(num_classes=2),
            "mask": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "boxes": tfds.features.Sequence({"side": tfds.features.Scalar(np.int64)}),
            "title": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), description="Made for a test."
        )

    def _split_generators(self, _):
        return {
            "train": self._generate_examples(0, N_TRAIN),
            "test": self._generate_examples(100, N_TEST),
        }

    def _generate_examples(self, first, count):
        for i in range(first, first + count):
            yield (
                i,
                {
                    "image": photo(i),
                    "label": i % 3,
                    "coarse_label": i % 2,
                    "mask": [i, -i],
                    "boxes": [{"side": i}] * (i % 3),
                    "title": f"number {i}",
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a dataset that was really prepared, as array_record files."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    TinyPhotos(data_dir=folder).download_and_prepare(file_format="array_record")
    assert "tensorflow" not in sys.modules
    return folder


def open_tiny(prepared, where="tfds:tiny_photos/train", **options):
    return sources.open_images(where, tfds_folder=str(prepared), **options)


def red(source, i):
    return int(np.asarray(sources.decode(source.read(i)))[0, 0, 0])


def fails(message, where, **options):
    with pytest.raises(UserError, match=message) as error:
        sources.open_images(where, **options)
    assert "\n" not in str(error.value)
    assert "TFDS_DATA_DIR" not in str(error.value)
    return str(error.value)


# ---- a prepared dataset


def test_encoded_images_and_labels_of_a_split(prepared):
    source = open_tiny(prepared)
    assert source.name == "tfds:tiny_photos/train"
    assert len(source) == N_TRAIN
    assert source.ids == tuple(map(str, range(N_TRAIN)))
    numbers = [red(source, i) for i in range(N_TRAIN)]
    assert sorted(numbers) == list(range(N_TRAIN))
    assert source.read(7) == photo(numbers[7])
    assert source.labels.tolist() == [number % 3 for number in numbers]
    assert source.labels.dtype == np.int64
    assert source.class_names == ("cat", "dog", "fox")
    assert [red(source, i) for i in (5, 0, 39)] == [numbers[i] for i in (5, 0, 39)]


def test_labels_need_no_second_reading_of_what_was_read(prepared, monkeypatch):
    source, count = open_tiny(prepared), collections.Counter()
    records = source._records

    class Counted:
        def __getitem__(self, i):
            count[i] += 1
            return records[i]

    monkeypatch.setattr(source, "_records", Counted())
    for i in range(10, 30):
        source.read(i)
    first = source.labels
    np.testing.assert_array_equal(first, open_tiny(prepared).labels)
    np.testing.assert_array_equal(source.labels, first)
    assert count == dict.fromkeys(range(N_TRAIN), 1)


def test_other_labels_or_none(prepared):
    source = open_tiny(prepared, label_key="coarse_label")
    assert source.labels.tolist() == [red(source, i) % 2 for i in range(N_TRAIN)]
    assert source.class_names == ("0", "1")
    source = open_tiny(prepared, labels=False)
    assert source.labels is None
    assert source.class_names == ()


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("tfds:tiny_photos:1.2.0/test", N_TEST),
        ("tfds:tiny_photos:1.*.*/test", N_TEST),
        ("tfds:tiny_photos/train[:25%]", N_TRAIN // 4),
        ("tfds:tiny_photos/train[5:9]+test", 4 + N_TEST),
    ],
)
def test_versions_slices_and_sums(prepared, where, rows):
    source = open_tiny(prepared, where)
    assert len(source) == rows
    assert len({red(source, i) for i in range(rows)}) == rows


def test_the_fingerprint_tells_splits_and_slices_apart(prepared):
    wheres = [f"tfds:tiny_photos/{s}" for s in ("train", "test", "train[:5]", "train[:6]")]
    found = [open_tiny(prepared, where).fingerprint() for where in wheres]
    assert len(set(found)) == 4
    assert open_tiny(prepared).fingerprint() == found[0]
    assert open_tiny(prepared, label_key="coarse_label").fingerprint() == found[0]


def test_the_fingerprint_does_not_depend_on_the_folder(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    assert open_tiny(tmp_path / "copy").fingerprint() == open_tiny(prepared).fingerprint()


def test_threads_read_at_once_and_rows_stay_aligned(prepared, rng):
    expected = open_tiny(prepared)
    numbers = np.array([red(expected, i) for i in range(N_TRAIN)])
    source, rows = open_tiny(prepared), rng.permutation(N_TRAIN)
    before = set(threading.enumerate())
    found = list(
        loader.batches(
            source, rows, lambda image: np.asarray(image)[:2, :2], size=2, batch=7, threads=4
        )
    )
    reds = np.concatenate([item.pixels[:, 0, 0, 0] for item in found])[:N_TRAIN]
    np.testing.assert_array_equal(reds, numbers[rows])
    np.testing.assert_array_equal(source.labels, expected.labels)
    assert not [t for t in set(threading.enumerate()) - before if "grain" not in t.name]


READ = """
import sys
from hume_jax.representations.images import sources, loader
import numpy as np
source = sources.open_images("tfds:tiny_photos/train", tfds_folder=sys.argv[1])
size = dict(size=2, batch=8, threads=2)
found = list(loader.batches(source, range(len(source)), lambda x: np.asarray(x)[:2, :2], **size))
assert sum((item.rows >= 0).sum() for item in found) == len(source.labels) == 40
assert source.class_names == ("cat", "dog", "fox")
assert "tensorflow" not in sys.modules
print("read")
"""


def test_reading_needs_neither_tensorflow_nor_the_code_of_the_dataset(
    prepared, repository, tmp_path
):
    # One that is found and cannot be imported, wherever tests run.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise SystemExit('imported')")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(prepared)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{repository}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


def test_a_damaged_record_is_an_error_and_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    (file,) = (tmp_path / "copy").rglob("*-train.array_record-*")
    data = bytearray(file.read_bytes())
    data[150:158] = bytes(8)  # among those of the first record, behind two headers of 40 bytes
    file.write_bytes(data)
    source = open_tiny(tmp_path / "copy")
    with pytest.raises(UserError, match="tfds:tiny_photos/train: record 0 cannot be read"):
        source.read(0)
    whole = open_tiny(prepared)
    assert all(source.read(i) == whole.read(i) for i in range(1, N_TRAIN))


@pytest.mark.parametrize("length", [0, 100, 5000, 65_536, 70_000, -1])
def test_a_truncated_record_file_is_an_error(prepared, tmp_path, length):
    shutil.copytree(prepared, tmp_path / "copy")
    (file,) = (tmp_path / "copy").rglob("*-train.array_record-*")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match="cannot be read"):
        open_tiny(tmp_path / "copy").read(0)


def test_another_dataset_of_the_same_name_is_known_by_its_files(prepared, tmp_path):
    """Of as many images, under the same version."""
    shutil.copytree(prepared, tmp_path / "copy")
    expected = open_tiny(prepared).fingerprint()
    assert open_tiny(tmp_path / "copy").fingerprint() == expected
    for file in (tmp_path / "copy").rglob("*train.array_record-*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert open_tiny(tmp_path / "copy").fingerprint() != expected
    for file in (tmp_path / "copy").rglob("*.array_record-*"):
        file.unlink()
    with pytest.raises(UserError, match="cannot be read, copy or prepare the dataset again"):
        open_tiny(tmp_path / "copy").fingerprint()


def test_missing_record_files_are_an_error(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.array_record-*"):
        file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_tiny(tmp_path / "copy").read(0)


# ---- what is wrong with a name


@pytest.mark.parametrize("name", ["", "stl10", "stl10/", "/train", "a/b/c/d", "hub:mnist/train"])
def test_names_of_another_form_are_refused(name):
    message = fails("is not of the form", f"tfds:{name}")
    assert "tfds:NAME[/CONFIG][:VERSION]/SPLIT, e.g. tfds:stl10/train" in message


def test_unknown_names_come_with_the_nearest(prepared, tmp_path):
    folder = {"tfds_folder": str(prepared)}
    fails("knows no dataset 'sll10'.*did you mean 'stl10'", "tfds:sll10/train", **folder)
    message = fails("did you mean 'cifar10_1' or ", "tfds:cifar11/train", **folder)
    assert "'cifar10'" in message
    fails(
        "no split 'trian', only test, train.*did you mean 'train'",
        "tfds:tiny_photos/trian",
        **folder,
    )
    fails("no split 'train\\[5'", "tfds:tiny_photos/train[5", **folder)
    fails(
        "no config 'rbg', it has rgb, all.*did you mean 'rgb'", "tfds:eurosat/rbg/train", **folder
    )
    fails("mnist has no config 'x', it has none", "tfds:mnist/x/train", **folder)
    fails("cannot be opened.*only: 3.0.2", "tfds:cifar10:1.0.0/train", **folder)
    fails("holds no images", "tfds:tiny_photos/train[:0]", **folder)
    message = fails(
        "no integer feature 'corase_label' for labels, only",
        "tfds:tiny_photos/train",
        label_key="corase_label",
        **folder,
    )
    assert "did you mean 'coarse_label'" in message


def test_a_split_is_known_before_the_images_are_opened(prepared):
    with pytest.raises(UserError, match=r"no split 'trian'.*did you mean 'train'"):
        tfds_images.check("tfds:tiny_photos/trian", True, "", str(prepared))
    tfds_images.check("tfds:tiny_photos/train", True, "", str(prepared))


def test_what_is_prepared_is_offered(tmp_path):
    """Datasets of one's own, which TFDS does not know."""
    for place in ("birds/1.0.0", "fish/small/1.1.0", "fish/large/2.0.0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "dataset_info.json").write_text("{}")
    folder = {"tfds_folder": str(tmp_path)}
    fails("knows no dataset 'bird'.*did you mean 'birds'", "tfds:bird/train", **folder)
    fails("is prepared in .*; there is tfds:birds:1.0.0/SPLIT$", "tfds:birds:2.0.0/train", **folder)
    there = "tfds:fish/large:2.0.0/SPLIT, tfds:fish/small:1.1.0/SPLIT"
    fails(f"there is {there}$", "tfds:fish/medium/train", **folder)


def test_datasets_without_encoded_images_are_refused(tmp_path):
    for where in ("tfds:ag_news_subset/train", "tfds:eurosat/all/train"):
        fails("with no image", where, tfds_folder=str(tmp_path))


# ---- datasets that are known and not prepared


@pytest.fixture
def without_tensorflow(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name)
    )


@pytest.fixture
def with_tensorflow(monkeypatch):
    """As if TensorFlow could be imported, which is only asked, not done, before the download."""
    find = importlib.util.find_spec
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found if name == "tensorflow" else find(name)
    )


def test_without_tensorflow_it_says_what_to_do(without_tensorflow, tmp_path):
    message = fails("is not prepared in", "tfds:stl10/train", tfds_folder=str(tmp_path))
    for part in (
        f"{tmp_path}/stl10/1.0.0",
        'pip install "hume_jax[prepare]"',
        "`tfds build stl10 --file_format=array_record`",
        "images.tfds_folder",
    ):
        assert part in message
    where = "tfds:cifar10_corrupted/fog_2/test"
    message = fails("not prepared", where, tfds_folder=str(tmp_path))
    assert "`tfds build cifar10_corrupted --config=fog_2 --file_format=array_record`" in message
    assert not list(tmp_path.iterdir())


def test_a_wrong_label_key_is_told_before_anything_is_prepared(without_tensorflow, tmp_path):
    fails(
        "no integer feature 'fine'",
        "tfds:cifar100/train",
        label_key="fine",
        tfds_folder=str(tmp_path),
    )


def test_a_full_disk_is_told_before_the_download(with_tensorflow, monkeypatch, tmp_path):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(7_000_000_000))
    monkeypatch.setattr(requests, "head", None)
    # Three times the 2.64 GB of the download.
    message = fails("needs about 7.9 GB", "tfds:stl10/train", tfds_folder=str(tmp_path / "new"))
    assert "7.0 GB are free" in message


def test_a_missing_network_is_told_at_once(with_tensorflow, monkeypatch, tmp_path):
    asked = []

    def head(url, timeout):
        asked.append((url, timeout))
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests, "head", head)
    message = fails("does not answer", "tfds:mnist/train", tfds_folder=str(tmp_path))
    assert "where there is a network" in message
    assert len(asked) == 1
    assert asked[0][1] <= 30


def test_what_tfds_says_of_a_failed_preparation_is_passed_on(
    with_tensorflow, monkeypatch, tmp_path
):
    def fail(self, file_format):
        raise AssertionError("Manual directory does not exist.\nCreate it.")

    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(160_000_000_000))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    message = fails("could not be prepared", "tfds:imagenet2012/train", tfds_folder=str(tmp_path))
    assert "Manual directory does not exist. Create it." in message
    assert "got by hand: manual_dir should contain" in message


def test_a_dataset_is_prepared_where_it_is_missing(with_tensorflow, tmp_path):
    source = open_tiny(tmp_path)
    assert len(source) == N_TRAIN
    (info,) = tmp_path.rglob("dataset_info.json")
    assert json.loads(info.read_text())["fileFormat"] == "array_record"


def test_another_file_format_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    (info,) = (tmp_path / "copy").rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = fails(
        "as tfrecord, only array_record can be read",
        "tfds:tiny_photos/train",
        tfds_folder=str(tmp_path / "copy"),
    )
    assert "`tfds build tiny_photos --file_format=array_record` --data_dir=FOLDER" in message


# ---- the datasets of the configs, mocked


@pytest.fixture
def mocked(tmp_path):
    """Metadata of known datasets, with images and labels that tfds makes up."""

    def mock(dataset, splits, label=None):
        builder = tfds.builder(dataset, data_dir=tmp_path)
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=builder.name,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        builder.info.set_splits(
            tfds.core.splits.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=name, shard_lengths=[n], num_bytes=0, filename_template=template
                    )
                    for name, n in splits.items()
                ]
            )
        )
        builder.info.set_file_format("array_record", override=True)
        builder.data_path.mkdir(parents=True)
        builder.info.write_to_directory(builder.data_dir)

        def as_data_source(self, split, decoders=None, file_format=None):
            assert file_format == "array_record"
            assert isinstance(decoders["image"], tfds.decode.SkipDecoding)
            made = tfds.testing.mocking.RandomFakeGenerator(self.info.features, splits[split])
            records = [made[i] for i in range(splits[split])]
            for i, record in enumerate(records):
                record["image"] = photo(i)
                if label is not None:
                    record["label"] = label
            return records

        return tfds.testing.mock_data(
            data_dir=str(tmp_path),
            policy=tfds.testing.MockPolicy.USE_FILES,
            as_data_source_fn=as_data_source,
        )

    return mock


def test_mocked_stl10(mocked):
    with mocked("stl10", {"train": 5, "test": 8, "unlabelled": 3}):
        source = sources.open_images("tfds:stl10/test")
        assert len(source) == 8
        assert [red(source, i) for i in (7, 2)] == [7, 2]
        assert len(source.class_names) == 10
        assert source.labels.shape == (8,)
        fails("no split 'unlabeled'.*did you mean 'unlabelled'", "tfds:stl10/unlabeled")


def test_mocked_cifar100_has_two_labellings(mocked):
    with mocked("cifar100", {"train": 6}):
        fine = sources.open_images("tfds:cifar100:3.0.2/train")
        coarse = sources.open_images("tfds:cifar100/train", label_key="coarse_label")
        assert (len(fine.class_names), len(coarse.class_names)) == (100, 20)
        assert coarse.labels.max() < 20
        assert fine.labels.tolist() != coarse.labels.tolist()


def test_mocked_dataset_with_a_config(mocked):
    with mocked("eurosat/rgb", {"train": 4}):
        source = sources.open_images("tfds:eurosat/rgb:2.0.0/train")
        assert red(source, 3) == 3
        assert len(source.class_names) == 10


def test_labels_of_minus_one_count_as_unknown(mocked, caplog):
    with mocked("stl10", {"unlabelled": 3}, label=-1):
        source = sources.open_images("tfds:stl10/unlabelled")
        with caplog.at_level("INFO", "absl"):
            assert source.labels is None
        assert "some images have no label" in caplog.text


# ---- with TensorFlow


@pytest.mark.slow
def test_a_dataset_that_needs_tensorflow_is_prepared_with_it(tmp_path, repository):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip('needs TensorFlow, pip install "hume_jax[prepare]"')
    script = tmp_path / "arrays.py"
    script.write_text(WITH_TENSORFLOW)
    subprocess.run([sys.executable, script, str(tmp_path)], cwd=repository, check=True)


WITH_TENSORFLOW = """
import pathlib, sys
sys.path.insert(0, ".")
import numpy as np
import tensorflow_datasets as tfds
from hume_jax.representations.images import sources

class TinyArrays(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(sys.argv[1])

    def _info(self):
        features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": np.int64}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), description="Made for a test."
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(5):
            # An array, which only TensorFlow encodes.
            yield i, {"image": np.full((4, 4, 3), i, np.uint8), "label": i}

source = sources.open_images("tfds:tiny_arrays/train", tfds_folder=sys.argv[1])
reds = [int(np.asarray(sources.decode(source.read(i)))[0, 0, 0]) for i in range(5)]
assert reds == source.labels.tolist() and sorted(reds) == list(range(5))
assert "tensorflow" in sys.modules
"""
