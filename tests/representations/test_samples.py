"""What rows are said to be: texts in two forms, images, and mistakes in them."""

import json
import pathlib

import pytest
from PIL import Image

from hume_jax.errors import UserError
from hume_jax.representations import samples


def test_a_line_of_a_text_file_is_a_row(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "texts.txt"
    # Neither the end of the file nor what Unicode calls a line separator begins a row.
    file.write_bytes("one\r\n\r\nthree\u2028still three\n".encode())
    assert samples.open_samples(str(file)).names == ["one", "", "three\u2028still three"]
    samples.check("data.train.samples", str(file), 3)
    with pytest.raises(UserError, match=r"data.train.samples=.* has 3 samples, the arrays have 4"):
        samples.check("data.train.samples", str(file), 4)
    samples.check("data.train.samples", "", 4)


def test_a_list_of_texts_is_read(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(["a\nb", "ü"]))
    assert samples.open_samples(str(file)).texts == ["a\nb", "ü"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'{"a": 1}', "it must hold a list of texts"),
        ("a.json", b'["a", 1]', "entry 1 is a int"),
        ("a.json", b"[", "is not JSON"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.csv", b"a", "cannot say what the rows are"),
    ],
)
def test_what_is_neither_is_told(
    tmp_path: pathlib.Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        samples.open_samples(str(tmp_path / name))


def test_images_are_taken_in_order(tmp_path: pathlib.Path) -> None:
    for name in ("b.png", "a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    found = samples.open_samples(str(tmp_path))
    assert list(found.names) == ["a.png", "b.png"]
    assert len(found) == 2
    with pytest.raises(UserError, match="is not there"):
        samples.open_samples(str(tmp_path / "gone"))
