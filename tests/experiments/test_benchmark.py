"""The benchmark: a tiny case is measured, and its figures become tables."""

import json
import pathlib
import re
import subprocess

import benchmark
import benchmark_authors
import benchmark_case
import benchmark_ours
import benchmark_runs
import benchmark_scaling
import numpy as np
import pytest

from hume_jax import work
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.search import Search
from hume_jax.errors import UserError
from hume_jax.memory import Shape

pytestmark = pytest.mark.usefixtures("quickly_compiled")

SIZES = {"rows": 64, "columns": 8, "n_classes": 3, "tasks": 2}
SMALL = ["--phi1=8", "--block=1", "--repeats=2"]


@pytest.fixture(scope="module")
def found() -> dict:
    """What a case says of itself, run in this process."""
    options = benchmark.parse_arguments(["steps", *SMALL, "--out=unused"])
    case = benchmark.case_of(SIZES, options)
    return json.loads(json.dumps(benchmark_case.measure(benchmark_case.case_of(case))))


def test_a_case_times_steps_and_products_in_turns(found):
    assert len(found["step_seconds"]) == len(found["product_flops"]) == 2
    assert all(value > 0 for value in found["step_seconds"] + found["product_flops"])
    assert found["shape"]["phi1"] == 8
    # All directions, the constant among them.
    assert found["shape"]["inner"] == [9]
    assert found["shape"]["train"] + found["shape"]["test"] == 64
    assert found["inner_products"] == 2 * (2 + 2 * 3) + 2 + 2 * 8
    assert np.isfinite(found["objective"])
    assert found["peak_bytes"] > 2**20


def test_operations_of_a_step_are_those_of_its_products():
    shape = Shape(rows=100, train=30, test=20, phi1=7, inner=(5, 6))
    inner = InnerFit(steps=3, newton_steps=4, adjoint_steps=5)
    settings = Search(n_classes=10, train_rows=30, test_rows=20, inner=inner)
    tasks = 2
    fit = 3 * (2 + 8) + 2 + 10
    expected = 2 * tasks * 10 * (11 * 30 * fit + 2 * 11 * 20 + 2 * 7 * 50)
    assert work.step_flops(shape, settings, tasks) == expected
    first = settings._replace(inner=inner._replace(adjoint="first_order"))
    assert work.inner_products(first) == fit - 10
    # Where the numbers follow a tolerance, those that they come down to.
    loose = settings._replace(inner=InnerFit(steps=9, adjoint_steps=99, tolerance=0.1))
    assert work.inner_products(loose) == 2 * (2 + 12) + 2 + 16


def test_tables_of_steps_that_are_not_run_anew(found, tmp_path, monkeypatch, capsys):
    asked = []

    def run(command, **_):
        asked.append(json.loads(command[-1]))
        text = f"a warning\n{json.dumps(found)}\n"
        return subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(benchmark_runs.subprocess, "run", run)
    grid = ["--rows", "64", "128", "--columns=8", "--classes=3", "--tasks=2"]
    command = ["steps", *grid, *SMALL, f"--out={tmp_path}", "--", "--config.inner.steps=1"]
    benchmark.main(command)
    benchmark.main(command)
    assert [case["rows"] for case in asked] == [64, 128]
    assert asked[0]["fields"][-1] == "--config.inner.steps=1"
    table = (tmp_path / "steps.md").read_text()
    assert table in capsys.readouterr().out
    share = np.median(benchmark.shares(found))
    assert f"{share:.3f} (" in table.splitlines()[2]


def test_the_cost_along_each_axis_beside_a_line(found, tmp_path, monkeypatch):
    def run_case(case, options):
        seconds = 0.1 + 1e-5 * case["rows"] + 1e-4 * case["n_classes"]
        return {**found, "step_seconds": [seconds] * 3}

    monkeypatch.setattr(benchmark, "run_case", run_case)
    benchmark.main(["cost", f"--out={tmp_path}"])
    rows = [line.split("|")[1:-1] for line in (tmp_path / "cost.md").read_text().splitlines()[2:]]
    assert len(rows) == sum(map(len, benchmark.AXES.values()))
    assert all(abs(float(row[-1].strip(" %"))) < 0.1 for row in rows)
    assert {float(row[2]) for row in rows} == {float(f"{found['directions_seconds']:.4g}")}
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_the_line_is_off_where_times_are_not_linear():
    sizes = np.arange(1, 6)
    _, off = benchmark.line(sizes, 1 + 2 * sizes)
    np.testing.assert_allclose(off, 0, atol=1e-9)
    _, off = benchmark.line(sizes, sizes**3)
    assert np.max(np.abs(off)) > 0.2


