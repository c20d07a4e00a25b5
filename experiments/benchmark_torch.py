"""The authors' released HUME or TURTLE, timed: a worker of `benchmark.py`, run by a Python that has
PyTorch, NumPy, SciPy, scikit-learn and tqdm.

    python experiments/benchmark_torch.py '{"method": "hume", "repository": "CHECKOUT", ...}'

Their scripts are run whole, as they are, on arrays of a folder; their progress bar is replaced by
one that notes the time of every outer step and the accuracy that TURTLE's prints. Two calls of
learn2learn are stood in for, and HUME's cross-validation once the search is done is left out.

Prints, as the last line, seconds of every outer step, accuracies with their times, and labels.
"""

import contextlib
import io
import json
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import authors_torch
import numpy as np
import paper_parity
import torch
from torch import nn


class Bar:
    """In the place of their progress bar."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps
        self.marks: list[float] = []
        self.accuracies: list[tuple[float, float]] = []
        LAST.append(self)

    def __iter__(self) -> Iterator[int]:
        self.began = time.perf_counter()
        for step in self.steps:
            yield step
            self.marks.append(time.perf_counter() - self.began)
            print(f"step {len(self.marks)}, {self.marks[-1]:.1f} s", file=sys.stderr)

    def set_description(self, text: str) -> None:
        """What TURTLE says of a step."""
        found = re.search(r"cluster acc ([0-9.]+)", text)
        if found:
            self.accuracies.append((time.perf_counter() - self.began, float(found[1])))


LAST: list[Bar] = []
PHIS = ("phi1", "phi2")


def hume(job: dict[str, Any], arrays: pathlib.Path, out: pathlib.Path) -> np.ndarray:
    """hume.py; labels of the train rows."""
    script, _, _ = paper_parity.load_reference(pathlib.Path(job["repository"]))
    script.tqdm = Bar  # type: ignore[attr-defined]
    script.get_cv_score = lambda *_: 0.0  # type: ignore[attr-defined]
    flags: dict[str, Any] = {f"{name}_path": arrays / f"{name}_train.npy" for name in PHIS}
    flags |= {"gt_labels_path": arrays / "labels_train.npy", "exp_path": f"{out}/"}
    flags |= {"k": job["classes"], "device": "cpu", **job["flags"]}
    script.run([f"--{name}={value}" for name, value in flags.items()])
    phi1 = torch.from_numpy(np.load(flags["phi1_path"]))
    encoder = nn.Linear(phi1.shape[1], job["classes"], bias=False)
    encoder = nn.utils.parametrizations.orthogonal(encoder)
    (path,) = out.glob("linear_task_*.pt")
    encoder.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        return encoder(phi1).argmax(1).numpy()


def turtle(job: dict[str, Any], arrays: pathlib.Path, out: pathlib.Path) -> np.ndarray:
    """run_turtle.py; what it was begun with gives no labels back, its accuracies are noted."""
    # The two names stand for any two spaces: the script takes none but those that it knows.
    phis = ["clipvitL14", "dinov2"]
    script = authors_torch.module(pathlib.Path(job["repository"]), "run_turtle.py")
    script.tqdm = Bar  # type: ignore[attr-defined]
    script.datasets_to_c["ours"] = job["classes"]
    (out / "labels").mkdir()
    np.save(out / "labels" / "ours_val.npy", np.load(arrays / "labels_test.npy").astype(np.int64))
    for phi, name in zip(phis, PHIS, strict=True):
        (out / "representations" / phi).mkdir(parents=True)
        for split, theirs in (("train", "train"), ("test", "val")):
            rows = np.load(arrays / f"{name}_{split}.npy")
            np.save(out / "representations" / phi / f"ours_{theirs}.npy", rows)
    flags = [f"--{name}={value}" for name, value in job["flags"].items()]
    script.run(["--dataset=ours", "--phis", *phis, "--device=cpu", f"--root_dir={out}", *flags])
    return np.zeros(0, np.int64)


def main(text: str) -> None:
    """Runs the job of a JSON text."""
    job = json.loads(text)
    torch.set_num_threads(job["threads"])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        method = {"hume": hume, "turtle": turtle}[job["method"]]
        labels = method(job, pathlib.Path(job["arrays"]), pathlib.Path(folder))
    bar = LAST[-1]
    seconds = np.diff([0.0, *bar.marks]).tolist()
    found = {"seconds": seconds, "accuracies": bar.accuracies, "labels": labels.tolist()}
    print(json.dumps(found | {"torch": torch.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
