"""k-means in one representation space: what the space gives without any search.

Twice: as a method of this folder, many seeds at a time from rows in memory (`init`, `step`,
`predict`, `score`), and as the floor beside every run of the search, `kmeans`, which reads rows
from anywhere within a bound on memory and leaves the work to scikit-learn.

The method is Lloyd's algorithm (Lloyd, IEEE Transactions on Information Theory 1982) from starts by
k-means++ (Arthur & Vassilvitskii, SODA 2007): rows go to the nearest centre, centres to the mean of
their rows, which lowers the inertia ``sum_x min_k |x - c_k|^2`` until nothing changes; the start
where it is lowest is kept. Spherical k-means (Dhillon & Modha, Machine Learning 2001) has centres
of unit norm, the direction of that mean, and raises ``sum_x max_k <x, c_k>``. A cluster that loses
all of its rows keeps its centre.
"""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from hume_jax.baselines.method import Data, Info, task_keys
from hume_jax.baselines.rows import Rows
from hume_jax.core.task_encoder import spread_rows

STARTS = 10
# Rows that are held as a float32 copy at a time when centres are assigned.
_BLOCK = 4096
# Copies of the rows that scikit-learn makes in each start: centred, and for their variance.
_COPIES = 2


def kmeans(
    train: Rows,
    test: Rows | None,
    n_classes: int,
    seed: int = 0,
    *,
    max_rows: int = 100_000,
    max_bytes: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Clusters the training rows and assigns the test rows to the centres found.

    scikit-learn's KMeans: 10 k-means++ starts, the one of lowest inertia is kept. The rows are
    taken as they are; pass them as the search sees them (centred, of unit norm). The starts run
    side by side, one thread each: the threads of a single KMeans add up in the order in which they
    happen to finish, and equal runs would differ.

    Args:
      train: (n, d) floating, may be memory-mapped.
      test: (m, d) floating, or None.
      n_classes: K, the number of clusters.
      seed: of the starts, and of the rows drawn if there are too many.
      max_rows: the centres are fitted on at most this many training rows, drawn at random; all
        rows are assigned.
      max_bytes: memory that these rows and their copies, one for each start that runs, may take;
        there are fewer rows then, and fewer starts at a time. None for no bound.
      done: called after each of the `STARTS` starts.

    Returns:
      (n,) int32 clusters of the training rows, (m,) int32 of the test rows or None.
    """
    rng = np.random.default_rng(seed)
    each = 4 * train.shape[1]
    if max_bytes is not None:
        # Room for two starts at a time.
        max_rows = min(max_rows, max(n_classes, max_bytes // ((1 + 2 * _COPIES) * each)))
    if len(train) > max_rows:
        rows = train[np.sort(rng.choice(len(train), max_rows, replace=False))]
    else:
        rows = train[:]
    rows = np.asarray(rows, np.float32)
    workers = min(STARTS, os.cpu_count() or 1)
    if max_bytes is not None:
        workers = min(workers, max(1, (max_bytes // rows.nbytes - 1) // _COPIES))
    seeds = np.random.SeedSequence(seed).generate_state(STARTS)
    with (
        warnings.catch_warnings(),
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(workers) as pool,
    ):
        # Fewer different rows than clusters: some clusters stay empty, which the scores show.
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = []
        for model in pool.map(lambda start: _fit(rows, n_classes, int(start)), seeds):
            models.append(model)
            done()
    model = min(models, key=lambda fitted: fitted.inertia_)
    return _assign(model, train), None if test is None else _assign(model, test)


def _fit(rows: np.ndarray, n_classes: int, seed: int) -> KMeans:
    # The number of OpenMP threads belongs to the calling thread.
    with threadpool_limits(1, user_api="openmp"):
        return KMeans(n_classes, init="k-means++", n_init=1, random_state=seed).fit(rows)


def _assign(model: KMeans, rows: Rows) -> np.ndarray:
    blocks = [
        model.predict(np.asarray(rows[start : start + _BLOCK], np.float32))
        for start in range(0, len(rows), _BLOCK)
    ]
    return np.concatenate(blocks).astype(np.int32)


# Numbers, a float32 for each row and centre, of the starts that are looked at together. Few, for
# they take steps until the slowest of them settles.
_TOGETHER = 2**22
# Distances to a new centre, a float32 for each row, of the starts that are spread together.
_SPREAD = 2**25


class Settings(NamedTuple):
    """Of the method. Static under jit."""

    n_classes: int
    spherical: bool = False  # whether centres have unit norm
    starts: int = STARTS  # of each task
    steps: int = 300  # at most

    @property
    def length(self) -> int:
        """Number of steps, at most."""
        return self.steps


class State(NamedTuple):
    """S tasks of R starts each."""

    task: Array  # (S,) int32
    centres: Array  # (S, R, K, d) float32
    inertia: Array  # (S, R) float32, mean squared distance of the rows to the centres before these
    settled: Array  # (S, R) bool, whether centres are what they were
    step: Array  # () int32


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """Centres by k-means++.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the tasks.
      data: the rows.
      settings: of the method.
    """
    x = data.spaces[0]
    keys = jax.vmap(lambda key: jax.random.split(key, settings.starts))(task_keys(seed, tasks))
    rows = jax.lax.map(
        lambda key: spread_rows(key, x, settings.n_classes),
        keys.reshape(-1),
        batch_size=max(1, _SPREAD // len(x)),
    )
    centres = x[rows].reshape(len(tasks), settings.starts, settings.n_classes, -1)
    inertia = jnp.full(centres.shape[:2], jnp.inf)
    none = jnp.zeros(centres.shape[:2], bool)
    return State(tasks, centres, inertia, none, jnp.zeros((), jnp.int32))


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One step of Lloyd's algorithm of every start that still moves."""
    del seed
    x = data.spaces[0]
    together = _together(len(x) * settings.n_classes, settings.starts)

    def of_group(group: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        return jax.lax.cond(jnp.all(group[2]), lambda: group, lambda: move(group[0]))

    def move(centres: Array) -> tuple[Array, Array, Array]:
        moved, inertia = jax.vmap(lambda start: _lloyd(start, x, settings.spherical))(centres)
        return moved, inertia, jnp.all(moved == centres, axis=(1, 2))

    groups = jax.tree.map(
        lambda of_starts: of_starts.reshape(-1, together, *of_starts.shape[2:]),
        (state.centres, state.inertia, state.settled),
    )
    moved = jax.lax.map(of_group, groups)
    centres, inertia, settled = jax.tree.map(
        lambda now, before: now.reshape(before.shape),
        moved,
        (state.centres, state.inertia, state.settled),
    )
    state = State(state.task, centres, inertia, settled, state.step + 1)
    return state, Info(jnp.min(inertia, axis=1))


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The nearest centre of every row in the start of lowest `score`, ``(S, m)`` int32."""
    best = jnp.argmin(state.inertia, axis=1)
    centres = jnp.take_along_axis(state.centres, best[:, None, None, None], axis=1)[:, 0]
    x = spaces[0]
    return jax.lax.map(lambda c: jnp.argmin(_distances(c, x), axis=1).astype(jnp.int32), centres)


def score(state: State, data: Data, settings: Settings) -> Array:
    """Lowest inertia of the starts, of their centres before the last step, ``(S,)``."""
    del data, settings
    return jnp.min(state.inertia, axis=1)


def _distances(centres: Array, x: Array) -> Array:
    """``(n, K)`` squared distances to centres ``(K, d)``, less the rows' own squares."""
    return jnp.sum(centres**2, axis=1)[None] - 2 * x @ centres.T


def _lloyd(centres: Array, x: Array, spherical: bool) -> tuple[Array, Array]:
    """Centres after a step, and the mean squared distance before it."""
    distances = _distances(centres, x)
    nearest = jnp.argmin(distances, axis=1)
    own = jax.nn.one_hot(nearest, len(centres), dtype=x.dtype)
    counts = jnp.sum(own, axis=0)[:, None]
    moved = own.T @ x / jnp.maximum(counts, 1)
    if spherical:
        norms = jnp.linalg.norm(moved, axis=1, keepdims=True)
        counts = jnp.where(norms > 0, counts, 0)
        moved /= jnp.where(norms > 0, norms, 1)
    inertia = jnp.mean(jnp.min(distances, axis=1)) + jnp.mean(jnp.sum(x**2, axis=1))
    return jnp.where(counts > 0, moved, centres), inertia


def _together(numbers: int, starts: int) -> int:
    """Starts of a task that are looked at together: as many as divide them evenly."""
    most = max(1, _TOGETHER // numbers)
    return max(size for size in range(1, starts + 1) if starts % size == 0 and size <= most)
