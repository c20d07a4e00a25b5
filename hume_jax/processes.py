"""The processes of a run: how they start, agree, share what one of them knows, and end together."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from absl import logging

from hume_jax.errors import LostProcess, UserError, end_now

if TYPE_CHECKING:
    from etils import epath

    from hume_jax.pulse import Pulse

# Seconds that the processes of a run wait for each other to start.
_PATIENCE = 300
_RETRY_SECONDS = 1.0
# Seconds without an answer from process 0, while the others are waited for, after which it is gone.
_GONE_SECONDS = 20.0
# Seconds that a process which ends gives the others to end as well.
_LEAVE_SECONDS = 10
# Seconds without a sign of life after which JAX ends a process; `pulse` notices earlier.
_HEARTBEAT_SECONDS = 50
# That of this process.
_pulse: list["Pulse"] = []


class Processes(NamedTuple):
    """Which of the processes of a run this one is."""

    number: int = 0
    total: int = 1

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A part of the work that no process leaves before all are done with it.

        Raises:
          UserError: it failed in another process; so no process waits for one that has ended.
          LostProcess: another process was killed.
        """
        failed = True
        try:
            yield
            failed = False
        finally:
            others = self._failed(failed)
            if others.size and not failed:
                raise UserError(
                    f"process {others[0]} of {self.total} has failed, it says why: what is on disk "
                    "is kept, the same commands go on with it"
                )

    @property
    def first(self) -> bool:
        """Whether this is the one that writes the files of a run."""
        return self.number == 0

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """A part of the work in which processes compute together.

        Raises:
          LostProcess: another process was killed.
        """
        try:
            yield
        except (ValueError, RuntimeError) as error:
            # What a process can run out of by itself says so; the rest came from the others.
            own = isinstance(error, UserError) or "RESOURCE_EXHAUSTED" in str(error)
            if self.total == 1 or own:
                raise
            raise _lost(error) from error

    def share(self, value: Any) -> Any:
        """What process 0 holds, on all of them; all ask at the same time.

        Args:
          value: what JSON can hold; that of other processes is not looked at.
        """
        return json.loads(self._gather(json.dumps(value if self.first else None))[0])

    def share_arrays(self, arrays: Mapping[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        """Named arrays that process 0 holds, on all of them; all ask at the same time."""
        if self.total == 1:
            return dict(arrays or {})
        shapes = {k: (v.shape, v.dtype.str) for k, v in (arrays or {}).items()}
        found = {}
        for name, (shape, dtype) in self.share(shapes).items():
            own = arrays[name] if arrays and self.first else np.zeros(shape, dtype)
            # As bytes: JAX would make float32 of what is float64.
            flat = np.frombuffer(np.ascontiguousarray(own).tobytes(), np.uint8)
            found[name] = np.frombuffer(_broadcast(flat).tobytes(), dtype).reshape(shape)
        return found

    def part(self) -> None:
        """Ends the work together: each process goes on, or ends, by itself."""
        if self.total > 1:
            import jax

            with self.together():
                pass
            while _pulse:
                _pulse.pop().stop()
            jax.distributed.shutdown()

    def check_shared(self, folder: "pathlib.Path | epath.Path") -> None:
        """Checks that all processes see the same folder; all ask at the same time.

        Raises:
          UserError: what process 0 writes there is not seen by another one.
        """
        if self.total == 1:
            return
        token = folder / f".seen-{os.getpid()}-{time.time_ns()}"
        with self.together():
            if self.first:
                folder.mkdir(parents=True, exist_ok=True)
                token.touch()
        name = self.share(token.name)
        with self.together():
            # Listed, since a file that was looked for in vain may stay so for a while on NFS.
            shown = folder if folder.is_dir() else folder.parent
            if name not in [path.name for path in shown.iterdir()]:
                raise UserError(
                    f"process {self.number} does not see what process 0 writes to {folder}: all "
                    "hosts have to share its file system, set --workdir to such a folder"
                )
        if self.first:
            token.unlink()

    def agree(self, values: Mapping[str, Any]) -> None:
        """Checks that all processes were started for the same work; all ask at the same time.

        Args:
          values: what must be the same, that JSON can hold.

        Raises:
          UserError: a process has another value than process 0, the first of them by name.
          LostProcess: another process was killed.
        """
        first, *others = (json.loads(text) for text in self._gather(json.dumps(values)))
        for number, other in enumerate(others, 1):
            for name in (*first, *(name for name in other if name not in first)):
                if first.get(name) != other.get(name):
                    raise UserError(
                        f"process {number} has {name} {other.get(name)!r}, process 0 has "
                        f"{first.get(name)!r}: start all of them with the same command, the same "
                        "images and the same weights"
                    )

    def _gather(self, text: str) -> list[str]:
        """The texts of all processes, in their order."""
        if self.total == 1:
            return [text]
        content = np.frombuffer(text.encode(), np.uint8)
        sizes = _allgather(np.asarray(content.size))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: content.size] = content
        rows = _allgather(padded)
        return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]

    def _failed(self, failed: bool) -> np.ndarray:
        """The numbers of the processes that failed; all processes ask at the same time."""
        if self.total == 1:
            return np.flatnonzero([failed])
        return np.flatnonzero(_allgather(np.asarray(failed)))


