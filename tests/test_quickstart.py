"""The quickstart, as typed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def quickstart(repository, tmp_path_factory):
    """What `make quickstart` runs, with a workdir of its own: the process and the workdir."""
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hume_jax.main",
            "--config=configs/quickstart.py",
            f"--workdir={workdir}",
        ],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    return done, workdir


def test_the_command_of_the_makefile(repository):
    assert "python -m hume_jax.main --config=configs/quickstart.py" in (
        (repository / "Makefile").read_text()
    )


@pytest.mark.slow
def test_it_ends_with_a_table(quickstart):
    done, workdir = quickstart
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    print(done.stdout)
    for row in ("HUME ensemble", "tasks, mean", "k-means, phi1", "supervised probe, phi2"):
        assert row in done.stdout
    assert "correlation with ACC" in done.stdout
    assert f"results, labels and plots: {workdir}" in done.stdout
    # Progress with the time left, before the table.
    assert " left" in done.stderr


@pytest.mark.slow
def test_it_writes_every_file(quickstart):
    _, workdir = quickstart
    for name in ("config.json", "metrics.jsonl", "results.json", "labels.csv", "model.npz"):
        assert (workdir / name).stat().st_size > 0
    for name in ("curves.png", "objective.png", "confusion.png"):
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    lines = (workdir / "labels.csv").read_text().splitlines()
    assert len(lines) == 1 + 6000 + 1600


@pytest.mark.slow
def test_it_finds_the_classes(quickstart):
    results = json.loads((quickstart[1] / "results.json").read_text())
    found = results["ensemble"]["test"]["acc"]
    assert found > 0.93
    floor, ceiling = (
        results["baselines"][f"{name}_phi2"]["test"]["acc"] for name in ("kmeans", "probe")
    )
    assert floor < found < ceiling + 0.01
    assert np.mean([task["test"]["acc"] for task in results["tasks"]]) > 0.8
