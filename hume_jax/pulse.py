"""Tells the processes of a run that one of them has gone, or was told to end.

A line says so, also where JAX ends this one in a dump.
"""

import ctypes
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from jax._src import distributed  # no public way leads to the store that the processes share

from hume_jax.errors import LostProcess, Preempted

# Seconds between two beats.
_EVERY = 3.0
# Seconds without one after which a process counts as gone.
_PATIENCE = 30.0
# Seconds that a process which is to end has for it: others may wait for it, and it for others.
_LONGEST = 15.0
# What the beats of such a process end with.
_STOP = " stop"
# What the store raises that does not answer, or knows no such key.
_NO_ANSWER = (RuntimeError, ValueError, OSError)
# What the system calls at a signal: kept, since it may do so at any time.
_called: dict[signal.Signals, Any] = {}


class Pulse(threading.Thread):
    """Beats for this process and listens to the others, while both run.

    A process that was killed, or whose host was, beats no more. Where it has closed its connections
    the next computation fails at once and says so; where it has not, this is what notices. What one
    of them is told while each works by itself, by SIGTERM, the others hear from its beats.
    """

    def __init__(
        self,
        number: int,
        total: int,
        client: Callable[[], Any] = lambda: distributed.global_state.client,
        end: Callable[[str], None] | None = None,
    ) -> None:
        """Prepares; `start` begins.

        Args:
          number: of this process.
          total: of processes.
          client: of the store, or None once the processes have parted.
          end: called with what to say where a process has gone; ends this one by default.
        """
        super().__init__(name="pulse", daemon=True)
        self._number, self._others = number, [i for i in range(total) if i != number]
        self._client, self._end = client, end or _end
        self._stopped = threading.Event()
        self._answered = time.monotonic()  # when the store last did
        self._told = 0.0  # when this process was told to end

    @property
    def stopping(self) -> bool:
        """Whether this process, or one that it has heard, was told to end."""
        return self._told > 0

    def stop_all(self) -> None:
        """Tells the others to end, by the next beat. For a signal's handler: it waits for none."""
        self._told = self._told or time.monotonic()

    def stop(self) -> None:
        """Ends it; others may go from now on."""
        self._stopped.set()

    def run(self) -> None:
        """Beats and listens."""
        began = self._answered = time.monotonic()
        # The store is in process 0. One that hangs keeps those waiting who ask.
        if self._number:
            threading.Thread(target=self._watch, name="pulse's", daemon=True).start()
        heard: dict[int, tuple[str, float]] = dict.fromkeys(self._others, ("", began))
        beat = 0
        while not self._stopped.wait(_EVERY):
            client, now = self._client(), time.monotonic()
            if client is None:
                return
            self._end_if_overdue()
            beat += 1
            said = f"{beat}{_STOP if self.stopping else ''}"
            try:
                client.key_value_set(_key(self._number), said, allow_overwrite=True)
            except _NO_ANSWER:
                continue
            for i in self._others:
                heard[i] = _listen(client, i, heard[i], now)
            self._answered = time.monotonic()
            if not self.stopping and any(said.endswith(_STOP) for said, _ in heard.values()):
                self.stop_all()
                _tell_main_thread()
            gone = [i for i, (_, last) in heard.items() if now - last > _PATIENCE]
            if gone:
                self._lost(gone[0])
                return

    def _watch(self) -> None:
        while not self._stopped.wait(_EVERY) and self.is_alive():
            self._end_if_overdue()
            if time.monotonic() - self._answered > _PATIENCE:
                self._lost(0)
                return

    def aborted(self) -> None:
        """Says why JAX has ended this process; nothing once the processes have parted."""
        if self._client() is None:
            return
        if self.stopping:
            Preempted().end()
        LostProcess(
            "JAX ended this process, the lines above say why: most likely another process of this "
            f"run has gone: {LostProcess.GO_ON}"
        ).end()

    def _end_if_overdue(self) -> None:
        """Ends a process that was told to, and waits where no exception reaches it."""
        if self.stopping and time.monotonic() - self._told > _LONGEST:
            Preempted().end()

    def _lost(self, number: int) -> None:
        if not self._stopped.is_set():
            self._end(
                f"process {number} of this run has gone, it gave no sign of life for "
                f"{_PATIENCE:.0f} s: {LostProcess.GO_ON}"
            )


def _tell_main_thread() -> None:
    # The signal itself, which ends what it waits for; by default it would end the process.
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def on_abort(end: Callable[[], None]) -> None:
    """Has the process end with a line of its own where JAX aborts it.

    JAX watches process 0 too, and aborts where its connection breaks: nearly at once where the
    process was killed, which may be sooner than a computation fails. Its client takes a callback
    for that, yet calls it with what Python cannot hold (jaxlib 0.10), and Python's own handlers do
    not run while a process aborts; so the system calls this one.

    Args:
      end: says it and ends the process; where it returns, the process aborts after all.
    """
    call_at(signal.SIGABRT, end)


def call_at(number: signal.Signals, end: Callable[[], None]) -> None:
    """Has the system call a function that ends the process, also where Python waits for JAX."""
    _called[number] = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: end())
    ctypes.CDLL(None).signal(int(number), _called[number])


def _key(number: int) -> str:
    return f"hume_jax/pulse/{number}"


def _listen(client: Any, number: int, before: tuple[str, float], now: float) -> tuple[str, float]:
    """The last beat heard of a process, and when it was first heard."""
    try:
        beat = client.key_value_try_get(_key(number))
    except _NO_ANSWER:  # or it has not begun
        return before
    return before if beat == before[0] else (beat, now)


def _end(message: str) -> None:
    # What computes waits for the one that has gone, and would not be interrupted.
    LostProcess(message).end()