def _allgather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes; all ask at the same time."""
    from jax.experimental import multihost_utils

    try:
        return np.asarray(multihost_utils.process_allgather(array))
    except (ValueError, RuntimeError) as error:
        raise _lost(error) from error


def _broadcast(array: np.ndarray) -> np.ndarray:
    """The array of process 0, which has the shape that the others give; all ask at once."""
    from jax.experimental import multihost_utils

    try:
        return np.asarray(multihost_utils.broadcast_one_to_all(array))
    except (ValueError, RuntimeError) as error:
        raise _lost(error) from error


def _lost(error: Exception) -> LostProcess:
    return LostProcess(
        f"another process of this run has gone: {LostProcess.GO_ON} ({str(error)[:100]})"
    )


ALONE = Processes()


def in_company() -> bool:
    """Whether other processes count on this one: they have met, and have not parted yet."""
    return bool(_pulse)


def end(status: int) -> NoReturn:
    """Ends this process: with the others, all of which end here, or at once without company."""
    if not in_company():
        end_now(status)
    sys.exit(status)


def leave(status: int) -> NoReturn:
    """Ends this process, whatever the others do.

    Where they end as well, all of them do so in order. Where they work on, this one ends at once,
    which they notice; at exit JAX would wait for them for minutes, and they for it.
    """
    if in_company() and _others_leave():
        sys.exit(status)
    end_now(status)


def _others_leave() -> bool:
    from jax._src import distributed  # as in `pulse`

    client: Any = distributed.global_state.client
    try:
        client.wait_at_barrier("hume_jax/leave", 1000 * _LEAVE_SECONDS)
    except (RuntimeError, ValueError):
        return False
    return True


def start(coordinator: str, count: int, index: int) -> Processes:
    """Joins the processes of a run; before anything asks for a device.

    Args:
      coordinator: `HOST:PORT` of process 0, 'auto' where the cluster says it (TPU pods, Slurm,
        Open MPI, Kubernetes; `jax.distributed.initialize`), '' for a process by itself.
      count: number of processes; not for 'auto'.
      index: number of this one; not for 'auto'.

    Raises:
      UserError: such processes cannot be, or process 0 does not answer.
    """
    if not coordinator:
        if (count, index) != (1, 0):
            raise UserError(
                f"process {index} of {count}: say where process 0 is, distributed=HOST:PORT"
            )
        return ALONE
    # A process by itself need not wait for the import.
    import jax

    if coordinator == "auto":
        try:
            with _interruptible():
                jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
        except ValueError as error:
            raise UserError(
                f"--distributed=auto found no cluster ({error}): give --distributed=HOST:PORT of "
                "process 0, --processes=COUNT and --process=NUMBER"
            ) from error
        return _joined()
    port = re.fullmatch(r".+:([0-9]+)", coordinator)
    if not port or not 0 < int(port[1]) < 2**16:
        raise UserError(
            f"distributed is {coordinator!r}, it must be 'auto' or HOST:PORT with a port from 1 to "
            "65535"
        )
    if not 0 <= index < count:
        raise UserError(
            f"process is {index} of {count} processes: they are counted from 0, --process=0 to "
            "one less than --processes"
        )
    if index:
        _wait_for(coordinator)
    else:
        _check_free(int(port[1]))
    logging.info("waiting for all %d processes, up to %d s", count, _PATIENCE)
    with _interruptible(), _watching(coordinator if index else ""):
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=_PATIENCE,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    return _joined()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process: while JAX waits, Python would not come to look at it."""
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _watching(coordinator: str) -> Iterator[None]:
    """Ends the process where process 0, which it has found, goes while all are waited for."""
    done = threading.Event()

    def watch() -> None:
        answered = time.monotonic()
        while not done.wait(_RETRY_SECONDS):
            try:
                _connect(coordinator)
                answered = time.monotonic()
            except OSError:
                if time.monotonic() - answered > _GONE_SECONDS and not done.is_set():
                    LostProcess(
                        f"process 0 at {coordinator} has gone while all were waited for: start all "
                        "of them again"
                    ).end()

    if coordinator:
        threading.Thread(target=watch, name="joining", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _connect(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_RETRY_SECONDS).close()


def _joined() -> Processes:
    import jax

    from hume_jax.pulse import Pulse, say_why_it_aborts

    processes = Processes(jax.process_index(), jax.process_count())
    if processes.total > 1:
        say_why_it_aborts()
        _pulse.append(Pulse(*processes))
        _pulse[-1].start()
    return processes


def _check_free(port: int) -> None:
    """Raises a `UserError` if another program listens where this process is to."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at port {port} ({error.strerror}): give all processes "
                "another one, --distributed=HOST:PORT"
            ) from error


def _wait_for(coordinator: str) -> None:
    """Waits until process 0 answers; JAX would end in a dump where it does not."""
    end, why = time.monotonic() + _PATIENCE, ""
    logging.info("waiting for process 0 at %s, up to %d s", coordinator, _PATIENCE)
    while time.monotonic() < end:
        try:
            _connect(coordinator)
            return
        except socket.gaierror as error:
            host = coordinator.rpartition(":")[0]
            raise UserError(f"distributed={coordinator}: {host} is no host: {error}") from error
        except (OSError, OverflowError) as error:
            why = str(error)
        time.sleep(_RETRY_SECONDS)
    raise UserError(
        f"process 0 does not answer at {coordinator} ({why}): start it with the same command and "
        "process=0, on the host that distributed=HOST:PORT names"
    )
