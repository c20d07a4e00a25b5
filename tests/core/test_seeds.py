"""Several seeds in one program find what each finds alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hume_jax.core import search, seeds
from hume_jax.core.inner_fit import InnerFit

pytestmark = pytest.mark.usefixtures("quickly_compiled")

K, S = 3, 2
SETTINGS = search.Search(
    K,
    20,
    10,
    encoder_start="rows",
    start="cold",
    inner=InnerFit("first_order", "gradient", 2, step_size=0.5),
)


def made() -> search.Data:
    rng = np.random.default_rng(0)
    phi1 = rng.normal(size=(60, 6)).astype(np.float32)
    phi1 /= np.linalg.norm(phi1, axis=1, keepdims=True)
    x = np.concatenate([rng.normal(size=(60, 4)), np.ones((60, 1))], axis=1).astype(np.float32)
    return search.make_data(phi1, [(x, np.full(5, 1e-3, np.float32))], 2)


def run(*of: int) -> tuple[search.State, search.Info]:
    """Three steps of seeds in one program."""
    numbers = jnp.asarray(of, jnp.uint32)
    start, steps = _programs()
    data, log_prior = made(), jnp.log(jnp.full(K, 1 / K))
    state: search.State = start(numbers, jnp.arange(S, dtype=jnp.int32), data)
    found: tuple[search.State, search.Info] = steps(state, numbers, data, log_prior)
    return found


@functools.cache
def _programs() -> tuple[Any, Any]:
    return (
        jax.jit(functools.partial(seeds.init, settings=SETTINGS)),
        jax.jit(functools.partial(seeds.run_steps, settings=SETTINGS, steps=3)),
    )


def check_second(both: search.State, info: search.Info, alone: Any, its: Any) -> None:
    """Looks whether the second of two seeds is what was found otherwise."""
    np.testing.assert_allclose(both.theta[S:], alone, atol=1e-4)
    np.testing.assert_allclose(info.objective[:, S:], its, rtol=1e-4)


def test_each_seed_finds_the_same_whatever_the_others_are() -> None:
    both, info = run(7, 3)
    assert both.theta.shape == (2 * S, 6, K)
    assert info.objective.shape == (3, 2 * S)
    assert info.temperature.shape == (3,)
    np.testing.assert_array_equal(both.task, [0, 1, 0, 1])
    assert int(both.step) == 3
    again, its = run(3, 11)
    check_second(both, info, again.theta[:S], its.objective[:, :S])
    # Seeds differ.
    assert np.abs(both.theta[:S] - both.theta[S:]).max() > 0.01


@pytest.mark.parametrize("numbers", [(7,), (7, 3)])
def test_a_blank_state_is_like_those_that_steps_leave(numbers: tuple[int, ...]) -> None:
    """By which a checkpoint is read."""
    state, _ = run(*numbers)
    blank = functools.partial(seeds.blank, dim=6, widths=(5,), settings=SETTINGS)
    like = jax.eval_shape(blank, jnp.asarray(numbers, jnp.uint32), jnp.arange(S, dtype=jnp.int32))
    assert jax.tree.structure(state) == jax.tree.structure(like)
    for leaf, its in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert (leaf.shape, leaf.dtype) == (its.shape, its.dtype)


@pytest.mark.slow
def test_each_seed_finds_what_it_finds_alone() -> None:
    both, info = run(7, 3)
    alone, its = run(3)
    assert jax.tree.structure(both) == jax.tree.structure(alone)
    check_second(both, info, alone.theta, its.objective)
