"""One, two and four devices and two processes find the same, from the same state.

The two processes run this file as a script: `test_parallel.py PORT INDEX FOLDER`.
"""

import functools
import pathlib
import re
import socket
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from hume_jax import joining, parallel, processes
from hume_jax.core import search
from hume_jax.core.inner_fit import InnerFit
from hume_jax.errors import LostProcess, UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")

N, D1, D2, K, SHARDS, TASKS = 203, 12, 9, 4, 4, 4
# No clipping, so that Adam's first moment after the first step is a tenth of the hypergradient.
# Conjugate gradients that converge: stopped after 10 steps here, at a residual of 2e-3, they carry
# the rounding of another order of summation up to 1e-3 of the result, after 20 up to 6e-5.
INNER = InnerFit(solver="newton", steps=5, newton_steps=40, adjoint_steps=40)
SETTINGS = search.Search(K, 30, 6, temperature=0.1, clip=1e9, inner=INNER)


def problem() -> tuple[search.Data, search.State]:
    """Clustered rows, and tasks that start at random."""
    rng = np.random.default_rng(0)
    classes = rng.integers(K, size=N)
    phi1, x = (
        (rng.normal(size=(K, width))[classes] + rng.normal(size=(N, width))).astype(np.float32)
        for width in (D1, D2)
    )
    phi1 /= np.linalg.norm(phi1, axis=1, keepdims=True)
    data = search.make_data(phi1, [(x / 3, np.full(D2, 1e-3, np.float32))], SHARDS)
    init = jax.jit(functools.partial(search.init, settings=SETTINGS))
    return data, init(0, jnp.arange(TASKS, dtype=jnp.int32), data)


@jax.jit
def step(state, seed, data, log_prior):
    return search.step(state, seed, data, log_prior, SETTINGS)


def steps_on(mesh, data, state, count=1):
    """The state after some steps on a mesh, and the first one's info."""
    log_prior = np.log(np.full(K, 1 / K, np.float32))
    data, state = parallel.place_data(data, mesh), parallel.place_state(state, mesh)
    state, info = step(state, np.uint32(0), data, log_prior)
    for _ in range(count - 1):
        state, _ = step(state, np.uint32(0), data, log_prior)
    return state, info


def hypergradient(state):
    return np.asarray(state.optimiser[1][0].mu) / 0.1


def error(found, expected):
    """Relative, of each task."""
    difference = np.linalg.norm((found - expected).reshape(TASKS, -1), axis=1)
    return difference / np.linalg.norm(expected.reshape(TASKS, -1), axis=1)


@pytest.fixture(scope="module")
def start():
    return problem()


@pytest.fixture(scope="module")
def alone(start):
    """One step on one device."""
    return steps_on(parallel.make_mesh(TASKS, SHARDS, 1), *start)


def make_mesh(task, data):
    return parallel.make_mesh(TASKS, SHARDS, task * data, parallel.Sizes(task, data))


@pytest.fixture(scope="module", params=[(2, 1), (4, 1), (1, 2), (1, 4), (2, 2)], ids=str)
def shared(request, start):
    """One step on a mesh, with its sizes."""
    return request.param, *steps_on(make_mesh(*request.param), *start)


@pytest.mark.parametrize(
    ("tasks", "shards", "devices", "shape"),
    [(4, 64, 2, (2, 1)), (3, 64, 2, (1, 2)), (3, 1, 2, (1, 1)), (16, 64, 1, (1, 1))],
)
def test_devices_that_divide_the_tasks_then_the_shards(tasks, shards, devices, shape):
    mesh = parallel.make_mesh(tasks, shards, devices)
    assert dict(mesh.shape) == {"task": shape[0], "data": shape[1]}


@pytest.mark.parametrize(
    ("tasks", "devices", "sizes"),
    [(16, 6, (4, 1)), (16, 3, (2, 1)), (16, 12, (8, 1)), (6, 4, (2, 2)), (5, 16, (1, 16))],
)
def test_a_mesh_that_leaves_the_fewest_devices_idle(tasks, devices, sizes):
    assert parallel.mesh_sizes(tasks, 64, devices) == sizes


