"""The launcher of sweeps: settings, runs side by side, failures, restarts, SLURM."""

import csv
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import numpy as np
import pytest

from hume_jax import config as config_lib
from hume_jax import sweep
from hume_jax.errors import UserError
from hume_jax.report import results

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import ablations  # noqa: E402

# A run of the launcher whose work is to write results.json, slowly, or to fail.
STUB = """
import json, os, pathlib, sys, time
folder, seconds, fails, counter = sys.argv[1:]
pathlib.Path(f"{counter}.pid").write_text(str(os.getpid()))
pathlib.Path(counter).open("a").write("x")
time.sleep(float(seconds))
if fails == "yes":
    sys.exit("error: it cannot be done")
pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
task = {"objective": 0.5, "agreement": 0.9, "test": {"acc": 0.8}}
scores = {"acc": 0.75, "ari": 0.5, "nmi": 0.6}
found = {"ensemble": {"test": scores}, "tasks": [task], "seconds": {"search": 2.0}}
(pathlib.Path(folder) / "results.json").write_text(json.dumps(found))
"""


# What a run without labels has in its results.json.
FOUND = {
    "ensemble": {},
    "tasks": [{"objective": 0.5, "agreement": 0.9}],
    "seconds": {"search": 1.0},
}


def stub(out: pathlib.Path, name: str, *, seconds: float = 0.0, fails: bool = False) -> sweep.Job:
    """A job of the launcher that takes so long, or fails."""
    arguments = [
        str(out / name),
        str(seconds),
        "yes" if fails else "no",
        str(out / f"{name}.count"),
    ]
    out.mkdir(parents=True, exist_ok=True)
    script = out / "stub.py"
    script.write_text(STUB)
    command = (sys.executable, str(script), *arguments)
    return sweep.Job(name, {"field": name}, (0,), command, out / name)


def starts(out: pathlib.Path, name: str) -> int:
    """How often a stub was started."""
    return len((out / f"{name}.count").read_text())


def config_file(folder: pathlib.Path, settings: str) -> str:
    """A config file of the testing data that lists settings."""
    file = folder / "swept.py"
    text = f"""
    from hume_jax import config as config_lib

    def get_config(arg=""):
        return config_lib.load(f"configs/testing.py:{{arg}}")

    def sweep():
        return {settings}
    """
    file.write_text(textwrap.dedent(text))
    return str(file)


def parsed(config: str, out: pathlib.Path, *more: str) -> Any:
    """What the launcher makes of a command line."""
    return sweep.parse_arguments([f"--config={config}", f"--out={out}", *more])


def test_seeds_of_one_setting_are_one_run(tmp_path: pathlib.Path) -> None:
    file = config_file(
        tmp_path,
        'config_lib.product({"inner.adjoint": ("implicit", "first_order"), "seed": (3, 1, 4)})',
    )
    found = sweep.jobs(parsed(file, tmp_path, "--config.n_tasks=2"))
    assert [job.name for job in found] == ["inner.adjoint=implicit", "inner.adjoint=first_order"]
    assert [job.seeds for job in found] == [(3, 1, 4)] * 2
    assert found[1].command[1:] == (
        "-m",
        "hume_jax.main",
        f"--config={file}",
        "--config.n_tasks=2",
        "--config.inner.adjoint=first_order",
        "--config.seeds=(3, 1, 4)",
        f"--workdir={tmp_path / 'inner.adjoint=first_order'}",
    )
    assert [path.parent.name for path in found[0].results] == ["seed_3", "seed_1", "seed_4"]


def test_a_setting_goes_before_what_is_asked_for_all(tmp_path: pathlib.Path) -> None:
    file = config_file(tmp_path, '[{"n_tasks": 3}, {"seed": 1}]')
    found = sweep.jobs(parsed(file, tmp_path, "--config.n_tasks=2"))
    fields = [[text for text in job.command if text.startswith("--config.")] for job in found]
    assert [config_lib.load_resolved(file, given).n_tasks for given in fields] == [3, 2]


def test_settings_without_fields_or_with_a_variant(tmp_path: pathlib.Path) -> None:
    file = config_file(tmp_path, '[{}, {"seed": 2, "variant": "transductive"}]')
    base, other = sweep.jobs(parsed(file, tmp_path))
    assert (base.name, base.seeds) == ("base", (0,))
    assert "--config.seed=0" in base.command
    assert f"--config={file}:transductive" in other.command
    assert other.results == [tmp_path / "variant=transductive" / "results.json"]


