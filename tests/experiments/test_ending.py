"""`experiments/ending.py`: the seconds that it takes a run of two processes to end."""

import signal

import ending
import pytest

from hume_jax.errors import UserError

CONFIG = ["--config=configs/testing.py", "--repeats=1"]
FIELDS = ["--", "--noconfig.plots", "--noconfig.baselines"]


def test_a_table_of_all_cases(tmp_path, monkeypatch, capsys):
    asked = []

    def end(options, what, victim):
        asked.append((what, victim))
        return ending.Ending(len(asked) / 2, (75, 75), "stopped")

    monkeypatch.setattr(ending, "end", end)
    ending.main([f"--out={tmp_path}", "--repeats=2"])
    assert asked[:2] == [(signal.SIGTERM, 1)] * 2
    assert len(asked) == 2 * len(ending.CASES)
    table = (tmp_path / "ending.md").read_text()
    cells = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert cells == ["process 1 is sent SIGTERM", "0.5 to 1.0", "75", "stopped"]
    assert table in capsys.readouterr().out


def test_a_case_that_there_is_not(tmp_path):
    with pytest.raises(UserError, match="there is no 'rain', there are process 1 is sent SIGTERM"):
        ending.main([f"--out={tmp_path}", "--cases", "rain"])


def test_no_repeats(tmp_path):
    with pytest.raises(UserError, match="--repeats=0: it must be at least 1"):
        ending.main([f"--out={tmp_path}", "--repeats=0"])


def test_a_search_that_does_not_begin(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=r"the search does not begin: see .*process_[01]\.log"):
        ending.main([f"--out={tmp_path}", "--config=nowhere.py", "--repeats=1"])


@pytest.mark.slow
def test_two_processes_that_are_asked_to_end(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    case = "process 1 is sent SIGTERM"
    ending.main([f"--out={tmp_path}", *CONFIG, "--cases", case, *FIELDS])
    cells = [cell.strip() for cell in (tmp_path / "ending.md").read_text().split("|")[-5:-1]]
    assert cells[0] == case
    assert cells[2] == "75"
    assert cells[3].startswith("stopped by SIGTERM after step ")
