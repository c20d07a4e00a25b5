"""The scripts that print the project's figures, at sizes of seconds."""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import figures
import hypergradient_accuracy
import jax
import label_free_scores
import numpy as np
import pytest
import real_data

from hume_jax.core import search
from hume_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def rows_of(table):
    """Cells of the rows below a Markdown table's head."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]


# ---- what the scripts share


def test_clinc150_has_intents_and_domains():
    spec = "experiments/datasets/clinc150.py"
    intents, domains = (figures.load_config(f"{spec}:labels={w}") for w in ("intents", "domains"))
    assert (intents.n_classes, domains.n_classes) == (150, 10)
    assert intents == figures.load_config(spec)
    assert intents.data.test.labels.endswith("clinc150/labels_test.npy")
    assert domains.data.test.labels.endswith("clinc150/domains_test.npy")
    # The domains are searched by the settings of everyone, the intents by their own.
    usual = figures.load_config("experiments/datasets/imagenette.py")
    assert (domains.search, domains.inner) == (usual.search, usual.inner)
    assert domains.inner != figures.load_config(f"{spec}:labels=domains,inner=fixed").inner
    assert intents.search.steps > usual.search.steps
    # In MiniLM-L6, wherever it stands.
    assert intents.search.spaces == "first"
    assert figures.load_config(f"{spec}:phi1=paraphrase_l3").search.spaces == "second"
    paper = figures.load_config(f"{spec}:preset=paper")
    assert paper.inner.adjoint == "unrolled"


@pytest.mark.parametrize("name", ["imagenette", "clinc150"])
def test_dataset_in_either_direction(repository, name):
    spec = f"{repository}/experiments/datasets/{name}.py"
    config = figures.load_config(f"{spec}:source=a")
    assert config.data.train.phi1 != config.data.train.phi2
    joined, forward, backward = real_data.plan(options(f"{spec}:source=a"))
    assert joined.flags[1] == "--config.search.spaces=both"
    assert (forward.phi1, forward.phi2) == (backward.phi2, backward.phi1)
    other = figures.load_config(f"{spec}:phi1={forward.phi2.removeprefix('effnet_')},source=a")
    other.search.spaces = "given"
    assert other == figures.load_config(f"{spec}:source=a", backward.flags[1:])


def test_encoders_are_exchanged_with_what_they_encode(repository):
    spec = f"{repository}/experiments/datasets/imagenette_images.py"
    usual = figures.load_config(spec)
    (run,) = real_data.plan(options(spec, ["reversed"]))
    other = figures.load_config(spec, run.flags[1:])
    assert (other.encode.phi1, other.encode.phi2) == (usual.encode.phi2, usual.encode.phi1)
    for split in ("train", "test"):
        assert other.data[split].phi1 == usual.data[split].phi2


def options(config, directions=real_data.DIRECTIONS, **more):
    """Options of `real_data`, as its command line gives them."""
    values = {"config": config, "fields": [], "seeds": [0], "directions": directions, **more}
    return argparse.Namespace(**values)


def test_fields_are_set_as_the_flags_of_main_set_them():
    config = figures.load_config(
        "configs/testing.py:transductive",
        ["--config.search.steps=7", "--config.search.anneal_steps=(2,4)", "--noconfig.plots"],
    )
    assert (config.setting, config.search.steps, config.search.anneal_steps) == (
        "transductive",
        7,
        (2, 4),
    )
    assert not config.plots


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("--config.search.stepz=7", "did you mean 'search.steps'"),
        ("--seed=7", "not of the form --config.FIELD=VALUE"),
        ("--config.n_tasks=many", "n_tasks"),
    ],
)
def test_a_mistaken_field_is_a_user_error(field, message):
    with pytest.raises(UserError, match=message):
        figures.load_config("configs/testing.py", [field])


def test_errors_end_a_script_with_one_line(capsys):
    with pytest.raises(SystemExit) as end, figures.one_line_errors():
        raise UserError("this and that")
    assert (end.value.code, capsys.readouterr().err) == (2, "error: this and that\n")


def test_a_script_without_a_terminal_logs_its_progress():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'experiments')!r})\n"
        "import figures\n"
        "from hume_jax.progress import Progress\n"
        "with figures.one_line_errors(), Progress(3, 'passes') as progress:\n"
        "    progress.update(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"I.* progress.py:\d+\] passes 1/3, .* left", line)


def test_table_and_spread():
    table = figures.table(["a", "bc"], [["1", figures.spread([0.5])], ["2", "-"]])
    assert table == "| a | bc    |\n| - | ----- |\n| 1 | 0.500 |\n| 2 | -     |"
    assert figures.spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"
    assert figures.spread([]) == "-"


# ---- real_data


def summary_of(acc):
    """A results.json in miniature."""
    scores = {"acc": acc, "ari": acc - 0.1, "nmi": acc - 0.2}
    splits = {"train": scores, "test": scores}
    return {
        "n_classes": 3,
        "ensemble": {**splits, "class_counts": [5, 0, 7]},
        "tasks": [{"n_classes_used": used, **splits} for used in (2, 3)],
        "baselines": {"kmeans_phi1": splits, "probe_phi2": {"test": scores}},
        "seconds": {"total": 4.0, "compile": 1.0, "search": 2.0, "score": 1.0},
        "device": "a machine",
        "collapsed": [0],
    }


@pytest.fixture
def measured(monkeypatch):
    """Takes the place of the searches; returns the runs that were asked for."""
    asked = []

    def measure(run, workdir):
        asked.append(run)
        acc = 0.9 + 0.02 * run.seed
        costs = {"wall_seconds": 5.0, "peak_bytes": 2**30, "resumed": False}
        return {**run._asdict(), **costs, **real_data.summarise(summary_of(acc))}

    monkeypatch.setattr(real_data, "measure", measure)
    return asked


def test_real_data_covers_seeds_and_directions(measured, tmp_path, capsys):
    command = ["--config=configs/testing.py", "--seeds", "0", "1", f"--out={tmp_path}"]
    real_data.main([*command, "--", "--config.n_tasks=2"])
    printed = capsys.readouterr().out
    assert [(run.name, run.phi1, run.seed) for run in measured] == [
        ("phi1+phi2-seed0", "phi1", 0),
        ("phi1+phi2-seed1", "phi1", 1),
        ("phi1-phi2-seed0", "phi1", 0),
        ("phi1-phi2-seed1", "phi1", 1),
        ("phi2-phi1-seed0", "phi2", 0),
        ("phi2-phi1-seed1", "phi2", 1),
    ]
    assert all("--config.n_tasks=2" in run.flags for run in measured)
    assert "--config.data.test.phi1=hume_jax:quickstart/phi2_test.npy" in measured[4].flags
    scores, baselines, costs = map(rows_of, printed.rstrip().split("\n\n")[1:])
    assert scores[0][:3] == ["phi1 and phi2", "2", "0.910 ± 0.014"]
    assert (tmp_path / "scores.md").read_text().strip() in printed
    assert scores[0][-3:] == ["2 of 3", "2.5", "2 of 4"]
    assert [row[:3] for row in baselines] == [
        ["k-means", "phi1", "0.910 ± 0.014"],
        ["k-means", "phi2", "0.910 ± 0.014"],
        ["supervised probe", "phi1", "0.910 ± 0.014"],
        ["supervised probe", "phi2", "0.910 ± 0.014"],
    ]
    assert costs[2] == [
        "phi2 → phi1", "4.0 ± 0.0", "1.0 ± 0.0", "2.0 ± 0.0", "1.0 ± 0.0", "5.0 ± 0.0", "1.00",
    ]  # fmt: skip


def test_real_data_keeps_finished_runs(measured, tmp_path, capsys):
    command = ["--config=configs/testing.py", "--directions=forward", f"--out={tmp_path}"]
    real_data.main(command)
    first = capsys.readouterr().out
    real_data.main(command)
    assert capsys.readouterr().out == first
    real_data.main([*command, "--seeds", "0", "3"])
    assert [run.seed for run in measured] == [0, 3]
    with pytest.raises(UserError, match="another config: give another --out"):
        real_data.main([*command, "--", "--config.n_tasks=2"])


def test_real_data_needs_labels(tmp_path):
    with pytest.raises(UserError, match="labels are needed"):
        real_data.main(
            ["--config=configs/testing.py", f"--out={tmp_path}", "--", "--config.data.test.labels="]
        )


@pytest.mark.slow
def test_real_data_runs_the_search_that_figures_build(
    arrays, repository, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.chdir(repository)
    settings = ["--config.n_tasks=2", "--config.search.steps=4", "--config.log_every=2"]
    fields = [*arrays, *settings, "--noconfig.plots"]
    real_data.main(
        ["--config=configs/arrays.py", "--directions=forward", f"--out={tmp_path / 'out'}", "--"]
        + fields
    )
    printed, log = capfd.readouterr()
    assert "HUME ensemble" in log
    assert rows_of(printed.split("\n\n")[1])[0][0] == "phi1 → phi2"
    run = json.loads((tmp_path / "out" / "runs.json").read_text())["phi1-phi2-seed0"]
    assert run["peak_bytes"] > 1e8
    assert run["wall_seconds"] > run["seconds"]["total"] > 0

    # The scripts that time and compare steps take the same ones.
    lines = (tmp_path / "out" / "phi1-phi2-seed0" / "metrics.jsonl").read_text().splitlines()
    # `forward` is search.spaces=given, which is not the default.
    fields.append("--config.search.spaces=given")
    problem = figures.build(figures.load_config("configs/arrays.py", fields))
    state = next(hypergradient_accuracy.walk(problem, 0, 2, [3], []))
    _, info = jax.jit(search.step, static_argnames="settings")(
        state, 0, problem.data, problem.log_prior, settings=problem.settings
    )
    assert np.allclose(info.objective, json.loads(lines[-1])["objective"], rtol=1e-4)


def test_a_failed_run_is_reported(tmp_path):
    run = real_data.Run("a", "forward", "phi1", "phi2", 0, ("--config=nothing.py",), "")
    with pytest.raises(UserError, match="a ended with status"):
        real_data.measure(run, tmp_path / "a")


# ---- label_free_scores


def write_run(folder, acc, **scores):
    tasks = [
        {"train": {"acc": a}, "n_classes_used": 3, "objective": 1 - a, "agreement": a}
        | {name: values[i] for name, values in scores.items()}
        for i, a in enumerate(acc)
    ]
    folder.mkdir()
    summary = {"tasks": tasks, "ensemble": {"train": {"acc": 0.97}}}
    (folder / "results.json").write_text(json.dumps(summary))


def test_label_free_scores(tmp_path, capsys):
    acc = [0.7, 0.8, 0.9, 0.95]
    write_run(tmp_path / "good", acc, cv_accuracy=[0.6, 0.9, 0.8, 0.7])
    # The most predictable task uses fewer classes, so it is not compared.
    write_run(
        tmp_path / "flat",
        [0.9, 0.91, 0.9, 0.902],
        cv_accuracy=[0.99, 0.5, 0.6, 0.7],
        n_classes_used=[2, 3, 3, 3],
    )
    # Too few for a correlation, though they differ.
    write_run(tmp_path / "two", [0.7, 0.9], cv_accuracy=[0.6, 0.9])
    write_run(tmp_path / "none", [0.7, 0.9], cv_accuracy=[0.6, 0.9], objective=[None, None])
    names = ("good", "flat", "two", "none")
    out, runs = tmp_path / "out.json", [str(tmp_path / name) for name in names]
    label_free_scores.main([*runs, f"--out={out}"])
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(out.with_suffix(".csv").read_text().splitlines()) == 1 + 3 * 3 + 2
    good = found["good"]["scores"]
    assert good["objective"]["correlation"]["pearson"] == pytest.approx(-1)
    assert good["objective"]["lost"] == 0
    assert good["cv_accuracy"]["acc_of_best"] == 0.8
    assert good["cv_accuracy"]["lost"] == pytest.approx(0.15)
    flat = found["flat"]["scores"]["cv_accuracy"]
    assert (flat["n"], flat["acc_of_best"]) == (3, 0.902)
    _, table, verdict = printed.rstrip().split("\n\n")
    assert rows_of(table)[0][:3] == ["good", "objective", "4"]
    assert rows_of(table)[0][3].startswith("-1.00 [-1.00")
    assert "* good: Pearson at most -0.7 (objective)" in verdict
    assert "* flat: ACC hardly varies (sd at most 0.02), less than 0.01 lost" in verdict
    assert "* two: too few tasks differ, less than 0.01 lost" in verdict
    assert "* none: no task has an objective" in verdict


def test_label_free_scores_of_a_run_of_several_seeds(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for seed in (0, 1):
        write_run(run / f"seed_{seed}", [0.7, 0.8, 0.9], cv_accuracy=[0.6, 0.9, 0.8])
    (run / "results.json").write_text(json.dumps({"runs": [{"seed": 0}, {"seed": 1}]}))
    label_free_scores.main([str(run), f"--out={tmp_path / 'out.json'}"])
    assert list(json.loads((tmp_path / "out.json").read_text())) == ["run, seed_0", "run, seed_1"]


def test_label_free_scores_of_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no results\.json"):
        label_free_scores.main([str(tmp_path), f"--out={tmp_path / 'out.json'}"])


# ---- hypergradient_accuracy


def test_points_of_the_search():
    points = hypergradient_accuracy.points(200, (120, 160))
    assert points == {
        0: "first",
        1: "step 2",
        2: "step 3",
        4: "step 5",
        7: "step 8",
        20: "step 21",
        40: "step 41",
        60: "step 61",
        80: "step 81",
        100: "step 101",
        119: "before anneal 1",
        120: "after anneal 1",
        140: "step 141",
        159: "before anneal 2",
        160: "after anneal 2",
        180: "step 181",
        199: "last",
    }
    # Steps that coincide are visited once, and anneals that are never reached not at all.
    assert list(hypergradient_accuracy.points(5, (1, 2, 50))) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_hypergradient_accuracy(arrays, tmp_path, capsys):
    out = tmp_path / "out.json"
    small = ["--config.n_tasks=2", "--config.search.steps=3", "--config.search.anneal_steps=()"]
    # Many steps, so that both gradients must agree.
    many = [
        "--config.inner.steps=300",
        "--config.inner.adjoint_steps=60",
        "--config.inner.tolerance=0",
        "--config.inner.variance_floor=0",
    ]
    # At the clusters of such data all labels are hard, and no gradient is left to compare.
    soft = ["--config.inner.penalty=1e-2", "--config.encoder.start=random"]
    fields = [*arrays, *small, *many, *soft]
    command = ["--config=configs/arrays.py", f"--out={out}", "--adjoint_steps=60"]
    hypergradient_accuracy.main([*command, "--", *fields])
    printed = capsys.readouterr().out
    points = json.loads(out.read_text())["points"]
    named = [(name, entry["step"]) for name, entry in points.items()]
    assert named == [("first", 0), ("step 2", 1), ("last", 2)]
    for entry in points.values():
        assert len(entry["cosine"]) == 2
        assert min(entry["cosine"]) > 0.9999
        assert np.allclose(entry["norm_ratio"], 1, atol=1e-3)
        assert max(entry["converged_inner_residual"]) < 1e-8
        assert max(entry["converged_adjoint_residual"]) < 1e-8
    rows = rows_of(printed.split("\n\n")[1])
    assert [row[0] for row in rows] == ["first", "step 2", "last", "all"]
    # 300 Newton steps of 3 conjugate-gradient steps, the gradient at the end, 60 of the adjoint.
    assert {row[-1] for row in rows} == {f"{300 * 8 + 2 + 120:.1f}"}

    # What is in the file is not computed again.
    stored = json.loads(out.read_text())
    stored["points"]["first"]["cosine"] = [0.25, 0.75]
    out.write_text(json.dumps(stored))
    hypergradient_accuracy.main([*command, "--", *fields])
    assert rows_of(capsys.readouterr().out.split("\n\n")[1])[0][3:5] == ["0.25000", "0.50000"]
    with pytest.raises(UserError, match="other settings: give another --out"):
        hypergradient_accuracy.main([*command, "--tolerance=1e-3", "--", *fields])


@pytest.mark.slow
def test_hypergradient_accuracy_where_all_labels_are_hard(arrays, tmp_path):
    out = tmp_path / "out.json"
    few = ["--config.n_tasks=1", "--config.search.steps=1", "--config.search.anneal_steps=()"]
    # Clusters of such data are its classes; a low temperature leaves no label soft.
    fields = [*arrays, *few, "--config.encoder.temperature=1e-3"]
    hypergradient_accuracy.main(["--config=configs/arrays.py", f"--out={out}", "--", *fields])
    (entry,) = json.loads(out.read_text())["points"].values()
    assert (entry["norm"], entry["cosine"], entry["norm_ratio"]) == ([0.0], [1.0], [1.0])


def test_hypergradient_accuracy_needs_a_penalty(arrays, tmp_path):
    unrolled = ["--config.inner.adjoint=unrolled", "--noconfig.inner.precondition"]
    fields = [*arrays, *unrolled, "--config.inner.penalty=0"]
    with pytest.raises(UserError, match=r"inner\.penalty is 0"):
        hypergradient_accuracy.main(
            ["--config=configs/arrays.py", f"--out={tmp_path / 'out.json'}", "--", *fields]
        )
