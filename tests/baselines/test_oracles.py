"""k-means, the probe and the neighbours against scikit-learn."""

import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from hume_jax.baselines import kmeans, neighbours, probe, running
from hume_jax.baselines.method import Data
from hume_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def rows(n: int = 300, k: int = 5, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters, rows of unit norm."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, k, n)
    x = rng.normal(size=(k, d))[true] + 0.7 * rng.normal(size=(n, d))
    x -= x.mean(axis=0)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), true


def test_steps_of_kmeans_are_those_of_scikit_learn() -> None:
    x, _ = rows()
    centres = x[:5]
    theirs = KMeans(5, init=centres, n_init=1, max_iter=4, tol=0, algorithm="lloyd").fit(x)
    state = kmeans.State(
        jnp.zeros(1, jnp.int32),
        jnp.asarray(centres)[None, None],
        jnp.zeros((1, 1)),
        jnp.zeros((1, 1), bool),
        jnp.zeros((), jnp.int32),
    )
    settings, data = kmeans.Settings(5, starts=1), Data((jnp.asarray(x),))
    for _ in range(4):
        state, _ = kmeans.step(state, 0, data, settings)
    np.testing.assert_allclose(state.centres[0, 0], theirs.cluster_centers_, atol=1e-5)
    # The inertia is that of the centres that the step began with.
    state, info = kmeans.step(state, 0, data, settings)
    np.testing.assert_allclose(info.loss[0] * len(x), theirs.inertia_, rtol=1e-4)
    labels = kmeans.predict(state, (jnp.asarray(x),))
    far = ((x[:, None] - np.asarray(state.centres[0, 0])) ** 2).sum(axis=2)
    np.testing.assert_array_equal(labels, far.argmin(axis=1)[None])


def test_the_best_of_ten_starts_is_as_tight_as_scikit_learns() -> None:
    x, _ = rows()
    settings, data = kmeans.Settings(5), Data((jnp.asarray(x),))
    fitted = running.fit(kmeans, settings, data, np.arange(2), 0)
    theirs = KMeans(5, n_init=10, random_state=0, tol=0).fit(x).inertia_ / len(x)
    np.testing.assert_allclose(running.score(kmeans, settings, fitted.state, data), theirs, 0.005)
    # It stops once nothing changes, well before the last step.
    assert fitted.steps < settings.steps
    assert bool(fitted.state.settled.all())


@pytest.mark.parametrize(
    "numbers",
    [300 * 5 * 3, *(pytest.param(each, marks=pytest.mark.slow) for each in (0, 2**30))],
)
def test_starts_that_still_move_go_on_beside_those_that_have_settled(monkeypatch, numbers) -> None:
    # One start, two, or all ten of a task are looked at together; those are done that stand still.
    monkeypatch.setattr(kmeans, "_TOGETHER", numbers)
    x, _ = rows()
    settings, data = kmeans.Settings(5), Data((jnp.asarray(x),))
    state = kmeans.init(0, jnp.arange(2), data, settings)
    centres, counts = np.array(state.centres), set()
    for _ in range(40):
        state, _ = kmeans.step(state, 0, data, settings)
        counts.add(int(state.settled.sum()))
    assert bool(state.settled.all())
    assert len(counts) > 2
    for task, start in np.ndindex(2, 10):
        alone = KMeans(5, init=centres[task, start], n_init=1, tol=0, algorithm="lloyd").fit(x)
        np.testing.assert_allclose(state.centres[task, start], alone.cluster_centers_, atol=1e-4)
        np.testing.assert_allclose(state.inertia[task, start] * len(x), alone.inertia_, rtol=1e-4)


def test_centres_of_spherical_kmeans_have_unit_norm() -> None:
    x, _ = rows()
    settings = kmeans.Settings(5, spherical=True, starts=2, steps=20)
    fitted = running.fit(kmeans, settings, Data((jnp.asarray(x),)), np.arange(1), 0)
    norms = np.linalg.norm(fitted.state.centres, axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)
    # The nearest centre of unit norm is the one of the highest cosine.
    best = int(np.argmin(fitted.state.inertia[0]))
    cosines = x @ np.asarray(fitted.state.centres)[0, best].T
    labels = running.predict(kmeans, fitted.state, (x,))
    np.testing.assert_array_equal(labels[0], cosines.argmax(axis=1))


