"""How much memory there is."""

import pytest

from hume_jax import memory


@pytest.mark.parametrize("limit", ["1000000", "max"])
def test_what_a_control_group_leaves(tmp_path, monkeypatch, limit):
    """Copies of files that nobody reads are given up when memory is asked for."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\nfile 600000\ninactive_file 500000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    found = memory.machine_bytes()
    assert (found == 600000) if limit != "max" else (found > 10**8)


def test_without_a_control_group_all_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.machine_bytes() > 10**8
