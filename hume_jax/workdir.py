"""The folder that a run owns: one process at a time, one config, files whole or not at all.

Stopped at any moment and started again with the same config, a run finds here the last state it
saved and goes on from it. A folder in an object store has a local mirror, see `mirror`.
"""

import errno
import fcntl
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
from absl import logging as absl_logging
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import stores
from hume_jax.errors import LostProcess, UserError
from hume_jax.files import atomic_write, existing_folder
from hume_jax.mirror import Mirror

if TYPE_CHECKING:
    from etils import epath

# What a run writes. Where one of them stands without a config.json beside it, it is someone else's.
_OWN_FILES = (
    "data.json",
    "batches.json",
    "rows.json",
    "class_sizes.json",
    "prepared.npz",
    "checkpoints",
    "metrics.jsonl",
    "scores.npz",
    "vote_scores.npz",
    "model.npz",
    "encoders.json",
    "baselines.npz",
    "labels.csv",
    "curves.png",
    "objective.png",
    "confusion.png",
    "report.npz",
    "report.html",
    "results.json",
)
# Two, so that a checkpoint damaged by a loss of power leaves the one before it.
_CHECKPOINTS_KEPT = 2
# Outdated ones are moved here before they are deleted: half deleted they would look complete.
_OUTDATED = "outdated"
# What Orbax and tensorstore raise over a damaged file, or one of another structure.
_DAMAGED = (ValueError, OSError, KeyError, TypeError, RuntimeError)


