"""From images to arrays: what is encoded, kept, refused, and gone on with."""

import csv
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tiny_encoder
from PIL import Image

from hume_jax import config as config_lib
from hume_jax import encoding
from hume_jax.errors import Preempted, UserError
from hume_jax.representations import encode, store
from hume_jax.representations.arrays import side_file
from hume_jax.representations.encoders import hub, presets
from hume_jax.representations.images import folder as folder_module
from hume_jax.representations.images import preprocess, sources, table, tfds_prepare

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TESTS = pathlib.Path(__file__).resolve().parent
N = 23
CLASSES = ("cat", "dog")
WEIGHTS = "tiny:weights=tiny.safetensors"


def photograph(rng, path, side=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (side, side + 7, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path, rng, monkeypatch):
    """A folder to run in, with images in two classes and the weights of an encoder."""
    for i in range(N):
        photograph(rng, tmp_path / "photos" / CLASSES[i % 2] / f"{i:02d}.png")
    tiny_encoder.write_weights(tmp_path / "tiny.safetensors")
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny_encoder.preset)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(**fields):
    config = config_lib.load("configs/images.py")
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "images.train": "photos",
                "encode.phi1": WEIGHTS,
                "encode.phi2": "",
                "encode.dtype": "float32",
                "encode.batch": 8,
                "encode.threads": 2,
                **{name.replace("__", "."): value for name, value in fields.items()},
            }
        )
    return config_lib.resolve(config, search=False)


@pytest.fixture
def encoded(caplog):
    """Returns how many images were encoded last, or each time, by the lines that say so."""
    caplog.set_level("INFO", "absl")

    def told(all=False):
        found = [r.args[0] for r in caplog.records if r.msg == "encoding %s with %s"]
        return found if all else found[-1]

    return told


def direct(rows=None, spec=WEIGHTS, where="photos"):
    """What the encoder makes of the images, one at a time."""
    encoder = presets.parse(spec)
    params, _ = presets.load(encoder)
    source = sources.open_images(where)
    found = []
    for row in range(len(source)) if rows is None else rows:
        pixels = preprocess.crop(sources.decode(source.read(row)), encoder.preprocessing)
        found.append(np.asarray(presets.features(encoder, params, pixels[None]))[0])
    return np.stack(found)


# ---- what is written


