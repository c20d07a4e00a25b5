"""Ends a search when the machine is about to be taken away: SIGTERM, at one step on all hosts."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax._src import distributed  # no public way starts the service late
from jax.experimental import multihost_utils

from hume_jax import processes as others
from hume_jax.errors import Preempted
from hume_jax.processes import ALONE, Processes

# Seconds after which a process that SIGTERM should have ended is told once more.
_AGAIN = 5
# Seconds within which JAX's service has passed on what it was told: it looks once a second.
_PASSED_ON = 1.5


@contextlib.contextmanager
def ending(processes: Processes = ALONE) -> Iterator[None]:
    """Work that SIGTERM ends at once, by `Preempted`; to one of several processes, in all of them.

    What is finished is kept, what they were at is begun again. Only the main thread of a process
    can listen; others go on. SIGALRM is taken too, for an exception that went no further.

    Args:
      processes: that do the work.
    """
    if threading.current_thread() is not threading.main_thread() or _is_jaxs(processes):
        yield
        return
    # None, of what listens without Python: it cannot be put back.
    numbers = signal.SIGTERM, signal.SIGALRM
    before = {number: signal.signal(number, _stop) or signal.SIG_DFL for number in numbers}
    try:
        yield
    finally:
        unheard = signal.alarm(0)
        for number, listener in before.items():
            signal.signal(number, listener)
    if unheard:
        raise Preempted


def _stop(number: int, frame: FrameType | None) -> None:
    others.stop()
    # What is raised while Python takes an object away is printed there, and goes no further.
    signal.alarm(_AGAIN)
    raise Preempted


def _is_jaxs(processes: Processes) -> bool:
    """Whether JAX's service has SIGTERM: processes that have joined by themselves, or search."""
    return processes.total > 1 and distributed.global_state.preemption_sync_manager is not None


class Watch:
    """Whether the run was asked to end, by SIGTERM to any of its processes.

    It is listened to while the `with` block lasts, outside of it see `ending`; by several processes
    through JAX's preemption service, so that all end at the same step.
    """

    def __init__(self, processes: Processes, *, interruptible: bool = False) -> None:
        """Prepares; nothing is listened to before the `with` block.

        Args:
          processes: those of the run.
          interruptible: whether the first Ctrl-C is told by `interrupted`, so that what was found
            is not lost; a second one raises `KeyboardInterrupt`, as without this the first does.
        """
        self._processes, self._alone = processes, processes.total == 1
        self._asked = False
        self._before: Any = None
        self._points = 0
        self.interrupted = False
        self._interruptible = interruptible
        self._before_interrupt: Any = None

    def __enter__(self) -> Self:
        """Begins to listen. Only the main thread of a process can; others are never asked."""
        main = threading.current_thread() is threading.main_thread()
        unheard = main and signal.alarm(0) > 0  # of `ending`
        if self._alone and main:
            self._before = signal.signal(signal.SIGTERM, self._ask)
            self._asked = unheard
        elif not self._alone and not _is_jaxs(self._processes):
            # What is told while others are not here yet, `ending` passes on at once.
            with self._processes.together():
                pass
            self._before = signal.getsignal(signal.SIGTERM) if main else None
            jax.config.update("jax_enable_preemption_service", True)
            distributed.global_state.initialize_preemption_sync_manager()
            if unheard:
                signal.raise_signal(signal.SIGTERM)
        if self._interruptible and main:
            self._before_interrupt = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts back what listened before, and tells it what nobody has asked about."""
        if self._before_interrupt is not None:
            signal.signal(signal.SIGINT, self._before_interrupt)
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

    def asked_last(self) -> bool:
        """Whether to end after all, once the search is done; asked as `asked` is."""
        if not self._alone:
            # Of now on `ending` hears it; what the service has heard it will have passed on.
            if self._before is not None:
                signal.signal(signal.SIGTERM, self._before)
            time.sleep(_PASSED_ON)
        return self.asked()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self._before_interrupt)
