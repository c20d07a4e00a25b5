"""What is said of every config field, for `--help` and the documents."""

import pytest
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import config_fields
from hume_jax.config import common


@pytest.fixture(scope="module")
def sections():
    return config_fields.sections()


@pytest.fixture(scope="module")
def fields(sections):
    return {field.name: field for section in sections for field in section.fields}


def test_every_field_of_a_config_is_listed_once(sections, fields):
    known = {n for n in config_lib.flatten(common.get_config()) if not n.startswith("presets.")}
    assert set(fields) == known
    assert sum(len(section.fields) for section in sections) == len(known)


def test_every_field_and_section_has_a_comment(sections, fields):
    assert [name for name, field in fields.items() if not field.comment] == []
    assert [section.name for section in sections if section.name and not section.comment] == []
    # A sentence, whole.
    assert [name for name, field in fields.items() if field.comment[-1] != "."] == []


def test_sections_and_fields_stand_in_the_order_of_the_file(sections):
    assert [section.name for section in sections] == [
        *("", "images", "encode", "data", "encoder", "search", "inner", "score", "ensemble"),
        *("prior", "mesh"),
    ]
    names = [field.name for field in sections[0].fields]
    assert names[:3] == ["preset", "setting", "n_classes"]
    assert [f.name for f in sections[3].fields][:2] == ["data.train.phi1", "data.test.phi1"]
    assert [f.name for f in sections[8].fields] == [
        *("ensemble.select", "ensemble.vote", "ensemble.fraction"),
    ]


def test_defaults_are_those_that_a_run_has(fields):
    for preset in ("fast", "paper"):
        config = common.get_config()
        config.preset, config.n_classes = preset, 3
        for name in ("phi1", "phi2"):
            config.data.train[name] = f"{name}.npy"
        given = ("preset", "n_classes", "data.train.phi1", "data.train.phi2")
        resolved = config_lib.flatten(config_lib.resolve(config))
        for name, value in resolved.items():
            if name not in given:
                assert getattr(fields[name], preset) == value, name


def test_types_and_comments_of_the_ways_in_which_fields_are_written(fields):
    # One a line; filled by presets; in a loop over splits; two on one line; two lines, one comment.
    assert fields["seed"] == ("seed", "int", "Seed of every random number of the run.", 0, 0)
    assert fields["n_tasks"] == (
        *("n_tasks", "int", "Number of tasks, i.e. of searches from different random starts."),
        *(16, 100),
    )
    assert fields["search.anneal_steps"][3:] == ((48, 64), (100, 200))
    assert fields["data.test.labels"].comment.startswith("True labels, (n,) integers")
    assert fields["data.test.phi1"].type == "str | tuple"
    assert fields["images.train"].comment == fields["images.test"].comment
    assert fields["encode.phi1"].comment == fields["encode.phi2"].comment
    # A comment of several lines is one paragraph.
    assert "and fields" not in fields["mesh.task"].comment
    assert "fewest stay idle." in fields["mesh.task"].comment
    assert "\n" not in "".join(field.comment for field in fields.values())


def test_values_of_a_config_file_take_the_place_of_the_presets():
    config = config_lib.load("configs/testing.py")
    found = {f.name: f for s in config_fields.sections(config) for f in s.fields}
    assert found["n_classes"].fast == config.n_classes == 10
    config = common.get_config()
    config.search.steps = 7
    config.presets.paper.n_tasks = 5
    found = {f.name: f for s in config_fields.sections(config) for f in s.fields}
    assert found["search.steps"][3:] == (7, 7)
    assert found["n_tasks"][3:] == (16, 5)


def test_a_config_without_presets_has_what_it_sets():
    values = common.get_config().to_dict()
    del values["presets"]
    config = config_dict.ConfigDict(values)
    config.n_tasks = 9
    found = {f.name: f for s in config_fields.sections(config) for f in s.fields}
    assert found["n_tasks"][3:] == (9, 9)
    assert found["search.steps"][3:] == (None, None)


def test_a_field_without_a_comment_is_seen_to_have_none(tmp_path, monkeypatch):
    text = (config_lib.config_folder() / "common.py").read_text()
    line = "    # Seed of every random number of the run.\n    config.seed"
    assert line in text
    (tmp_path / "common.py").write_text(text.replace(line, "\n    config.seed"))
    monkeypatch.setattr(config_lib, "config_folder", lambda: tmp_path)
    config_fields._statements.cache_clear()
    try:
        (top, *_) = config_fields.sections()
    finally:
        config_fields._statements.cache_clear()
    assert {f.name: f.comment for f in top.fields}["seed"] == ""
