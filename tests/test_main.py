"""The command line, as a user types it: `python -m hume_jax.main ...` in a process of its own."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from hume_jax import config as config_lib
from hume_jax.config import common
from hume_jax.workdir import Workdir

# The few commands that get as far as a search have little to do.
pytestmark = pytest.mark.usefixtures("quickly_compiled")

N, D1, D2 = 200, 6, 5
ARRAYS = (
    "--config=configs/arrays.py",
    "--config.data.train.phi1=phi1.npy",
    "--config.data.train.phi2=phi2.npy",
    "--config.n_classes=3",
)
QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture
def folder(tmp_path, rng):
    """A folder to run in, with two good arrays and labels."""
    np.save(tmp_path / "phi1.npy", rng.normal(size=(N, D1)).astype(np.float32))
    np.save(tmp_path / "phi2.npy", rng.normal(size=(N, D2)).astype(np.float16))
    np.save(tmp_path / "labels.npy", rng.integers(0, 3, size=N))
    return tmp_path


@pytest.fixture
def command(folder, repository):
    """Runs the command in `folder` and returns the finished process."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "hume_jax.main", *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def fails(command, folder):
    """Runs a command that must end with one line, status 2 and no new file; returns the line."""

    def run(*arguments):
        before = sorted(folder.rglob("*"))
        done = command(*arguments)
        lines = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        assert sorted(folder.rglob("*")) == before
        return lines[0].removeprefix("error: ")

    return run


# ---- flags and fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), r"no config: give --config=configs/quickstart\.py, or another of .*configs/stl10\.py"),
        (("--config=",), "--config needs a file"),
        (("--config=configs/stl_10.py",), r"not found: .*did you mean 'configs/stl10\.py'\?"),
        ((QUICKSTART, QUICKSTART), "--config is given twice"),
        ((QUICKSTART, "--wrkdir=a"), "unknown command line flag 'wrkdir'.*workdir"),
        ((QUICKSTART, "stray"), "unexpected argument 'stray'"),
        (
            (QUICKSTART + ":transductiv",),
            "unknown variant 'transductiv'; did you mean 'transductive'",
        ),
        (
            (QUICKSTART, "--config.searchh.steps=3"),
            r"unknown config field 'searchh\.steps'; did you mean 'search\.steps'\?$",
        ),
        ((QUICKSTART, "--noconfig.plot"), "unknown config field 'plot'; did you mean 'plots'"),
        ((QUICKSTART, "--config.search=3"), "'search' is a section"),
        (
            (QUICKSTART, "--config.n_tasks=many"),
            "'n_tasks' cannot be 'many': it takes a whole number",
        ),
        (
            (QUICKSTART, "--config.n_tasks=2.5"),
            "'n_tasks' cannot be '2.5': it takes a whole number",
        ),
        (
            (QUICKSTART, "--config.search.clip=x"),
            r"'search\.clip' cannot be 'x': it takes a number",
        ),
        ((QUICKSTART, "--config.plots=maybe"), "'plots' cannot be 'maybe': it takes true or false"),
        (
            (QUICKSTART, "--config.search.anneal_steps=(1,"),
            "it takes numbers in brackets and quotes",
        ),
        ((QUICKSTART, "--config.data.train.phi1=('a',"), "it takes paths"),
        ((QUICKSTART, "--config.preset=papr"), "'preset' is 'papr', .*did you mean 'paper'"),
        (
            (QUICKSTART, "--config.setting=x"),
            "'setting' is 'x', it must be one of inductive, trans",
        ),
        ((QUICKSTART, "--config.n_classes=1"), "'n_classes' is 1, it must be at least 2"),
        (
            (QUICKSTART, "--config.class_prior=(0.2,0.8)"),
            "'class_prior' has 2 values for 10 classes",
        ),
    ],
)
def test_mistakes_in_flags_and_fields(fails, arguments, message):
    assert re.search(message, fails(*arguments))


# ---- files: answered before JAX is loaded


