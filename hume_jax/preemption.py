"""Ends a search when the machine is about to be taken away: SIGTERM, at one step on all hosts."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from jax.experimental import multihost_utils

from hume_jax.processes import Processes


class Watch:
    """Whether the run was asked to end, by SIGTERM to any of its processes.

    A process by itself listens while the `with` block lasts; outside of it, SIGTERM ends the
    process at once, as it does by default, and what is on disk is what a restart goes on from.
    Several processes leave it to JAX's preemption service, which listens from their start on.
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
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts back what listened before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def asked(self) -> bool:
        """Whether to end here; all processes ask at the same step, and are told the same."""
        if self._alone:
            return self._asked
        self._points += 1
        return multihost_utils.reached_preemption_sync_point(self._points)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