class Workdir:
    """A run's folder, locked while the `with` block lasts.

    The lock is the kernel's and goes with the process, however it ends. It holds between the
    processes of one machine, and between machines where the file system passes locks on. Object
    stores have no locks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: config_dict.ConfigDict,
        *,
        owner: bool = True,
    ) -> None:
        """Prepares the folder object; nothing is touched before the `with` block.

        The files of a folder in an object store are read.

        Args:
          path: the folder, made if it is not there; gs://BUCKET/... for one in an object store.
          config: the resolved config of the run.
          owner: whether this is the process that locks the folder and writes to it. Others write
            their parts of checkpoints alone.

        Raises:
          UserError: the object store cannot be reached.
        """
        self.owner = owner
        # For messages and checkpoints; files are read and written at `path`.
        self.place = placed(path)
        self._mirror = None if isinstance(self.place, Path) else Mirror(self.place)
        self.path = self.place if self._mirror is None else self._mirror.path
        if self._mirror is not None and owner:
            self._mirror.pull()
        self._config = config
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._managers: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Locks the folder, writes config.json and logs where the folder is.

        Raises:
          UserError: it is a file or cannot be written, another process works in it, it belongs to
            another config, or it holds files that a run would overwrite.
        """
        if not self.owner:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_foreign()
            self._lock = (self.path / ".lock").open("a+", encoding="utf-8")
        except FileExistsError as error:
            raise self._no_folder("is a file") from error
        except NotADirectoryError as error:
            raise self._no_folder("lies under a file") from error
        except OSError as error:
            raise self._unwritable(error.errno) from error
        try:
            self._take_lock(self._lock)
            self._check_config()
            if not (self.path / "config.json").exists():
                self.write_text("config.json", config_lib.to_json(self._config))
        except BaseException:
            self._lock.close()
            raise
        absl_logging.info("workdir: %s", self.place)
        return self

    def check(self) -> None:
        """Checks most of what entering does and touches nothing; for before long work.

        Labels that the config does not name, since they will come with the images, may be others.

        Raises:
          UserError: as entering.
        """
        there = existing_folder(self.path)
        if not there.is_dir():
            raise self._no_folder("is a file" if there == self.path else "lies under a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise self._unwritable(errno.EACCES)
        if self._mirror is not None:
            self._mirror.check_writable()
        self._check_foreign()
        coming = [s for s in ("train", "test") if not self._config.data[s].labels]
        self._check_config(*(f"data.{split}.labels" for split in coming))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the files and gives the lock back."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        # A checkpoint that another process is missing from will never be complete.
        if not isinstance(error, LostProcess):
            self.finish()
        self.publish()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_data(self, fingerprint: Mapping[str, Any]) -> None:
        """Keeps in data.json which data the run works on, and holds a restart to it.

        Args:
          fingerprint: of the arrays, any nested values that JSON keeps.

        Raises:
          UserError: the run was begun with other data under the same names.
        """
        path = self.path / "data.json"
        if not path.exists():
            self.write_json(path.name, fingerprint)
            return
        changes = config_lib.difference(json.loads(path.read_text(encoding="utf-8")), fingerprint)
        if changes:
            raise UserError(
                f"workdir {self.place} was begun with other data ({'; '.join(changes)}): "
                "set --workdir to another folder, or put the arrays back"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl; it is there for others to read when this returns."""
        if not self.owner:
            return
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._metrics.write(_json_line(record))
        self._metrics.flush()

    def write_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes metrics.jsonl anew, whole or not at all."""
        self.write_text("metrics.jsonl", "".join(map(_json_line, records)))

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl, without a torn last one.

        Raises:
          UserError: a line before the last is not JSON.
        """
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        records = []
        for i, line in enumerate(lines):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                if i == len(lines) - 1:
                    break
                raise UserError(
                    f"{self.place / path.name}, line {i + 1} is not JSON: delete {self.place} to "
                    "start anew"
                ) from error
        return records

    def truncate(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drops the lines of metrics.jsonl that `keep` is false for, and a torn last one."""
        if not self.owner:
            return
        kept = [record for record in self.metrics() if keep(record)]
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if (self.path / "metrics.jsonl").exists():
            self.write_text("metrics.jsonl", "".join(map(_json_line, kept)))

    def publish(self) -> None:
        """Sends files that are new or have changed to the object store, if the folder is in one.

        What this class writes is sent as it is written, metrics.jsonl with each checkpoint.

        Raises:
          UserError: it cannot be reached; where the files are kept is said.
        """
        if self._mirror is not None and self.owner:
            self._mirror.push()

    def save(self, name: str, step: int, tree: Any) -> None:
        """Saves a pytree of arrays as checkpoint `name` at `step`, while the caller goes on.

        It is on disk when `finish` returns, or the next `save`, or the `with` block is left.

        Args:
          name: which of the run's states it is.
          step: at least 0, greater than that of the last one saved under this name.
          tree: arrays of JAX or NumPy in any pytree.
        """
        import orbax.checkpoint as ocp

        # What the state has been logged up to must not be lost where the state is not.
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())
        self.publish()
        manager = self._manager(name)
        # As `save` would: what is outdated is not deleted while Orbax still moves it there.
        manager.wait_until_finished()
        self._clear(name)
        # A copy: the arrays may be given to the next step while they are being written.
        if not manager.save(step, args=ocp.args.StandardSave(_copied(tree))):
            raise ValueError(f"{name} has a checkpoint at step {step} or after it")

    def finish(self) -> None:
        """Waits until all that was saved is on disk, and closes what writes it."""
        for name, manager in self._managers.items():
            manager.close()
            self._clear(name)
        self._managers.clear()

    def latest(self, name: str, like: Any) -> tuple[int, Any] | None:
        """Restores the last checkpoint saved under a name, bit for bit.

        Args:
          name: as given to `save`.
          like: a pytree of the same structure, shapes and dtypes; its JAX arrays say where the
            restored ones are placed, its NumPy arrays come back as NumPy.

        Returns:
          The step and the tree, or None if nothing was saved. One that was being written when the
          process died is not seen.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        import orbax.checkpoint as ocp

        if not self._checkpoints(name).is_dir():
            return None
        manager = self._manager(name)
        manager.wait_until_finished()
        steps = sorted(manager.all_steps(), reverse=True)
        for i, step in enumerate(steps):
            try:
                tree = manager.restore(step, args=ocp.args.StandardRestore(like))
            except _DAMAGED as error:
                absl_logging.warning("checkpoint %s %d is damaged: %.200s", name, step, error)
                # Orbax leaves its other reads of it to the garbage collector, where asyncio would
                # report each; nothing else here uses asyncio.
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)
                continue
            # Only now that another one is known to be good.
            for damaged in steps[:i]:
                manager.delete(damaged)
            return step, tree
        if steps:
            raise UserError(
                f"no checkpoint in {self._checkpoints(name)} can be read: "
                f"delete {self.place} to start anew"
            )
        return None

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the folder, whole or not at all."""
        with atomic_write(self.path / name) as file:
            file.write(text.encode())
        self.publish()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the folder; NumPy values become numbers and lists."""
        self.write_text(name, json.dumps(plain(value), indent=2) + "\n")

    def write_npz(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes arrays under their names to an .npz file of the folder."""
        with atomic_write(self.path / name) as file:
            named: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
            np.savez(file, **named)
        self.publish()

    def _no_folder(self, what: str) -> UserError:
        return UserError(f"workdir {self.place} {what}: set --workdir to a folder")

    def _unwritable(self, number: int | None) -> UserError:
        why = os.strerror(number or errno.EIO)
        return UserError(f"workdir {self.place} cannot be written: {why}; set --workdir=DIR")

    def _check_foreign(self) -> None:
        if (self.path / "config.json").exists():
            return
        foreign = [name for name in _OWN_FILES if (self.path / name).exists()]
        if foreign:
            raise UserError(
                f"workdir {self.place} holds {', '.join(foreign)} but no config.json, so it is not "
                "a run's: set --workdir to another folder"
            )

    def _take_lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UserError(
                f"workdir {self.place} is in use by process {owner}: wait for it, or set --workdir"
            ) from error
        except OSError as error:
            raise UserError(
                f"workdir {self.place} cannot be locked: {error.strerror}; "
                "its file system takes no locks, set --workdir to one that does"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}\n")
        lock.flush()

    def _check_config(self, *but: str) -> None:
        """Holds a folder that is a run's to its config, but for some fields."""
        path = self.path / "config.json"
        if not path.exists():
            return
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{self.place / path.name} is not JSON: set --workdir to another folder"
            ) from error
        changes = config_lib.difference(old, self._config)
        changes = [change for change in changes if change.partition(":")[0] not in but]
        if changes:
            raise UserError(
                f"workdir {self.place} belongs to another config ({'; '.join(changes)}): "
                "set --workdir to another folder, or the fields as they were"
            )

    def _manager(self, name: str) -> Any:
        if name not in self._managers:
            import orbax.checkpoint as ocp

            _quieten_orbax()
            self._clear(name)

            class Manager(ocp.CheckpointManager):
                """Does not ask whether the run is to end: the search does, see `preemption`.

                Numbers of JAX's preemption service have to follow each other; steps do not.
                """

                def reached_preemption(self, step: int) -> bool:
                    """Never."""
                    return False

            self._managers[name] = Manager(
                self._checkpoints(name),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(_CHECKPOINTS_KEPT),
                    todelete_subdir=_OUTDATED,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                ),
            )
        return self._managers[name]

    def _clear(self, name: str) -> None:
        """Deletes outdated checkpoints, of this process or of one that was killed doing so."""
        # In an object store Orbax marks what is complete, and deletes at once.
        if self.owner and self._mirror is None:
            shutil.rmtree(self._checkpoints(name) / _OUTDATED, ignore_errors=True)

    def _checkpoints(self, name: str) -> "Path | epath.Path":
        return self.place / "checkpoints" / name


