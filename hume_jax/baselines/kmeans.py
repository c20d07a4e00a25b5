"""k-means in one representation space: what the space gives without any search."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from hume_jax.baselines.rows import Rows

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
