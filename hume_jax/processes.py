"""The processes of a run: how they agree, share what one of them knows, and end together."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from hume_jax.errors import LostProcess, Preempted, UserError, end_now

if TYPE_CHECKING:
    from etils import epath

    from hume_jax.pulse import Pulse

# Seconds that a process which ends gives the others to end as well.
_LEAVE_SECONDS = 10
# How a part of the work ended.
_DONE, _FAILED, _STOPPED = range(3)
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
          Preempted: another process was told to end.
        """
        how = _FAILED
        try:
            yield
            how = _DONE
        except Preempted:
            how = _STOPPED
            raise
        finally:
            ends = self._ends(how)
            if how == _DONE and _STOPPED in ends:
                raise Preempted
            if how == _DONE and _FAILED in ends:
                raise UserError(
                    f"process {ends.index(_FAILED)} of {self.total} has failed, it says why: what "
                    "is on disk is kept, the same commands go on with it"
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
          Preempted: it was told to end, or this one was.
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

    def _ends(self, how: int) -> list[int]:
        """How each process has ended a part of the work; all ask at the same time."""
        if self.total == 1:
            return [how]
        return [int(end) for end in _allgather(np.asarray(how))]


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


def _lost(error: Exception) -> LostProcess | Preempted:
    # Who was told to end does not wait for those that are at other work.
    if stopping():
        return Preempted()
    return LostProcess(
        f"another process of this run has gone: {LostProcess.GO_ON} ({str(error)[:100]})"
    )


ALONE = Processes()


def in_company() -> bool:
    """Whether other processes count on this one: they have met, and have not parted yet."""
    return bool(_pulse)


def meet(processes: Processes) -> None:
    """Has the others of a run count on this process, and this one on them, until they part."""
    from hume_jax.pulse import Pulse, on_abort

    _pulse.append(Pulse(*processes))
    on_abort(_pulse[-1].aborted)
    _pulse[-1].start()


def stop() -> None:
    """Has all processes of the run end, of which this one was told to; returns at once."""
    for pulse in _pulse:
        pulse.stop_all()


def stopping() -> bool:
    """Whether this process, or another of the run, was told to end."""
    return any(pulse.stopping for pulse in _pulse)


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
