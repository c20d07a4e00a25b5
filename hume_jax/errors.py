"""Exceptions for what the user can put right."""

import logging
import os
import sys
from typing import NoReturn


class UserError(ValueError):
    """A mistake in a file, a config field or a call that the user can correct.

    The message is one line: what is wrong, where (file, row, field) and what to do. `hume_jax.main`
    prints it after `error: ` without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

    def end(self) -> NoReturn:
        """Ends the process at once; at exit JAX would wait for others, and end in a dump."""
        sys.stderr.write(f"error: {self}\n")
        end_now(2)


class Preempted(Exception):
    """The run was asked to end, has saved its state and ends; the same command goes on from there.

    `hume_jax.main` prints the message and exits with `STATUS`, by which a scheduler can tell it
    from a failure.
    """

    STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again

    def __init__(
        self,
        message: str = "stopped by SIGTERM; what was finished is kept, the same command goes on "
        "from there",
    ) -> None:
        super().__init__(message)

    def end(self) -> NoReturn:
        """Ends the process at once, wherever it is."""
        sys.stderr.write(f"{self}\n")
        end_now(self.STATUS)


def end_now(status: int) -> NoReturn:
    """Ends the process with a status, at once.

    At exit Python would take away what computations that are still under way need, which may end in
    a crash of another status; and JAX would wait for other processes.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class LostProcess(UserError):
    """Another process of the run is gone, so this one has to end without it."""

    GO_ON = "what is on disk is kept, the same commands, all of them started again, go on with it"