def test_rows_are_the_encoders_output_in_the_order_of_the_images(folder):
    config = encoding.ensure(configured())
    array = np.load(config.data.train.phi1)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, direct(), rtol=1e-5, atol=1e-5)
    assert np.load(config.data.train.labels).tolist() == ["cat"] * 12 + ["dog"] * 11
    table = pathlib.Path(config.data.train.phi1).with_name("images.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"row": "0", "id": "cat/00.png", "label": "cat", "class": "cat"}
    assert rows[22] == {"row": "22", "id": "dog/21.png", "label": "dog", "class": "dog"}


def test_the_side_file_says_what_made_the_array(folder):
    config = encoding.ensure(configured(encode__dtype="float16"))
    path = pathlib.Path(config.data.train.phi1)
    content = side_file.read(path)
    assert content["complete"]
    assert content["encoder"] == "tiny:output=cls,unit_norm=false,compute=float32"
    assert content["spec"] == "tiny:weights=tiny.safetensors"
    assert content["weights"]["sha256"] == presets.load(presets.parse(content["spec"]))[1].sha256
    assert content["preprocessing"]["crop"] == 28
    assert (content["rows"], content["columns"], content["dtype"]) == (N, 8, "float16")
    assert content["unit_norm"] is False
    assert (path.parent / content["image_table"]).exists()
    assert table.names([str(path)])[2] == "cat/04.png"
    assert np.load(path).dtype == np.float16


def test_several_encoders_and_both_splits(folder, rng):
    for i in range(5):
        photograph(rng, folder / "more" / f"{i}.png")
    cls, patches = (
        f"tiny:weights=tiny.safetensors,output={o},unit_norm" for o in ("cls", "mean_patch")
    )
    config = encoding.ensure(
        configured(images__test="more", encode__phi1=(cls, patches), encode__phi2=patches)
    )
    first, second = (np.load(path) for path in config.data.train.phi1)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(first, direct(spec=cls), atol=1e-5)
    np.testing.assert_allclose(second, direct(spec=patches), atol=1e-5)
    assert config.data.train.phi2 == config.data.train.phi1[1]
    assert np.load(config.data.test.phi2).shape == (5, 8)
    # No folders in it, so no labels.
    assert config.data.test.labels == ""


def test_an_array_goes_where_its_field_says(folder):
    config = encoding.ensure(configured(data__train__phi1="a/b.npy"))
    assert np.load("a/b.npy").shape == (N, 8)
    assert config.data.train.phi1 == "a/b.npy"


def test_images_for_the_test_split_alone(folder):
    config = encoding.ensure(
        configured(images__train="", images__test="photos", data__train__phi1="own.npy")
    )
    assert config.data.train.phi1 == "own.npy"
    assert np.load(config.data.test.phi1).shape == (N, 8)
    assert len(np.load(config.data.test.labels)) == N


def test_arrays_of_other_images_do_not_go_together(folder):
    """The same number of images, in another order and under other names."""
    for i, path in enumerate(sorted((folder / "photos").rglob("*.png"), reverse=True)):
        (folder / "reversed").mkdir(exist_ok=True)
        os.link(path, folder / "reversed" / f"{i:02d}.png")
    encoding.ensure(configured(images__train="reversed", data__train__phi1="b.npy"))
    encoding.ensure(configured(data__train__phi1="a.npy"))
    data = configured(data__train__phi1="a.npy", data__train__phi2="b.npy").data
    message = r"a\.npy and b\.npy were encoded from other images, or from the same in another order"
    with pytest.raises(UserError, match=message):
        store.check_headers(data, 2, "inductive")
    # Known before the first of them is encoded, too.
    (folder / "a.npy").unlink()
    (folder / "a.npy.json").unlink()
    with pytest.raises(UserError, match=message):
        encoding.ensure(
            configured(data__train__phi1="a.npy", data__train__phi2="b.npy"),
            check=lambda config, coming: store.check_headers(config.data, 2, "inductive", coming),
        )
    assert not (folder / "a.npy.part").exists()
    # The names are all that differs, its user says.
    (folder / "b.npy.json").unlink()
    encoding.ensure(configured(data__train__phi1="a.npy"))
    store.check_headers(data, 2, "inductive")


def test_labels_of_ones_own_are_neither_made_nor_replaced(folder):
    assert encoding.ensure(configured(data__train__labels="y.npy")).data.train.labels == "y.npy"
    assert not (folder / "y.npy").exists()


def test_labels_of_the_images_can_be_left_alone(folder):
    assert encoding.ensure(configured(images__labels=False)).data.train.labels == ""
    # And taken up again.
    assert len(np.load(encoding.ensure(configured()).data.train.labels)) == N


# ---- what is there stays


def test_what_is_there_is_not_encoded_again(folder):
    config = encoding.ensure(configured())
    path = pathlib.Path(config.data.train.phi1)
    before = path.stat().st_mtime_ns
    (folder / "tiny.safetensors").unlink()  # not needed any more
    assert encoding.ensure(configured()) == config
    assert path.stat().st_mtime_ns == before


def test_class_folders_have_one_number_in_all_splits(folder, rng):
    for name in ("dog", "eel"):
        photograph(rng, folder / "more" / name / "1.png")
    config = encoding.ensure(configured(images__test="more", encode__phi2=WEIGHTS))
    dataset = store.open_dataset(config.data)
    assert dataset.test is not None
    assert dataset.train.labels.tolist() == [0] * 12 + [1] * 11
    assert dataset.test.labels.tolist() == [1, 2]


class Numbered:
    """A dataset whose images have no names but their numbers."""

    name, ids, class_names, has_own_numbers = "made", ("0", "1", "2"), ("ant", "bee"), True

    def __init__(self, labels, version):
        self.labels, self._version = np.array(labels), version

    def fingerprint(self):
        return self._version


def test_labels_are_those_of_the_images_that_are_there(tmp_path):
    written = table.ImageTable(tmp_path)
    for labels, version in (([0, 1, 1], "1"), ([1, 0, 1], "2")):
        for _ in range(2):
            written.write(Numbered(labels, version))
        assert np.load(written.labels).tolist() == labels
        with written.rows.open() as file:
            assert [int(row["label"]) for row in csv.DictReader(file)] == labels
    # What is known to be of these images is not read again.
    written.write(Numbered([0, 0, 0], "2"))
    assert np.load(written.labels).tolist() == [1, 0, 1]


def test_labels_that_are_not_there_are_told_whether_or_not_arrays_are(folder):
    for _ in range(2):
        with pytest.raises(UserError, match=r"images\.label=species is for tfds:.* names of its f"):
            encoding.ensure(configured(images__label="species"))
        encoding.ensure(configured())


def test_a_required_hash_is_that_of_the_encoded_weights(folder):
    given = hashlib.sha256((folder / "tiny.safetensors").read_bytes()).hexdigest()
    config = encoding.ensure(configured(encode__phi1=f"{WEIGHTS},sha256={given}"))
    again = f"{WEIGHTS},sha256={given.upper()}"
    assert encoding.ensure(configured(encode__phi1=again)).data == config.data
    message = (
        rf"encoded with other weights \(SHA-256 {given}\) than those of .*SHA-256 {'a' * 64}\)"
    )
    with pytest.raises(UserError, match=message):
        encoding.ensure(configured(encode__phi1=f"{WEIGHTS},sha256={'a' * 64}"))


def test_an_array_of_ones_own_is_taken_as_it_is(folder, rng):
    own = rng.normal(size=(N, 3)).astype(np.float32)
    np.save("own.npy", own)
    encoding.ensure(configured(data__train__phi1="own.npy"))
    np.testing.assert_array_equal(np.load("own.npy"), own)


@pytest.mark.parametrize("place", ["", "made.npy"])
def test_an_array_of_ones_own_beside_an_encoded_one(place, folder, rng):
    np.save("own.npy", rng.normal(size=(N, 3)).astype(np.float32))
    config = encoding.ensure(
        configured(
            encode__phi2=("", "tiny:weights=tiny.safetensors"),
            data__train__phi2=("own.npy", place),
        )
    )
    own, made = config.data.train.phi2
    assert own == "own.npy"
    np.testing.assert_array_equal(np.load(made), np.load(config.data.train.phi1))
    assert (made == "made.npy") == bool(place)
    config.unlock()
    config.data.train.labels = ""
    dataset = store.open_dataset(config.data)
    assert [array.shape for array in dataset.train.phi2.arrays] == [(N, 3), (N, 8)]


def test_arrays_outlive_their_images(folder):
    config = encoding.ensure(configured())
    (folder / "photos").rename(folder / "elsewhere")
    assert encoding.ensure(configured()) == config


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"encode__dtype": "float16"}, "dtype 'float32', now it is 'float16'"),
        ({"encode__phi1": "tiny:weights=tiny.safetensors,unit_norm"}, "encoder .* now it is"),
    ],
)
def test_an_array_of_other_settings_is_refused(folder, fields, what):
    encoding.ensure(configured(data__train__phi1="a.npy"))
    with pytest.raises(UserError, match=rf"a\.npy was encoded with {what}.*delete it and a\.npy"):
        encoding.ensure(configured(data__train__phi1="a.npy", **fields))


