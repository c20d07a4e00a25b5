"""Exceptions for what the user can put right."""


class UserError(ValueError):
    """A mistake in a file, a config field or a call that the user can correct.

    The message is one line: what is wrong, where (file, row, field) and what to do. `hume_jax.main`
    prints it after `error: ` without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class LostProcess(UserError):
    """Another process of the run is gone, so this one has to end without it."""