def test_names_of_long_or_odd_settings_are_short_and_their_own(tmp_path: pathlib.Path) -> None:
    paths = [f"/data/{'x' * 120}/{name} a.npy" for name in "ab"]
    file = config_file(tmp_path, f'[{{"data.train.phi1": p}} for p in {paths}]')
    names = [job.name for job in sweep.jobs(parsed(file, tmp_path))]
    assert len(set(names)) == 2
    assert all(len(name) <= 100 and "/" not in name and " " not in name for name in names)


def test_a_factor_of_the_ablations_is_a_sweep(tmp_path: pathlib.Path) -> None:
    found = sweep.jobs(parsed("experiments/ablations.py:spaces", tmp_path))
    assert [job.name for job in found] == [
        "base",
        *(f"search.spaces={spaces}" for spaces in ("first", "second", "given")),
        "search.spaces=given,variant=phi1=lite2",
    ]
    assert "--config=experiments/ablations.py:spaces,phi1=lite2" in found[-1].command
    assert {job.seeds for job in found} == {(0, 1, 2)}
    every = sweep.jobs(parsed("experiments/ablations.py:all", tmp_path))
    assert len({job.name for job in every}) == len(every) > 30
    held_out = sweep.jobs(parsed("experiments/ablations.py:changes,held_out", tmp_path))
    config = config_lib.load_resolved("experiments/ablations.py:changes,held_out")
    assert config.data.test.phi1 == "runs/held_out/effnet_lite0_test.npy"
    assert "--config=experiments/ablations.py:changes,held_out" in held_out[0].command
    # The last of the changes are the defaults.
    usual = config_lib.load("experiments/ablations.py:changes")
    last = config_lib.load_sweep("experiments/ablations.py:changes")[-1]
    for field, value in last.items():
        if field != "seed":
            section, _, name = field.partition(".")
            assert usual.presets.fast[section][name] == value, field
    # Of CLINC150 no label is seen.
    many = config_lib.load("experiments/ablations.py:many_classes")
    assert (many.n_classes, many.data.train.labels) == (150, "")
    assert set(many.data.test.to_dict().values()) == {""}
    assert len(sweep.jobs(parsed("experiments/ablations.py:many_classes", tmp_path))) == 7
    assert len(sweep.jobs(parsed("experiments/ablations.py:many_spaces", tmp_path))) == 5
    temperatures = sweep.jobs(parsed("experiments/ablations.py:many_temperature", tmp_path))
    assert {job.seeds for job in temperatures} == {(0,)}
    # None of them sees a test row of the dataset.
    config = config_lib.load("experiments/ablations.py:rate")
    assert set(config.data.test.to_dict().values()) == {""}
    # Those that decide a default are run again with everything: None takes the preset's.
    config = config_lib.load("experiments/ablations.py:start,full,held_out")
    assert (config.n_tasks, config.inner.directions) == (64, None)
    names = {
        job.name for job in sweep.jobs(parsed("experiments/ablations.py:full,start", tmp_path))
    }
    assert names == {"base", "encoder.start=random", "encoder.start=rows"}
    # What decided a default stands among the factors of the cell too.
    decisive = config_lib.load_sweep("experiments/ablations.py:decisive,full")
    factors = ("rate", "adjoint", "steps")
    cell = [{}, *(setting for name in factors for setting in ablations.FACTORS[name])]
    assert len(decisive) == 12
    assert all({k: setting[k] for k in setting if k != "seed"} in cell for setting in decisive)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("rat", "no factor is called 'rat', there are: all, default, rate"),
        ("phi1=lite2,rate,start", "rate and start: one factor at a time"),
    ],
)
def test_names_of_factors_that_will_not_do(
    tmp_path: pathlib.Path, asked: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep.jobs(parsed(f"experiments/ablations.py:{asked}", tmp_path))


def test_the_seeds_of_a_sweep_are_its_own(tmp_path: pathlib.Path) -> None:
    file = config_file(tmp_path, "[{}]")
    for field in ("--config.seed=7", "--config.seeds=(0,1)"):
        with pytest.raises(UserError, match="the seeds of a sweep are those that its settings"):
            sweep.jobs(parsed(file, tmp_path, field))


def test_ablations_on_arrays_that_are_made_first(tmp_path: pathlib.Path) -> None:
    rows = sweep.jobs(parsed("experiments/ablations.py:rows", tmp_path))
    assert [job.setting.get("variant", "all") for job in rows][::4] == [
        "source=runs/subsets/rows_500",
        "all",
    ]
    found = config_lib.load("experiments/ablations.py:rows,source=runs/subsets/rows_500")
    assert found.data.train.phi2 == "runs/subsets/rows_500/effnet_lite2_train.npy"
    assert set(found.data.test.to_dict().values()) == {""}
    spaces = sweep.jobs(parsed("experiments/ablations.py:third_space", tmp_path))
    assert [len(job.setting["data.train.phi2"]) for job in spaces if "both" in job.name][-1] == 2


def test_the_prior_of_an_ablation_is_what_a_run_found(tmp_path: pathlib.Path) -> None:
    config = f"experiments/ablations.py:imbalance,prior={tmp_path}"
    with pytest.raises(UserError, match="the run that the prior is estimated by comes first"):
        config_lib.load(config)
    found = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 7, 8, 54])
    splits = {"train": (found, found * 0.0, found * 0.0), "test": ([9] * 5, [0.0] * 5, [0.0] * 5)}
    (tmp_path / "labels.csv").write_text(results.to_csv(splits))
    # The largest class first; the tenth was not found, and still has a share.
    prior = config_lib.load(config).class_prior
    np.testing.assert_allclose(prior, np.array([55, 9, 8, 7, 6, 5, 4, 3, 2, 1]) / 100, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('[{"inner.adjont": "implicit"}]', "inner.adjont=implicit: unknown config field.*adjoint"),
        ('[{"n_tasks": 0}]', "n_tasks=0: config field 'n_tasks' is 0"),
        ('[{"seed": 1}, {"seed": 1}]', "lists base twice with seed 1"),
        ("[]", "at least one"),
        ("[3]", "mappings of config fields"),
        ("1 / 0", "line 8: ZeroDivisionError"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    tmp_path: pathlib.Path, settings: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sweep.jobs(parsed(config_file(tmp_path, settings), tmp_path))


def test_a_config_without_a_sweep_and_a_number_of_jobs_that_will_not_do(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(UserError, match="testing.py defines no function sweep"):
        config_lib.load_sweep("configs/testing.py")
    with pytest.raises(UserError, match="--jobs=0"):
        parsed("configs/testing.py", tmp_path, "--jobs=0")


def test_a_failure_is_listed_and_tried_again_and_the_others_go_on(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a", "b", "c", "d"]
    jobs = [stub(tmp_path, name, fails=name == "b") for name in names]
    sweep.run_locally(jobs, 3)
    assert "b: FAILED, error: it cannot be done" in capsys.readouterr().err
    text = sweep.report(jobs, tmp_path)
    assert "not finished, 1 of 4 runs:\n* b: error: it cannot be done" in text
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["field"] for row in rows] == ["a", "c", "d"]
    assert rows[0]["test ACC"] == "0.750"
    assert rows[0]["best objective"] == "0.5000"
    assert (tmp_path / "table.png").stat().st_size > 1000

    mended = [stub(tmp_path, name) for name in names]
    waiting = [job for job in mended if not job.finished]
    assert [job.name for job in waiting] == ["b"]
    sweep.run_locally(waiting, 3)
    assert [starts(tmp_path, name) for name in names] == [1, 2, 1, 1]
    assert "not finished" not in sweep.report(mended, tmp_path)


def test_sweeps_that_share_a_folder_share_their_runs(tmp_path: pathlib.Path) -> None:
    found = [
        sweep.jobs(parsed(f"experiments/ablations.py:{factor},held_out", tmp_path))
        for factor in ("rate", "start")
    ]
    defaults = [jobs[0] for jobs in found]
    assert [job.name for job in defaults] == ["base"] * 2
    assert len({(job.workdir, job.config_hash) for job in defaults}) == 1
    sweep.run_locally([stub(tmp_path, "a")], 1)
    sweep.report([stub(tmp_path, "a")], tmp_path, "rate")
    names = sorted(path.name for path in tmp_path.glob("rate.*"))
    assert names == ["rate.csv", "rate.md", "rate.png"]
    with pytest.raises(UserError, match="--table=a/b: a name of letters"):
        parsed("configs/testing.py", tmp_path, "--table=a/b")


def test_what_other_settings_made_is_not_finished(tmp_path: pathlib.Path) -> None:
    """Names of folders hold what a setting changes; the defaults below may have changed."""
    job = sweep.Job("base", {}, (0,), (), tmp_path, "now")
    for found, finished in (("before", False), ("now", True)):
        (tmp_path / "results.json").write_text(json.dumps({"config_hash": found}))
        assert job.finished is finished
    asked = parsed("experiments/ablations.py:default", tmp_path)
    (usual,) = sweep.jobs(asked)
    asked.fields = ["--config.n_tasks=3"]
    (other,) = sweep.jobs(asked)
    assert usual.name == other.name
    assert usual.config_hash != other.config_hash


def test_the_picture_shows_agreement_where_there_is_no_label(tmp_path: pathlib.Path) -> None:
    job = sweep.Job("base", {"field": 1}, (0,), (), tmp_path)
    found = {"ensemble": {}, "tasks": [{"agreement": 0.5}, {"agreement": 0.75}]}
    (tmp_path / "results.json").write_text(json.dumps(found))
    lines, label = sweep.picture([job])
    assert lines == [("field=1", [0.625], 0.625)]
    assert label == "mean agreement of the tasks"


def test_settings_of_different_fields_share_a_column(tmp_path: pathlib.Path) -> None:
    settings = ({}, {"a.b": 1, "variant": "x"}, {"a.b": 2})
    jobs = [sweep.Job(str(i), s, (0,), (), tmp_path / str(i)) for i, s in enumerate(settings)]
    for job in jobs:
        job.workdir.mkdir()
        (job.workdir / "results.json").write_text(json.dumps(FOUND))
    head, lines = sweep.collect(jobs)
    assert head[:2] == ["setting", "seeds"]
    assert [line[0] for line in lines] == ["as configured", "a.b=1, variant=x", "a.b=2"]
    # A grid has a column for each field.
    head, lines = sweep.collect([jobs[2], jobs[2]._replace(setting={"a.b": 3})])
    assert head[:2] == ["a.b", "seeds"]
    assert [line[0] for line in lines] == ["2", "3"]


def test_the_spread_is_over_the_seeds(tmp_path: pathlib.Path) -> None:
    job = sweep.Job("base", {"field": 1}, (0, 1), (), tmp_path / "base")
    for path, acc in zip(job.results, (0.7, 0.9), strict=True):
        path.parent.mkdir(parents=True)
        task = {"objective": acc, "agreement": acc, "train": {"acc": acc}}
        scores = {"acc": acc, "ari": acc, "nmi": acc}
        found = {"ensemble": {"train": scores}, "tasks": [task], "seconds": {"search": 1.0}}
        path.write_text(json.dumps(found))
        # The same labelling in other numbers, but for one row of train; test rows do not count.
        labels = [0, 0, 1, 1] if acc == 0.7 else [1, 1, 0, 1]
        rows = [f"{i},train,{label}" for i, label in enumerate(labels)] + [f"0,test,{acc == 0.7:d}"]
        path.with_name("labels.csv").write_text("\n".join(["index,split,label", *rows]))
    head, (line,) = sweep.collect([job])
    expected = f"{0.8:.3f} ± {np.std([0.7, 0.9], ddof=1):.3f}"
    found = dict(zip(head, line, strict=True))
    assert found["train ACC"] == expected
    assert found["agreement of the votes"] == "0.7500"


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_a_killed_launcher_goes_on_where_it_was(number: int, tmp_path: pathlib.Path) -> None:
    """Told to end, which it sees to; and killed at once with all it started, as a machine does."""
    script = tmp_path / "launch.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}]\n"
        "import pathlib, test_sweep\nfrom hume_jax import sweep\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "seconds = float(sys.argv[1])\n"
        "jobs = [test_sweep.stub(out, 'a'), test_sweep.stub(out, 'b', seconds=seconds)]\n"
        "sweep.run_locally([job for job in jobs if not job.finished], 1)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "600"]
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "b.count").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGTERM:
        first.terminate()
        assert first.wait() == 128 + number
        # What it had started ended with it, and holds no lock of its workdir.
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "b.count.pid").read_text()), 0)
    else:
        os.killpg(first.pid, number)
        assert first.wait() == -number
    subprocess.run([sys.executable, str(script), "0"], env=environment, check=True)
    assert [starts(tmp_path, name) for name in "ab"] == [1, 2]
    assert (tmp_path / "b" / "results.json").exists()


