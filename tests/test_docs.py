"""The documents: what they tell to type works, their pages build, their notebook runs."""

import ast
import collections
import json
import os
import re
import shutil
import subprocess
import sys

import doc_blocks
import doc_commands
import numpy as np
import pytest
import tiny_encoder

from hume_jax import config_fields

PAGES = doc_blocks.pages()
# What cannot be run here, and how many blocks of it there are: no more without a reason.
NOT_RUN = {
    "installs": 2,
    "needs SLURM": 1,
    "needs a TPU pod": 1,
    "needs a dataset that is not at hand": 1,
    "needs arrays that are not at hand": 3,
    "needs the network": 4,
}
# Whose blocks of Python have a test of their own, with stand-ins for half a dozen packages.
ELSEWHERE = {"docs/recipes.md": "tests/test_recipes.py"}
# Before the blocks of a page, which become one program.
_BEGIN = """
import os, subprocess

def _shell(place, text, arguments):
    environment = {**os.environ, "DOC_ARGUMENTS": arguments}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=environment, check=False)
    assert done.returncode == 0, f"{place} ends with {done.returncode}"
"""


def runnable(page):
    return [b for b in doc_blocks.blocks(page) if b.language and not b.not_run]


def test_every_fenced_block_is_python_shell_or_output():
    known = {"python", *doc_blocks.SHELLS, "text", "{toctree}", "{eval-rst}", "{config-fields}"}
    found = {b.language for page in PAGES for b in doc_blocks.blocks(page)} - {""}
    assert found <= known, found - known


def test_blocks_that_are_not_run_are_few_and_say_why():
    found = [b for page in PAGES for b in doc_blocks.blocks(page) if b.not_run]
    assert collections.Counter(b.not_run for b in found) == NOT_RUN


def test_python_is_python():
    for page in PAGES:
        for block in doc_blocks.blocks(page):
            if block.language == "python":
                ast.parse(block.text, block.place)


def test_fields_that_documents_name_are_there():
    fields = {field.name for section in config_fields.sections() for field in section.fields}
    sections = {name.partition(".")[0] for name in fields if "." in name}
    field = re.compile(rf"((?:{'|'.join(sections)})\.[a-z_0-9.]*[a-z0-9])(=.*)?")
    for page in PAGES:
        for span in doc_blocks.code_spans(page):
            if (match := field.fullmatch(span)) and not re.search(r"\.(py|md|json)$", span):
                outer = any(name.startswith(f"{match[1]}.") for name in fields)
                assert match[1] in fields or outer, f"{page}: {span}"


