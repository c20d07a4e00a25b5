import json
import math
import os
import pathlib

import pytest
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import config_checks
from hume_jax.config import common
from hume_jax.errors import UserError

PAPER = ("stl10", "cifar10", "cifar100_20", "imagenet")
OWN = ("quickstart", "testing", "arrays", "images")


def load(spec):
    return config_lib.load(f"configs/{spec}")


def given(**fields):
    """The common config with n_classes and some fields set, by their dotted names."""
    config = common.get_config()
    config.n_classes = 3
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


# ---- files


def test_locate_prefers_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    mine = tmp_path / "configs" / "quickstart.py"
    mine.write_text("")
    monkeypatch.chdir(tmp_path)
    assert config_lib.locate("configs/quickstart.py") == mine
    assert config_lib.locate(str(mine)) == mine


@pytest.mark.parametrize("name", ["configs/stl10.py", "stl10.py"])
def test_locate_falls_back_to_the_package(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_lib.locate(name) == config_lib.config_folder() / "stl10.py"


def test_a_wheel_carries_its_configs_inside(tmp_path, monkeypatch):
    (tmp_path / "hume_jax" / "configs").mkdir(parents=True)
    monkeypatch.setattr(config_lib, "PACKAGE", tmp_path / "hume_jax")
    assert config_lib.config_folder() == tmp_path / "hume_jax" / "configs"


@pytest.mark.parametrize("name", ["configs/stl_10.py", "elsewhere/stl10.py", "/nowhere/stl10.py"])
def test_locate_names_the_nearest(name):
    with pytest.raises(UserError, match=r"config file not found: .*did you mean 'configs/stl10.py"):
        config_lib.locate(name)


@pytest.mark.parametrize("name", ["configs/nope.py", "configs/mine.py", "nothing"])
def test_locate_names_none_that_is_not_near(name):
    with pytest.raises(UserError, match="config file not found: ") as error:
        config_lib.locate(name)
    assert "did you mean" not in str(error.value)


def test_names_are_all_configs_but_common():
    assert config_lib.names() == [f"configs/{name}.py" for name in sorted(PAPER + OWN)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("x = 1", "defines no function get_config"),
        ("\n\nimport nothing_like_this", "line 3: ModuleNotFoundError"),
        ("def get_config():\n    return 3", "returns int, not a ConfigDict"),
        (
            "from hume_jax.config import common\n"
            "def get_config(arg=''):\n"
            "    config = common.get_config()\n"
            "    config.search.stepps = 3\n"
            "    return config\n",
            "line 4: AttributeError: .*stepps",
        ),
        (
            "from hume_jax.config import common\n"
            "def get_config(arg=''):\n"
            "    config = common.get_config()\n"
            "    config.search.steps = 'many'\n"
            "    return config\n",
            "line 4: TypeError",
        ),
    ],
)
def test_a_config_that_fails_is_answered_with_its_line(text, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config_lib.load(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_config_without_variants_says_so(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from hume_jax.config import common\nget_config = lambda: common.get_config()\n"
    )
    assert config_lib.load(str(path)).setting == "inductive"
    with pytest.raises(UserError, match="takes 0 positional arguments"):
        config_lib.load(f"{path}:transductive")


# ---- the configs of the package


@pytest.mark.parametrize("name", PAPER + OWN)
@pytest.mark.parametrize("setting", ["inductive", "transductive"])
@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_every_config_loads_locked_and_resolves(name, setting, preset):
    config = load(f"{name}.py:{setting},preset={preset}")
    assert config.is_locked
    if name in ("arrays", "images"):
        assert config.n_classes == 0
        config.n_classes = 10
    resolved = config_lib.resolve(config)
    assert resolved.is_locked
    assert (resolved.setting, resolved.preset) == (setting, preset)
    assert "presets" not in resolved
    assert None not in config_lib.flatten(resolved).values()


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("phi2", ["dino", "clip", "bit"])
def test_the_papers_configs_read_the_published_layout(name, phi2):
    files = {"cifar100_20": "cifar10020", "imagenet": "imagenet1000"}.get(name, name)
    config = load(f"{name}.py:phi2={phi2},data=authors")
    assert config.data.train.phi1 == f"data/representations/mocov2/{files}train_l2.npy"
    assert config.data.test.phi2 == f"data/representations/{phi2}/{files}test.npy"
    assert config.data.train.labels == f"data/labels/{files}train_targets.npy"
    other = load(f"{name}.py:files=other,phi2={phi2}")
    assert other.data.test.phi1 == "data/representations/mocov2/othertest_l2.npy"


def test_the_papers_presets():
    config = config_lib.resolve(load("cifar10.py:preset=paper"))
    assert config.n_tasks == 100
    assert config.encoder.temperature == 0.1
    assert config.search.to_dict() == {
        "steps": 1000,
        "subset_size": 10000,
        "splits": "random",
        "train_fraction": 0.9,
        "subsets_per_step": 20,
        "learning_rate": 1e-3,
        "clip": 1.0,
        "anneal_steps": (100, 200),
        "anneal_learning_rate": 0.1,
        "anneal_temperature": 0.1,
        "entropy_weight": 10.0,
        "spaces": "given",
        "rows": "auto",
        "storage": "float32",
        "shards": 1,
    }
    inner = config.inner
    assert [config.encoder.normalise, inner.normalise, inner.precondition] == [False] * 3
    assert (inner.adjoint, inner.solver, inner.start) == ("unrolled", "gradient", "random")
    assert (inner.steps, inner.step_size, inner.penalty) == (300, 1e-3, 0.0)

    imagenet = config_lib.resolve(load("imagenet.py:preset=paper"))
    assert (imagenet.search.subset_size, imagenet.search.train_fraction) == (20000, 0.7)
    assert (imagenet.search.learning_rate, imagenet.search.anneal_steps) == (0.1, ())
    inner = imagenet.inner
    assert (inner.steps, inner.step_size, inner.start) == (100, 0.1, "fixed")
    assert config_lib.resolve(load("imagenet.py")).search.anneal_steps != ()


@pytest.mark.parametrize("name", PAPER + OWN)
def test_a_configs_docstring_carries_its_command_and_variants(name):
    text = (config_lib.config_folder() / f"{name}.py").read_text()
    docstring = text.split('"""')[1]
    assert f"python -m hume_jax.main --config=configs/{name}.py" in docstring
    assert "Variants: `inductive` (default), `transductive`" in docstring
    if name in PAPER:
        assert "https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip" in docstring
        assert "not checked" in docstring


def test_every_common_field_has_a_comment_above_it():
    lines = (config_lib.config_folder() / "common.py").read_text().splitlines()
    fields = {name.rpartition(".")[2] for name in config_lib.flatten(common.get_config())}
    documented = set()
    for above, line in zip(lines, lines[1:], strict=False):
        target = line.partition("=")[0]
        if "=" in line and above.lstrip().startswith("#"):
            documented |= {part.strip().rpartition(".")[2] for part in target.split(",")}
    # Every preset field is commented where the presets are, n_tasks where it is declared.
    assert fields <= documented


# ---- variants


def test_parse_variant():
    choices = {"setting": ("inductive", "transductive"), "phi2": ("dino", "clip"), "files": ()}
    parse = config_lib.parse_variant
    assert parse("", **choices) == {}
    assert parse("transductive, phi2=clip", **choices) == {
        "setting": "transductive",
        "phi2": "clip",
    }
    assert parse("files=x10", **choices) == {"files": "x10"}


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("transductiv", "did you mean 'transductive'"),
        ("phi2=clp", "did you mean 'clip'"),
        ("phi=clip", "did you mean 'phi2'"),
        ("preset", "did you mean 'preset='"),
        ("preset=quick", "preset is one of fast, paper"),
    ],
)
def test_unknown_variants_name_the_nearest(arg, message):
    with pytest.raises(UserError, match=message):
        load(f"stl10.py:{arg}")


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("transductive,inductive", "setting twice, 'transductive' and 'inductive'"),
        ("transductive,setting=transductive", "gives setting twice"),
        ("phi2=clip,transductive,phi2=bit", "phi2 twice, 'clip' and 'bit'"),
    ],
)
def test_a_variant_given_twice_is_refused(arg, message):
    with pytest.raises(UserError, match=message):
        load(f"stl10.py:{arg}")