def test_spherical_kmeans_is_as_tight_as_twenty_starts_by_hand() -> None:
    x, _ = rows()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rng = np.random.default_rng(0)

    def start() -> float:
        centres = unit[rng.choice(len(unit), 5, replace=False)]
        for _ in range(50):
            own = (unit @ centres.T).argmax(axis=1)
            sums = [
                unit[own == c].sum(axis=0) if (own == c).any() else centres[c] for c in range(5)
            ]
            centres = np.stack([total / np.linalg.norm(total) for total in sums])
        return float(np.mean(2 - 2 * (unit @ centres.T).max(axis=1)))

    theirs = min(start() for _ in range(20))
    settings = kmeans.Settings(5, spherical=True)
    fitted = running.fit(kmeans, settings, Data((jnp.asarray(unit),)), np.arange(2), 0)
    np.testing.assert_allclose(
        running.score(kmeans, settings, fitted.state, Data((jnp.asarray(unit),))), theirs, 0.005
    )


def test_the_probe_is_scikit_learns_regression_on_rows_with_a_constant() -> None:
    x, true = rows()
    settings = probe.Settings(5, penalties=(1e-1, 1e-3), tolerance=1e-6, steps=30)
    data = Data((jnp.asarray(x),), None, jnp.asarray(true, jnp.int32))
    fitted = running.fit(probe, settings, data, np.arange(2), 0)
    accuracy = np.asarray(fitted.state.accuracy)
    constant = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
    for task in range(2):
        held_out = np.asarray(fitted.state.held_out[task])
        assert held_out.sum() == 30
        for i, penalty in enumerate(settings.penalties):
            oracle = LogisticRegression(
                C=1 / ((~held_out).sum() * penalty), fit_intercept=False, tol=1e-8, max_iter=5000
            ).fit(constant[~held_out], true[~held_out])
            expected = oracle.score(constant[held_out], true[held_out])
            assert accuracy[task, i] == pytest.approx(expected, abs=1e-6)
        best = settings.penalties[int(np.argmax(accuracy[task]))]
        oracle = LogisticRegression(
            C=1 / (300 * best), fit_intercept=False, tol=1e-8, max_iter=5000
        ).fit(constant, true)
        found = np.asarray(fitted.state.w[task]).T
        # A shift of all classes alike changes no probability.
        apart = (found - found.mean(axis=0)) - (oracle.coef_ - oracle.coef_.mean(axis=0))
        assert np.abs(apart).max() < 2e-2 * np.abs(oracle.coef_).max()
    assert accuracy[0, 0] != accuracy[1, 0] or accuracy[0, 1] != accuracy[1, 1]


@pytest.mark.slow
def test_the_probe_ends_well_with_many_classes_and_little_penalty() -> None:
    """150 classes of real rows, a penalty of 1e-6: steps that are too long led away from there."""
    folder = pathlib.Path(__file__).parents[2].parent / "shared/data/clinc150"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    x = np.load(folder / "minilm_l6_train.npy").astype(np.float32)
    x -= x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    true = jnp.asarray(np.load(folder / "labels_train.npy"), jnp.int32)
    settings = probe.Settings(150, penalties=(1e-6,))
    data = Data((jnp.asarray(x),), None, true)
    fitted = running.fit(probe, settings, data, np.arange(1), 0)
    labels = running.predict(probe, fitted.state, (x,))
    assert np.mean(labels[0] == true) > 0.97


@pytest.mark.parametrize("block", [7, 40, 100])
def test_neighbours_are_all_found_whatever_the_blocks(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = rows(n=40)
    monkeypatch.setattr(neighbours, "_QUERIES", block)
    seen: list[int] = []
    found = neighbours.neighbours(x, 5, done=seen.append)
    theirs = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(x)
    np.testing.assert_array_equal(found, theirs.kneighbors(x, return_distance=False)[:, 1:])
    assert found.dtype == np.int32
    assert sum(seen) == 40


def test_a_row_is_not_its_own_neighbour_though_others_equal_it() -> None:
    x = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]
    found = neighbours.neighbours(x, 9)
    np.testing.assert_array_equal(found, [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    # More equal rows than are asked for, so that a row is not always among the first.
    same = np.repeat(np.eye(2, dtype=np.float32), 30, axis=0)
    found = neighbours.neighbours(same, 4)
    assert (found != np.arange(60)[:, None]).all()
    assert (found // 30 == np.arange(60)[:, None] // 30).all()
    assert (np.diff(found) > 0).all()


def test_without_faiss_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r'faiss .*pip install "hume_jax\[baselines\]"'):
        neighbours.neighbours(np.eye(3, dtype=np.float32), 1)
