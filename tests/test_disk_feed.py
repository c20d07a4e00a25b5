"""Steps that read their rows from files take the same steps as those that hold all rows.

Two processes run this file as a script: `test_disk_feed.py PORT INDEX FOLDER`.
"""

import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from hume_jax import disk_feed, feeds, memory, parallel
from hume_jax.core import search
from hume_jax.core.inner_fit import InnerFit
from hume_jax.disk_feed import FromDisk
from hume_jax.representations import prepared
from hume_jax.representations.arrays import checks
from hume_jax.representations.gather import Stack
from hume_jax.representations.prepare import inner_rows, joined_rows, space_statistics
from hume_jax.representations.store import Space, Split
from hume_jax.stored_rows import StoredRows, hold

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# 203 rows on 4 shards: the last one has 50 rows and one of padding, the others have 51.
N, K, V = 203, 4, 4
TASKS = (4, 0)
STEPS = 3
# So few inner steps that where they start is seen in the result, and quickly compiled.
SETTINGS = search.Search(
    K,
    30,
    6,
    anneal_steps=(2,),
    inner=InnerFit(adjoint="first_order", solver="gradient", steps=3, step_size=0.5),
)
DEFAULT = InnerFit(steps=2, adjoint_steps=10)
HOW: dict[str, Any] = {
    "normalised": True,
    "precondition": True,
    "directions": 0,
    "penalty": 1e-3,
}
WIDTHS = {"phi1": (6, 5), "phi2": (8, 3)}
LOG_PRIOR = np.log(np.full(K, 1 / K))


def write_arrays(folder: pathlib.Path) -> None:
    """Train and test rows, two files of phi1 and two second spaces, float16."""
    classes = np.random.default_rng(0).integers(K, size=N)
    for space, widths in WIDTHS.items():
        for i, width in enumerate(widths):
            rng = np.random.default_rng([width, i])
            values = rng.normal(size=(K, width))[classes] + rng.normal(size=(N, width)) + 1
            for split, rows in (("train", values[:150]), ("test", values[150:])):
                np.save(folder / f"{space}_{i}_{split}.npy", rows.astype(np.float16))


