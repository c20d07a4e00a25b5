"""Ends a search when the machine is about to be taken away: SIGTERM, at one step on all hosts."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from jax.experimental import multihost_utils

from hume_jax.errors import Preempted
from hume_jax.processes import ALONE, Processes

# Seconds after which a process that SIGTERM should have ended is told once more.
_AGAIN = 5


@contextlib.contextmanager
def ending(processes: Processes = ALONE) -> Iterator[None]:
    """Work of a process by itself that SIGTERM ends at once, by `Preempted`.

    What it has finished is kept, what it was at is begun again. Only the main thread of a process
    can listen; others go on. SIGALRM is taken too, for an exception that went no further.

    Args:
      processes: that do the work; of several none listens, none could say so to the others.
    """
    if processes.total > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    # None, of what listens without Python, as JAX's service does: it cannot be put back.
    numbers = signal.SIGTERM, signal.SIGALRM
    before = {number: signal.signal(number, _stop) or signal.SIG_DFL for number in numbers}
    try:
        yield
    finally:
        unheard = signal.alarm(0)
        for number, listener in before.items():
            signal.signal(number, listener)
    if unheard:
        raise _preempted()


def _stop(number: int, frame: FrameType | None) -> None:
    # What is raised while Python takes an object away is printed there, and goes no further.
    signal.alarm(_AGAIN)
    raise _preempted()


def _preempted() -> Preempted:
    return Preempted(
        "stopped by SIGTERM; what was finished is kept, the same command goes on from there"
    )


class Watch:
    """Whether the run was asked to end, by SIGTERM to any of its processes.

    A process by itself listens while the `with` block lasts; outside of it see `ending`. Several
    processes leave it to JAX's preemption service, which listens from their start on: what it hears
    before the search ends them at its first steps.
    """

    def __init__(self, processes: Processes) -> None:
        """Prepares; nothing is listened to before the `with` block.

        Args:
          processes: those of the run.
        """
        self._alone = processes.total == 1
        self._asked = False
        self._before: Any = None
        self._points = 0

    def __enter__(self) -> Self:
        """Begins to listen. Only the main thread of a process can; others are never asked."""
        if self._alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
            self._asked = signal.alarm(0) > 0  # of `ending`, that was not heard
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts back what listened before, and tells it what nobody has asked about."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            # By nobody: who was told has raised something.
            if self._asked and kind is None:
                signal.raise_signal(signal.SIGTERM)

    def asked(self) -> bool:
        """Whether to end here; all processes ask at the same step, and are told the same."""
        if self._alone:
            return self._asked
        self._points += 1
        return multihost_utils.reached_preemption_sync_point(self._points)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
