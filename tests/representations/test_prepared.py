"""Maps computed in one pass against rows that were prepared in memory."""

import io

import numpy as np
import pytest

from hume_jax.errors import UserError
from hume_jax.representations import moments, prepared, scaling
from hume_jax.representations.prepare import (
    NormalisedRows,
    inner_rows,
    joined_rows,
    space_statistics,
)
from hume_jax.representations.store import Space, Split

N, D2 = 300, 9


def space(*arrays: np.ndarray) -> Space:
    return Space(arrays, tuple(f"{i}.npy" for i in range(len(arrays))), ())


def splits(rng, *sizes: int) -> list[Split]:
    """With two files of phi1 and one of phi2."""
    mixed = rng.normal(size=(D2, D2)) * np.logspace(0, -2, D2)
    found = []
    for n in sizes:
        phi1 = [(rng.normal(size=(n, d)) + 3).astype(np.float16) for d in (5, 4)]
        phi2 = (rng.normal(size=(n, D2)) @ mixed + 1).astype(np.float16)
        # Two columns of which one follows from the other, exactly.
        phi2[:, 1] = phi2[:, 0]
        found.append(Split(space(*phi1), space(phi2), None, n))
    return found


@pytest.mark.parametrize("directions", [0, 4])
@pytest.mark.parametrize("precondition", [True, False], ids=["preconditioned", "plain"])
@pytest.mark.parametrize("normalised", [True, False], ids=["normalised", "stored"])
def test_a_second_space_as_in_memory(rng, normalised, precondition, directions):
    arrays = [split.phi2.arrays[0] for split in splits(rng, 200, 100)]
    how = {"normalised": normalised, "precondition": precondition, "directions": directions}
    expected = inner_rows(arrays, **how, penalty=1e-3)
    read = []
    found = prepared.second_space(arrays, **how, penalty=1e-3, done=read.append)
    # Each row once, or not at all where nothing is asked about them.
    assert sum(read) == (N if normalised or precondition else 0)
    assert (found.basis is not None) == precondition
    np.testing.assert_allclose(found.penalty, expected.penalty, rtol=1e-5)
    assert found.kept == pytest.approx(expected.kept, abs=1e-6)
    assert found.dropped == expected.dropped
    rows = np.ones((N, D2 + 1), np.float32)
    stored = np.concatenate(arrays).astype(np.float32)
    rows[:, :D2] = (stored - found.statistics.mean) * found.statistics.scale
    x = rows if found.basis is None else rows @ found.basis
    # Directions of hardly any variance turn with the rounding of the matrix that they come from.
    np.testing.assert_allclose(x, expected.x, atol=2e-5)


def test_directions_of_a_sample_are_those_of_its_rows(rng):
    arrays = [split.phi2.arrays[0] for split in splits(rng, 190, 20, 90)]
    how = {"normalised": True, "precondition": True, "directions": 0, "penalty": 1e-3}
    read = []
    found = prepared.second_space(arrays, **how, sample=100, done=read.append)
    assert sum(read) == 100
    # Every third row, whatever array it is in.
    expected = prepared.second_space([np.concatenate(arrays)[::3]], **how)
    np.testing.assert_allclose(found.statistics.mean, expected.statistics.mean, rtol=1e-6)
    np.testing.assert_allclose(found.basis, expected.basis, atol=1e-5)
    for sample in (N, None):
        whole = prepared.second_space(arrays, **how, sample=sample, done=read.append)
        np.testing.assert_array_equal(whole.basis, prepared.second_space(arrays, **how).basis)
    # Some arrays may have none of its rows.
    for given in (arrays, prepared.sampled(arrays, N - 1)):
        assert [len(part) for part in prepared.sampled(given, 2)] == [2, 0, 0]


def test_a_first_space_as_in_memory(rng):
    parts = splits(rng, 200, 100)
    found, warnings = prepared.first_space(parts, "rows")
    expected = space_statistics([split.phi1 for split in parts], "rows")
    assert warnings == []
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.mean, theirs.mean)
        assert mine.scale == theirs.scale == 1
    stored, _ = prepared.first_space(parts, "stored")
    np.testing.assert_array_equal(stored[1].mean, 0)


@pytest.mark.parametrize("count", [2, 5])
def test_rows_that_equal_the_mean(rng, count):
    half = rng.normal(size=(N // 2, 4))
    rows = np.concatenate([half, np.zeros((count, 4)), -half]).astype(np.float32)
    one = [Split(space(rows), space(), None, len(rows))]
    if count > 0.01 * len(rows):
        with pytest.raises(UserError, match=r"0.npy: 5 of 305 rows .* more than 1 %"):
            prepared.first_space(one, "rows")
        return
    _, warnings = prepared.first_space(one, "rows")
    assert warnings == ["0.npy: 2 of 302 rows have zero norm once the mean is taken off"]


@pytest.mark.parametrize("precondition", [True, False])
def test_maps_survive_their_file(rng, precondition):
    parts = splits(rng, 50)
    first, _ = prepared.first_space(parts, "rows")
    second = prepared.second_space(
        parts[0].phi2.arrays,
        normalised=True,
        precondition=precondition,
        directions=0,
        penalty=1e-3,
    )
    maps = prepared.Prepared(first, (second, second))
    file = io.BytesIO()
    np.savez(file, **prepared.to_arrays(maps))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = prepared.from_arrays(arrays)
    assert again.widths == maps.widths == (len(second.penalty),) * 2
    for mine, theirs in zip((*again.phi1, *again.spaces), (*maps.phi1, *maps.spaces), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_equal(one, other)


def test_rows_normalised_as_they_are_asked_for(rng):
    parts = [split.phi1 for split in splits(rng, 40, 25)]
    stats = space_statistics(parts, "rows")
    everything = np.concatenate([joined_rows(part.arrays, stats, "rows") for part in parts])
    rows = NormalisedRows(parts, stats, "rows")
    assert rows.shape == everything.shape
    assert len(rows) == 65
    for index in (slice(None), slice(30, 50), slice(60, 100), np.array([3, 64, 40, 39, 3])):
        np.testing.assert_array_equal(rows[index], everything[index])


def test_the_scale_of_identical_rows_is_one():
    rows = [np.full((5, 3), 2, np.float16)]
    found = prepared.second_space(
        rows, normalised=True, precondition=False, directions=0, penalty=1e-3
    )
    assert found.statistics.scale == scaling.statistics(rows, kind="scale").scale == 1
    assert moments.moments(rows, products=False).squares == 0