# ---- fields


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("searchh.steps", "did you mean 'search.steps'"),
        ("search.step", "did you mean 'search.steps'"),
        ("seting", "did you mean 'setting'"),
        ("train.labels", "did you mean 'data.train.labels'"),
        ("searchh.shards", "did you mean 'search.shards'"),
        ("data.train.phi3", "did you mean 'data.train.phi"),
        ("zzzzz", "unknown config field 'zzzzz'$"),
        ("search", "is a section"),
    ],
)
def test_unknown_fields_name_the_nearest(name, message):
    with pytest.raises(UserError, match=message):
        config_lib.check_field(name, common.get_config())


def test_a_field_known_in_several_sections_names_them():
    with pytest.raises(UserError, match=r"'inner.steps' or 'score.steps' or 'search.steps'\?"):
        config_lib.check_field("steps", common.get_config())


def test_resolve_lets_explicit_values_win():
    config = given(search__steps=7, inner__start="cold", preset="paper")
    resolved = config_lib.resolve(config)
    assert (resolved.search.steps, resolved.inner.start) == (7, "cold")
    assert resolved.search.subset_size == 10000
    assert config.search.subset_size is None, "the given config is not changed"


def test_resolve_takes_what_the_file_says_the_preset_is():
    config = given()
    config.presets.fast.search.steps = 11
    assert config_lib.resolve(config).search.steps == 11


def test_resolve_twice_changes_nothing():
    once = config_lib.resolve(given(class_prior=(0.1, 0.2, 0.6)))
    assert config_lib.to_json(config_lib.resolve(once)) == config_lib.to_json(once)
    assert math.fsum(once.class_prior) == pytest.approx(1, abs=1e-15)