def test_an_array_of_other_weights_is_refused(folder):
    encoding.ensure(configured())
    tiny_encoder.write_weights(folder / "tiny.safetensors", seed=1)
    with pytest.raises(UserError, match="was encoded with other weights"):
        encoding.ensure(configured())


@pytest.mark.parametrize("named", ["", "a.npy"])
def test_the_same_encoder_may_be_written_in_another_way(folder, encoded, named):
    one = "tiny:weights=tiny.safetensors,size=28,unit_norm"
    other = f"tiny:unit_norm=true,size=28,weights={folder}/tiny.safetensors"
    first = encoding.ensure(configured(encode__phi1=one, data__train__phi1=named))
    again = encoding.ensure(configured(encode__phi1=other, data__train__phi1=named))
    assert again.data == first.data
    assert encoded(all=True) == ["23 images"]


def test_weights_may_lie_elsewhere_but_not_be_others(folder, encoded):
    encoding.ensure(configured(data__train__phi1="a.npy"))
    os.rename("tiny.safetensors", "moved.safetensors")
    moved = configured(data__train__phi1="a.npy", encode__phi1="tiny:weights=moved.safetensors")
    encoding.ensure(moved)
    assert encoded(all=True) == ["23 images"]
    tiny_encoder.write_weights(folder / "moved.safetensors", seed=1)
    with pytest.raises(UserError, match="was encoded with other weights"):
        encoding.ensure(moved)


