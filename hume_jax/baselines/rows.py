"""What a method reads its rows from."""

from typing import Any, Protocol

import numpy as np


class Rows(Protocol):
    """An (n, d) array, or what gives its rows as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Returns (m, d) rows: of a slice, or by number."""
