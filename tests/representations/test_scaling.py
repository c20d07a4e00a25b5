import numpy as np
import pytest

from hume_jax.representations import scaling
from hume_jax.representations.arrays import checks


@pytest.fixture
def parts(rng):
    """Two blocks of rows far from the origin, where careless sums cancel."""
    scale = np.array([1.0, 10.0, 0.1, 0.0], np.float32)
    return [(rng.normal(size=(n, 4)) * scale + 1000).astype(np.float32) for n in (30, 70)]


@pytest.mark.parametrize("block_bytes", [1, 64, 2**20])
def test_statistics_over_blocks_and_parts(parts, block_bytes, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK_BYTES", block_bytes)
    rows = np.concatenate(parts).astype(np.float64)
    stats = scaling.statistics(parts, kind="scale")
    np.testing.assert_allclose(stats.mean, rows.mean(axis=0), rtol=1e-7)
    expected = 1 / np.sqrt(np.square(rows - stats.mean).sum(axis=1).mean())
    np.testing.assert_allclose(stats.scale, expected, rtol=1e-6)
    assert (stats.mean.dtype, stats.scale.dtype, stats.scale.shape) == (np.float32, np.float32, ())


def test_statistics_of_stored_change_nothing(parts):
    stats = scaling.statistics(parts, kind="stored")
    np.testing.assert_array_equal(stats.mean, np.zeros(4))
    assert stats.scale == 1


@pytest.mark.parametrize("block_bytes", [1, 64, 2**20])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_have_unit_norm(rng, dtype, block_bytes, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK_BYTES", block_bytes)
    rows = rng.normal(size=(50, 7)).astype(dtype)
    out = scaling.normalise(rows, scaling.statistics([rows], kind="rows"), "rows")
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, rtol=1e-6)
    expected = rows.astype(np.float64) - rows.astype(np.float64).mean(axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_a_row_equal_to_the_mean_stays_zero(rng):
    half = rng.normal(size=(50, 7)).astype(np.float32)
    rows = np.concatenate([half, -half, np.zeros((1, 7), np.float32)]) + np.float32(0.1)
    out = scaling.normalise(rows, scaling.statistics([rows], kind="rows"), "rows")
    assert not out[-1].any()
    assert np.linalg.norm(out[:-1], axis=1) == pytest.approx(1)


def test_scale_gives_unit_mean_squared_norm(parts):
    stats = scaling.statistics(parts, kind="scale")
    out = np.concatenate([scaling.normalise(part, stats, "scale") for part in parts])
    assert np.square(out.astype(np.float64)).sum(axis=1).mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-5)


def test_identical_rows_get_scale_one():
    stats = scaling.statistics([np.full((5, 3), 2.0, np.float32)], kind="scale")
    assert stats.scale == 1


def test_stored_is_only_cast(rng):
    rows = rng.normal(size=(5, 3)).astype(np.float16)
    stats = scaling.statistics([rows], kind="rows")
    np.testing.assert_array_equal(scaling.normalise(rows, stats, "stored"), rows.astype(np.float32))
