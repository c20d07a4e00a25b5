import errno
import hashlib
import http.server
import os
import subprocess
import sys
import threading
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
    monkeypatch.setattr(hub, "_answers", lambda *_: True)


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
    monkeypatch.setattr(hub, "_answers", lambda *_: False)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **options: asked.append(options)
    )
    with pytest.raises(TypeError):
        hub.fetch("owner/repo", "model.safetensors", None)
    assert asked == [{"revision": None, "local_files_only": True}]


class Hub(http.server.BaseHTTPRequestHandler):
    """What the library asks of the Hub for a file: what it is, then its bytes."""

    size = len(CONTENT)

    def do_HEAD(self):
        found = self.path.removeprefix("/owner/repo/resolve/") in (
            "main/model.safetensors",
            f"{COMMIT}/model.safetensors",
        )
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{SHA256}"')
        self.send_header("Content-Length", str(self.size if found else 0))
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def log_message(self, *_):
        self.server.asked.append(f"{self.command} {self.path}")


class VastHub(Hub):
    size = 10**16


@pytest.fixture
def serve():
    """Starts a server on this machine; gives its address, and what it is asked."""
    servers = []

    def start(handler):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", server.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_file_is_downloaded_once_by_the_library_itself(fetched, serve, tmp_path):
    url, asked = serve(Hub)
    path = tmp_path / "hub" / "models--owner--repo" / "snapshots" / COMMIT / "model.safetensors"
    for _ in range(2):
        assert fetched(HF_ENDPOINT=url) == f"{hub.Fetched(path, COMMIT, SHA256)}\n"
    assert path.read_bytes() == CONTENT
    assert asked.count("GET /owner/repo/resolve/main/model.safetensors") == 1
    missing = "the Hugging Face repository owner/repo has no file model.safetensors at revision x"
    assert fetched("x", HF_ENDPOINT=url) == f"{missing}\n"


def test_a_disk_too_small_is_told_before_the_download(fetched, serve, tmp_path):
    url, asked = serve(VastHub)
    text = fetched(HF_ENDPOINT=url)
    assert (
        "model.safetensors of the Hugging Face repository owner/repo takes 10000000.00 GB" in text
    )
    assert f"GB are free in {tmp_path}: free some, or set the environment variable HF_HOME" in text
    assert "HEAD /owner/repo/resolve/main/model.safetensors" in asked
    assert "GET /owner/repo/resolve/main/model.safetensors" not in asked


# ---- from the web


@pytest.fixture
def torch(monkeypatch, tmp_path):
    """PyTorch, which is asked for nothing but where it keeps such files and for the download."""

    def download(url, path, *, progress):
        with open(path, "wb") as file:
            file.write(CONTENT)

    module = SimpleNamespace(get_dir=lambda: str(tmp_path / "torch"), download_url_to_file=download)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(hub=module))


@pytest.mark.usefixtures("torch")
def test_a_file_of_the_web(serve, tmp_path):
    url, asked = serve(Hub)
    path = tmp_path / "torch" / "checkpoints" / "model.safetensors"
    # Whether or not the server says how large it is.
    for place in ("owner/repo/resolve/main/", "elsewhere/"):
        assert hub.download(f"{url}/{place}model.safetensors") == hub.Fetched(path, None, SHA256)
        assert asked[-1].startswith("HEAD")
        path.unlink()
    with pytest.raises(UserError, match=r"1/x.npz cannot be downloaded: .*refused"):
        hub.download(f"{CLOSED}/x.npz")
    url, _ = serve(VastHub)
    with pytest.raises(
        UserError, match=r"takes 10000000.00 GB, .* variable TORCH_HOME to a folder"
    ):
        hub.download(f"{url}/owner/repo/resolve/main/model.safetensors")
    assert not path.exists()


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
