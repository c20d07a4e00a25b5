"""Makes the folder that tests/representations/test_formats.py reads as Hugging Face `datasets`.

    python -m pip install ".[golden]"
    python experiments/make_datasets_golden.py

Two splits, one of them in two shards, with vectors of both kinds (a list, a list of fixed length),
classes and text. The values follow from the row's number, so the test needs no copy of them.
"""

import argparse
import importlib
import pathlib
import shutil
import sys
from typing import Any

GOLDEN = (
    pathlib.Path(__file__).parents[1]
    / "tests"
    / "representations"
    / "arrays"
    / "golden"
    / "datasets"
)
ROWS = {"train": 7, "test": 3}
WIDTH = 3
CLASSES = ("cat", "dog")


def rows(n: int) -> dict[str, list]:
    """Columns of a split of n rows; every number is exact in float16."""
    vectors = [[(WIDTH * i + j) / 8 for j in range(WIDTH)] for i in range(n)]
    return {
        "vector": vectors,
        "half": [[-value for value in row] for row in vectors],
        "label": [i % len(CLASSES) for i in range(n)],
        "name": [CLASSES[i % len(CLASSES)] for i in range(n)],
    }


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    # Not an import statement: a folder beside this file has the same name.
    datasets: Any = importlib.import_module("datasets")
    features = datasets.Features(
        {
            "vector": datasets.List(datasets.Value("float32")),
            "half": datasets.List(datasets.Value("float16"), length=WIDTH),
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "name": datasets.Value("string"),
        }
    )
    splits = {
        name: datasets.Dataset.from_dict(rows(n), features=features) for name, n in ROWS.items()
    }
    shutil.rmtree(GOLDEN, ignore_errors=True)
    datasets.DatasetDict(splits).save_to_disk(GOLDEN, num_shards={"train": 2, "test": 1})


if __name__ == "__main__":
    main(sys.argv[1:])