def open_arrays(folder: pathlib.Path) -> list[Split]:
    def space(name: str, split: str) -> Space:
        paths = [folder / f"{name}_{i}_{split}.npy" for i in range(len(WIDTHS[name]))]
        return Space(tuple(map(checks.open_array, paths)), tuple(map(str, paths)), ())

    return [Split(space("phi1", s), space("phi2", s), None, 0) for s in ("train", "test")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("arrays")
    write_arrays(folder)
    return folder


@pytest.fixture(scope="module")
def splits(folder) -> list[Split]:
    return open_arrays(folder)


def in_memory(splits: list[Split]) -> search.Data:
    stats = space_statistics([split.phi1 for split in splits], "rows")
    phi1 = np.concatenate([joined_rows(split.phi1.arrays, stats, "rows") for split in splits])
    spaces = [
        inner_rows(arrays, **HOW)
        for arrays in zip(*(split.phi2.arrays for split in splits), strict=True)
    ]
    return search.make_data(phi1, [(space.x, space.penalty) for space in spaces], V)


def on_disk(splits: list[Split]) -> StoredRows:
    first, _ = prepared.first_space(splits, "rows")
    files = {
        name: list(zip(*(getattr(split, name).arrays for split in splits), strict=True))
        for name in ("phi1", "phi2")
    }
    second = tuple(prepared.second_space(arrays, **HOW) for arrays in files["phi2"])
    stacks = {name: tuple(map(Stack, arrays)) for name, arrays in files.items()}
    changes = prepared.changes(prepared.Prepared(first, second), "rows")
    return StoredRows(stacks["phi1"], stacks["phi2"], changes, V)


@pytest.fixture(scope="module")
def data(splits):
    return in_memory(splits)


@pytest.fixture(scope="module")
def rows(splits):
    return on_disk(splits)


def mesh_of(devices: int, tasks: int) -> jax.sharding.Mesh:
    return parallel.make_mesh(tasks, V, devices)


def from_memory(data: search.Data, settings: search.Search, seed: int = 5) -> feeds.FromMemory:
    mesh = mesh_of(1, 1)
    placed = parallel.place_data(data, mesh)
    return feeds.FromMemory(placed, settings, (seed,), LOG_PRIOR, mesh)


def from_disk(rows: StoredRows, settings: search.Search, mesh: jax.sharding.Mesh) -> FromDisk:
    return FromDisk(rows, settings, 5, STEPS, LOG_PRIOR, mesh)


@pytest.fixture(scope="module")
def feed(rows) -> Iterator[FromDisk]:
    """On one device, its programs compiled once for all tests."""
    with from_disk(rows, SETTINGS, mesh_of(1, 1)) as feed:
        yield feed


def searched(feed: feeds.Feed, *lengths: int) -> tuple[search.State, search.Info]:
    """The last state, and the info of all steps."""
    state, infos = feed.start(TASKS), []
    for length in lengths or (STEPS,):
        feed.compile(state, length)
        state, info = feed.advance(state, length)
        infos.append(info)
    return jax.device_get(state), jax.tree.map(lambda *parts: np.concatenate(parts), *infos)


def assert_close(found: tuple, expected: tuple) -> None:
    """Equal but for rounding: float32 in the rows, magnified by solvers that end early."""
    (state, info), (expected_state, expected_info) = found, expected
    np.testing.assert_array_equal(state.task, expected_state.task)
    assert state.step == expected_state.step == STEPS
    np.testing.assert_allclose(info.objective, expected_info.objective, rtol=1e-4)
    np.testing.assert_allclose(info.entropy, expected_info.entropy, rtol=1e-4)
    np.testing.assert_allclose(info.temperature, expected_info.temperature)
    np.testing.assert_allclose(info.learning_rate, expected_info.learning_rate)
    np.testing.assert_allclose(state.theta, expected_state.theta, atol=2e-4)
    for mine, theirs in zip(state.inner, expected_state.inner, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-2)


def test_the_same_steps_as_in_memory(data, feed):
    memory = from_memory(data, SETTINGS)
    expected = searched(memory)
    assert_close(searched(feed), expected)
    # The seed is seen in it, unless the test tests nothing.
    memory._seeds += 1
    assert np.abs(searched(memory)[0].theta - expected[0].theta).max() > 1e-2


@pytest.mark.parametrize(
    ("start", "subsets", "inner"),
    [
        pytest.param("random", 2, SETTINGS.inner, marks=pytest.mark.slow),
        pytest.param("warm", 1, DEFAULT, marks=pytest.mark.slow),
        pytest.param("warm", 3, DEFAULT._replace(solver="nesterov"), marks=pytest.mark.slow),
        pytest.param("cold", 2, DEFAULT._replace(adjoint="unrolled"), marks=pytest.mark.slow),
        pytest.param("fixed", 1, SETTINGS.inner, marks=pytest.mark.slow),
    ],
)
def test_the_same_steps_as_in_memory_with_other_settings(data, rows, start, subsets, inner):
    settings = SETTINGS._replace(start=start, subsets_per_step=subsets, inner=inner)
    with from_disk(rows, settings, mesh_of(1, 1)) as feed:
        assert_close(searched(feed), searched(from_memory(data, settings)))


@pytest.mark.parametrize("splits", ["random", "folds"])
def test_a_split_has_the_rows_that_it_has_in_memory(splits):
    settings = SETTINGS._replace(splits=splits, subsets_per_step=2)
    numbers = np.arange(N, dtype=np.float32)[:, None]
    held = search.make_data(numbers, [(numbers, np.zeros(1, np.float32))], V)
    drawn = disk_feed._Draw(N, V, settings, seed=3)
    for step, index in ((0, 0), (0, 1), (5, 0)):
        subset = search.draw(3, step, index, held, settings)
        rows = drawn(step, index)
        for part, found in ((rows[:, :30], subset.phi1_train), (rows[:, 30:], subset.phi1_test)):
            np.testing.assert_array_equal(part.reshape(-1), found[:, 0])


@pytest.mark.parametrize(
    "tasks", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["rows", "tasks"]
)
def test_two_devices_find_what_one_finds(rows, feed, tasks):
    with from_disk(rows, SETTINGS, mesh_of(2, tasks)) as both:
        assert_close(searched(both), searched(feed))


@pytest.mark.parametrize(
    ("devices", "tasks", "block"), [(1, 1, 16384), (1, 1, 40), (2, 1, 40), (2, 2, 40)]
)
def test_rows_that_are_held_are_those_dealt(data, rows, monkeypatch, devices, tasks, block):
    """Whatever blocks they are read in, and on whichever devices they lie."""
    monkeypatch.setattr(memory, "BLOCK", block)
    seen: list[int] = []
    mesh = mesh_of(devices, tasks)
    held = hold(rows, mesh, seen.append)
    assert sum(seen) >= N
    expected = parallel.place_data(data, mesh)
    assert jax.tree.structure(held) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(held), jax.tree.leaves(expected), strict=True):
        assert mine.sharding.is_equivalent_to(theirs.sharding, mine.ndim)
    there = np.arange(data.phi1.shape[1])[None] < np.asarray(data.counts)[:, None]
    pairs = [(held.phi1, data.phi1)]
    pairs += [(a.x, b.x) for a, b in zip(held.spaces, data.spaces, strict=True)]
    for mine, theirs in pairs:
        assert np.all(np.isfinite(mine))
        np.testing.assert_allclose(np.asarray(mine)[there], theirs[there], atol=2e-5)
    np.testing.assert_array_equal(held.counts, data.counts)


