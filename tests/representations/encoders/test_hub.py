import errno
import hashlib
import os
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from hume_jax.errors import UserError
from hume_jax.representations.encoders import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _network(monkeypatch):
    monkeypatch.setattr(hub, "_answers", lambda _: True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Downloads that end in a cache, as the library lays it out; what was asked for is kept."""
    asked = []

    def download(repo, filename, *, revision, local_files_only):
        assert not local_files_only
        asked.append((repo, filename, revision))
        path = tmp_path / "snapshots" / COMMIT / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def fails_with(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError) as raised:
        hub.fetch("owner/repo", "model.safetensors", "v1")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def of_response(kind, status):
    """An error of the library about an answer of the Hub."""
    request = SimpleNamespace(url="https://hub/file", method="GET")
    response = SimpleNamespace(status_code=status, headers={}, request=request)
    return kind("the library's own\nmessage", response=response)


# ---- from the Hub


@pytest.mark.parametrize("filename", ["model.safetensors", "folder/model.safetensors"])
@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_revision_is_resolved_to_its_commit(cache, filename, revision):
    fetched = hub.fetch("owner/repo", filename, revision)
    assert cache == [("owner/repo", filename, revision)]
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.commit == COMMIT
    assert fetched.sha256 == SHA256


def test_gated_repository(monkeypatch):
    text = fails_with(monkeypatch, of_response(errors.GatedRepoError, 403))
    assert "accept its terms on https://huggingface.co/owner/repo" in text
    assert "hf auth login" in text


def test_no_such_repository(monkeypatch):
    text = fails_with(monkeypatch, of_response(errors.RepositoryNotFoundError, 404))
    assert "no Hugging Face repository owner/repo, or it is private" in text


def test_no_such_revision(monkeypatch):
    text = fails_with(monkeypatch, of_response(errors.RevisionNotFoundError, 404))
    assert text == "the Hugging Face repository owner/repo has no revision v1"


def test_no_such_file(monkeypatch):
    text = fails_with(monkeypatch, of_response(errors.RemoteEntryNotFoundError, 404))
    assert text.endswith("owner/repo has no file model.safetensors at revision v1")


def test_no_network_and_not_in_the_cache(monkeypatch):
    text = fails_with(monkeypatch, errors.LocalEntryNotFoundError("long text"))
    assert "not in the cache of this machine, and the Hub cannot be reached" in text


def test_full_disk(monkeypatch):
    text = fails_with(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert "no space left for model.safetensors" in text
    assert "HF_HOME" in text


@pytest.mark.parametrize(
    "error",
    [
        of_response(errors.HfHubHTTPError, 500),
        RuntimeError("the connection broke off"),
        # The HTTP client's own, which the library lets through.
        errors.HfHubHTTPError.__bases__[0]("the connection broke off"),
    ],
)
def test_a_download_that_breaks_off(monkeypatch, error):
    assert "cannot be downloaded" in fails_with(monkeypatch, error)


def test_names_that_the_library_refuses():
    with pytest.raises(UserError, match="is no name of a Hugging Face repository"):
        hub.fetch("owner/repo/more", "model.safetensors", None)


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "hume_jax\[images\]"'):
        hub.fetch("owner/repo", "model.safetensors", None)


FETCH = """
import sys
from hume_jax.errors import UserError
from hume_jax.representations.encoders import hub
try:
    print(hub.fetch("owner/repo", "model.safetensors", *sys.argv[1:] or [None]))
except UserError as error:
    print(error)
"""
CLOSED = "http://127.0.0.1:1"


@pytest.fixture
def fetched(tmp_path, repository):
    """What the library itself gives, in a process because it reads its settings when imported."""

    def run(*arguments, **settings):
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *arguments],
            env={**os.environ, "HF_HOME": str(tmp_path), **settings},
            cwd=repository,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": CLOSED}])
def test_offline_for_real(fetched, setting):
    text = fetched(**setting)
    assert text.startswith("model.safetensors of the Hugging Face repository owner/repo is not in ")
    assert "the Hub cannot be reached (no network, or HF_HUB_OFFLINE is set)" in text


def test_the_file_of_a_commit_needs_no_network(fetched, tmp_path):
    path = tmp_path / "hub" / "models--owner--repo" / "snapshots" / COMMIT / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetched(COMMIT, HF_ENDPOINT=CLOSED) == f"{hub.Fetched(path, COMMIT, SHA256)}\n"


def test_what_the_cache_has_is_taken_where_the_hub_does_not_answer(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_answers", lambda _: False)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **options: asked.append(options)
    )
    with pytest.raises(TypeError):
        hub.fetch("owner/repo", "model.safetensors", None)
    assert asked == [{"revision": None, "local_files_only": True}]


# ---- from this machine


def test_local_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(CONTENT)
    assert hub.local(path) == hub.Fetched(path, None, SHA256)


def test_local_file_that_is_not_one(tmp_path):
    with pytest.raises(UserError, match="nowhere.npz: this file is not there"):
        hub.local("nowhere.npz")
    with pytest.raises(UserError, match="this file is a folder"):
        hub.local(tmp_path)
