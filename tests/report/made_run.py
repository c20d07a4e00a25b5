"""The folder of a finished run, made up: what `report.page` draws, without a search."""

import json
import pathlib
from typing import Any

import numpy as np

from hume_jax import config as config_lib
from hume_jax.core import aggregate
from hume_jax.report import results
from hume_jax.report.page import folder as run_folder
from hume_jax.report.page import gather
from hume_jax.workdir import plain

ROWS = {"train": 300, "test": 120}
# A text that would be a script if it stood in the page as it is.
HOSTILE = "</script><script>document.title = 'hit'</script> & <b>bold</b>"


def make(
    path: pathlib.Path,
    *,
    n_classes: int = 4,
    tasks: int = 5,
    labels: bool = True,
    seed: int = 0,
    noise: float = 0.1,
    fields: dict[str, Any] | None = None,
) -> dict[str, gather.Part]:
    """Writes a folder whose tasks are noisy copies of clusters, each in numbers of its own."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n_classes, 12)).astype(np.float32)
    own = np.random.default_rng(seed)
    orders = [own.permutation(n_classes) for _ in range(tasks)]
    parts, true = {}, {}
    for split, n in ROWS.items():
        labelled = true[split] = rng.integers(0, n_classes, n)
        x = centres[labelled] + 0.3 * rng.normal(size=(n, 12)).astype(np.float32)
        # Row 1 is a copy of row 0, of the other class in the first task.
        x[1] = x[0]
        found = np.where(
            own.random((tasks, n)) < noise, own.integers(0, n_classes, (tasks, n)), labelled
        )
        vote = aggregate.vote(found, n_classes)
        numbered = np.stack([o[f] for o, f in zip(orders, found, strict=True)]).astype(np.int32)
        parts[split] = gather.Part(
            np.arange(n), n, numbered, vote, labelled if labels else None, x.__getitem__
        )
    config = config_lib.load("configs/arrays.py")
    config.n_classes = n_classes
    config.data.train.update({"phi1": "phi1.npy", "phi2": "phi2.npy"})
    config.update_from_flattened_dict(fields or {})
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config_lib.to_json(config_lib.resolve(config)))
    matrix = aggregate.agreement_matrix(parts["train"].tasks, n_classes)
    np.savez(path / run_folder.ARRAYS, **gather.gather(parts, ["train"], n_classes, matrix))
    given = true if labels else {}
    summary = results.assemble(
        version="1.2.3",
        config_hash="ab" * 32,
        setting="inductive",
        n_classes=n_classes,
        ensemble={
            "members": list(range(tasks)),
            "vote": "hard",
            "objective": 0.2,
            "cv_accuracy": 0.95,
            "agreement": 0.9,
            **results.score_splits({s: p.vote.labels for s, p in parts.items()}, given, "ensemble"),
        },
        tasks=[
            {
                "seed": i,
                "objective": 0.2 + 0.01 * i,
                "heldout_ce": 0.2,
                "cv_accuracy": 0.95 - 0.01 * i,
                "agreement": float(aggregate.mean_agreement(matrix)[i]),
                "residual": 1e-5,
                "n_classes_used": n_classes,
                "collapsed": False,
                **results.score_splits({s: p.tasks[i] for s, p in parts.items()}, given, "task"),
            }
            for i in range(tasks)
        ],
        seconds={"total": 12.5},
        device="2 CPU cores",
        versions={},
        duplicates=[],
        collapsed=[],
    )
    (path / "results.json").write_text(results.to_json(plain(summary)))
    lines = [
        {
            "step": step,
            "tasks": list(range(tasks)),
            "objective": [0.2 + 1 / step + 0.01 * i for i in range(tasks)],
            "temperature": 0.4 if step < 30 else 0.2,
            "learning_rate": 0.1,
        }
        for step in (10, 20, 30, 40)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "labels.csv").write_text(results.to_csv({s: p.vote for s, p in parts.items()}))
    return parts


def texts(split: str) -> list[str]:
    """A text for each row of a split; the first of train is hostile."""
    found = [f"{split} text number {i}" for i in range(ROWS[split])]
    return [HOSTILE, *found[1:]] if split == "train" else found