def test_a_device_is_given_the_rows_of_its_own_shards(rows):
    with from_disk(rows, SETTINGS, mesh_of(2, 1)) as feed:
        placed, numbers = feed._gather((0, 0)).phi2[0], feed._draw(0, 0)
    assert placed.dtype == np.float16
    halves = placed.addressable_shards
    assert [part.data.shape for part in halves] == [(V // 2, 36, 8)] * 2
    stored = np.concatenate(rows.phi2[0].arrays)
    for i, part in enumerate(halves):
        np.testing.assert_array_equal(part.data, stored[numbers[2 * i : 2 * i + 2]])
    np.testing.assert_array_equal(numbers % V, np.repeat(np.arange(V), 36).reshape(V, 36))


def test_blocks_of_any_length_are_the_same_search(feed):
    """Bitwise, and so is a search that is interrupted and goes on."""
    whole = searched(feed)
    jax.tree.map(np.testing.assert_array_equal, searched(feed, 2, 1), whole)
    middle, _ = feed.advance(feed.start(TASKS), 1)
    kept = jax.device_get(middle)
    last, _ = feed.advance(parallel.place_state(kept, mesh_of(1, 1)), 2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(last), whole[0])


def test_a_state_is_like_its_shapes(feed, data):
    for one in (feed, from_memory(data, SETTINGS)):
        state, shapes = one.start(TASKS), one.shapes(TASKS)
        for leaf, like in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
            assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


def test_every_subset_is_read_once_and_none_after_the_last(feed, monkeypatch):
    read, gather = [], feed._ahead._make

    def watched(key):
        read.append(key)
        return gather(key)

    # Nothing is under way from the test before.
    feed._ahead.start((STEPS, 0)).result()
    monkeypatch.setattr(feed._ahead, "_make", watched)
    searched(feed)
    # The first for the solutions of the warm start, and again as the first of the search.
    assert read == [(0, 0), (0, 0), (1, 0), (2, 0)]
    assert feed._following(2, 0) is None
    monkeypatch.setattr(feed, "_settings", SETTINGS._replace(subsets_per_step=2))
    assert [feed._following(*key) for key in ((0, 0), (0, 1), (2, 1))] == [(0, 1), (1, 0), None]


def test_an_error_of_reading_ends_the_search_and_its_threads(rows, feed, monkeypatch):
    def fail(self, numbers, readers):
        assert threading.current_thread() is not threading.main_thread()
        raise OSError("the disk is gone")

    monkeypatch.setattr(Stack, "take", fail)
    before = threading.active_count()
    with (
        pytest.raises(OSError, match="the disk is gone"),
        from_disk(rows, SETTINGS, mesh_of(1, 1)) as broken,
    ):
        # Compiled already.
        broken._compiled = feed._compiled
        broken.advance(broken.start(TASKS), 1)
    assert threading.active_count() == before


@pytest.mark.slow
def test_two_processes_read_the_rows_of_their_own_shards_and_find_what_one_finds(
    feed, folder, two_processes
):
    two_processes(__file__, folder)
    state, info = searched(feed)
    for i in range(2):
        with np.load(folder / f"found_{i}.npz", allow_pickle=False) as found:
            np.testing.assert_array_equal(found["shards"], [2 * i, 2 * i + 1])
            np.testing.assert_allclose(found["theta"], state.theta, atol=2e-4)
            np.testing.assert_allclose(found["objective"], info.objective, rtol=1e-4)


def worker(port: str, index: str, folder: pathlib.Path) -> None:
    """One of the two processes."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    shards: set[int] = set()
    take = Stack.take

    def watched(self: Stack, numbers: np.ndarray, readers: Any) -> np.ndarray:
        shards.update((numbers % V).tolist())
        return take(self, numbers, readers)

    Stack.take = watched  # type: ignore[method-assign]
    with from_disk(on_disk(open_arrays(folder)), SETTINGS, parallel.make_mesh(1, V)) as feed:
        state, info = searched(feed)
    np.savez(
        folder / f"found_{index}.npz",
        shards=sorted(shards),
        theta=state.theta,
        objective=info.objective,
    )


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
