"""Subsets of rows as they are stored against those of rows that were prepared beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hume_jax.core import subsets
from hume_jax.core.inner_fit import InnerFit, coordinates
from hume_jax.representations import scaling

pytestmark = pytest.mark.usefixtures("quickly_compiled")

N, V, TRAIN, SIZE = 61, 4, 9, 14
WIDTHS, D2 = (7, 5), 6
NESTEROV = InnerFit(solver="nesterov")


@pytest.fixture
def stored(rng):
    """Two files of phi1 and one second space, float16; row 8 of the first is near its mean."""
    phi1 = [(rng.normal(size=(N, d)) + 2).astype(np.float16) for d in WIDTHS]
    return phi1, (rng.normal(size=(N, D2)) - 1).astype(np.float16)


def changes(phi1, phi2, kind="rows", precondition=True):
    """What the arrays pass through, in both forms: statistics, and `Changes`."""
    first = [scaling.statistics([x], kind=kind) for x in phi1]
    second = scaling.statistics([phi2], kind="scale" if kind == "rows" else "stored")
    x = np.ones((N, D2 + 1), np.float32)
    x[:, :D2] = scaling.normalise(phi2, second, "scale")
    change = coordinates(x.T.astype(np.float64) @ x / N, 1e-2, precondition=precondition)
    basis = change.basis.astype(np.float32)
    how = subsets.Changes(
        subsets.FirstChange(tuple(s.mean for s in first), jnp.float32(scaling.ROUNDING))
        if kind == "rows"
        else None,
        (
            subsets.InnerChange(
                second.mean,
                second.scale,
                basis if precondition else None,
                change.penalty.astype(np.float32),
            ),
        ),
    )
    return first, x @ basis, how


def data_of(phi1, first, kind, inner, how):
    rows = np.concatenate(
        [scaling.normalise(x, s, kind) for x, s in zip(phi1, first, strict=True)], axis=1
    )
    if kind == "rows":
        rows *= np.float32(len(phi1) ** -0.5)
    return subsets.make_data(rows, [(inner, how.spaces[0].penalty)], V)


def gather(numbers, phi1, phi2):
    rows = numbers * V + np.arange(V)[:, None]
    return subsets.Gathered(tuple(jnp.asarray(x[rows]) for x in phi1), (jnp.asarray(phi2[rows]),))


@pytest.mark.parametrize("precondition", [True, False], ids=["preconditioned", "plain"])
@pytest.mark.parametrize("kind", ["rows", "stored"])
def test_stored_rows_become_those_that_were_prepared(stored, kind, precondition):
    phi1, phi2 = stored
    first, inner, how = changes(phi1, phi2, kind, precondition)
    data = data_of(phi1, first, kind, inner, how)
    numbers = subsets.draw(jax.random.key(0), data.counts, data.phi1.shape[1], SIZE)
    expected = subsets.take(data, numbers, TRAIN, NESTEROV)
    found = subsets.change(gather(np.asarray(numbers), phi1, phi2), how, TRAIN, NESTEROV)
    assert found.phi1_train.shape == (V * TRAIN, sum(WIDTHS))
    assert found.spaces[0].test.shape == (V * (SIZE - TRAIN), D2 + 1)
    # Products of 7 terms of about 1 in float32, and roots of such sums.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), found, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_one_file_is_of_unit_norm_and_a_row_that_equals_the_mean_is_zero(rng):
    half = rng.normal(size=(V, 3, 5)).astype(np.float32)
    rows = np.concatenate([half, -half, 0 * half[:, :1]], axis=1) + np.float32(0.1)
    mean = scaling.statistics([rows.reshape(-1, 5)], kind="rows").mean
    how = subsets.Changes(subsets.FirstChange((mean,), jnp.float32(scaling.ROUNDING)), ())
    found = subsets.change(subsets.Gathered((jnp.asarray(rows),), ()), how, 6, NESTEROV)
    np.testing.assert_allclose(np.linalg.norm(found.phi1_train, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.phi1_test, 0)


def test_a_draw_knows_only_its_key_and_the_counts():
    """On the host it is the same as inside a program that holds the rows."""
    counts = subsets.shard_counts(N, V)
    np.testing.assert_array_equal(counts, [16, 15, 15, 15])
    outside = jax.jit(lambda key: subsets.draw(key, counts, 16, SIZE))(jax.random.key(3))
    rows = np.arange(N, dtype=np.float32)[:, None]
    data = subsets.make_data(rows, [(rows, np.zeros(1, np.float32))], V)

    @jax.jit
    def inside(key, data):
        numbers = subsets.draw(key, data.counts, 16, SIZE)
        return subsets.take(data, numbers, TRAIN, InnerFit())

    found = inside(jax.random.key(3), data)
    rows = np.asarray(outside) * V + np.arange(V)[:, None]
    np.testing.assert_array_equal(found.phi1_train[:, 0], rows[:, :TRAIN].reshape(-1))
    np.testing.assert_array_equal(found.phi1_test[:, 0], rows[:, TRAIN:].reshape(-1))
    assert rows.max() < N
