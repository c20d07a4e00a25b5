"""The local mirror of a run's folder in an object store.

What a run writes appears in the store file by file, each whole. Checkpoints are not among them:
every process writes its parts of those to the store itself.
"""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from hume_jax import stores
from hume_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath


class Mirror:
    """A folder of this process's own, deleted with it."""

    def __init__(self, place: "epath.Path") -> None:
        """Makes the local folder; the store is not asked.

        Args:
          place: of the run's folder in the store.
        """
        self._place = place
        self.path = Path(tempfile.mkdtemp(prefix="hume_jax-")).resolve()
        self._delete = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        self._sent: dict[Path, tuple[int, int]] = {}  # what files were when they were last sent

    def pull(self) -> None:
        """Copies the files of the folder, if it is there; not those of folders in it.

        Raises:
          UserError: the store cannot be reached.
        """
        with stores.reaching(self._place):
            if not self._place.is_dir():
                return
            for entry in self._place.iterdir():
                if not entry.is_dir():
                    target = self.path / entry.name
                    target.write_bytes(entry.read_bytes())
                    self._sent[target] = _state(target)

    def push(self) -> None:
        """Sends the files that are new or have changed.

        Raises:
          UserError: the store cannot be reached; the files are kept here.
        """
        changed = [path for path in _files(self.path) if self._sent.get(path) != _state(path)]
        try:
            for path in changed:
                state = _state(path)
                self._send(path)
                self._sent[path] = state
        except UserError as error:
            if not self._sent and len(changed) == 1:
                # The first of all files: nothing was found yet that could be lost.
                raise
            self._delete.detach()
            raise UserError(f"{error}; what was not sent is kept in {self.path}") from error

    def check_writable(self) -> None:
        """Raises a `UserError` unless files can be written to the store and deleted again."""
        probe = self._place / ".probe"
        with stores.reaching(probe):
            probe.write_text("")
            probe.unlink()

    def _send(self, path: Path) -> None:
        there = self._place / path.relative_to(self.path).as_posix()
        with stores.reaching(there):
            there.write_bytes(path.read_bytes())


def _files(folder: Path) -> list[Path]:
    """Whole files: those still being written, and the lock, begin with a dot."""
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