def test_a_case_that_fails_is_told(tmp_path, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, stdout="")

    monkeypatch.setattr(benchmark_runs.subprocess, "run", run)
    with pytest.raises(UserError, match=r"benchmark_case\.py ended with 1 for"):
        benchmark.main(["steps", *SMALL, f"--out={tmp_path}"])


def test_more_threads_than_cores(tmp_path):
    with pytest.raises(UserError, match="--threads=1000: there are "):
        benchmark.main(["steps", "--threads=1000", f"--out={tmp_path}"])


def test_where_nothing_holds_a_process_to_a_core(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert benchmark_runs.held_to(0) == []
    with pytest.raises(UserError, match="there is no taskset, .*: run it on Linux"):
        benchmark_runs.held_to(1)


# ---- beside the authors' code

TORCH = "--torch-python=sh"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Jobs that workers were given; they answer at once."""
    jobs = []

    def run(worker, job, out, threads, python=""):
        jobs.append((worker.name, job, threads))
        labels = [0, 1, 2] * 10
        if worker == benchmark_authors.TORCH:
            seconds = [2000.0] * job["flags"].get("num_iters", 2)
            return {"seconds": seconds, "labels": labels, "accuracies": [[1, 0.2], [9, 0.9]]}
        steps = job["steps"] // job["block"]
        return {
            "start_seconds": 1.0,
            "seconds": [0.5 * job["tasks"]] * steps,
            "compile_seconds": 4.0,
            "accuracies": [[1.0, 0.5], [2.0, 0.896], [3.0, 0.95]],
            "product_flops": [10.0] * steps,
            "step_flops": 4.0 * job["tasks"],
            "labels": [labels] * job["tasks"],
            "vote": labels,
        }

    monkeypatch.setattr(benchmark_authors.benchmark_runs, "run", run)
    return jobs


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    return folder


def cells(path: pathlib.Path) -> list[list[str]]:
    rows = path.read_text().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_ladder_from_the_authors_code(asked, checkout, tmp_path, arrays):
    out = tmp_path / "out"
    command = ["authors", f"--hume={checkout}", TORCH, f"--out={out}"]
    benchmark.main([*command, "--config=configs/arrays.py", "--", *arrays])
    rows = cells(out / "authors.md")
    # Of one subset 0.5 s a task, by all presets.
    assert [row[3] for row in rows] == ["2000", "10", "10", "0.5", "0.5", "0.5"]
    assert [row[4] for row in rows] == ["-", "200", "1", "20", "1", "1"]
    assert rows[-1][5] == "4000"
    assert rows[-1][6] == "0.80"
    assert {threads for _, _, threads in asked} == {1}
    assert [job["tasks"] for name, job, _ in asked if "ours" in name] == [1, 8, 8, 32]
    # Both read the same files, of rows of unit norm and columns of unit mean square.
    assert len({job["arrays"] for _, job, _ in asked}) == 1
    folder = pathlib.Path(asked[0][1]["arrays"])
    norms = np.linalg.norm(np.load(folder / "phi1_train.npy"), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)
    assert np.mean(np.load(folder / "phi2_train.npy") ** 2) == pytest.approx(1, rel=1e-4)


def test_labels_by_one_judge(asked, checkout, tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(benchmark_authors, "judge", lambda labels, phi2, k: 0.25)
    out = tmp_path / "out"
    command = ["quality", f"--hume={checkout}", TORCH, f"--out={out}", "--rows=30", "--seeds=2"]
    benchmark.main([*command, "--config=configs/arrays.py", "--", *arrays])
    theirs, paper, matrix, fast, vote = cells(out / "quality.md")
    assert theirs[1] == "2e+05"
    assert (paper[1], matrix[1], fast[1]) == ("50.5", "50.5", "40.5")
    assert vote[0] == "fast preset, vote of 16"
    assert theirs[3:5] == ["0.2500 ± 0.0000", f"{np.log(3):.4f} ± 0.0000"]
    reduced = [job for name, job, _ in asked if "paper" in str(job.get("fields"))]
    assert "--config.search.subset_size=30" in reduced[0]["fields"]
    last = "--config.encoder.coordinates=matrix"
    assert [last in job["fields"] for job in reduced] == [False, True]
    assert len(np.load(pathlib.Path(asked[0][1]["arrays"]) / "phi2_train.npy")) == 30


def test_the_judge_prefers_labels_that_a_linear_model_predicts(rng):
    phi2 = rng.normal(size=(200, 5))
    linear, chance = (phi2[:, 0] > 0).astype(int), rng.integers(0, 2, 200)
    assert benchmark_authors.judge(linear, phi2, 3) < 0.5 < benchmark_authors.judge(chance, phi2, 3)
    # Nothing is easier than one class.
    assert benchmark_authors.judge(np.zeros(200, int), phi2, 3) < 1e-6


def test_time_to_an_accuracy(asked, checkout, tmp_path, arrays):
    out = tmp_path / "out"
    command = ["turtle", f"--turtle={checkout}", TORCH, f"--out={out}", "--iterations=7"]
    benchmark.main([*command, "--config=configs/arrays.py", "--", *arrays])
    theirs, one, five = cells(out / "turtle.md")
    assert theirs == ["TURTLE, authors' code, 7 steps", "0.9000", "9.0", "9.0", "9.0"]
    assert one == ["HUME, 1 task", "0.9500", "2.0", "6.0", "3.0"]
    assert five[0] == "HUME, 5 tasks"
    assert (out / "turtle.png").stat().st_size > 5_000


def test_what_the_authors_code_needs(checkout, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    with pytest.raises(UserError, match="--hume=nowhere: no such folder; clone"):
        benchmark.main(["authors", "--hume=nowhere", TORCH, out])
    with pytest.raises(UserError, match="--torch-python=nothing: no such program"):
        benchmark.main(["quality", f"--hume={checkout}", "--torch-python=nothing", out])


@pytest.mark.slow
def test_ours_on_arrays_of_a_folder(tmp_path, arrays):
    config = benchmark.figures.load_config("configs/arrays.py", arrays)
    benchmark_authors.write_arrays(config, tmp_path / "made")
    job = {"arrays": str(tmp_path / "made"), "classes": 3, "tasks": 2, "steps": 4, "block": 2}
    fields = ["--config.search.spaces=given", "--config.search.steps=4"]
    job |= {"fields": [*fields, "--config.search.anneal_steps=(2,)"]}
    found = benchmark_ours.measure(job | {"products": True, "accuracies": True})
    assert len(found["seconds"]) == len(found["product_flops"]) == len(found["accuracies"]) == 2
    assert np.shape(found["labels"]) == (2, 160)
    assert np.shape(found["vote"]) == (160,)
    assert found["accuracies"][-1][1] > 0.9
    assert found["accuracies"][-1][0] > found["accuracies"][0][0] > 0


# ---- scaling


def test_times_faster_than_one_device():
    found = {"alone": [4.0, 4.0], "tasks": [2.0, 2.5], "rows": [4.0, 5.0], "weak": [5.0, 5.0]}
    found |= {"product_alone": [10.0, 10.0], "product_together": [20.0, 16.0]}
    found |= {"processes": 2, "devices": 2}
    _, ((processes, devices, step, tasks, rows, plain, share, weak), virtual) = (
        benchmark_scaling.rows_of([found, {**found, "processes": 1}])
    )
    assert (processes, devices, step) == ("2", "2", "4")
    assert tasks == "1.80 (1.60 to 2.00)"
    assert rows == "0.90 (0.80 to 1.00)"
    assert plain == "1.80 (1.60 to 2.00)"
    assert share == "1.00 (1.00 to 1.00)"
    assert weak == "0.80 (0.80 to 0.80)"
    assert virtual[5:7] == ["-", "-"]


@pytest.mark.slow
def test_two_processes_take_turns(tmp_path, capsys):
    sizes = ["--rows=128", "--columns=8", "--classes=3", "--tasks=2", *SMALL]
    benchmark.main(["scaling", "--devices=1", f"--out={tmp_path}", *sizes])
    ((processes, devices, *figures),) = cells(tmp_path / "scaling.md")
    assert (processes, devices) == ("2", "2")
    assert all(re.fullmatch(r"[0-9.e-]+( \(.*\))?", figure) for figure in figures)
    assert "times faster than one" in capsys.readouterr().out


def test_sparsemax_beside_a_sort(tmp_path):
    # Both ways are compared before they are timed.
    command = ["sparsemax", "--classes", "3", "20", "--rows=50", "--repeats=2"]
    benchmark.main([*command, f"--out={tmp_path}"])
    rows = cells(tmp_path / "sparsemax.md")
    assert [row[0] for row in rows] == ["3", "3", "20", "20"]
    assert all(1 <= float(row[2]) <= int(row[0]) for row in rows)
    assert all(float(row[5]) > 0 for row in rows)
