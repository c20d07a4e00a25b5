"""How far a run is and how long it will take: a bar in a terminal, log lines elsewhere.

No package for this is needed by anything else here, and what one would estimate is off by the time
of compilation, which is all in the first step.
"""

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TextIO

from absl import logging as absl_logging

_BAR = 20
# How many parts of the program want nothing shown.
_hidden = 0
# From which number of rows on it is shown how many are done.
MANY_ROWS = 100_000
_LINE_START = "\r\033[K"


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Work whose progress is not shown, such as a part of somebody's program."""
    global _hidden  # noqa: PLW0603, as what it keeps still, the terminal, there is one
    _hidden += 1
    try:
        yield
    finally:
        _hidden -= 1


class Progress:
    """Counts steps and shows the time left.

    with Progress(200, "search") as progress:
        for _ in range(20):
            ...
            progress.update(10, objective=1.23)
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        unit: str = "steps",
        done: int = 0,
        every: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the count; nothing is shown before the `with` block.

        Args:
          total: number of steps.
          label: what is counted.
          unit: what a step is, for the speed.
          done: steps that an earlier run has done.
          every: least seconds between two log lines, where the stream is no terminal.
          stream: where the bar goes, standard error by default.
          clock: seconds.
        """
        self._total = total
        self._label = label
        self._unit = unit
        self._done = done
        self._every = every
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._silent = _hidden > 0
        self._terminal = self._stream.isatty() and not self._silent
        self._marks: list[tuple[float, int]] = []  # start, first update, last update
        self._shown: float | None = None

    def __enter__(self) -> Self:
        """Starts the clock."""
        self._marks = [(self._clock(), self._done)]
        if self._terminal:
            absl_logging.get_absl_logger().addFilter(self._make_room)
            self._draw({})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the last state of the bar on its line."""
        if self._terminal:
            absl_logging.get_absl_logger().removeFilter(self._make_room)
            self._stream.write("\n")
            self._stream.flush()

    def update(self, steps: int = 1, **values: Any) -> None:
        """Counts steps that are done.

        Args:
          steps: how many.
          **values: shown behind the count, numbers with four digits.
        """
        self._done += steps
        now = self._clock()
        self._marks = [*self._marks[:2], (now, self._done)]
        if self._terminal:
            self._draw(values)
        elif self._silent:
            return
        elif self._shown is None or now - self._shown >= self._every or self._done >= self._total:
            self._shown = now
            absl_logging.info("%s", self._text(values))

    def seconds_left(self) -> float | None:
        """Returns the estimate, or None before the first update.

        From the second update on it leaves out the time before the first, which holds compilation.
        """
        if len(self._marks) < 2:
            return None
        (start, before), (now, done) = self._marks[-2:] if len(self._marks) > 2 else self._marks
        return (now - start) / max(1, done - before) * max(0, self._total - self._done)

    def _text(self, values: dict[str, Any]) -> str:
        parts = [f"{self._label} {self._done}/{self._total}"]
        left = self.seconds_left()
        if left is None:
            parts.append("starting")
        elif self._done < self._total:
            parts.append(f"{duration(left)} left")
        else:
            parts.append(f"done in {duration(self._marks[-1][0] - self._marks[0][0])}")
        if len(self._marks) > 2:
            (start, before), (now, done) = self._marks[-2:]
            if now > start and done > before:
                parts.append(f"{(done - before) / (now - start):.3g} {self._unit}/s")
        parts += [f"{name} {_number(value)}" for name, value in values.items()]
        return ", ".join(parts)

    def _draw(self, values: dict[str, Any]) -> None:
        full = _BAR * min(self._done, self._total) // max(1, self._total)
        line = f"[{'#' * full}{'.' * (_BAR - full)}] {self._text(values)}"
        # One column less than there are: a full line would wrap and could not be drawn over.
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(_LINE_START + line[:width])
        self._stream.flush()

    def _make_room(self, record: logging.LogRecord) -> bool:
        """Clears the bar's line for a log line; the next update draws it again."""
        self._stream.write(_LINE_START)
        self._stream.flush()
        return True


@contextlib.contextmanager
def rows_progress(rows: int, label: str) -> Iterator[Callable[[int], None]]:
    """What counts rows: shown where there are so many that they take more than seconds."""
    if rows < MANY_ROWS:
        yield lambda rows: None
    else:
        with Progress(rows, label, unit="rows") as progress:
            yield progress.update


def count(number: int, noun: str, plural: str = "") -> str:
    """Returns `1 task`, `3 tasks` or, with `plural`, `2 batches`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Returns `42 s`, `3 min 05 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
