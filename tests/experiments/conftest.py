"""What the tests of the scripts share."""

import numpy as np
import pytest


@pytest.fixture
def arrays(rng, tmp_path):
    """Fields of `configs/arrays.py`: two spaces of three well separated classes, with labels."""
    fields = ["--config.n_classes=3"]
    means = {space: 4 * rng.normal(size=(3, 8)) for space in ("phi1", "phi2")}
    for split, n in (("train", 160), ("test", 60)):
        labels = rng.integers(0, 3, n)
        for space, centres in means.items():
            np.save(tmp_path / f"{space}_{split}.npy", centres[labels] + rng.normal(size=(n, 8)))
        np.save(tmp_path / f"labels_{split}.npy", labels)
        fields += [
            f"--config.data.{split}.{name}={tmp_path / f'{name}_{split}.npy'}"
            for name in ("phi1", "phi2", "labels")
        ]
    return fields
