"""What keeps the project in health: continuous integration, hooks, lower bounds, the citation."""

import configparser
import importlib.util
import os
import re
import shlex
import subprocess

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import hume_jax


@pytest.fixture(scope="module")
def metadata(repository):
    parser = configparser.ConfigParser()
    parser.read(repository / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def makefile(repository):
    return (repository / "Makefile").read_text()


@pytest.fixture(scope="module")
def workflow(repository):
    # YAML 1.1 reads the key `on` as true.
    return yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text())


def pythons(metadata):
    """The versions of Python that the classifiers name, the oldest first."""
    found = re.findall(r"Python :: (3\.\d+)$", metadata["metadata"]["classifiers"], re.MULTILINE)
    return sorted(found, key=lambda version: int(version.partition(".")[2]))


def steps(workflow):
    """The steps of all jobs, with what a matrix puts in."""
    for job in workflow["jobs"].values():
        for entry in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            for step in job["steps"]:
                text = yaml.safe_dump(step)
                for name, value in entry.items():
                    text = text.replace(f"${{{{ matrix.{name} }}}}", str(value))
                yield step, text


def test_classifiers_and_python_requires_are_the_same_versions(metadata):
    known = pythons(metadata)
    asked = SpecifierSet(metadata["options"]["python_requires"])
    assert known[0] in asked
    first = int(known[0].partition(".")[2])
    assert f"3.{first - 1}" not in asked
    assert known == [f"3.{minor}" for minor in range(first, first + len(known))]


def test_integration_runs_on_the_oldest_and_the_newest(workflow, metadata):
    entries = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    oldest, newest = pythons(metadata)[0], pythons(metadata)[-1]
    assert {entry["python"] for entry in entries} == {oldest, newest}
    by_packages = {(entry["packages"], entry["python"]): entry["command"] for entry in entries}
    assert by_packages["pinned", oldest] == ".ci/run"
    assert by_packages["oldest", oldest] == "make test-oldest"
    assert by_packages["newest", newest] == "make test-newest"


def test_lint_comes_first_and_nothing_may_be_written(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    for name, job in workflow["jobs"].items():
        assert job.get("needs") == (None if name == "lint" else "lint")
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60


def test_every_step_of_the_workflow_is_there(workflow, makefile, repository):
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    run = 0
    for step, text in steps(workflow):
        assert "${{ matrix." not in text
        if "uses" in step:
            assert re.fullmatch(r"actions/(checkout|setup-python)@v\d+", step["uses"])
            continue
        run += 1
        command = shlex.split(yaml.safe_load(text)["run"])
        if command[0] == "make":
            assert set(command[1:]) <= targets
        else:
            assert os.access(repository / command[0], os.X_OK)
    assert run >= 5


def test_every_target_is_a_rule_and_told(makefile):
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    told = makefile.partition("\n\n")[0]
    for target in targets:
        assert re.search(rf"^([\w-]+ )*{target}( [\w-]+)*:(?!.*export)", makefile, re.MULTILINE)
        if target not in ("help", "lint", "types"):
            assert f"make {target} " in told or f"`make {target}`" in told, target


def test_hooks_are_the_pinned_tools(repository):
    config = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())
    pinned = (repository / "requirements-dev.txt").read_text()
    (local,) = config["repos"]
    assert local["repo"] == "local"
    tools = {"ruff": "ruff", "mypy": "mypy"}
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        package = tools.get(program.rpartition("/")[2], "pre-commit-hooks")
        assert re.search(rf"^{package}==", pinned, re.MULTILINE)
        if (repository / ".venv").exists():
            assert os.access(repository / program, os.X_OK), program
    assert {"ruff-check", "ruff-format", "mypy"} <= {hook["id"] for hook in local["hooks"]}


# ---- the oldest packages


@pytest.fixture(scope="module")
def script(repository):
    """The module `.ci/lower_bounds.py`."""
    path = repository / ".ci" / "lower_bounds.py"
    spec = importlib.util.spec_from_file_location("lower_bounds", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lower_bounds_are_those_of_all_that_the_tests_need(script, metadata, repository, makefile):
    bounds = script.lower_bounds((repository / "setup.cfg").read_text())
    extras = metadata["options.extras_require"]
    texts = [metadata["options"]["install_requires"], *(extras[name] for name in script.EXTRAS)]
    lines = [line.partition("#")[0].strip() for text in texts for line in text.splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    assert set(bounds) == {requirement.name for requirement in wanted}
    for requirement in wanted:
        (bound,) = requirement.specifier
        assert bounds[requirement.name] == bound.version
    # What is installed with these constraints.
    installed = re.search(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)[1].split(",")
    assert set(installed) == {*script.EXTRAS, "test"}


def test_lower_bounds_of_other_forms_are_refused(script):
    text = "[options]\ninstall_requires =\n    {}\n[options.extras_require]\n"
    text += "".join(f"{extra} =\n" for extra in script.EXTRAS)
    assert script.lower_bounds(text.format("a[b,c]>=1.2  # why")) == {"a": "1.2"}
    for wrong in ("a", "a<2", "a>=1,<2"):
        with pytest.raises(ValueError, match="is not of the form"):
            script.lower_bounds(text.format(wrong))
    with pytest.raises(ValueError, match="two bounds of a: 1 and 2"):
        script.lower_bounds(text.format("a>=1\n    a>=2"))


# ---- what is said of the project


def test_the_citation_is_of_this_version(repository, metadata):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == hume_jax.__version__
    assert citation["license"] == metadata["metadata"]["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gadetsky", "Brbić"]
    assert paper["year"] == 2023
    assert "2311.02940" in paper["url"]


def test_contributing_begins_with_one_command(repository, makefile):
    text = (repository / "CONTRIBUTING.md").read_text()
    commands = re.findall(r"^    (.*)$", text, re.MULTILINE)
    assert commands[0] == "make venv"
    for target in re.findall(r"(?:`|^    )make ([\w-]+)", text, re.MULTILINE):
        assert re.search(rf"^([\w-]+ )*{target}( [\w-]+)*:", makefile, re.MULTILINE), target


def test_help_of_make_needs_nothing(repository):
    done = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True)
    assert "make test " in done.stdout
