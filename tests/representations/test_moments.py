"""Moments of one pass against those of rows that are held as float64."""

import numpy as np
import pytest

from hume_jax.core.inner_fit import coordinates
from hume_jax.representations import moments, scaling
from hume_jax.representations.arrays import checks
from hume_jax.representations.moments import Moments


def direct(arrays: list[np.ndarray]) -> Moments:
    rows = np.concatenate(arrays).astype(np.float64)
    mean = rows.mean(axis=0)
    centred = rows - mean
    stats = scaling.statistics(arrays, kind="rows")
    stored = np.concatenate(arrays).astype(np.float32)
    zero = scaling.is_zero(stored - stats.mean, stored, stats.mean)
    gram = centred.T @ centred / len(rows)
    return Moments(mean, float(np.trace(gram)), gram, int(zero.sum()))


@pytest.fixture
def arrays(rng):
    """Columns of very different spread and far from the origin, one of them constant."""
    spread = np.array([3, 1, 0.1, 0.01, 0, 1], np.float32)
    mixed = rng.normal(size=(6, 6)).astype(np.float32)
    mixed[:, 4] = mixed[4] = 0
    return [
        ((rng.normal(size=(n, 6)) * spread) @ mixed + 10).astype(np.float32) for n in (500, 1, 899)
    ]


@pytest.mark.parametrize("block_bytes", [64, 2**12, 2**20])
@pytest.mark.parametrize("sample", [16, 4096])
def test_moments(arrays, block_bytes, sample, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(moments, "_SAMPLE", sample)
    expected, rows = direct(arrays), []
    found = moments.moments(arrays, products=True, done=rows.append)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14)
    # The rows minus the sample's mean are rounded to float32: 1e-7 of 10 in each, of either sign.
    assert found.squares == pytest.approx(expected.squares, rel=1e-6)
    np.testing.assert_allclose(found.gram, expected.gram, atol=1e-6 * expected.squares)
    np.testing.assert_array_equal(found.gram[4], 0)
    assert sum(rows) == 1400
    without = moments.moments(arrays, products=False)
    assert without.gram is None
    np.testing.assert_array_equal(without.mean, found.mean)
    assert without.squares == found.squares


def test_products_in_float32_serve_as_well_as_in_float64(rng, monkeypatch):
    """Of as many directions as an encoder has, with eigenvalues over six orders of magnitude."""
    n, d, penalty = 20_000, 96, 1e-4
    spread = np.logspace(0, -3, d)
    rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
    rows = ((rng.normal(size=(n, d)) * spread) @ rotation + 0.3).astype(np.float16)
    exact = moments.moments([rows], products=True)
    monkeypatch.setattr(moments, "_EXACT_PRODUCTS", 0)
    fast = moments.moments([rows], products=True)
    largest = np.linalg.eigvalsh(exact.gram)[-1]
    error = np.abs(np.linalg.eigvalsh(fast.gram - exact.gram)).max()
    # Not the same sums, or the test would test nothing.
    assert 0 < error < 1e-7 * largest
    # What it is for: in the coordinates of the fast matrix the exact problem is as smooth.
    scale = 1 / np.trace(exact.gram)

    def padded(gram: np.ndarray) -> np.ndarray:
        whole = np.eye(d + 1)
        whole[:d, :d] = scale * gram
        return whole

    change = coordinates(padded(fast.gram), penalty)
    hessian = change.basis.T @ padded(exact.gram) @ change.basis + 2 * np.diag(change.penalty)
    # The identity, for the exact matrix.
    np.testing.assert_allclose(hessian, np.eye(d + 1), atol=1e-4)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian), 1, atol=1e-4)


@pytest.mark.parametrize("sample", [4, 4096])
@pytest.mark.parametrize("offset", [0.0, 0.1, 100.0])
def test_rows_that_equal_the_mean_are_counted(rng, offset, sample, monkeypatch):
    """Also where a sample of few rows is far from their mean."""
    monkeypatch.setattr(moments, "_SAMPLE", sample)
    half = rng.normal(size=(300, 5))
    rows = np.concatenate([half, np.zeros((7, 5)), -half]).astype(np.float32)
    rows = (rows + np.float32(offset)).astype(np.float32)
    parts = [rows[:350], rows[350:]]
    assert moments.moments(parts, products=False).zero_rows == direct(parts).zero_rows == 7


def test_only_rows_near_the_mean_are_looked_at_again(rng, monkeypatch):
    looked = []
    count = moments._count_zero

    def watch(arrays, candidates, mean):
        looked.extend(map(len, candidates))
        return count(arrays, candidates, mean)

    monkeypatch.setattr(moments, "_count_zero", watch)
    moments.moments([rng.normal(size=(9000, 40)).astype(np.float16)], products=False)
    assert looked == [0]
    # Rows that differ by little more than rounding.
    rows = (1 + 1e-6 * rng.normal(size=(50, 40))).astype(np.float32)
    moments.moments([rows], products=False)
    assert looked == [0, 50]


def test_one_row_is_enough():
    found = moments.moments([np.ones((1, 3), np.float16)], products=True)
    np.testing.assert_array_equal(found.mean, 1)
    np.testing.assert_array_equal(found.gram, 0)
    assert (found.squares, found.zero_rows) == (0, 1)
