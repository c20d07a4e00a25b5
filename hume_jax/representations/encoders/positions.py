"""Position embeddings for another number of patches, by bicubic interpolation.

As PyTorch's `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)` does it, which
the published encoders were used with: a kernel of Keys (1981) with a = -0.75, or, antialiased, with
a = -0.5 and as wide as the step. Interpolation is linear, so it is two products with a matrix.
"""

import math

import numpy as np

from hume_jax.errors import UserError


def resize(table: np.ndarray, side: int, *, antialias: bool, offset: float = 0.0) -> np.ndarray:
    """Resizes the positions of a square of patches.

    Args:
      table: (g * g, D) floating, row by row.
      side: patches along a side of the result.
      antialias: take the mean over what a smaller square leaves out.
      offset: the step is g / (side + offset); 0.1 in the authors' code of DINOv2
        (`dinov2/models/vision_transformer.py`, there called a historical kludge).

    Returns:
      (side * side, D) float32; the table itself where the side is the same.

    Raises:
      UserError: the table is not one of a square.
    """
    given = math.isqrt(len(table))
    if not given or given**2 != len(table):
        raise UserError(f"{len(table)} positions of patches are not those of a square")
    if side == given:
        return table
    weights = matrix(given, side, antialias=antialias, offset=offset)
    square = table.reshape(given, given, -1)
    resized = np.einsum("ai,bj,ijd->abd", weights, weights, square, optimize=True)
    return resized.reshape(side * side, -1).astype(np.float32)


def matrix(given: int, wanted: int, *, antialias: bool, offset: float = 0.0) -> np.ndarray:
    """Weights of `given` samples in each of `wanted`, (wanted, given) float64, rows sum to 1."""
    step = given / (wanted + offset)
    centres = (np.arange(wanted) + 0.5) * step - 0.5
    if antialias:
        distances = np.arange(given) - centres[:, None]
        weights = _keys(distances / max(step, 1.0), -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    weights = np.zeros((wanted, given))
    first = np.floor(centres).astype(int)
    for tap in range(-1, 3):
        # Beyond the edge the outermost sample counts again.
        column = np.clip(first + tap, 0, given - 1)
        np.add.at(weights, (np.arange(wanted), column), _keys(centres - first - tap, -0.75))
    return weights


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981), zero from a distance of 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
