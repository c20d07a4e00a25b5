"""The benchmark: a tiny case is measured, and its figures become tables."""

import json

import benchmark
import benchmark_case
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
    case = {name: tuple(v) if isinstance(v, list) else v for name, v in case.items()}
    return json.loads(json.dumps(benchmark_case.measure(benchmark_case.Case(**case))))


def test_a_case_times_steps_and_products_in_turns(found):
    assert len(found["step_seconds"]) == len(found["product_flops"]) == 2
    assert all(value > 0 for value in found["step_seconds"] + found["product_flops"])
    assert found["shape"]["phi1"] == 8
    # All directions, the constant among them.
    assert found["shape"]["inner"] == [9]
    assert found["shape"]["train"] + found["shape"]["test"] == 64
    assert found["inner_products"] == 2 * (2 + 2 * 4) + 2 + 2 * 8
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
        return benchmark.subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
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
    assert (tmp_path / "cost.png").stat().st_size > 10_000


def test_the_line_is_off_where_times_are_not_linear():
    sizes = np.arange(1, 6)
    _, off = benchmark.line(sizes, 1 + 2 * sizes)
    np.testing.assert_allclose(off, 0, atol=1e-9)
    _, off = benchmark.line(sizes, sizes**3)
    assert np.max(np.abs(off)) > 0.2


def test_a_case_that_fails_is_told(tmp_path, monkeypatch):
    def run(command, **_):
        return benchmark.subprocess.CompletedProcess(command, 1, stdout="")

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    with pytest.raises(UserError, match=r"benchmark_case\.py ended with 1 for"):
        benchmark.main(["steps", *SMALL, f"--out={tmp_path}"])


def test_more_threads_than_cores(tmp_path):
    with pytest.raises(UserError, match="--threads=1000: there are "):
        benchmark.main(["steps", "--threads=1000", f"--out={tmp_path}"])