def placed(path: str | os.PathLike[str]) -> "Path | epath.Path":
    """Where the folder of a run is: an absolute path, or one in an object store.

    Raises:
      UserError: it is in a store that cannot keep checkpoints.
    """
    if not stores.is_store(path):
        return Path(path).expanduser().resolve()
    if stores.scheme(path) != "gs":
        raise UserError(
            f"workdir {path}: checkpoints are kept whole on disks and in gs://BUCKET/FOLDER alone: "
            "set --workdir to one of them"
        )
    return stores.open_path(os.fspath(path))


def _copied(tree: Any) -> Any:
    """A copy of arrays, those of JAX where they lie."""
    import jax

    return jax.tree.map(lambda leaf: leaf.copy(), tree)


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: NumPy as numbers and lists, NaN and infinity as None.

    A float32 becomes the shortest decimal that is read back as the same float32.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.floating):
        return plain(float(str(value)))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"{type(value).__name__} has no place in a JSON file")
    return plain(array[()]) if array.ndim == 0 else [plain(item) for item in array]


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(plain(record)) + "\n"


def _from_elsewhere(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or "orbax" not in record.pathname


def _quieten_orbax() -> None:
    """Keeps Orbax's dozens of lines a checkpoint out of the log; its warnings stay."""
    absl_logging.get_absl_logger().addFilter(_from_elsewhere)
