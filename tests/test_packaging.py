"""What is shipped: metadata, pins, wheel and source distribution."""

import ast
import configparser
import importlib.metadata
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import hume_jax

# Of the checkout, what is no part of the project; other names with a dot are.
IGNORED = shutil.ignore_patterns(
    *(".git", ".venv*", ".hypothesis", ".*_cache", "runs", "build", "dist", "*.egg-info"),
    "__pycache__",
)


@pytest.fixture(scope="module")
def metadata(repository):
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg")
    return parser


def requirements(text):
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def pins(path):
    return {canonicalize_name(r.name): r for r in requirements(path.read_text())}


def test_every_package_folder_is_listed(repository, metadata):
    folders = {p.parent for p in (repository / "hume_jax").rglob("*.py")}
    found = {".".join(folder.relative_to(repository).parts) for folder in folders}
    listed = set(metadata["options"]["packages"].split())
    assert listed == found | {"hume_jax.configs"}


def imported_modules(folder):
    """The top-level names of the modules that the files of a folder import."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


def test_every_imported_distribution_is_required(repository, metadata):
    lists = [metadata["options"]["install_requires"], *metadata["options.extras_require"].values()]
    required = {canonicalize_name(r.name) for text in lists for r in requirements(text)}
    known = importlib.metadata.packages_distributions()
    modules = {
        m for folder in ("hume_jax", "configs") for m in imported_modules(repository / folder)
    }
    modules -= sys.stdlib_module_names | {"hume_jax"}
    # Of what is not installed, such as PyTorch, the module has the distribution's name.
    missing = {
        m for m in modules if not required & {canonicalize_name(d) for d in known.get(m, [m])}
    }
    assert not missing


def test_every_requirement_is_pinned_to_a_version_it_allows(repository, metadata):
    runtime = pins(repository / "requirements.txt")
    development = pins(repository / "requirements-dev.txt")
    documents = pins(repository / "requirements-docs.txt")
    extras = metadata["options.extras_require"]
    wanted = {
        "requirements.txt": metadata["options"]["install_requires"]
        + extras["images"]
        + extras["arrays"]
        + extras["baselines"],
        "requirements-dev.txt": extras["dev"],
        "requirements-docs.txt": extras["docs"],
    }
    for file, text in wanted.items():
        pinned = {
            "requirements.txt": runtime,
            "requirements-dev.txt": runtime | development,
            "requirements-docs.txt": documents,
        }[file]
        for requirement in requirements(text):
            pin = pinned[canonicalize_name(requirement.name)]
            (exact,) = pin.specifier
            assert requirement.specifier.contains(exact.version), (file, str(requirement))


def test_pins_are_exact_and_stated_once(repository):
    files = ("requirements.txt", "requirements-dev.txt", "requirements-docs.txt")
    for file in files:
        found = requirements((repository / file).read_text())
        assert all([s.operator for s in r.specifier] == ["=="] for r in found)
        assert len({canonicalize_name(r.name) for r in found}) == len(found)
    for one, other in itertools.combinations(files, 2):
        assert not pins(repository / one).keys() & pins(repository / other).keys(), (one, other)


def test_changelog_has_a_section_for_this_version(repository):
    changelog = (repository / "CHANGELOG.md").read_text()
    assert f"## [{hume_jax.__version__}]" in changelog


@pytest.fixture(scope="module")
def distributions(repository, tmp_path_factory):
    """The sdist of a copy of the checkout, and the wheel that is built from that sdist."""
    source = tmp_path_factory.mktemp("source") / "hume_jax"
    shutil.copytree(repository, source, ignore=IGNORED)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_wheel_holds_package_configs_and_data(repository, distributions):
    wheel, _ = distributions
    assert wheel.name == f"hume_jax-{hume_jax.__version__}-py3-none-any.whl"
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    shipped = ("*.py", "py.typed", "data/quickstart/*.npy", "data/quickstart/README.md")
    shipped += ("report/page/assets/*",)
    package = repository / "hume_jax"
    expected = {
        p.relative_to(repository).as_posix() for pattern in shipped for p in package.rglob(pattern)
    }
    expected |= {f"hume_jax/configs/{p.name}" for p in (repository / "configs").glob("*.py")}
    assert "hume_jax/configs/quickstart.py" in expected
    assert names == expected


@pytest.mark.slow
def test_sdist_holds_what_a_contributor_needs(repository, distributions):
    _, sdist = distributions
    with tarfile.open(sdist) as archive:
        names = {pathlib.PurePosixPath(n).relative_to(sdist.name[:-7]) for n in archive.getnames()}
    for name in (
        "setup.cfg",
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        "README.md",
        "CITATION.cff",
        ".ci/run",
        ".ci/lower_bounds.py",
        ".github/workflows/ci.yml",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-docs.txt",
        "docs/conf.py",
        "configs/common.py",
        "experiments/make_quickstart_data.py",
        "hume_jax/data/quickstart/phi1_train.npy",
        "tests/conftest.py",
        "tests/golden/paper_parity.npz",
    ):
        assert pathlib.PurePosixPath(name) in names, name


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def empty_environment(request, repository, distributions, tmp_path_factory):
    """An environment with nothing but the package and what its metadata asks for, at the pins."""
    archive = distributions[("wheel", "sdist").index(request.param)]
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    pins = repository / "requirements.txt"
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    command = [*install, "--constraint", pins, archive]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    yield folder / "bin"
    shutil.rmtree(folder)


@pytest.fixture
def run(empty_environment, tmp_path):
    """Runs a program of that environment as a user would: elsewhere, without the checkout."""

    def run(program, *arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        command = [empty_environment / program, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
def test_an_empty_environment_passes_the_quickstart(run, tmp_path):
    done = run("hume", "run", "--config=configs/quickstart.py", "--workdir=run")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["version"] == hume_jax.__version__
    assert results["ensemble"]["test"]["acc"] > 0.93
    for name in ("curves.png", "objective.png", "confusion.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    data = pathlib.Path(hume_jax.__file__).parent / "data" / "quickstart"
    rows = sum(len(np.load(data / f"labels_{split}.npy")) for split in ("train", "test"))
    assert len((tmp_path / "run" / "labels.csv").read_text().splitlines()) == 1 + rows
    # Finished: the same command by Python shows what is there.
    again = run("python", "-m", "hume_jax.main", "--config=configs/quickstart.py", "--workdir=run")
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_an_empty_environment_has_the_console_script(run):
    assert run("hume", "--version").stdout == f"hume_jax {hume_jax.__version__}\n"
    shown = run("hume", "run", "--help").stdout
    assert shown == run("python", "-m", "hume_jax.cli", "run", "--help").stdout
    assert "n_tasks = 16 (paper: 100)" in shown
