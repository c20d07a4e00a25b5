"""The map of the samples, and which of them are nearly the same: PCA of the rows."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Directions in which near-duplicates are looked for; the map shows the first two.
_DIRECTIONS = 32
# Most that the rows which the directions are fitted on may take: 256 MiB as float32.
_FITTED = 2**26
_BLOCK = 2048
# Cosine of two rows, as the task encoders read them, from which they count as nearly the same.
SAME = 0.99

# Ascending row numbers, (m,) -> (m, d) float32.
Read = Callable[[np.ndarray], np.ndarray]


class Points(NamedTuple):
    """Rows in their principal directions."""

    x: np.ndarray  # (m, r) float32, r at most 32
    share: np.ndarray  # (r,) float64, share of the variance of each


def draw(read: Read, rows: np.ndarray) -> Points:
    """Projects rows on their principal directions, block by block.

    Args:
      read: of rows.
      rows: (m,) ascending row numbers; all of them are shown, the directions are those of as many,
        evenly spread, as fit in 256 MiB.
    """
    # scikit-learn takes seconds to import.
    from sklearn.decomposition import PCA

    columns = read(rows[:1]).shape[1]
    most = max(2, _FITTED // columns)
    fitted = rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    directions = min(_DIRECTIONS, len(fitted), columns)
    pca = PCA(directions, svd_solver="randomized", random_state=0).fit(read(fitted))
    x = np.zeros((len(rows), max(2, directions)), np.float32)
    for block in _blocks(len(rows)):
        x[block, :directions] = pca.transform(read(rows[block]))
    share = np.zeros(x.shape[1])
    share[:directions] = pca.explained_variance_ratio_
    return Points(x, np.nan_to_num(share))


def near_duplicates(
    read: Read, rows: np.ndarray, points: Points
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds rows whose nearest neighbour is nearly the same.

    The neighbour is looked for in the principal directions, the cosine is that of the whole rows.

    Args:
      read: of rows.
      rows: (m,) ascending row numbers.
      points: of these rows.

    Returns:
      (p,) and (p,) positions in `rows`, each pair once, the lower first; (p,) float32 cosines.
    """
    from sklearn.neighbors import NearestNeighbors

    if len(rows) < 2:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0, np.float32)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points.x)
    nearest = search.kneighbors(return_distance=False)[:, 0]
    own = np.arange(len(rows))
    pairs = np.unique(np.stack([np.minimum(own, nearest), np.maximum(own, nearest)]), axis=1)
    cosines = [_cosines(read, rows, *pairs[:, block]) for block in _blocks(pairs.shape[1])]
    similarity = np.concatenate(cosines)
    same = similarity >= SAME
    return pairs[0, same], pairs[1, same], similarity[same]


def _cosines(read: Read, rows: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(p,) float32 cosines of pairs of rows, (p,) positions each."""
    used, where = np.unique(np.concatenate([a, b]), return_inverse=True)
    unit = read(rows[used])
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return np.einsum("ij,ij->i", unit[where[: len(a)]], unit[where[len(a) :]])


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, n, _BLOCK)]
