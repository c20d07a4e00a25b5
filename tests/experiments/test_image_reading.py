import io
import json
import tarfile

import image_reading
import numpy as np
import pytest
from PIL import Image

from hume_jax.errors import UserError
from hume_jax.representations.images import sources


@pytest.fixture
def archive(tmp_path, rng):
    """A .tar of six photographs."""
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as file:
        for i in range(6):
            data = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (30, 40, 3)).astype(np.uint8)).save(data, "JPEG")
            member = tarfile.TarInfo(f"{i % 2}/{i}.jpg")
            member.size = data.tell()
            data.seek(0)
            file.addfile(member, data)
    return path


def test_the_three_sources_hold_the_same_images(archive, tmp_path):
    sources = image_reading.unpack(str(archive), tmp_path / "unpacked", 6)
    assert list(sources) == ["tar", "folder", "zip"]
    tar = sources["tar"]
    for source in sources.values():
        assert sorted(source.ids) == sorted(tar.ids)
        for i, name in enumerate(source.ids):
            assert source.read(i) == tar.read(tar.ids.index(name))


def test_photographs_are_enlarged(archive, tmp_path):
    found = image_reading.unpack(str(archive), tmp_path / "unpacked", 2, side=90)
    for source in found.values():
        assert [sources.decode(source.read(i)).size for i in range(2)] == [(120, 90)] * 2


def test_every_source_and_number_of_threads_is_timed(archive, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = f"--archive={archive} --images=5 --size=14 --batch=2 --repeats=2 --out={out}"
    image_reading.main(arguments.split())
    found = json.loads(out.read_text())
    timed = [(item["source"], item["threads"]) for item in found["timings"]]
    assert timed == [(name, n) for name in ("tar", "folder", "zip") for n in (0, 1, 2)]
    assert all(len(item["spent"]) == 2 for item in found["timings"])
    assert (found["images"], found["size"]) == (5, 14)
    printed = capsys.readouterr().out
    assert "5 images, crops of 14 px, batches of 2" in printed
    assert printed.count("| tar ") == 4


def test_a_broken_image_ends_the_timing(archive, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(b"none")
    source = sources.open_images(str(tmp_path / "photos"))
    with pytest.raises(UserError, match="image 1.jpg is broken"):
        image_reading.run(source, 1, image_reading.rule(14), 2, 0)


def test_the_rule_is_dinov2s():
    how = image_reading.rule(98)
    assert (how.resize, how.crop, how.mode, how.interpolation) == (112, 98, "shortest", "bicubic")