def test_resolve_needs_all_fields():
    config = given().to_dict()
    del config["search"]["shards"]
    with pytest.raises(UserError, match="no field 'search.shards'"):
        config_lib.resolve(config_dict.ConfigDict(config))
    config["search"]["shard"] = 3
    with pytest.raises(UserError, match="unknown config field 'search.shard'; did you mean"):
        config_lib.resolve(config_dict.ConfigDict(config))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_classes", 0, "'n_classes' is 0, it must be at least 2"),
        ("n_classes", 1, "at least 2"),
        ("n_tasks", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**31, "at most 2147483647"),
        ("setting", "inductiv", "did you mean 'inductive'"),
        ("preset", "quick", "one of fast, paper"),
        ("search.train_fraction", 1.0, "less than 1"),
        ("search.train_fraction", 0.0, "greater than 0"),
        ("search.learning_rate", math.nan, "finite"),
        ("search.learning_rate", math.inf, "finite"),
        ("ensemble.fraction", 1.5, "at most 1"),
        ("search.anneal_steps", (20, 10), "rising order"),
        ("search.anneal_steps", (10, 10), "rising order"),
        ("search.anneal_steps", (0.5,), "step numbers"),
        ("search.anneal_steps", ("a",), "step numbers"),
        ("inner.penalty", 0.0, "no unique solution"),
        ("inner.penalty", 1e-300, "for float32 0, where the inner fit has no unique solution"),
        ("inner.steps", 2**31, "at most 2147483647"),
        ("log_every", 10**11, "at most 2147483647"),
        ("score.folds", 10001, "at most score.rows, which is 10000"),
        ("inner.adjoint", "implict", "did you mean 'implicit'"),
        ("class_prior", (0.5, 0.5), "2 values for 3 classes"),
        ("class_prior", "estimated", r"'estimate', or \(\) for the uniform prior"),
        ("n_classes", "automatic", "a whole number, or 'auto'"),
        ("class_prior", (0.5, 0.5, 0.0), "positive numbers"),
        ("class_prior", (0.5, 0.5, math.nan), "positive numbers"),
        ("class_prior", ("a", "b", "c"), "positive numbers"),
        ("data.train.phi1", (), "must hold paths"),
        ("data.train.phi1", ("a.npy", 3), "must hold paths"),
    ],
)
def test_values_out_of_range_are_named(field, value, message):
    with pytest.raises(UserError, match=message) as error:
        config_lib.resolve(given(**{field: value}))
    assert field.rpartition(".")[2] in str(error.value)
    assert "\n" not in str(error.value)


def test_every_number_has_a_bound():
    flat = config_lib.flatten(config_lib.resolve(given()))
    numbers = {
        name
        for name, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    bounded = set(config_checks._AT_LEAST) | set(config_checks._GREATER_THAN_ZERO)
    assert numbers == bounded


def test_json_hash_and_default_workdir():
    config = config_lib.resolve(given(class_prior=(1, 1, 2)))
    text = config_lib.to_json(config)
    assert json.loads(text)["class_prior"] == [0.25, 0.25, 0.5]
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert len(config_lib.config_hash(config)) == 64
    other = config_lib.resolve(given(class_prior=(1, 1, 2), seed=1))
    assert config_lib.config_hash(other) != config_lib.config_hash(config)
    speed = {"encode__threads": 7, "encode__batch": 9, "log_every": 3, "checkpoint_seconds": 1.0}
    faster = config_lib.resolve(given(class_prior=(1, 1, 2), **speed))
    assert config_lib.config_hash(faster) == config_lib.config_hash(config)
    assert config_lib.difference(json.loads(text), faster) == []
    name = config_lib.default_workdir("configs/arrays.py:transductive", config)
    assert name == pathlib.Path("runs") / f"arrays-{config_lib.config_hash(config)[:8]}"


def test_difference():
    old = config_lib.resolve(given())
    old_steps = old.search.steps
    new = config_lib.resolve(given(search__steps=7))
    stored = json.loads(config_lib.to_json(old))
    assert config_lib.difference(stored, old) == []
    assert config_lib.difference(stored, new) == [f"search.steps: {old_steps} -> 7"]
    del stored["seed"]
    assert config_lib.difference(stored, old) == ["seed: absent -> 0"]


def test_paths_parser():
    parser = config_lib._PathsParser()
    assert parser.parse("a.npy") == "a.npy"
    assert parser.parse("('a.npy','b.npy')") == ("a.npy", "b.npy")
    assert parser.parse("['a.npy']") == ("a.npy",)
    assert parser.parse(("a.npy",)) == ("a.npy",)
    with pytest.raises(ValueError, match="parsing"):
        parser.parse("('a.npy',")


def test_packaged_data_does_not_depend_on_where_it_lies():
    config = config_lib.resolve(load("quickstart.py"))
    assert os.sep + "hume_jax" not in config_lib.to_json(config)
    assert config.data.train.phi1 == "hume_jax:quickstart/phi1_train.npy"
