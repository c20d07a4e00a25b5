"""`hume VERB` and its `--help`, as a user types it."""

import configparser
import importlib.metadata
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

import hume_jax
from hume_jax import command_help, config_fields, verbs
from hume_jax import config as config_lib

# Each takes a quarter of a minute; two of them, with a config and without, stand for all at first.
EACH = [
    pytest.param(
        verb, id=verb.name, marks=() if verb.name in ("run", "predict") else pytest.mark.slow
    )
    for verb in verbs.VERBS
]


@pytest.fixture
def hume(tmp_path, repository):
    """Runs `hume ARGUMENTS`, or another module with them, in an empty folder."""

    def run(*arguments, module="hume_jax.cli", **environment):
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(repository), "COLUMNS": "80", **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_the_console_script_is_this_module(repository):
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg")
    script = parser["options.entry_points"]["console_scripts"].strip()
    assert script == "hume = hume_jax.cli:run"
    entry = importlib.metadata.EntryPoint("hume", script.partition(" = ")[2], "console_scripts")
    assert callable(entry.load())


@pytest.mark.parametrize("asked", [(), ("--help",), ("-h",)])
def test_without_a_verb_the_verbs_are_listed(hume, asked):
    done = hume(*asked)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in verbs.VERBS:
        assert re.search(rf"^  {verb.name} +{re.escape(verb.does)}$", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert len(done.stdout.splitlines()) < 24


def test_version(hume):
    assert hume("--version").stdout == f"hume_jax {hume_jax.__version__}\n"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("choose_k", "unknown verb 'choose_k'; did you mean 'choose-k'?; there are run, encode"),
        ("pedict", "unknown verb 'pedict'; did you mean 'predict'?"),
        ("xyz", "unknown verb 'xyz'; there are run, encode, predict, classes, reliable, choose-k"),
        ("--config=a.py", "the verb comes first, hume VERB --config=a.py: one of run, encode"),
    ],
)
def test_what_is_no_verb(hume, asked, line):
    done = hume(asked)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", EACH)
def test_a_verb_is_the_command_of_its_module(hume, verb):
    """The same help, and the same line and status for a flag that there is not."""
    module = verb.command.removeprefix("python -m ")
    shown, same = hume(verb.name, "--help"), hume("--help", module=module)
    assert (shown.returncode, same.returncode) == (0, 0), shown.stderr + same.stderr
    assert shown.stdout.startswith(f"usage: hume {verb.name} ")
    assert same.stdout.startswith(f"usage: {verb.command} ")
    as_typed = re.sub(r"\s+", " ", same.stdout)
    for other in verbs.VERBS:
        as_typed = as_typed.replace(other.command, f"hume {other.name}")
    assert re.sub(r"\s+", " ", shown.stdout) == as_typed
    wrong, same = hume(verb.name, "--flgg=1"), hume("--flgg=1", module=module)
    assert wrong.returncode == same.returncode == 2
    assert wrong.stderr == same.stderr
    assert re.fullmatch(r"error: .*\n", wrong.stderr)


def test_run_has_a_module_of_its_name(hume):
    done = hume("--help", module="hume_jax.run")
    assert done.stdout == hume("--help", module="hume_jax.main").stdout