def play_sbatch(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a Bash script in the place of `sbatch`."""
    played = folder / "bin" / "sbatch"
    played.parent.mkdir()
    played.write_text(f"#!/bin/bash\n{script}\n")
    played.chmod(0o755)
    monkeypatch.setenv("PATH", f"{played.parent}:{os.environ['PATH']}")


def test_a_job_array_of_slurm_runs_each_command_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sbatch` is played by a script that runs every task of the array, one after the other."""
    out = tmp_path / "with space"
    play_sbatch(
        tmp_path,
        monkeypatch,
        'last=$(grep -oP "array=0-\\K[0-9]+" "$1")\n'
        'for i in $(seq 0 $last); do SLURM_ARRAY_TASK_ID=$i bash "$1" || exit 1; done',
    )
    options = parsed(
        "configs/testing.py",
        out,
        "--launch=slurm",
        "--jobs=2",
        "--sbatch=--time=1:00 --comment='a b'",
    )
    jobs = [stub(out, name) for name in "abc"]
    sweep.submit(jobs, options)
    assert [starts(out, name) for name in "abc"] == [1, 1, 1]
    assert all(job.finished for job in jobs)
    script = (out / "sweep.sbatch").read_text()
    assert "#SBATCH --array=0-2%2\n" in script
    assert "#SBATCH --time=1:00\n#SBATCH '--comment=a b'\n" in script


def test_an_array_that_waits_is_not_changed_by_a_later_one(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sbatch` keeps a copy of the script, and runs nothing yet."""
    play_sbatch(tmp_path, monkeypatch, f'cp "$1" {tmp_path}/copy-$$')
    options = parsed("configs/testing.py", tmp_path, "--launch=slurm")
    jobs = [stub(tmp_path, name) for name in "abc"]
    sweep.submit(jobs, options)
    (first,) = tmp_path.glob("copy-*")

    def task(number: int) -> None:
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
        subprocess.run(["bash", str(first)], env=environment, check=True)

    task(0)
    sweep.submit([job for job in jobs if not job.finished], options)
    task(2)
    assert [job.finished for job in jobs] == [True, False, True]


def test_a_table_of_what_is_there_starts_nothing(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config_file(tmp_path, '[{"n_tasks": 2}, {"n_tasks": 3}]')
    done, other = sweep.jobs(parsed(file, tmp_path))
    for path in done.results:
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(FOUND | {"config_hash": done.config_hash}))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was started"))
    assert sweep.main([f"--config={file}", f"--out={tmp_path}", "--launch=table"]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().splitlines()[2].split("|")[1].strip() == "2"
    assert f"not finished, 1 of 2 runs:\n* {other.name}: " in printed


def test_without_slurm_the_script_is_left_for_a_machine_that_has_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = parsed("configs/testing.py", tmp_path, "--launch=slurm")
    with pytest.raises(UserError, match="no sbatch here.*sweep.sbatch is ready"):
        sweep.submit([stub(tmp_path, "a")], options)
    assert (tmp_path / "sweep.sbatch").exists()


def test_printed_commands_are_those_that_would_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, '[{"n_tasks": 2}, {"search.anneal_steps": (2, 4)}]')
    arguments = [f"--config={file}", f"--out={tmp_path}", "--launch=print"]
    assert sweep.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    jobs = sweep.jobs(sweep.parse_arguments(arguments))
    assert [tuple(shlex.split(line)) for line in lines] == [job.command for job in jobs]


@pytest.mark.slow
def test_a_sweep_of_real_runs(tmp_path: pathlib.Path) -> None:
    file = config_file(
        tmp_path, 'config_lib.product({"search.steps": (4, 6), "seed": (0, 1)}) + [{"n_tasks": 3}]'
    )
    command = [sys.executable, "-m", "hume_jax.sweep", f"--config={file}", f"--out={tmp_path}/runs"]
    command += ["--jobs=2", "--noconfig.plots", "--noconfig.baselines"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "runs" / "table.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["seeds"] for row in rows] == ["2", "2", "1"]
    assert "±" in rows[0]["test ACC"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert "started" not in again.stderr
    assert again.stdout == done.stdout
