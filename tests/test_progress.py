import io
import logging

import pytest
from absl import logging as absl_logging

from hume_jax.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(caplog):
    """The text of the log lines, as they come."""
    caplog.set_level(logging.INFO, logger="absl")
    return lambda: [record.getMessage() for record in caplog.records]


def test_log_lines_elsewhere(clock, lines):
    with Progress(100, "search", stream=io.StringIO(), clock=clock, every=5) as progress:
        clock.now += 30
        progress.update(10, objective=1.23456)
        for _ in range(4):
            clock.now += 2
            progress.update(10)
        for _ in range(5):
            clock.now += 2
            progress.update(10, objective=0.5)
    assert lines() == [
        "search 10/100, 4 min 30 s left, objective 1.235",
        "search 40/100, 12 s left, 5 steps/s",
        "search 70/100, 6 s left, 5 steps/s, objective 0.5",
        "search 100/100, done in 48 s, 5 steps/s, objective 0.5",
    ]


def test_the_first_step_holds_compilation_and_is_left_out(clock):
    with Progress(100, "search", stream=io.StringIO(), clock=clock) as progress:
        assert progress.seconds_left() is None
        clock.now += 50
        progress.update(10)
        assert progress.seconds_left() == pytest.approx(450)
        clock.now += 1
        progress.update(10)
        assert progress.seconds_left() == pytest.approx(8)


def test_steps_of_an_earlier_run_do_not_count_for_the_rate(clock, lines):
    with Progress(100, "search", done=80, stream=io.StringIO(), clock=clock) as progress:
        clock.now += 10
        progress.update(10)
        assert progress.seconds_left() == pytest.approx(10)
    assert lines() == ["search 90/100, 10 s left"]


def test_a_bar_in_a_terminal(clock, lines):
    screen = Terminal()
    with Progress(40, "search", stream=screen, clock=clock) as progress:
        clock.now += 1
        progress.update(10, objective=1.0)
        clock.now += 1
        progress.update(30)
    drawn = screen.getvalue().split("\r\033[K")
    assert drawn == [
        "",
        "[....................] search 0/40, starting",
        "[#####...............] search 10/40, 3 s left, objective 1",
        "[####################] search 40/40, done in 2 s, 30 steps/s\n",
    ]
    assert lines() == []


def test_the_bar_fits_its_line(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    screen = Terminal()
    with Progress(40, "search", stream=screen, clock=clock) as progress:
        progress.update(10, objective=1.0)
    assert max(len(line) for line in screen.getvalue()[:-1].split("\r\033[K")) == 29


def test_log_lines_push_the_bar_aside(clock, lines):
    screen = Terminal()
    with Progress(40, "search", stream=screen, clock=clock):
        absl_logging.info("hello")
        assert screen.getvalue().endswith("starting\r\033[K")
    before = screen.getvalue()
    absl_logging.info("again")
    assert screen.getvalue() == before
    assert lines() == ["hello", "again"]


def test_an_error_ends_the_bars_line(clock):
    screen = Terminal()
    with pytest.raises(KeyError), Progress(40, "search", stream=screen, clock=clock):
        raise KeyError
    assert screen.getvalue().endswith("\n")


def test_nothing_to_do(clock, lines):
    with Progress(0, "search", stream=Terminal(), clock=clock) as progress:
        progress.update(0)
        assert progress.seconds_left() == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