def test_a_verb_imports_its_own_module_alone(repository):
    script = (
        "import sys; sys.argv = ['hume', 'encode', '--help']\n"
        "from hume_jax import cli\ncli.run()\n"
        "print(sorted(m for m in sys.modules if m.startswith('hume_jax')), file=sys.stderr)\n"
        "print('jax' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    modules, jax = done.stderr.splitlines()
    assert "'hume_jax.encode'" in modules
    assert not any(f"'{verb.module}'" in modules for verb in verbs.VERBS if verb.name != "encode")
    assert jax == "False"


def test_flags_of_the_commands_do_not_collide(repository):
    """All of them can be imported by one process."""
    script = "import " + ", ".join(verb.module for verb in verbs.VERBS)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- what --help prints


def test_help_lists_every_field_with_its_comment_and_defaults(hume):
    text = hume("run", "--help").stdout
    flat = re.sub(r"\s+", " ", text)
    for section in config_fields.sections():
        assert f"{section.name}: {section.comment}" in flat or not section.name
        for field in section.fields:
            assert re.search(rf"^  ([\w., ]+, )?{field.name}(, [\w., ]+)? = ", text, re.MULTILINE)
            assert field.comment.replace("python -m hume_jax.encode", "hume encode") in flat
    for line in (
        "hume run --config=configs/quickstart.py",
        "  --workdir=VALUE ",
        "  n_tasks = 16 (paper: 100)\n",
        "  search.anneal_steps = (48,64) (paper: (100,200))\n",
        "  data.train.phi1, data.test.phi1 = ''\n",
        "  plots = true\n",
    ):
        assert line in text
    assert "presets.fast" not in text


def test_help_fits_the_terminal(hume):
    for columns in (60, 80, 300):
        text = hume("run", "--help", COLUMNS=str(columns)).stdout
        # But for commands, which can be copied as they are.
        lines = [line for line in text.splitlines() if not re.match("    (hume|    )", line)]
        assert max(map(len, lines)) <= min(columns, 100)
        assert max(map(len, lines)) > min(columns, 100) - 8


def test_flags_are_told_in_a_line_each(hume):
    for verb in ("run", "encode", "sweep"):
        text = hume(verb, "--help").stdout
        listed = text.partition("Flags:\n\n")[2].partition("\n\n")[0].splitlines()
        assert len(listed) >= 5
        assert all(re.match(r"  --\w+|  +Where the runs start", line) for line in listed), listed


def test_defaults_that_say_nothing_are_left_out():
    values = flags.FlagValues()
    flags.DEFINE_multi_string("several", [], "Each once.", flag_values=values)
    flags.DEFINE_integer("number", 0, "From 0.", flag_values=values)
    flags.DEFINE_enum("kind", "a", ["a", "b"], "Which one.", flag_values=values)
    texts = [tuple(command_help._of_flag(values[name])) for name in ("several", "number", "kind")]
    assert texts == [
        ("--several=VALUE", "Each once."),
        ("--number=N", "From 0."),
        ("--kind=a|b", "Which one (default: a)."),
    ]


def test_help_shows_what_a_command_reads_and_no_more(hume):
    text = hume("encode", "--help").stdout
    for there in (
        "--list ",
        "images.train, images.test = ''",
        "encode.batch = 64",
        "data.train.phi1",
    ):
        assert there in text
    for absent in ("--workdir", "--profile", "search.steps", "n_tasks", "mesh."):
        assert absent not in text


def test_help_with_a_config_file_has_its_values(hume):
    spec = "configs/stl10.py:preset=paper"
    config = config_lib.load(spec)
    for asked in ([f"--config={spec}"], ["--config", spec]):
        text = hume("run", *asked, "--help").stdout
        assert f"  n_classes = {config.n_classes}\n" in text
        assert "  n_tasks = 100\n" in text
        assert "(paper:" not in text
        assert "with the values of this file and preset=paper" in re.sub(r"\s+", " ", text)
    done = hume("run", "--help", "--config=nowhere.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: config file not found: nowhere.py")


def test_the_longer_help_of_absl_stays(hume):
    assert "--[no]profile" in hume("run", "--helpfull").stdout
    assert "<AllFlags>" in hume("run", "--helpxml").stdout


def test_a_reader_of_help_that_has_seen_enough(repository):
    command = f"{sys.executable} -m hume_jax.cli run --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_a_tiny_run_by_its_verb(hume, tmp_path, rng):
    """To its end; by the module of that name it is the same run, finished already."""
    fields = ["--config=configs/arrays.py", "--config.n_classes=3", "--workdir=out"]
    for name, columns in (("phi1", 6), ("phi2", 5)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(200, columns)).astype(np.float32))
        fields.append(f"--config.data.train.{name}={name}.npy")
    # Whatever is quickly compiled.
    fields += ["--noconfig.plots", "--noconfig.baselines", "--config.n_tasks=1"]
    fields += ["--config.search.steps=1", "--config.score.steps=1", "--config.inner.step_size=0.5"]
    fields += ["--config.inner.solver=gradient", "--config.inner.adjoint=first_order"]
    done = hume("run", *fields)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("inductive, 3 classes, 1 task, ")
    assert f"results and labels: {tmp_path / 'out'}" in done.stdout
    again = hume(*fields, module="hume_jax.run")
    assert again.stdout == done.stdout
