"""How much memory there is, and what the start of a search takes of it."""

import functools

import jax
import jax.numpy as jnp
import pytest

from hume_jax import memory
from hume_jax.core import search


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


def test_the_start_of_tasks_that_have_a_basis():
    """What XLA lays it out for; the basis has more columns than the rest of the task together."""
    shape = memory.Shape(rows=1000, train=900, test=100, phi1=512, inner=(385,))
    settings = search.Search(10, 900, 100, coordinates="householder", start="random")
    blank = functools.partial(
        search.blank, jnp.uint32(0), dim=512, widths=shape.inner, settings=settings
    )
    found = jax.jit(blank).lower(jnp.arange(4)).compile().memory_analysis()
    taken = found.output_size_in_bytes + found.temp_size_in_bytes
    assert 4 * memory.start_bytes(shape, settings) == pytest.approx(taken, rel=0.2)
    assert memory.search_bytes(shape, settings, 4) >= taken
    plain = settings._replace(coordinates="matrix")
    assert memory.start_bytes(shape, plain) < memory.start_bytes(shape, settings) / 10