def test_a_branch_of_the_hub_that_moves_ends_a_run_that_goes_on(folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    config = configured(encode__phi1="tiny:weights=owner/repo")
    path, commit = folder / "tiny.safetensors", "0" * 40
    with monkeypatch.context() as patch:
        patch.setattr(hub, "fetch", lambda *_: hub.Fetched(path, commit, hub.sha256(path)))
        patch.setattr(encode, "_put", stop)
        with pytest.raises(KeyboardInterrupt):
            encoding.ensure(config)
    tiny_encoder.write_weights(path, seed=1)
    monkeypatch.setattr(hub, "fetch", lambda *_: hub.Fetched(path, "1" * 40, hub.sha256(path)))
    with pytest.raises(UserError, match="was encoded with other weights"):
        encoding.ensure(config)


def test_a_run_does_not_go_on_with_other_weights(folder, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "_put", stop)
        with pytest.raises(KeyboardInterrupt):
            encoding.ensure(configured())
    tiny_encoder.write_weights(folder / "tiny.safetensors", seed=1)
    with pytest.raises(UserError, match="was encoded with other weights"):
        encoding.ensure(configured())


def test_names_are_those_of_the_very_images(folder):
    path = encoding.ensure(configured()).data.train.phi1
    rows = pathlib.Path(path).with_name("images.csv")
    rows.write_text(rows.read_text().replace("cat/04.png", "cat/05.png"))
    assert table.names([path]) is None
    rows.write_bytes(b"\xff")
    assert table.names([path]) is None


def test_an_array_of_other_images_is_refused(folder, rng):
    encoding.ensure(configured())
    photograph(rng, folder / "photos" / "dog" / "new.png")
    with pytest.raises(UserError, match="was encoded with rows 23, now it is 24"):
        encoding.ensure(configured())
    (folder / "photos" / "dog" / "21.png").unlink()
    with pytest.raises(UserError, match="was encoded with images_digest '.*', now it is '"):
        encoding.ensure(configured())


# ---- images that cannot be read


@pytest.fixture
def broken(folder):
    path = folder / "photos" / "cat" / "04.png"
    path.write_bytes(path.read_bytes()[:100])
    return folder


def test_a_broken_image_ends_the_work_by_name(broken):
    with pytest.raises(UserError, match=r"photos: image cat/04\.png \(row 2\) is broken, "):
        encoding.ensure(configured())
    assert not list(broken.glob("representations/*/*.npy"))
    # The row is on record either way.
    (notes,) = broken.glob("representations/*/*.npy.rows-0")
    (note,) = (json.loads(line) for line in notes.read_text().splitlines() if line)
    assert [row for row, _ in note["broken"]] == [2]
    assert note["rows"] == []


def test_a_broken_image_keeps_its_row(broken, caplog):
    config = encoding.ensure(configured(images__broken="skip"))
    array = np.load(config.data.train.phi1)
    others = [row for row in range(N) if row != 2]
    np.testing.assert_allclose(array[others], direct(others), rtol=1e-5, atol=1e-5)
    assert not array[2].any()
    ((row, _),) = side_file.read(pathlib.Path(config.data.train.phi1))["broken"]
    assert row == 2
    assert "1 image of 23 broken" in caplog.text
    assert len(np.load(config.data.train.labels)) == N


def test_a_mended_image_is_encoded_where_its_row_was(broken, rng, encoded):
    skip = configured(images__broken="skip")
    array = pathlib.Path(encoding.ensure(skip).data.train.phi1)
    before = array.stat().st_mtime_ns
    encoding.ensure(skip)
    assert array.stat().st_mtime_ns == before  # still broken, nothing to do
    photograph(rng, broken / "photos" / "cat" / "04.png")
    encoding.ensure(configured())
    assert encoded() == "1 image"
    np.testing.assert_allclose(np.load(array), direct(), rtol=1e-5, atol=1e-5)
    assert side_file.read(array)["broken"] == []
    assert sorted(p.name for p in array.parent.glob("tiny*")) == [array.name, f"{array.name}.json"]


def test_one_of_two_broken_images_is_mended(broken, rng, encoded):
    (broken / "photos" / "dog" / "01.png").write_bytes(b"")
    skip = configured(images__broken="skip")
    array = pathlib.Path(encoding.ensure(skip).data.train.phi1)
    photograph(rng, broken / "photos" / "cat" / "04.png")
    # What is still broken ends the work, and nothing is lost.
    with pytest.raises(UserError, match=r"dog/01\.png \(row 12\) is broken, it is empty"):
        encoding.ensure(configured())
    encoding.ensure(skip)
    assert encoded() == "2 images"
    assert side_file.read(array)["broken"] == [[12, "it is empty"]]
    others = [row for row in range(N) if row != 12]
    np.testing.assert_allclose(np.load(array)[others], direct(others), rtol=1e-5, atol=1e-5)
    assert not np.load(array)[12].any()


def test_rows_of_zeros_are_not_taken_where_broken_images_end_the_work(broken):
    skip = configured(images__broken="skip")
    encoding.ensure(skip)
    with pytest.raises(UserError, match=r"image cat/04\.png \(row 2\) is broken"):
        encoding.ensure(configured())
    (broken / "photos").rename(broken / "elsewhere")
    with pytest.raises(
        UserError, match=r"holds 1 row of zeros, of images that were broken and are"
    ):
        encoding.ensure(configured())
    encoding.ensure(skip)


def test_images_that_are_all_broken_are_no_array(folder):
    for path in (folder / "photos").rglob("*.png"):
        path.write_bytes(b"")
    what = r"photos: all 23 images are broken, cat/00\.png \(row 0\) because it is empty"
    for _ in range(2):
        with pytest.raises(UserError, match=what):
            encoding.ensure(configured(images__broken="skip"))


def test_a_search_leaves_out_broken_images(broken):
    array = pathlib.Path(encoding.ensure(configured(images__broken="skip")).data.train.phi1)
    data = configured(data__train__phi1=str(array), data__train__phi2=str(array)).data
    dataset = store.open_dataset(data)
    (warning,) = store.check_search(dataset, 2, "inductive")
    assert warning.startswith("1 of 23 rows are left out, of images that could not be read: ")
    assert warning.count(f"{array}.json") == 2
    np.testing.assert_array_equal(dataset.train.phi1.arrays[0][:], np.delete(np.load(array), 2, 0))


def test_an_image_that_may_not_be_read_is_a_broken_one(folder, monkeypatch):
    def refuse(path, *arguments, **options):
        if str(path).endswith("04.png"):
            raise PermissionError(13, "Permission denied")
        return open(path, *arguments, **options)

    monkeypatch.setattr(folder_module, "open", refuse, raising=False)
    config = encoding.ensure(configured(images__broken="skip"))
    content = side_file.read(pathlib.Path(config.data.train.phi1))
    assert content["broken"] == [[2, "it cannot be read: Permission denied"]]


# ---- before any long work


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images__train": ""}, "'encode.phi1' names an encoder, but 'images.train' no images"),
        ({"images__train": "none"}, "there is no none"),
        ({"data__train__phi1": "folder.npy"}, "folder.npy, where the array .* is a folder: set da"),
        ({"encode__phi1": "tine"}, "there is no preset 'tine'.*did you mean 'tiny'"),
        ({"encode__phi1": "tiny"}, "comes without weights"),
        ({"encode__phi1": "tiny:weights=no.safetensors"}, "no.safetensors"),
        (
            {"encode__phi2": ("tiny:weights=tiny.safetensors", "tiny:weights=no.safetensors")},
            "no.safetensors",
        ),
        ({"data__train__phi1": ("a.npy", "b.npy")}, "names 2 arrays, 'encode.phi1' 1 encoder"),
        (
            {"encode__phi2": ("", "tiny:weights=tiny.safetensors")},
            r"'data.train.phi2' is \('', ''\): where 'encode.phi2' has '' for an encoder, it ",
        ),
        ({"data__train__phi1": "a.npz"}, "'a.npz': encoded arrays are .npy files"),
        (
            {
                "encode__phi2": "tiny:weights=tiny.safetensors,unit_norm",
                "data__train__phi1": "a.npy",
                "data__train__phi2": "a.npy",
            },
            "a.npy is meant for data.train.phi1 .* and for data.train.phi2 .*: name two files",
        ),
    ],
)
def test_what_is_wrong_is_known_before_the_first_image(folder, fields, message):
    (folder / "folder.npy").mkdir()
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=message):
        encoding.ensure(configured(**fields))
    assert sorted(folder.rglob("*")) == before