@pytest.mark.parametrize(
    ("asked", "shape"),
    [((0, 2), (2, 2)), ((0, 4), (1, 4)), ((2, 0), (2, 2)), ((1, 1), (1, 1)), ((4, 0), (4, 1))],
)
def test_a_mesh_as_it_is_asked_for(asked, shape):
    assert parallel.mesh_sizes(4, 64, 4, parallel.Sizes(*asked)) == shape


@pytest.mark.parametrize(
    ("tasks", "asked", "message"),
    [
        (4, (4, 2), r"mesh.task=4 and mesh.data=2 need 8 devices, there are 4: lower them"),
        (4, (0, 8), r"mesh.task=0 and mesh.data=8 need 8 devices"),
        (3, (2, 0), r"mesh.task=2 does not divide batches of 3 tasks: set n_tasks"),
        (3, (1, 3), r"mesh.data=3 does not divide the 64 virtual shards .*power of two"),
    ],
)
def test_a_mesh_that_cannot_be(tasks, asked, message):
    with pytest.raises(UserError, match=message):
        parallel.mesh_sizes(tasks, 64, 4, parallel.Sizes(*asked))


def test_processes_that_would_have_nothing_to_do(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(UserError, match=r"3 processes are too many for 2 tasks at a time and 4"):
        parallel.make_mesh(2, 4)


def test_arrays_lie_where_the_mesh_says(start):
    data, state = start
    mesh = make_mesh(1, 2)
    placed = parallel.place_data(data, mesh)
    assert placed.phi1.sharding.spec == placed.spaces[0].x.sharding.spec == P("data")
    assert placed.counts.sharding.spec == P("data")
    assert placed.spaces[0].penalty.sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, placed, data)
    halves = [shard.data.shape for shard in placed.phi1.addressable_shards]
    assert halves == [(SHARDS // 2, *data.phi1.shape[1:])] * 2
    mesh = make_mesh(2, 1)
    spread = parallel.place_state(state, mesh)
    assert [shard.data.shape[0] for shard in spread.theta.addressable_shards] == [2, 2]
    assert spread.step.sharding.is_fully_replicated
    assert parallel.place_data(data, mesh).phi1.sharding.is_fully_replicated


def test_devices_that_share_tasks_and_rows_find_what_one_finds(alone, shared):
    (_, data), state, info = shared
    assert len(state.theta.sharding.device_set) > 1
    # Sums over rows have another order where devices share them.
    bound = 1e-5 if data == 1 else 1e-4
    assert np.all(error(hypergradient(state), hypergradient(alone[0])) < bound)
    np.testing.assert_allclose(info.objective, alone[1].objective, rtol=bound)
    np.testing.assert_allclose(state.theta, alone[0].theta, atol=bound)


def test_the_same_devices_give_the_same_bits(start, shared):
    sizes, *before = shared
    again = steps_on(make_mesh(*sizes), *start)
    jax.tree.map(np.testing.assert_array_equal, again, tuple(before))


def test_devices_that_share_the_rows_keep_them(start):
    """Sums over rows are exchanged, at the start the rows that k-means++ draws; no other rows."""
    settings = SETTINGS._replace(encoder_start="clusters")
    mesh = make_mesh(1, 2)
    data, state = parallel.place_data(start[0], mesh), parallel.place_state(start[1], mesh)
    init = jax.jit(functools.partial(search.init, settings=settings))
    log_prior = np.log(np.full(K, 1 / K, np.float32))
    for program in (
        init.lower(0, jnp.arange(TASKS, dtype=jnp.int32), data),
        step.lower(state, np.uint32(0), data, log_prior),
    ):
        text = program.compile().as_text()
        assert "all-reduce" in text
        assert not re.findall(r"all-to-all|collective-permute", text)
        # One row of each task, as each device would draw it.
        gathered = re.findall(r"\w+\[([\d,]+)\]\S* all-gather\(", text)
        assert all(np.prod([int(d) for d in dims.split(",")]) <= 2 * TASKS for dims in gathered)


@pytest.mark.parametrize("sizes", [(4, 1), (2, 2)], ids=str)
def test_householder_coordinates_are_the_same_on_several_devices(start, sizes):
    """Their start too, where LAPACK's factorisation of a basis would wait for good."""
    settings = SETTINGS._replace(coordinates="householder")

    def two_steps(tasks, data):
        state = search.init(0, tasks, data, settings)
        log_prior = jnp.log(jnp.full(K, 1 / K))
        return search.run_steps(state, 0, data, log_prior, settings, 2)[0]

    def on(mesh):
        data = parallel.place_data(start[0], mesh)
        tasks = parallel.place_everywhere(np.arange(TASKS, dtype=np.int32), mesh)
        where = parallel.by_task(jax.eval_shape(two_steps, tasks, data), mesh)
        return jax.jit(two_steps, out_shardings=where)(tasks, data)

    alone, several = on(parallel.make_mesh(TASKS, SHARDS, 1)), on(make_mesh(*sizes))
    assert len(several.optimiser.basis.sharding.device_set) == 4
    np.testing.assert_allclose(several.optimiser.basis, alone.optimiser.basis, atol=1e-5)
    np.testing.assert_allclose(several.theta, alone.theta, atol=1e-3)


def test_a_state_stays_where_it_was_placed(start, shared):
    sizes, state, _ = shared
    placed = parallel.place_state(start[1], make_mesh(*sizes))
    for leaf, before in zip(jax.tree.leaves(state), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(before.sharding, leaf.ndim)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(alone, tmp_path, two_processes):
    two_processes(__file__, tmp_path, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    state, info = alone
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz", allow_pickle=False) as found:
            assert found["devices"] == 2
            assert np.all(error(found["hypergradient"], hypergradient(state)) < 1e-4)
            np.testing.assert_allclose(found["theta"], state.theta, atol=1e-4)
            np.testing.assert_allclose(found["objective"], info.objective, rtol=1e-4)


def test_a_process_zero_that_does_not_answer_is_named(free_port, monkeypatch):
    monkeypatch.setattr(joining, "_PATIENCE", 0.2)
    monkeypatch.setattr(joining, "_RETRY_SECONDS", 0.1)
    where = f"127.0.0.1:{free_port}"
    with pytest.raises(UserError, match=f"process 0 does not answer at {where} .*refused"):
        joining.start(where, 2, 1)


@pytest.mark.parametrize("port", ["0", "65536", "99999999999", "http"])
def test_a_port_that_there_is_not(port):
    for number in range(2):
        with pytest.raises(UserError, match=r"must be 'auto' or HOST:PORT with a port from 1 to"):
            joining.start(f"127.0.0.1:{port}", 2, number)


def test_a_port_that_is_taken_is_told_by_process_zero(free_port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        with pytest.raises(UserError, match=f"cannot listen at port {free_port} .*in use"):
            joining.start(f"127.0.0.1:{free_port}", 2, 0)


def test_a_host_that_does_not_exist_is_told_at_once():
    with pytest.raises(UserError, match=r"no\.such\.invalid is no host"):
        joining.start("no.such.invalid:1234", 2, 1)


def test_a_process_that_has_gone_is_told_in_one_line(monkeypatch):
    def fail(array):
        raise ValueError("Gloo AllGather failed:\nConnection closed by peer")

    monkeypatch.setattr(multihost_utils, "process_allgather", fail)
    with pytest.raises(LostProcess, match=r"has gone: what is on disk is kept.*closed by peer"):
        processes.Processes(0, 2).agree({"encoder": "tiny"})
    with pytest.raises(LostProcess), processes.Processes(1, 2).together():
        pass


def worker(port: str, index: str, folder: str) -> None:
    """One of the two processes: half of the shards are its own."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
    mesh = parallel.make_mesh(1, SHARDS)
    data, state = problem()
    placed = parallel.place_data(data, mesh)
    assert [s.data.shape[0] for s in placed.phi1.addressable_shards] == [SHARDS // 2]
    state, info = steps_on(mesh, data, state)
    # Without a task axis every process holds the whole state.
    np.savez(
        pathlib.Path(folder) / f"{index}.npz",
        devices=jax.device_count(),
        hypergradient=hypergradient(state),
        theta=state.theta,
        objective=info.objective,
    )


if __name__ == "__main__":
    worker(*sys.argv[1:])
