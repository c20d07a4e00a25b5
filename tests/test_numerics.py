"""Numbers far from the usual: penalties, temperatures and scales, a thousand classes, bfloat16."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hume_jax import parallel
from hume_jax.core import search, subsets
from hume_jax.core.inner_fit import InnerFit
from hume_jax.representations import prepared
from hume_jax.representations.gather import Stack
from hume_jax.representations.scaling import Kind
from hume_jax.representations.store import Space, Split
from hume_jax.stored_rows import StoredRows, hold

pytestmark = pytest.mark.usefixtures("quickly_compiled")

N, D1, D2, K, V = 203, 12, 9, 4, 4
TASKS = 2
# T from 1 over 0.01 to 1e-4.
FALLING: dict[str, Any] = {"temperature": 1.0, "anneal_steps": (2, 4), "anneal_temperature": 0.01}
STEPS = 6
INIT = jax.jit(search.init, static_argnums=3)
RUN = jax.jit(search.run_steps, static_argnums=(4, 5))
NEWTON = {"steps": 3, "newton_steps": 4, "adjoint_steps": 8, "tolerance": 0.05}


def clusters(noise: float, seed: int = 0) -> list[np.ndarray]:
    """Two spaces of the same noisy classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(K, size=N)
    return [
        rng.normal(size=(K, width))[classes] + noise * rng.normal(size=(N, width)) + 1
        for width in (D1, D2)
    ]


def held(
    scale: float,
    penalty: float,
    *,
    storage: str = "float32",
    normalised: bool = True,
    precondition: bool = True,
    noise: float = 1.0,
) -> search.Data:
    """The clusters, scaled, as a run would hold them."""
    arrays = [(scale * rows).astype(np.float32) for rows in clusters(noise)]
    kind: Kind = "rows" if normalised else "stored"
    phi1, phi2 = (Space((a,), (name,), ()) for a, name in zip(arrays, ("1", "2"), strict=True))
    first, _ = prepared.first_space([Split(phi1, phi2, None, N)], kind)
    second = prepared.second_space(
        phi2.arrays,
        normalised=normalised,
        precondition=precondition,
        directions=0,
        penalty=penalty,
    )
    changes = prepared.changes(prepared.Prepared(first, (second,)), kind)
    stacks = [(Stack(space.arrays),) for space in (phi1, phi2)]
    rows = StoredRows(*stacks, changes, V)
    return hold(rows, parallel.make_mesh(1, 1, 1), storage=storage)


def searched(
    data: search.Data, settings: search.Search, steps: int = STEPS, tasks: int = TASKS
) -> tuple:
    """State and info after some steps."""
    k = settings.n_classes
    log_prior = jnp.log(jnp.full(k, 1 / k, jnp.float32))
    state = INIT(0, jnp.arange(tasks), data, settings)
    return RUN(state, jnp.uint32(0), data, log_prior, settings, steps)


def assert_finite(state: search.State, info: search.Info, k: int = K) -> None:
    np.testing.assert_array_equal(state.dropped, 0)
    for leaf in jax.tree.leaves((state, info)):
        assert np.all(np.isfinite(leaf))
    assert np.all((info.entropy >= 0) & (info.entropy <= np.log(k) + 1e-5))
    gram = np.einsum("sdk,sdl->skl", state.theta, state.theta)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(k), gram.shape), atol=1e-4)


@pytest.mark.parametrize("adjoint", ["implicit", "first_order", "unrolled"])
def test_no_nan_of_any_penalty_temperature_and_scale(adjoint):
    inner = InnerFit(adjoint=adjoint, **NEWTON)
    settings = search.Search(K, 30, 6, inner=inner, **FALLING)
    found = {}
    for penalty in (1e-8, 1e-4, 10.0):
        for scale in (1e-6, 1.0, 1e6):
            state, info = found[scale] = searched(held(scale, penalty), settings)
            assert_finite(state, info)
        # Normalised rows do not know the scale that they had.
        for scale in (1e-6, 1e6):
            np.testing.assert_allclose(
                found[scale][1].objective[0], found[1.0][1].objective[0], rtol=1e-3
            )