def test_images_that_are_not_used_are_told(folder, caplog):
    config = encoding.ensure(configured(encode__phi1="", data__train__phi1="own.npy"))
    assert "images.train=photos is not used, nor are labels of it: neither" in caplog.text
    assert not config.data.train.labels


def test_datasets_are_known_then_weights_then_it_is_prepared(folder, monkeypatch):
    dataset = {"images__train": "tfds:mnist/train", "images__tfds_folder": str(folder / "tfds")}
    no_weights = {"encode__phi1": "tiny:weights=no.safetensors"}
    with pytest.raises(UserError, match=r"knows no dataset 'Mnis'.*did you mean 'mnist'"):
        encoding.ensure(configured(**no_weights, **dataset | {"images__train": "tfds:Mnis/train"}))
    with pytest.raises(UserError, match=r"tfds:mnist/train is not prepared .*hume_jax\[prepare\]"):
        encoding.ensure(configured(**no_weights, **dataset))
    prepared = []
    monkeypatch.setattr(tfds_prepare, "check", lambda *_: None)
    monkeypatch.setattr(tfds_prepare, "prepare", lambda *_: prepared.append(1))
    with pytest.raises(UserError, match=r"no\.safetensors: this file is not there"):
        encoding.ensure(configured(**no_weights, **dataset))
    assert not prepared


