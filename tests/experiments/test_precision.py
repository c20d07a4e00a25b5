"""Coarse products are those of their bits, and the script's table is of what its rows found."""

import json
import subprocess

import coarse_products
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from hume_jax.errors import UserError


def product(a, b, asked):
    def function(a, b):
        with jax.default_matmul_precision(asked):
            return a @ b.T

    out = jax.jit(function)(a, b)
    gradient = jax.jit(jax.grad(lambda a, b: jnp.sum(function(a, b) ** 2)))(a, b)
    return np.asarray(out), np.asarray(gradient)


@pytest.mark.parametrize(
    ("device", "asked", "bits"),
    [
        pytest.param("tpu", "default", 8, marks=pytest.mark.slow),
        ("tpu", "high", 16),
        pytest.param("gpu", "default", 11, marks=pytest.mark.slow),
        pytest.param("gpu", "high", 11, marks=pytest.mark.slow),
    ],
)
def test_products_are_rounded_as_the_device_would(rng, device, asked, bits):
    a, b = (rng.normal(size=(40, 60)).astype(np.float32) for _ in range(2))
    exact = product(a, b, "highest")
    with coarse_products.emulated(device):
        found, still = product(a, b, asked), product(a, b, "highest")
    for mine, theirs, again in zip(found, exact, still, strict=True):
        error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
        assert 2.0 ** -(bits + 3) < error < 2.0**-bits
        np.testing.assert_allclose(again, theirs, rtol=1e-4, atol=1e-4)
    # And then no more.
    np.testing.assert_array_equal(product(a, b, asked)[0], exact[0])


def test_a_table_of_rows_that_are_not_run_anew(tmp_path, monkeypatch, capsys):
    found = {"cosines": [0.5, 0.9, 0.7], "products": 12.34}
    found["acc"] = {"mean": 0.75, "deviation": 0.01}
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"a line\n{json.dumps(found)}\n")

    monkeypatch.setattr(precision.benchmark_runs.subprocess, "run", run)
    command = [f"--out={tmp_path}", "--seeds", "3", "--", "--config.n_tasks=2"]
    precision.main(command)
    precision.main(command)
    assert len(asked) == len(precision.CASES)
    assert asked[0][-2:] == ["--", "--config.n_tasks=2"]
    table = (tmp_path / "precision.md").read_text()
    assert table in capsys.readouterr().out
    assert "0.50000" in table
    assert "0.7500 ± 0.0100" in table
    monkeypatch.setattr(
        precision.benchmark_runs.subprocess,
        "run",
        lambda c, **_: subprocess.CompletedProcess(c, 1, stdout=""),
    )
    with pytest.raises(UserError, match="highest ended with 1"):
        precision.main([f"--out={tmp_path}", "--seeds", "4"])


@pytest.mark.slow
def test_a_row_of_coarse_products(tmp_path, capsys):
    fields = ["--config.n_tasks=2", "--config.search.steps=3", "--config.search.anneal_steps=(2,)"]
    command = ["--config=configs/testing.py", f"--out={tmp_path}", "--seeds", "0", "1"]
    precision.main([*command, "--case=default, TPU, bfloat16 rows", "--", *fields])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.5 < np.min(found["cosines"]) <= np.max(found["cosines"]) < 1 - 1e-7
    assert 0 < found["acc"]["mean"] <= 1
