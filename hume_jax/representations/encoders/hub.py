"""Files of weights: from the Hugging Face Hub or the web, downloaded once, or from this machine."""

import errno
import hashlib
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from absl import logging

from hume_jax.errors import UserError
from hume_jax.files import existing_folder

COMMIT = re.compile(r"[0-9a-f]{40}")
# For the Hub to answer at all.
_SECONDS = 5.0


class Fetched(NamedTuple):
    """A file of weights, and what it can be recognised by."""

    path: Path
    commit: str | None  # of the repository, None for a file of this machine
    sha256: str


def fetch(repo: str, filename: str, revision: str | None) -> Fetched:
    """Gets a file of a Hub repository: from the cache, or by going on with its download.

    Args:
      repo: 'OWNER/NAME'.
      filename: in the repository.
      revision: a commit, branch or tag; None for the main branch as it is now.

    Returns:
      The file in the cache, with the commit that the revision stands for.

    Raises:
      UserError: huggingface_hub is not installed, the Hub cannot be reached and the file is not in
        the cache, there is no such repository, revision or file, the repository is gated, or the
        disk is too small.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise UserError(
            f"downloading {filename} of {repo} needs huggingface_hub: "
            'pip install "hume_jax[images]"'
        ) from error
    # What the library's errors derive from, whichever HTTP client it is built on.
    client = [kind for kind in errors.HfHubHTTPError.__bases__ if issubclass(kind, Exception)]
    broken_off: tuple[type[Exception], ...] = (*client, RuntimeError)
    what = f"{filename} of the Hugging Face repository {repo}"
    at = "" if revision is None else f" at revision {revision}"
    # In this order: a gated repository counts as not found, a file missing in the cache as missing.
    try:
        path = Path(
            huggingface_hub.hf_hub_download(
                repo,
                filename,
                revision=revision,
                local_files_only=_is_cached(repo, filename, revision)
                or not _answers(repo, filename, revision, broken_off),
            )
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{what} is gated: accept its terms on https://huggingface.co/{repo}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no Hugging Face repository {repo}, or it is private: check the name, or log "
            "in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the Hugging Face repository {repo} has no revision {revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{what}{at} is not in the cache of this machine, and the Hub cannot be reached (no "
            "network, or HF_HUB_OFFLINE is set)"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"the Hugging Face repository {repo} has no file {filename}{at}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{repo} is no name of a Hugging Face repository: {error}") from error
    except broken_off as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"no space left for {what}: free some, or set HF_HOME to a folder on another disk"
            ) from error
        raise UserError(f"{what} cannot be downloaded: {str(error)[:200]}; try again") from error
    return Fetched(path, _commit(path, filename), sha256(path))


def _is_cached(repo: str, filename: str, revision: str | None) -> bool:
    """Whether a file is here that can be no other one on the Hub: that of a commit."""
    import huggingface_hub

    if revision is None or not COMMIT.fullmatch(revision):
        return False
    found = huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision)
    return isinstance(found, str)


def _answers(
    repo: str, filename: str, revision: str | None, failures: tuple[type[Exception], ...]
) -> bool:
    """Whether the Hub can be reached, which the library would find out in half a minute.

    Raises:
      UserError: it can, and the disk is too small for the file.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    failing: tuple[type[Exception], ...] = (*failures, errors.OfflineModeIsEnabled)
    url = huggingface_hub.hf_hub_url(repo, filename, revision=revision)
    try:
        about = huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
    except errors.HfHubHTTPError:
        return True  # The download will say what is wrong with the file.
    except failing:
        return False
    if not _is_cached(repo, filename, about.commit_hash):
        what = f"{filename} of the Hugging Face repository {repo}"
        _check_disk(what, about.size, Path(constants.HF_HUB_CACHE), "HF_HOME")
    return True


def _check_disk(what: str, size: int | None, folder: Path, setting: str) -> None:
    """Raises a `UserError` where a file of a known size will not fit."""
    folder = existing_folder(folder)
    free = shutil.disk_usage(folder).free
    if size is not None and size > free:
        raise UserError(
            f"{what} takes {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {folder}: free "
            f"some, or set the environment variable {setting} to a folder on another disk"
        )


def download(url: str, *, md5: str = "", licence: str = "") -> Fetched:
    """Gets a file of the web, where PyTorch keeps such files; for what is not on the Hub.

    Such files are PyTorch's own, so that it is needed in any case.

    Args:
      url: of the file.
      md5: the digits that its MD5 begins with, '' if they are not known.
      licence: of the file, for the log.

    Raises:
      UserError: PyTorch is not installed, the disk is too small, the file cannot be downloaded, or
        it is another one.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f'weights from {url} need PyTorch: pip install "hume_jax[torch]"'
        ) from error
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        logging.info("downloading %s (licence: %s) to %s", url, licence, path)
        _check_disk(url, _length(url), path.parent, "TORCH_HOME")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # It appears under its name when it is whole.
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{url} cannot be downloaded: {str(error)[:200]}") from error
    if md5 and not _md5(path).startswith(md5):
        raise UserError(
            f"{path} is not what was published at {url}: its MD5 does not begin with {md5}; "
            "delete it to download it anew"
        )
    return Fetched(path, None, sha256(path))


def _length(url: str) -> int | None:
    """The size of a file of the web in bytes, None if its server does not say so."""
    question = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(question, timeout=_SECONDS) as answer:
            text = answer.headers.get("Content-Length", "")
    except urllib.error.HTTPError:
        return None  # It may answer a download all the same.
    except (OSError, ValueError) as error:
        raise UserError(f"{url} cannot be downloaded: {error}") from error
    return int(text) if text.isdecimal() else None


def local(path: str | Path) -> Fetched:
    """Takes a file of this machine.

    Raises:
      UserError: it is not there or cannot be read.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        what = "is a folder" if place.is_dir() else "is not there"
        raise UserError(f"the weights {place}: this file {what}")
    return Fetched(place, None, sha256(place))


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _commit(path: Path, filename: str) -> str | None:
    """The commit in a path of the cache, `.../snapshots/COMMIT/FILENAME`."""
    commit = path.parents[len(Path(filename).parts) - 1].name
    return commit if COMMIT.fullmatch(commit) else None