@pytest.mark.parametrize("package", ["grain", "PIL"])
def test_packages_that_are_missing_are_known_before_the_first_image(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'{package}.*pip install "hume_jax\[images\]"'):
        encoding.ensure(configured())
    assert not (folder / "representations").exists()


def test_too_little_space_is_known_before_the_first_image(folder, monkeypatch):
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=735))
    with pytest.raises(
        UserError, match=r"arrays to encode take .* has .* free: set encode\.folder"
    ):
        encoding.ensure(configured())
    monkeypatch.setattr(encoding.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=736))
    encoding.ensure(configured())


def test_the_arrays_to_come_are_announced(folder):
    seen = {}

    def check(config, coming):
        seen.update(coming)
        raise UserError("not so")

    with pytest.raises(UserError, match="not so"):
        encoding.ensure(configured(data__train__phi1="a.npy"), check=check)
    assert {name: (s.shape, str(s.dtype)) for name, s in seen.items()} == {
        "a.npy": ((N, 8), "float32"),
    }


def test_values_beyond_float16_are_named(folder, monkeypatch):
    features = presets.features
    monkeypatch.setattr(presets, "features", lambda *a: features(*a) * 1e6)
    with pytest.raises(UserError, match=r"cat/00\.png \(row 0\) does not fit in float16"):
        encoding.ensure(configured(encode__dtype="float16"))


# ---- the command, as a user types it