def test_missing_files_of_the_papers_configs(fails, folder):
    line = fails("--config=configs/stl10.py:transductive,phi2=clip,preset=paper,data=authors")
    assert line.startswith("6 files not found: ")
    for part in (
        "data.train.phi1=data/representations/mocov2/stl10train_l2.npy",
        "data.test.phi2=data/representations/clip/stl10test.npy",
        "data.test.labels=data/labels/stl10test_targets.npy",
        f"looked in {folder}",
        "https://brbiclab.epfl.ch/wp-content/uploads/2023/11/data.zip",
        "encode the images yourself",
    ):
        assert part in line


def test_a_dataset_of_the_paper_that_is_not_prepared(fails, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("tfds")
    flags = ("--config=configs/stl10.py", f"--config.images.tfds_folder={elsewhere}")
    line = fails(*flags)
    assert "tfds:stl10/train is not prepared in" in line
    assert (
        'TFDS needs TensorFlow: pip install "hume_jax[prepare]", or run `tfds build stl10' in line
    )
    assert line.endswith(
        "configs/stl10.py says at its beginning what it needs, and what else it takes"
    )


def test_missing_file(fails, folder):
    (folder / "phi2.npy").unlink()
    assert re.search(r"1 file not found: data\.train\.phi2=phi2\.npy \(looked in", fails(*ARRAYS))


def test_no_files_given(fails):
    line = fails("--config=configs/arrays.py", "--config.n_classes=3")
    assert "'data.train.phi1' is not given: --config.data.train.phi1=FILE.npy" in line


def test_images_without_an_encoder_are_missed(fails, folder):
    (folder / "photos").mkdir()
    images = ("--config=configs/images.py", "--config.images.train=photos", "--config.n_classes=2")
    line = fails(*images, "--config.encode.phi2=")
    assert "field 'encode.phi2' no encoder and 'data.train.phi2' no array: --config.enc" in line
    assert "'n_classes' is 0" in fails("--config=configs/arrays.py")


def text_file(rng):
    return b"1.0,2.0\n3.0,4.0\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_file, r"phi2\.npy is not an \.npy file"),
        (lambda rng: rng.normal(size=N), r"phi2\.npy has shape \(200,\), .* two dimensions"),
        (lambda rng: rng.normal(size=(N, 2, 2)), r"shape \(200, 2, 2\), .* two dimensions"),
        (lambda rng: rng.integers(0, 9, size=(N, 2)), "dtype int64, .* float16 or float32"),
        (
            lambda rng: rng.normal(size=(N - 1, D2)),
            r"phi1\.npy \(200, 6\) and phi2\.npy \(199, 5\) differ in rows",
        ),
    ],
    ids=["text", "vector", "cube", "integers", "rows"],
)
def test_bad_files(fails, folder, rng, make, message):
    content = make(rng)
    if isinstance(content, bytes):
        (folder / "phi2.npy").write_bytes(content)
    else:
        np.save(folder / "phi2.npy", content, allow_pickle=False)
    assert re.search(message, fails(*ARRAYS))


def test_files_of_python_objects(fails, folder, save_objects):
    save_objects(folder / "phi2.npy", (2,))
    assert re.search(r"phi2\.npy holds Python objects", fails(*ARRAYS))
    np.save(folder / "phi2.npy", np.ones((N, D2)))
    save_objects(folder / "labels.npy", (N,))
    line = fails(*ARRAYS, "--config.data.train.labels=labels.npy")
    assert re.search(r"labels\.npy holds Python objects .* save one integer for each", line)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(N + 1, int), r"labels\.npy holds 201 labels, phi1\.npy has 200 rows"),
        (np.zeros(N), r"labels\.npy has dtype float64, labels are integers"),
        (np.zeros((N, 2), int), r"labels\.npy has shape \(200, 2\), labels have one dimension"),
    ],
    ids=["length", "type", "shape"],
)
def test_bad_labels(fails, folder, labels, message):
    np.save(folder / "labels.npy", labels)
    assert re.search(message, fails(*ARRAYS, "--config.data.train.labels=labels.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config.n_classes=201",), "n_classes is 201, more than the 200 searched rows"),
        (("--config.n_classes=12",), "n_classes is 12, more than the 11 columns that the task"),
        (("--config.setting=transductive",), "give data.test.phi1 and data.test.phi2"),
    ],
)
def test_searches_that_cannot_be(fails, arguments, message):
    assert message in fails(*ARRAYS, *arguments)