@pytest.mark.slow
def test_flags_of_commands_that_are_not_run_here_are_known(repository, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    noted = tmp_path / "noted"
    doc_commands.note_instead(programs, noted)
    (programs / "bash").symlink_to(shutil.which("bash"))
    # What a page goes into first.
    (tmp_path / "hume_jax" / ".venv").mkdir(parents=True)
    (tmp_path / "hume_jax" / ".venv" / "bin").symlink_to(programs)
    for page in PAGES:
        # Later blocks use what earlier ones set.
        shell = [b for b in doc_blocks.blocks(page) if b.language in ("", *doc_blocks.SHELLS)]
        subprocess.run(
            [programs / "bash", "-c", "\n".join(block.text for block in shell)],
            # Other programs are not found there, so nothing else happens.
            env={"PATH": str(programs)},
            cwd=tmp_path,
            check=False,
            capture_output=True,
        )
    commands = doc_commands.read(noted)
    assert len(commands) > 100
    done = subprocess.run(
        [sys.executable, doc_commands.__file__, "check"],
        input=json.dumps([c for c in commands if "--config=..." not in c]),
        env={**os.environ, "PYTHONPATH": str(repository)},
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_blocks_of_a_page_run_one_after_the_other(page, repository, tmp_path, request):
    blocks = [b for b in runnable(page) if not (page in ELSEWHERE and b.language == "python")]
    if page == "docs/tutorials/images.md":
        for seed in (1, 2):
            tiny_encoder.write_weights(tmp_path / f"{seed}.safetensors", seed)
    extra = {}
    if page == "docs/tutorials/text.md":
        folder = request.getfixturevalue("shared") / "data" / "clinc150"
        write_requests(folder, tmp_path)
        extra["DOC_CLINC150"] = str(folder)
    programs = tmp_path / "programs"
    programs.mkdir()
    doc_commands.install(programs)
    for name in ("experiments", "configs"):
        (tmp_path / name).symlink_to(repository / name)
    stand_ins = any("runs with stand-ins" in b.said for b in blocks)
    paths = [str(repository), *([str(repository / "tests" / "stand_ins")] if stand_ins else [])]
    parts = [_BEGIN]
    for block in blocks:
        if block.language == "python":
            parts.append(f"# {block.place}\n{block.text}")
        elif block.language in doc_blocks.SHELLS:
            arguments = block.said.get("runs with", "")
            parts.append(f"_shell({block.place!r}, {block.text!r}, {arguments!r})\n")
    (tmp_path / "page.py").write_text("\n".join(parts), encoding="utf-8")
    environment = {
        **os.environ,
        **extra,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def write_requests(folder, here):
    """What the page on texts says that its requests are."""
    texts = json.loads((folder / "texts_train.json").read_text(encoding="utf-8"))
    labels = np.load(folder / "labels_train.npy")
    intents = np.random.default_rng(0).choice(150, 20, replace=False)
    rows = np.flatnonzero(np.isin(labels, intents))
    assert len(rows) == 2400
    (here / "texts.txt").write_text("\n".join(texts[i] for i in rows), encoding="utf-8")


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_ask_for_no_network(repository, tmp_path):
    pytest.importorskip("sphinx", reason="make test-all installs requirements-docs.txt")
    command = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs"]
    done = subprocess.run(
        [sys.executable, *command, "-d", tmp_path / "trees", tmp_path / "html"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    html = {p: p.read_text(encoding="utf-8") for p in (tmp_path / "html").rglob("*.html")}
    fields = next(text for path, text in html.items() if path.name == "fields.html")
    for section in config_fields.sections():
        for field in section.fields:
            assert f'<span class="pre">{field.name}</span>' in fields, field.name
    asks = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(?:https?:)?//')
    assert [path.name for path, text in html.items() if asks.search(text)] == []


@pytest.mark.slow
def test_the_notebook_gives_what_it_shows(repository, tmp_path):
    reason = "make test-all installs requirements-docs.txt"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("nbclient", reason=reason)
    path = repository / "docs" / "notebooks" / "quickstart.ipynb"
    # By a process of its own, in which a warning of theirs is no error.
    script = (
        "import nbclient, nbformat, sys\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3').execute()\n"
        "nbformat.write(notebook, 'again.ipynb')\n"
    )
    # The kernel draws into the notebook, unless it is told where to.
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    del environment["MPLBACKEND"]
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown, again = (nbformat.read(p, 4) for p in (path, tmp_path / "again.ipynb"))
    pictures = 0
    for before, after in zip(shown.cells, again.cells, strict=True):
        for old, new in zip(before.get("outputs", []), after.get("outputs", []), strict=True):
            kinds = [sorted(output.get("data", {"text": ""})) for output in (old, new)]
            assert kinds[0] == kinds[1]
            pictures += "image/png" in kinds[0]
            if "image/png" not in kinds[0]:
                np.testing.assert_allclose(numbers(new), numbers(old), rtol=0.02, atol=0.02)
    assert pictures == 1


def numbers(output):
    """The numbers of a text output; sizes of classes may differ by some rows."""
    text = output.get("text") or output["data"]["text/plain"]
    return [float(number) for number in re.findall(r"\d+(?:\.\d*)?", text)]