@pytest.fixture
def command(folder, repository):
    """Starts a command in `folder` and returns the process."""

    def start(name, *arguments, cwd=None):
        return subprocess.Popen(
            [sys.executable, TESTS / "tiny_encoder.py", name, *arguments],
            cwd=cwd or folder,
            env={
                **os.environ,
                "PYTHONPATH": str(repository),
                "JAX_NUM_CPU_DEVICES": "2",
                # Programs that run once.
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


COMMAND = (
    "encode",
    "--config=configs/images.py",
    "--config.images.train=photos",
    "--config.encode.phi1=tiny:weights=tiny.safetensors",
    "--config.encode.phi2=",
    "--config.encode.batch=4",
    "--config.data.train.phi1=a.npy",
)


def finished(process, status=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


def test_the_command_lists_the_presets(command):
    out, _ = finished(command("encode", "--list"))
    assert "| `dinov2_vits14` | 384 |" in out


def test_a_reader_of_the_list_may_stop(repository):
    code = "import os, sys; os.close(0); os.dup2(os.pipe()[1], 1); os.closerange(3, 9); "
    code += "from hume_jax import encode; encode.run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--list"], cwd=repository, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_packages_for_images_one_line_says_so(repository):
    code = "import sys; sys.modules['flax'] = None; from hume_jax import encode; encode.run()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--list"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: encoding images needs more packages (")
    assert 'pip install "hume_jax[images]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_killed_run_goes_on_where_it_was(folder, command, monkeypatch):
    for times, done in ((2, 8), (3, 20)):
        with monkeypatch.context() as patch:
            patch.setenv("KILLED_AT", str(times))
            _, err = finished(command(*COMMAND), -signal.SIGKILL)
        assert f"encoding {N if times == 2 else N - 8} images" in err
        assert not (folder / "a.npy").exists()
        lines = (folder / "a.npy.rows-0").read_text().splitlines()
        noted = [r for line in lines if line for r in json.loads(line)["rows"]]
        assert sum(stop - start for start, stop in noted) == done
    _, err = finished(command(*COMMAND))
    assert f"encoding {N - done} images" in err
    array = np.load(folder / "a.npy")
    np.testing.assert_allclose(array, direct(), rtol=1e-2, atol=1e-2)


def test_a_run_that_is_asked_to_end_goes_on_where_it_was(folder, command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("KILLED_AT", "2")
        patch.setenv("KILLED_BY", str(int(signal.SIGTERM)))
        _, err = finished(command(*COMMAND), Preempted.STATUS)
    assert err.splitlines()[-1].startswith("stopped by SIGTERM; what was finished is kept")
    _, err = finished(command(*COMMAND))
    assert 0 < int(re.search(r"encoding (\d+) images", err)[1]) < N
    np.testing.assert_allclose(np.load(folder / "a.npy"), direct(), rtol=1e-2, atol=1e-2)


@pytest.fixture
def hosts(command, free_port):
    """Starts the two processes of a run and returns them."""

    def start(*arguments, last=(), cwd=None, kept=""):
        """`last` and `cwd` are of the second alone, and so is the variable `kept`."""
        flags = (*arguments, f"--distributed=127.0.0.1:{free_port}", "--processes=2")
        second = command(*flags, "--process=1", *last, cwd=cwd)
        os.environ.pop(kept, None)
        return [command(*flags, "--process=0"), second]

    return start


@pytest.mark.slow
def test_two_hosts_write_the_array_that_one_writes(folder, command, hosts):
    finished(command(*COMMAND))
    alone = (folder / "a.npy").read_bytes()
    for name in ("a.npy", "a.npy.json"):
        (folder / name).unlink()
    told = [finished(host)[1] for host in hosts(*COMMAND)]
    assert "encoding 12 images" in told[0]
    assert "encoding 11 images" in told[1]
    assert (folder / "a.npy").read_bytes() == alone
    assert sorted(p.name for p in folder.glob("a.npy*")) == ["a.npy", "a.npy.json"]


def ends_of(*processes):
    """The last lines of processes that end with status 2."""
    return [finished(process, status=2)[1].splitlines()[-1] for process in processes]


@pytest.mark.slow
def test_a_host_that_was_killed_ends_the_other_with_one_line(folder, command, hosts, monkeypatch):
    finished(command(*COMMAND))
    alone = (folder / "a.npy").read_bytes()
    for name in ("a.npy", "a.npy.json"):
        (folder / name).unlink()
    with monkeypatch.context() as patch:
        patch.setenv("KILLED_AT", "2")
        first, second = hosts(*COMMAND, kept="KILLED_AT")
    finished(second, status=-signal.SIGKILL)
    (line,) = ends_of(first)
    assert line.startswith("error: another process of this run has gone: what is on disk is kept")
    told = [finished(host)[1] for host in hosts(*COMMAND)]
    # The whole half of the one, and two batches of the other.
    assert "encoding 2 images" in told[0]
    assert "encoding 1 image " in told[1]
    assert (folder / "a.npy").read_bytes() == alone


def test_hosts_of_which_one_is_asked_to_end_both_go_on_later(folder, command, hosts, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("KILLED_AT", "2")
        patch.setenv("KILLED_BY", str(int(signal.SIGTERM)))
        both = hosts(*COMMAND, kept="KILLED_AT")
        began = time.monotonic()
        told = [finished(host, Preempted.STATUS)[1] for host in both]
        assert time.monotonic() - began < 60
    for said in told:
        assert said.splitlines()[-1].startswith("stopped by SIGTERM; what was finished is kept")
    assert not (folder / "a.npy").exists()
    told = [finished(host)[1] for host in hosts(*COMMAND)]
    assert sum(int(n) for said in told for n in re.findall(r"encoding (\d+) images?", said)) < N
    np.testing.assert_allclose(np.load(folder / "a.npy"), direct(), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_hosts_with_other_work_or_other_images_write_nothing(folder, command, hosts, rng):
    other = "--config.encode.phi1=tiny:weights=tiny.safetensors,output=mean_patch"
    for line in ends_of(*hosts(*COMMAND, last=(other,))):
        assert "process 1 has data.train.phi1: encoder 'tiny:" in line
    # Another image in front and one less at the end: as many rows, which mean something else.
    photograph(rng, folder / "others" / "aaa.png")
    for i in range(1, N):
        photograph(rng, folder / "others" / f"{i:02d}.png")
    for line in ends_of(*hosts(*COMMAND, last=("--config.images.train=others",))):
        assert "process 1 has data.train.phi1: images_digest " in line
    tiny_encoder.write_weights(folder / "other.safetensors", seed=1)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "photos").symlink_to(folder / "photos")
    (elsewhere / "tiny.safetensors").symlink_to(folder / "other.safetensors")
    for line in ends_of(*hosts(*COMMAND, last=(), cwd=elsewhere)):
        assert "process 1 has weights of data.train.phi1 with SHA-256 " in line
    assert not (folder / "a.npy.part").exists()


@pytest.mark.slow
def test_hosts_that_do_not_see_one_folder_say_so(folder, hosts):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("photos", "tiny.safetensors"):
        (elsewhere / name).symlink_to(folder / name)
    first, second = ends_of(*hosts(*COMMAND, cwd=elsewhere))
    assert "process 1 of 2 has failed, it says why" in first
    assert "all processes must see one file system; set encode.folder" in second


@pytest.mark.slow
def test_an_error_on_one_host_ends_both(broken, hosts):
    # The broken image is among the rows of the first.
    first, second = (finished(host, status=2)[1] for host in hosts(*COMMAND))
    assert "image cat/04.png (row 2) is broken" in first.splitlines()[-1]
    assert "process 0 of 2 has failed, it says why" in second.splitlines()[-1]


def test_from_a_folder_of_images_to_its_classes(broken, command, rng):
    out, _ = finished(
        command(
            "main",
            "--config=configs/images.py",
            "--config.images.train=photos",
            "--config.images.broken=skip",
            "--config.encode.phi1=tiny:weights=tiny.safetensors",
            "--config.encode.phi2=tiny:weights=tiny.safetensors,output=mean_patch",
            "--config.n_classes=2",
            "--config.n_tasks=2",
            "--config.search.steps=2",
            "--config.search.anneal_steps=()",
            "--noconfig.plots",
            "--workdir=run",
        )
    )
    assert "k-means, phi1" in out
    with (broken / "run" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N
    assert rows[1]["image"] == "cat/02.png"
    # No label for what was not seen, and no score of it.
    (unseen,) = (row for row in rows if row["label"] == "-1")
    assert unseen["image"] == "cat/04.png"
    assert (unseen["agreement"], unseen["margin"]) == ("0.000000", "0.000000")
    results = json.loads((broken / "run" / "results.json").read_text())
    assert sum(results["ensemble"]["class_counts"]) == N - 1
    for method in (results["ensemble"], *results["tasks"], *results["baselines"].values()):
        assert np.sum(method["train"].get("confusion", N - 1)) == N - 1
    assert "confusion" in results["ensemble"]["train"]


OWN = ("--config.n_classes=2", "--config.data.train.phi2=photos.npy")


def slowly(name, *values):
    return pytest.param(*values, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param(("--config.n_classes=2",), "differ in rows", id="rows"),
        slowly("rows first", ("--config.n_classes=9",), "differ in rows"),
        slowly("another config", (*OWN, "--workdir=other"), "other belongs to another config ("),
        slowly(
            "under a file",
            (*OWN, "--workdir=b.npy/run"),
            "b.npy/run lies under a file: set --workdir",
        ),
        slowly(
            "among the images",
            (*OWN, "--workdir=photos/run"),
            "photos/run lies among the images of photos, of which",
        ),
        pytest.param(
            (*OWN[:1], "--config.data.train.phi2=nan.npy"),
            "values are NaN or infinite as float32",
            id="nan",
        ),
    ],
)
def test_what_does_not_fit_the_images_is_known_before_they_are_encoded(
    folder, command, rng, fields, message
):
    np.save(folder / "b.npy", rng.normal(size=(N + 1, 4)).astype(np.float32))
    np.save(folder / "nan.npy", np.full((N, 4), np.nan, np.float32))
    np.save(folder / "photos.npy", rng.normal(size=(N, 4)).astype(np.float32))
    (folder / "other").mkdir()
    (folder / "other" / "config.json").write_text('{"seed": 5}')
    _, err = finished(command("main", *COMMAND[1:-1], "--config.data.train.phi2=b.npy", *fields), 2)
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (folder / "representations").exists()
