"""Several seeds in one program find what each finds alone."""

import functools

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


def test_each_seed_finds_what_it_finds_alone() -> None:
    data, log_prior = made(), jnp.log(jnp.full(K, 1 / K))
    tasks = jnp.arange(S, dtype=jnp.int32)
    init = jax.jit(functools.partial(seeds.init, settings=SETTINGS))
    steps = jax.jit(functools.partial(seeds.run_steps, settings=SETTINGS, steps=3))

    def run(*of: int) -> tuple[search.State, search.Info]:
        numbers = jnp.asarray(of, jnp.uint32)
        return steps(init(numbers, tasks, data), numbers, data, log_prior)

    both, info = run(7, 3)
    assert both.theta.shape == (2 * S, 6, K)
    assert info.objective.shape == (3, 2 * S)
    assert info.temperature.shape == (3,)
    np.testing.assert_array_equal(both.task, [0, 1, 0, 1])
    assert int(both.step) == 3
    alone, its = run(3)
    np.testing.assert_allclose(both.theta[S:], alone.theta, atol=1e-4)
    np.testing.assert_allclose(info.objective[:, S:], its.objective, rtol=1e-4)
    assert jax.tree.structure(both) == jax.tree.structure(alone)
    # Seeds differ.
    assert np.abs(both.theta[:S] - both.theta[S:]).max() > 0.01
