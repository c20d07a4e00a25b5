"""How the processes of a run meet: what can be wrong with that is told in a line."""

import contextlib
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

from absl import logging

from hume_jax.errors import LostProcess, Preempted, UserError
from hume_jax.processes import ALONE, Processes, meet

# Seconds that the processes of a run wait for each other to start.
_PATIENCE = 300
_RETRY_SECONDS = 1.0
# Seconds without an answer from process 0, while the others are waited for, after which it is gone.
_GONE_SECONDS = 20.0
# Seconds without a sign of life after which JAX ends a process; `pulse` notices earlier.
_HEARTBEAT_SECONDS = 50


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

    from hume_jax.preemption import ending

    # It would take SIGTERM from here on; what comes before the search, `preemption` listens to.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator == "auto":
        try:
            with _endable():
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
        with ending():
            _wait_for(coordinator)
    else:
        _check_free(int(port[1]))
    logging.info("waiting for all %d processes, up to %d s", count, _PATIENCE)
    with _endable(), _watching(coordinator if index else ""):
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=_PATIENCE,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    processes = _joined()
    processes.agree({"--processes": count})
    return processes


@contextlib.contextmanager
def _endable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process while JAX waits, and Python does not look at them.

    So does JAX, by a dump, where it has waited for too long.
    """
    from hume_jax.pulse import call_at, on_abort

    on_abort(_never_met)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    main = threading.current_thread() is threading.main_thread()
    heard = [n for n, old in before.items() if main and old not in (signal.SIG_IGN, None)]
    if signal.SIGINT in heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if signal.SIGTERM in heard:
        call_at(signal.SIGTERM, _told)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _never_met() -> None:
    UserError(
        f"not all processes of this run came within {_PATIENCE} s, the lines above say more: start "
        "all of them, with the same command and the same number of processes"
    ).end()


def _told() -> None:
    Preempted("stopped by SIGTERM before all processes had met; start all of them again").end()


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

    processes = Processes(jax.process_index(), jax.process_count())
    if processes.total > 1:
        meet(processes)
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