@pytest.mark.parametrize("solver", ["gradient", pytest.param("nesterov", marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_nan_of_rows_as_they_are_stored(scale, solver):
    """As the paper's preset takes them, by steps that the curvature sets."""
    inner = InnerFit(adjoint="unrolled", solver=solver, steps=20)
    settings = search.Search(K, 30, 6, inner=inner, start="random", **FALLING)
    for penalty in (0.0, 1e-8, 10.0):
        data = held(scale, penalty, normalised=False, precondition=False)
        assert_finite(*searched(data, settings))


@pytest.mark.parametrize("adjoint", ["first_order", "unrolled"])
def test_no_nan_without_a_penalty_where_a_fit_is_sure_of_every_row(adjoint):
    """No curvature is left then, and warm weights grow from step to step."""
    inner = InnerFit(adjoint=adjoint, **NEWTON)
    settings = search.Search(K, 30, 30, inner=inner, temperature=0.4, anneal_steps=(15, 22))
    data = held(1.0, 0.0, precondition=False, noise=0.1)
    state, info = searched(data, settings, steps=30, tasks=8)
    assert_finite(state, info)
    assert np.all(info.heldout_ce[-1] < 0.1 * np.log(K))


@pytest.mark.slow
def test_a_thousand_classes():
    k, n, width = 1000, 1024, 1100
    rng = np.random.default_rng(0)
    phi1 = rng.normal(size=(n, width)).astype(np.float32)
    phi1 /= np.linalg.norm(phi1, axis=1, keepdims=True)
    x = (rng.normal(size=(n, 17)) / 4).astype(np.float32)
    data = search.make_data(phi1, [(x, np.full(17, 1e-3, np.float32))], V)
    inner = InnerFit(steps=2, newton_steps=3, adjoint_steps=4)
    settings = search.Search(k, 128, 128, temperature=0.1, inner=inner)
    state, info = searched(data, settings, steps=1, tasks=1)
    assert_finite(state, info, k)
    # Labels that nothing ties together: a fit of 17 columns knows no better than chance.
    assert np.all(np.abs(info.heldout_ce[0] - np.log(k)) < 0.2 * np.log(k))
    assert np.max(np.abs(state.theta - INIT(0, jnp.arange(1), data, settings).theta)) > 0


# ---- what rows are held as


def test_rows_held_as_bfloat16_are_those_of_float32_rounded():
    exact, rounded = held(1.0, 1e-4), held(1.0, 1e-4, storage="bfloat16")
    assert {leaf.dtype for leaf in (rounded.phi1, rounded.spaces[0].x)} == {jnp.uint16.dtype}
    settings = search.Search(K, 30, 6)
    splits = [search.draw(0, 0, 0, data, settings) for data in (exact, rounded)]
    for mine, theirs in zip(*map(jax.tree.leaves, splits), strict=True):
        assert mine.dtype == theirs.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, rtol=2**-8, atol=1e-30)
    phi1 = np.asarray(splits[0].phi1_train.astype(jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(splits[1].phi1_train, phi1)


@pytest.mark.slow
def test_a_hypergradient_of_rows_held_as_bfloat16():
    inner = InnerFit(steps=4, newton_steps=20, adjoint_steps=30)
    settings = search.Search(K, 30, 6, clip=1e9, temperature=0.2, inner=inner)
    gradients = []
    for storage in subsets.HELD:
        state, info = searched(held(1.0, 1e-3, storage=storage), settings, steps=1)
        assert_finite(state, info)
        assert state.theta.dtype == state.inner[0].dtype == np.float32
        gradients.append(np.asarray(state.optimiser[1][0].mu).reshape(TASKS, -1))
    exact, rounded = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in gradients)
    cosines = np.sum(exact * rounded, axis=1)
    assert np.all(cosines > 0.99)
    assert np.all(cosines < 1 - 1e-9)
