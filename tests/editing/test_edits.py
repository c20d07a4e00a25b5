"""classes.yaml: what it may say, what it means, and each mistake in a line."""

import pathlib

import pytest

from hume_jax.editing import edits as edits_lib
from hume_jax.errors import UserError

K = 10
TEXT = """
names: {0: church, 4: " golf  ball ", 11: tiger}
merge: [[7, 2], [3, 1, 9]]      # in any order
split: {5: 2, 0: 3}
"""


def read(folder: pathlib.Path, text: str | bytes) -> edits_lib.Edits:
    file = folder / "classes.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return edits_lib.read(file, K)


def test_what_it_means(tmp_path: pathlib.Path) -> None:
    edits = read(tmp_path, TEXT)
    assert edits.names == {0: "church", 4: "golf ball", 11: "tiger"}
    assert edits.merge == ((2, 7), (1, 3, 9))
    assert edits.merged == {7: 2, 3: 1, 9: 1}
    # Split by split as in the file, so that one more at its end changes no number.
    assert edits.parts == {5: [5, 10], 0: [0, 11, 12]}
    assert edits.numbers == [0, 1, 2, 4, 5, 6, 8, 10, 11, 12]
    assert [edits.of(c) for c in (0, 1, 2, 6, 10, 12)] == [[0], [1, 3, 9], [2, 7], [6], [5], [0]]
    assert [edits.name_of_found(c) for c in (0, 4, 5, 7)] == [
        "church / tiger / …",
        "golf ball",
        "",
        "",
    ]


def test_a_merged_class_of_the_run_has_the_name_of_what_it_becomes(tmp_path: pathlib.Path) -> None:
    edits = read(tmp_path, "names: {2: dog}\nmerge: [[2, 7]]")
    assert (edits.name_of_found(7), edits.names.get(7)) == ("dog", None)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "names:\nmerge:\nsplit:\n", "{}"])
def test_nothing_is_no_edit(tmp_path: pathlib.Path, text: str) -> None:
    assert read(tmp_path, text) == edits_lib.Edits(K)
    assert not read(tmp_path, text).changes


def test_no_file_is_no_edit(tmp_path: pathlib.Path) -> None:
    assert edits_lib.read(tmp_path / "classes.yaml", K) == edits_lib.Edits(K)


def test_the_template_is_no_edit_and_its_examples_are(tmp_path: pathlib.Path) -> None:
    text = edits_lib.template(K, {0: 1234})
    assert "0: name  # 1,234 rows" in text
    assert read(tmp_path, text) == edits_lib.Edits(K)
    for line in ("#  1: name", "#merge", "#split"):
        assert line in text
        text = text.replace(line, line[1:])
    edits = read(tmp_path, text)
    assert (edits.merge, edits.split) == (((2, 7), (1, 3)), {0: 2})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- 1", "holds no keys: it may have names, merge, split"),
        ("name: {0: a}", "unknown key 'name'"),
        ("names: [a, b]", "names is ['a', 'b']: it must say class: name"),
        ("names: {10: a}", "names: there is no class 10, they are numbered 0 to 9"),
        ("names: {-1: a}", "names: there is no class -1"),
        ("names: {yes: a}", "names: there is no class True"),
        ("names: {zero: a}", "names: there is no class 'zero'"),
        ("names: {0: no}", "names: 0 is False, which is no text: put it in quotes"),
        ("names: {0: 2024}", "names: 0 is 2024, which is no text"),
        ("names: {0: ' '}", "names: 0 has an empty name"),
        ("names: {0: a, 3: a}", "names: classes 0 and 3 are both 'a'"),
        ("names: {0: a, 0: b}", "line 1: 0 stands there twice"),
        ("names: {0: a}\nnames: {1: b}", "line 2: 'names' stands there twice"),
        ("names: {7: a}\nmerge: [[2, 7]]", "names: class 7 is merged into 2: name class 2"),
        ("merge: [2, 7]", "merge is [2, 7]: it must be a list of lists"),
        ("merge: {2: 7}", "it must be a list of lists"),
        ("merge: [[2]]", "merge: [2] needs two classes or more"),
        ("merge: [[2, 10]]", "merge: there is no class 10"),
        ("merge: [[2, true]]", "merge: there is no class True"),
        ("merge: [[2, 7], [7, 3]]", "merge: class 7 is there twice"),
        ("merge: [[2, 2]]", "merge: class 2 is there twice"),
        ("merge: [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]", "leave nothing to tell apart"),
        ("split: [5]", "split is [5]: it must say class: parts"),
        ("split: {10: 2}", "split: there is no class 10"),
        ("split: {5: 1}", "split: 5 is 1, it must be a number of parts, 2 or more"),
        ("split: {5: two}", "split: 5 is 'two'"),
        ("split: {5: 2.0}", "split: 5 is 2.0"),
        ("merge: [[2, 5]]\nsplit: {5: 2}", "split: class 5 is merged too"),
        ("names: {0: [}", "line 1: "),
        ("names: !!python/object:os.system {}", "could not determine a constructor"),
        (b"names: {0: \xff}", "is not UTF-8 (byte 11)"),
        ("names: {0: \x07}", "is not YAML"),
    ],
)
def test_mistakes(tmp_path: pathlib.Path, text: str | bytes, says: str) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/classes.yaml")