# ---- values: after JAX is loaded, before anything is compiled


def not_finite(array):
    array[17, 1:3] = np.nan
    array[30, 0] = np.inf


def identical(array):
    array[:] = array[0]


def zeros(array):
    array[:3] = 0


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "phi2",
            not_finite,
            r": 3 of 1000 values are NaN or infinite as float32, the first in row 17 ",
        ),
        ("phi1", identical, r": all 200 rows are identical, every column is constant"),
        # representations/test_store.py has these of the other space too.
        pytest.param(
            "phi2",
            identical,
            r": all 200 rows are identical, every column is constant",
            marks=pytest.mark.slow,
        ),
        ("phi1", zeros, r": 3 of 200 rows have zero norm, more than 1 %"),
        pytest.param(
            "phi2",
            zeros,
            r": 3 of 200 rows have zero norm, more than 1 %",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_values(fails, folder, name, change, message):
    array = np.load(folder / f"{name}.npy")
    change(array)
    np.save(folder / f"{name}.npy", array)
    assert re.search(rf"{name}\.npy{message}", fails(*ARRAYS))


def test_more_tasks_than_fit_in_memory(fails):
    many = ("--config.n_tasks=30000000", "--config.task_batch=30000000")
    line = fails(*ARRAYS, *many)
    assert re.search(r"a batch of 30000000 tasks needs about .* are free: set task_batch=\d", line)
    line = fails(*ARRAYS, "--config.n_tasks=30000000")
    assert re.search("encoders, labels and agreement of 30000000 tasks need about .* GiB", line)


def test_what_is_odd_but_can_be_searched_is_said(command, folder):
    """A subset larger than the data, constant columns, a row of zeros; and other arrays later."""
    phi1, phi2 = (np.load(folder / f"{name}.npy") for name in ("phi1", "phi2"))
    phi1[7], phi2[7], phi2[:, 1] = 0, 0, 0
    np.save(folder / "phi1.npy", phi1)
    np.save(folder / "phi2.npy", phi2)
    short = ("--config.n_tasks=1", "--config.search.steps=1", "--workdir=run")
    short += ("--noconfig.plots", "--noconfig.baselines")
    # Whatever is quickly compiled.
    short += ("--config.inner.solver=gradient", "--config.inner.adjoint=first_order")
    short += ("--config.inner.step_size=0.5", "--config.score.steps=1")
    done = command(*ARRAYS, *short)
    assert done.returncode == 0, done.stderr
    for said in (
        "search.subset_size is 5000, there are 200 rows: a subset takes 200 of them",
        "phi2.npy: 1 of 5 columns are constant",
        "phi2.npy: 1 of 200 rows have zero norm",
        "phi2.npy: 5 directions hold 1.0000 of the variance, 1 left out",
        "searching 1 task in 1 batch",
    ):
        assert said in done.stderr
    np.save(folder / "phi1.npy", phi1[::-1])
    # Of a run that is not finished; test_pipeline has the same of one that is.
    (folder / "run" / "results.json").unlink()
    again = command(*ARRAYS, *short)
    assert again.returncode == 2
    assert re.search(
        r"error: workdir .*run was begun with other data \(data\.train\.phi1: .*"
        r"\(200, 6\) float32 [0-9a-f]{16}.* -> .*set --workdir to another folder",
        again.stderr,
    )


# ---- the workdir


def resolved(**fields):
    config = common.get_config()
    config.n_classes = 3
    config.data.train.phi1, config.data.train.phi2 = "phi1.npy", "phi2.npy"
    config.update(fields)
    return config_lib.resolve(config)


def test_a_workdir_of_another_config_is_refused(fails, folder):
    with Workdir(folder / "run", resolved(seed=1)):
        pass
    line = fails(*ARRAYS, "--workdir=run")
    assert re.search(r"workdir .*run belongs to another config \(seed: 1 -> 0\)", line)


def test_a_workdir_in_use_is_refused(fails, folder):
    with Workdir(folder / "run", resolved()):
        line = fails(*ARRAYS, "--workdir=run")
    assert re.search(f"workdir .*run is in use by process {os.getpid()} on ", line)


def test_a_workdir_with_files_of_someone_else_is_refused(fails, folder):
    (folder / "labels.csv").write_text("mine")
    assert "holds labels.csv but no config.json" in fails(*ARRAYS, "--workdir=.")
    assert (folder / "labels.csv").read_text() == "mine"


def test_a_workdir_that_is_a_file_is_refused(fails):
    assert re.search(r"workdir .*phi1\.npy is a file", fails(*ARRAYS, "--workdir=phi1.npy"))


# ---- what is read


def test_help(command):
    done = command("--help")
    assert "python -m hume_jax.main --config=configs/quickstart.py" in done.stdout
    assert "--config=FILE.py" in done.stdout
    assert "--workdir=VALUE" in done.stdout


READ = """
import sys, types
pipeline = types.ModuleType("hume_jax.pipeline")
def run(config, workdir, processes, profile):
    assert processes == (0, 1)
    assert not profile
    data, search = config.data.train, config.search
    print([data.phi1, data.phi2, config.class_prior, search.anneal_steps, config.n_tasks])
    print([config.setting, config.preset, config.plots])
    print([search.steps, search.learning_rate, workdir])
    print(config.is_locked, "jax" in sys.modules)
pipeline.run = run
sys.modules["hume_jax.pipeline"] = pipeline
from hume_jax import main
from hume_jax.report import results
results.table = lambda summary: "the table"
main.run()
"""


def read(folder, repository, *arguments):
    """What reaches the pipeline, as four printed lines."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the table" in done.stdout
    return done.stdout.splitlines()[:4]


def test_values_are_read_as_typed(folder, repository):
    lines = read(
        folder,
        repository,
        "--config=configs/arrays.py:transductive",
        "--config.data.train.phi1=('phi1.npy','phi2.npy')",
        "--config.data.train.phi2=phi2.npy",
        "--config.data.test.phi1=('phi1.npy','phi2.npy')",
        "--config.data.test.phi2",
        "phi2.npy",
        "--config.n_classes=2",
        "--config.class_prior=(0.2,0.8)",
        "--config.search.anneal_steps=(10,20)",
        "--config.search.learning_rate=1",
        "--config.setting=inductive",
        "--config.preset=paper",
        "--config.n_tasks",
        "3",
        "--noconfig.plots",
        "--workdir=here",
    )
    assert lines[0] == "[('phi1.npy', 'phi2.npy'), 'phi2.npy', (0.2, 0.8), (10, 20), 3]"
    assert lines[1] == "['inductive', 'paper', False]"
    assert lines[2] == "[1000, 1.0, 'here']"
    # JAX is loaded by the pipeline alone, so that mistakes are answered at once.
    assert lines[3] == "True False"


def test_the_default_workdir_is_named_after_config_and_hash(folder, repository):
    one, two = (read(folder, repository, *ARRAYS, f"--config.seed={seed}")[2] for seed in (0, 1))
    names = [re.search(r"'runs/arrays-([0-9a-f]{8})'\]$", line)[1] for line in (one, two)]
    assert names[0] == config_lib.config_hash(resolved())[:8]
    assert names[0] != names[1]


def test_a_config_of_ones_own(folder, repository):
    (folder / "mine.py").write_text(
        "from hume_jax.config import common\n"
        "def get_config(arg=''):\n"
        "    config = common.get_config()\n"
        "    config.data.train.phi1 = 'phi1.npy'\n"
        "    config.data.train.phi2 = 'phi2.npy'\n"
        "    config.n_classes = 3\n"
        "    config.presets.fast.search.steps = 17\n"
        "    return config\n"
    )
    assert "[17, 0.1, 'runs/mine-" in read(folder, repository, "--config", "mine.py")[2]


def test_stopped_by_the_keyboard(folder, repository):
    text = READ.replace(
        "data, search = config.data.train, config.search", "raise KeyboardInterrupt"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *ARRAYS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130
    assert "stopped; the same command goes on from the last checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_there(command, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    done = command(*ARRAYS)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: JAX finds no device (")
    assert "JAX_PLATFORMS='abacus'" in last
