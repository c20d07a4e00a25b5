"""Whole runs, in this process: what is written, and what a run does and does not depend on.

Run as a script, this file writes the golden values anew, after a change that is meant:

    .venv/bin/python tests/test_pipeline.py
"""

import csv
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import hume_jax
from hume_jax import config as config_lib
from hume_jax import feeds, labelling, memory, pipeline, planning, scoring, search_loop
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.search import Search
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics, n_classes

pytestmark = pytest.mark.usefixtures("quickly_compiled")

QUICKSTART = pathlib.Path(hume_jax.__file__).parent / "data" / "quickstart"
GOLDEN = pathlib.Path(__file__).parent / "golden" / "testing.json"
SCORES = {"acc", "ari", "nmi"}
BASELINES = {"kmeans_phi1", "kmeans_phi2", "probe_phi1", "probe_phi2"}
# Four of the ten classes and 16 of the 128 columns; no number of shards divides the rows.
K, COLUMNS, TRAIN, ROWS, TASKS = 4, 16, 301, 401, 3


class Run(NamedTuple):
    """A finished run, read back from its folder."""

    path: pathlib.Path
    results: dict[str, Any]
    metrics: list[dict[str, Any]]
    rows: list[dict[str, str]]  # of labels.csv

    def column(self, name: str, *splits: str) -> np.ndarray:
        """Of labels.csv."""
        values = [row[name] for row in self.rows if row["split"] in (splits or ("train",))]
        return np.array(values).astype(int if name == "label" else float)

    def searched(self) -> list[dict[str, Any]]:
        """metrics.jsonl, but for times."""
        return [{k: v for k, v in row.items() if k != "seconds"} for row in self.metrics]

    def state(self, batch: int = 0) -> Any:
        """The arrays of the last checkpoint."""
        with ocp.CheckpointManager(self.path / "checkpoints" / f"batch_{batch:04d}") as manager:
            return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())

    def model(self) -> labelling.Model:
        with np.load(self.path / "model.npz", allow_pickle=False) as arrays:
            return labelling.from_arrays(arrays)


def finished(path: pathlib.Path) -> Run:
    with (path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (path / "metrics.jsonl").read_text().splitlines()
    results = json.loads((path / "results.json").read_text())
    return Run(path, results, [json.loads(line) for line in lines], rows)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`configs/testing.py` as it is."""
    path = tmp_path_factory.mktemp("runs") / "quickstart"
    returned = pipeline.run(config_lib.load("configs/testing.py"), path)
    run = finished(path)
    assert json.loads(json.dumps(returned)) == run.results
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Small arrays in float16: all rows, and the same as train and test."""
    folder = tmp_path_factory.mktemp("arrays")
    true = np.load(QUICKSTART / "labels_train.npy")
    kept = np.flatnonzero(true < K)[:ROWS]
    arrays = {"labels": true[kept]}
    for name in ("phi1", "phi2"):
        arrays[name] = np.load(QUICKSTART / f"{name}_train.npy")[kept, :COLUMNS]
        assert arrays[name].dtype == np.float16
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        np.save(folder / f"{name}_train.npy", array[:TRAIN])
        np.save(folder / f"{name}_test.npy", array[TRAIN:])
    return folder


@pytest.fixture(scope="module")
def search(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs `configs/testing.py` on the small arrays, with further fields."""

    def run(
        variant: str = "", fields: dict[str, Any] | None = None, read: bool = True, kept: str = ""
    ) -> Any:
        config = config_lib.load(f"configs/testing.py:{variant}")
        for split in ("train", "test"):
            config.data[split].update({"phi1": "", "phi2": "", "labels": ""})
        config.data.train.update({k: str(folder / f"{k}.npy") for k in ("phi1", "phi2")})
        common = {"n_classes": K, "n_tasks": TASKS, "plots": False, "baselines": False}
        # More rows than there are: all are used, so runs on as many rows are of one shape.
        sizes = {"search.subset_size": 1000, "score.rows": 300, "ensemble.fraction": 1.0}
        for name, value in {**common, **sizes, **(fields or {})}.items():
            *sections, last = name.split(".")
            section = config
            for part in sections:
                section = section[part]
            section[last] = value
        # A name is for a folder that is gone on with.
        path = folder / kept if kept else tmp_path_factory.mktemp("runs") / "run"
        pipeline.run(config, path)
        return finished(path) if read else path

    return run


@pytest.fixture(scope="module")
def plain(search: Callable[..., Run]) -> Run:
    """No labels, one split."""
    return search(fields={"baselines": True})


def same_search(a: Run, b: Run) -> None:
    """Bit for bit: labels, metrics and the final state."""
    assert (a.path / "labels.csv").read_bytes() == (b.path / "labels.csv").read_bytes()
    assert a.searched() == b.searched()
    jax.tree.map(np.testing.assert_array_equal, a.state(), b.state())
    jax.tree.map(np.testing.assert_array_equal, a.model(), b.model())


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of equal labels after matching the classes."""
    return metrics.score(a, b)["acc"]


# ---- what is written


def test_files(quickstart):
    names = {path.name for path in quickstart.path.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoints", "results.json", "labels.csv"}
    assert names >= {"model.npz", "curves.png", "objective.png", "confusion.png"}
    config = json.loads((quickstart.path / "config.json").read_text())
    assert "presets" not in config
    assert None not in config_lib.flatten(config).values()
    assert config == json.loads(
        config_lib.to_json(config_lib.resolve(config_lib.load("configs/testing.py")))
    )


def test_results_are_as_the_contract_says(quickstart):
    results = quickstart.results
    assert results["version"] == hume_jax.__version__
    config = config_lib.resolve(config_lib.load("configs/testing.py"))
    assert results["config_hash"] == config_lib.config_hash(config)
    assert (results["setting"], results["n_classes"]) == ("inductive", 10)
    assert isinstance(results["device"], str)
    assert results["versions"].keys() >= {"jax", "jaxopt", "optax", "numpy", "scikit-learn"}
    assert results["seconds"].keys() == {"total", "compile", "search", "checkpoint", "score"}
    assert results["correlation"].keys() >= {"objective_acc", "cv_accuracy_acc"}
    assert [task["seed"] for task in results["tasks"]] == list(range(config.n_tasks))
    for entry in (results["ensemble"], *results["tasks"]):
        assert "all" not in entry
        for split in ("train", "test"):
            assert entry[split].keys() >= SCORES
            assert all(0 <= entry[split][score] <= 1 for score in ("acc", "nmi"))
    for task in results["tasks"]:
        assert 0 <= task["cv_accuracy"] <= 1
        assert 1 <= task["n_classes_used"] <= 10
        assert task["objective"] >= task["heldout_ce"] > 0
    assert results["baselines"].keys() == BASELINES
    for name, entry in results["baselines"].items():
        # The probe is fitted on train labels: a score on them would say nothing.
        assert entry.keys() == ({"test"} if name.startswith("probe") else {"train", "test"})
        assert all(scores.keys() >= SCORES for scores in entry.values())


def test_ensemble_scores_are_those_of_the_labels_written(quickstart):
    for split in ("train", "test"):
        true = np.load(QUICKSTART / f"labels_{split}.npy")
        found = quickstart.column("label", split)
        assert len(found) == len(true)
        score = metrics.score(found, true)
        for name in SCORES:
            assert quickstart.results["ensemble"][split][name] == pytest.approx(score[name])


def test_metrics_hold_every_logged_step_once(quickstart):
    config = config_lib.resolve(config_lib.load("configs/testing.py"))
    steps = list(range(config.log_every, config.search.steps + 1, config.log_every))
    assert [row["step"] for row in quickstart.metrics] == steps
    for row in quickstart.metrics:
        assert row["tasks"] == list(range(config.n_tasks))
        for name in ("objective", "heldout_ce", "entropy", "inner_residual", "adjoint_residual"):
            assert len(row[name]) == config.n_tasks
            assert np.isfinite(row[name]).all()


def test_labels_are_what_the_stored_model_predicts(quickstart):
    model = quickstart.model()
    for split in ("train", "test"):
        vote = labelling.predict(model, [np.load(QUICKSTART / f"phi1_{split}.npy")])
        np.testing.assert_array_equal(quickstart.column("label", split), vote.labels)
        # Six decimals are written.
        for name, values in (("agreement", vote.agreement), ("margin", vote.margin)):
            np.testing.assert_allclose(quickstart.column(name, split), values, atol=1e-6)
        indices = quickstart.column("index", split)
        np.testing.assert_array_equal(indices, np.arange(len(vote.labels)))


def test_a_row_is_labelled_whatever_rows_are_beside_it(quickstart):
    model, rows = quickstart.model(), np.load(QUICKSTART / "phi1_test.npy")
    together = labelling.predict(model, [rows])
    picked = np.array([1500, 3, 700])
    alone = labelling.predict(model, [rows[picked]])
    for one, all_ in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, all_[picked])


def test_a_model_survives_its_file(quickstart):
    model = quickstart.model()
    again = labelling.from_arrays(labelling.to_arrays(model))
    assert again.kind == model.kind == "rows"
    jax.tree.map(np.testing.assert_array_equal, again, model)


def test_a_run_says_which_classes_its_tasks_disagree_on(quickstart):
    model = quickstart.model()
    phi1 = [np.load(QUICKSTART / "phi1_train.npy")]
    tasks = labelling.encode(model.theta, phi1, model.statistics, model.kind)
    expected = n_classes.unsupported(tasks, quickstart.column("label"), 10)
    # Six steps are no search.
    assert expected[0].startswith("tasks disagree on ")
    assert quickstart.results["unsupported"] == expected


def poison(monkeypatch, tasks: list[int]) -> None:
    """Some tasks begin with a number that is none."""
    start = feeds.FromMemory.start

    def poisoned(self: feeds.FromMemory, numbers: Any) -> Any:
        state = start(self, numbers)
        return state._replace(theta=state.theta.at[np.array(tasks), 0].set(np.nan))

    monkeypatch.setattr(feeds.FromMemory, "start", poisoned)


@pytest.mark.slow
def test_a_task_that_is_dropped_takes_no_part(search, monkeypatch, caplog):
    poison(monkeypatch, [1])
    run = search()
    (warning,) = [m for m in caplog.messages if "is dropped" in m]
    assert warning.startswith("task 1 is dropped: its step 1 was not finite")
    assert run.results["dropped"] == {"1": 1}
    assert [task["seed"] for task in run.results["tasks"]] == [0, 2]
    assert all(row["dropped"] == [0, 1, 0] for row in run.metrics)
    with np.load(run.path / "model.npz", allow_pickle=False) as model:
        assert np.all(np.isfinite(model["theta"]))


def test_a_run_whose_tasks_are_all_dropped(search, monkeypatch):
    poison(monkeypatch, [0, 1, 2])
    with pytest.raises(UserError, match="every task was dropped, the last at step 1: lower"):
        search()


def test_metrics_are_golden(quickstart):
    """Written on another machine perhaps, so not to the last digit."""
    golden, found = json.loads(GOLDEN.read_text()), golden_values(quickstart)
    assert found.keys() == golden.keys()
    assert found["step"] == golden["step"]
    np.testing.assert_allclose(found["objective"], golden["objective"], rtol=1e-3)
    np.testing.assert_allclose(found["temperature"], golden["temperature"], rtol=1e-6)
    np.testing.assert_allclose(found["acc"], golden["acc"], atol=0.02)


def golden_values(run: Run) -> dict[str, list]:
    """Metrics of a run of `configs/testing.py`."""
    columns = {name: [row[name] for row in run.metrics] for name in ("step", "temperature")}
    objective = [[float(f"{v:.6g}") for v in row["objective"]] for row in run.metrics]
    acc = [round(run.results["ensemble"][split]["acc"], 4) for split in ("train", "test")]
    return {**columns, "objective": objective, "acc": acc}


# ---- labels never reach the search


def test_without_labels_there_are_no_scores(plain):
    results = plain.results
    assert results["correlation"] == results["baselines"] == {}
    for entry in (results["ensemble"], *results["tasks"]):
        assert not entry.keys() & {"train", "test", "all"}
    for task in results["tasks"]:
        assert task.keys() >= {"seed", "objective", "cv_accuracy", "n_classes_used", "agreement"}
    assert "null" not in (plain.path / "results.json").read_text()


def test_labels_do_not_change_the_search(search, plain, folder):
    given = search(fields={"data.train.labels": str(folder / "labels.npy")})
    same_search(given, plain)
    assert given.results["ensemble"]["train"].keys() >= SCORES
    shuffled = np.random.default_rng(0).permutation(np.load(folder / "labels.npy"))
    np.save(folder / "shuffled.npy", shuffled)
    other = search(fields={"data.train.labels": str(folder / "shuffled.npy")})
    same_search(other, plain)
    free = ("objective", "heldout_ce", "cv_accuracy", "agreement", "n_classes_used")
    for tasks in zip(*(run.results["tasks"] for run in (plain, given, other)), strict=True):
        assert len({tuple(task[name] for name in free) for task in tasks}) == 1
    accuracy = [run.results["ensemble"]["train"]["acc"] for run in (given, other)]
    assert accuracy[0] > accuracy[1] + 0.1


# ---- settings and inputs


def test_transductive(search, plain, folder):
    fields = {
        f"data.{split}.{name}": str(folder / f"{name}_{split}.npy")
        for split in ("train", "test")
        for name in ("phi1", "phi2", "labels")
    }
    run = search("transductive", {**fields, "baselines": True})
    results = run.results
    assert results["setting"] == "transductive"
    true = np.load(folder / "labels.npy")
    union = run.column("label", "train", "test")
    assert len(union) == ROWS
    for entry in (results["ensemble"], *results["tasks"]):
        assert all(entry[split].keys() >= SCORES for split in ("train", "test", "all"))
    assert results["ensemble"]["all"]["acc"] == pytest.approx(metrics.score(union, true)["acc"])
    part = metrics.score(union[TRAIN:], true[TRAIN:])["acc"]
    assert results["ensemble"]["test"]["acc"] == pytest.approx(part)
    for name, entry in results["baselines"].items():
        splits = {"test"} if name.startswith("probe") else {"train", "test", "all"}
        assert entry.keys() == splits
    assert {entry["split"] for entry in results["correlation"].values()} <= {"all"}
    # The union was searched: as one array it gives the same.
    assert agreement(union, plain.column("label")) >= 0.99


def test_float32_files_of_the_same_values_change_nothing(search, plain, folder):
    fields = {}
    for name in ("phi1", "phi2"):
        np.save(folder / f"{name}_float32.npy", np.load(folder / f"{name}.npy").astype(np.float32))
        fields[f"data.train.{name}"] = str(folder / f"{name}_float32.npy")
    same_search(search(fields=fields), plain)


def test_several_first_spaces_are_joined(search, plain, folder):
    phi1 = np.load(folder / "phi1.npy")
    for name, columns in (("left", phi1[:, :6]), ("right", phi1[:, 6:])):
        np.save(folder / f"{name}.npy", columns)
    paths = (str(folder / "left.npy"), str(folder / "right.npy"))
    run = search(fields={"data.train.phi1": paths})
    model = run.model()
    assert model.theta.shape == (TASKS, COLUMNS, K)
    assert [len(stats.mean) for stats in model.statistics] == [6, 10]
    vote = labelling.predict(model, [phi1[:, :6], phi1[:, 6:]])
    np.testing.assert_array_equal(run.column("label"), vote.labels)
    # Each file is scaled to unit norm before, so it is another search.
    assert run.searched() != plain.searched()


@pytest.mark.slow
def test_preset_paper_and_several_second_spaces(search, plain, folder):
    paths = (str(folder / "phi2.npy"), str(folder / "phi1.npy"))
    run = search("preset=paper", {"data.train.phi2": paths, "n_tasks": TASKS})
    config = json.loads((run.path / "config.json").read_text())
    assert (config["inner"]["adjoint"], config["inner"]["start"]) == ("unrolled", "random")
    state = run.state()
    assert [w.shape for w in state["inner"]] == [(TASKS, K, COLUMNS + 1)] * 2
    assert run.model().kind == "stored"
    assert run.column("label").shape == (ROWS,)
    for row in run.metrics:
        assert np.all(np.asarray(row["adjoint_residual"]) == 0)
    # Tasks are judged in both spaces.
    for mine, theirs in zip(run.results["tasks"], plain.results["tasks"], strict=True):
        assert mine["cv_accuracy"] != theirs["cv_accuracy"]


def test_class_prior(search, plain):
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    run = search(fields={"class_prior": tuple(prior)})
    assert run.searched() != plain.searched()
    eta = json.loads((run.path / "config.json").read_text())["search"]["entropy_weight"]
    with np.load(run.path / "scores.npz", allow_pickle=False) as scores:
        # eta KL(p || prior) = eta (sum p log p - sum p log prior).
        excess = (scores["objective"] - scores["heldout_ce"]) / eta + scores["entropy"]
    assert np.all((-np.log(0.4) <= excess) & (excess <= -np.log(0.1)))


@pytest.mark.slow
def test_the_order_of_a_class_prior_is_of_no_consequence(search):
    one, other = (
        search(fields={"class_prior": p}) for p in ((0.4, 0.3, 0.2, 0.1), (0.2, 0.4, 0.1, 0.3))
    )
    same_search(one, other)


def test_an_estimated_class_prior(search, monkeypatch):
    """Sizes of a first search, then of another under them; a run that was stopped goes on."""
    fields = {"class_prior": "estimate", "prior.tasks": 2, "search.entropy_weight": 7.0}
    run = search(fields=fields)
    rounds = json.loads((run.path / "class_sizes.json").read_text())
    assert len(rounds) == 2
    for shares in rounds:
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
    assert run.results["class_prior"] == rounds[-1]
    parts = [json.loads((run.path / f"sizes_{i}" / "config.json").read_text()) for i in (1, 2)]
    assert [part["class_prior"] for part in parts] == [[], rounds[0]]
    assert [part["search"]["entropy_weight"] for part in parts] == [0.1, 1.0]
    assert [part["n_tasks"] for part in parts] == [2, 2]
    # The search itself is one under these shares, given as numbers, at the weight of `prior`.
    given = {"class_prior": tuple(rounds[-1]), "search.entropy_weight": 1.0}
    same_search(run, search(fields=given))
    # Stopped after its first round it comes to the same.
    left = iter((True, False))
    searched = search_loop.run

    def stopped(*arguments, **keywords):
        if not next(left):
            raise KeyboardInterrupt
        return searched(*arguments, **keywords)

    monkeypatch.setattr(search_loop, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        search(fields=fields, kept="again")
    monkeypatch.undo()
    again = search(fields=fields, kept="again")
    assert json.loads((again.path / "class_sizes.json").read_text()) == rounds
    same_search(run, again)


def test_classes_are_numbered_by_their_size(search, plain):
    for run in (plain, search(fields={"ensemble.vote": "soft"})):
        sizes = run.results["ensemble"]["class_counts"]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes == np.bincount(run.column("label"), minlength=K).tolist()


def test_the_vote_is_scored_as_a_task_is(search, plain):
    """Label-free, by the same folds: a vote of one task scores as that task."""
    run = search(fields={"n_tasks": 1})
    (task,) = run.results["tasks"]
    for name in ("objective", "heldout_ce", "cv_accuracy", "entropy"):
        np.testing.assert_allclose(run.results["ensemble"][name], task[name], rtol=1e-3)
        assert name in plain.results["ensemble"]


def test_a_soft_vote_is_what_its_model_predicts(search, plain, folder):
    soft = search(fields={"ensemble.vote": "soft"})
    model = soft.model()
    assert (model.tables.shape, model.weights.shape) == ((TASKS, K, K), (K,))
    vote = labelling.predict(model, [np.load(folder / "phi1.npy")])
    np.testing.assert_array_equal(soft.column("label"), vote.labels)
    np.testing.assert_allclose(soft.column("agreement"), vote.agreement, atol=1e-4)
    # The same search; its tasks agree on most rows, whatever way they vote.
    # Classes are numbered by the size that they have in each vote.
    theirs = plain.model().theta
    order = [
        int(np.flatnonzero(np.all(column == theirs[0].T, axis=1))[0]) for column in model.theta[0].T
    ]
    np.testing.assert_array_equal(model.theta, theirs[:, :, order])
    assert agreement(soft.column("label"), plain.column("label")) > 0.8
    assert soft.results["ensemble"]["vote"] == "soft"


@pytest.mark.slow
def test_several_seeds_are_runs_of_their_own(search, plain):
    both = search(fields={"seeds": (1, 0)}, read=False)
    found = json.loads((both / "results.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [1, 0]
    alone, other = finished(both / "seed_0"), finished(both / "seed_1")
    np.testing.assert_allclose(alone.model().theta, plain.model().theta, atol=1e-3)
    assert agreement(alone.column("label"), plain.column("label")) > 0.98
    assert agreement(other.column("label"), plain.column("label")) < 1
    assert [row["step"] for row in alone.metrics] == [row["step"] for row in plain.metrics]


@pytest.mark.slow  # core/test_search.py has the same of the steps alone
def test_tasks_in_several_batches_are_the_same_tasks(search, plain):
    """Not bit for bit: products of another number of tasks are summed in another order."""
    run = search(fields={"task_batch": 2})
    assert json.loads((run.path / "batches.json").read_text()) == [[0, 1], [2]]
    steps = [row["step"] for row in plain.metrics]
    assert [(row["batch"], row["step"]) for row in run.metrics] == [
        (batch, step) for batch in (0, 1) for step in steps
    ]
    assert [task["seed"] for task in run.results["tasks"]] == [0, 1, 2]
    assert agreement(run.column("label"), plain.column("label")) >= 0.99
    for i in range(TASKS):
        first = run.metrics[len(steps) * (i // 2)]["objective"][i % 2]
        assert first == pytest.approx(plain.metrics[0]["objective"][i], rel=1e-3)


@pytest.mark.parametrize(("tasks", "idle"), [(4, 0), (3, 0), (1, 1)])
def test_devices_that_stay_idle_are_told(tasks, idle):
    """Four devices share four tasks, or the rows of three; a single shard cannot be shared."""
    config = config_lib.resolve(config_lib.load("configs/testing.py"))
    config.n_tasks, config.search.shards = tasks, 1 if tasks == 1 else 8
    plan = planning.make_plan(config, ROWS, COLUMNS, (COLUMNS + 1,))
    lines = planning.idle(plan)
    assert len(lines) == idle
    assert all(line.startswith("3 of 4 devices stay idle: 1 share batches of 1") for line in lines)


def test_a_subset_larger_than_the_data_is_clamped():
    config = config_lib.resolve(config_lib.load("configs/testing.py"))
    config.search.subset_size = 1000
    config.search.splits = "folds"
    plan = planning.make_plan(config, ROWS, COLUMNS, (COLUMNS + 1,))
    assert plan.settings.splits == "folds"
    (line,) = planning.clamped(config, ROWS, plan.shape)
    assert line.endswith("is 1000, there are 401 rows: a subset takes 400 of them")
    shards = planning.shard_count(config, ROWS)
    assert ROWS % shards
    assert plan.shape.train + plan.shape.test == ROWS // shards * shards
    assert plan.shape.rows == -(-ROWS // shards) * shards


@pytest.mark.parametrize(
    ("n", "subset", "shards"), [(6000, 5000, 64), (401, 1000, 8), (401, 40, 2), (20, 20, 1)]
)
def test_few_rows_lie_on_fewer_shards(n, subset, shards):
    config = config_lib.resolve(config_lib.load("configs/quickstart.py"))
    config.search.subset_size = subset
    assert planning.shard_count(config, n) == shards


def snapshot(workdir):
    """What is in a folder, but for the lock."""
    files = (path for path in workdir.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_finished_run_answers_at_once(quickstart, monkeypatch):
    """Whatever memory is free, without a pass over the arrays, and it touches nothing."""
    before = snapshot(quickstart.path)
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 0)
    monkeypatch.delattr(pipeline.store, "scan_files")
    assert (
        pipeline.run(config_lib.load("configs/testing.py"), quickstart.path) == quickstart.results
    )
    other = config_lib.load("configs/testing.py")
    other.seed = 1
    with pytest.raises(UserError, match="belongs to another config"):
        pipeline.run(other, quickstart.path)
    # Nor does it answer for data that it did not see.
    monkeypatch.setattr(pipeline.store, "fingerprint", lambda _: {"data.train.phi1": ["other"]})
    with pytest.raises(UserError, match=r"other data \(.*data\.train\.phi1: .*other"):
        pipeline.run(config_lib.load("configs/testing.py"), quickstart.path)
    assert snapshot(quickstart.path) == before


# ---- which tasks vote


@pytest.mark.parametrize(
    ("select", "members"),
    [("all", [0, 1, 2, 3]), ("objective", [1, 2]), ("agreement", [1, 3]), ("cv_accuracy", [1, 2])],
)
def test_voters(select, members):
    config = config_lib.resolve(config_lib.load("configs/testing.py"))
    config.ensemble.update({"select": select, "fraction": 0.5})
    config.n_classes = 3
    # Task 0 uses two classes and task 3 nearly so: collapsed, whatever their scores.
    tasks = np.array([[0, 1] * 50, [0, 1, 2, 0] * 25, [2, 1, 0, 2] * 25, [0, 1] * 49 + [2, 2]])
    scores = {
        "objective": np.array([0.1, 0.3, 0.4, 0.2]),
        "agreement": np.array([0.9, 0.8, 0.1, 0.85]),
        "cv_accuracy": np.array([0.99, 0.7, 0.6, 0.9]),
        "collapsed": np.array([True, False, False, select != "agreement"]),
    }
    np.testing.assert_array_equal(scoring.voters(config, tasks, scores), members)
    # Where a score cannot tell tasks apart, the objective does.
    if select == "agreement":
        scores["agreement"][:] = 0.8
        np.testing.assert_array_equal(scoring.voters(config, tasks, scores), [1, 3])
    # A collapsed task with all classes comes before one that lost a class.
    config.ensemble.fraction = 0.75
    if select == "cv_accuracy":
        np.testing.assert_array_equal(scoring.voters(config, tasks, scores), [1, 2, 3])


# ---- memory

SHAPE = memory.Shape(rows=6000, train=4500, test=500, phi1=128, inner=(129,))
SETTINGS = Search(10, 70, 8)


def needed(tasks: int, rows: str = "memory") -> int:
    """Of the search above on one device."""
    return memory.search_bytes(SHAPE, SETTINGS, tasks, rows=rows)


def test_as_many_tasks_as_fit():
    room = int((needed(9) + needed(10)) / 2 / 0.9)
    assert planning.batch_size(4, 0, 1, needed, room) == 4
    # Two batches of eight, not one of nine and one of seven.
    assert planning.batch_size(16, 0, 1, needed, room) == 8
    assert planning.batch_size(16, 2, 1, needed, room) == 2
    assert planning.batch_size(3, 16, 1, needed, room) == 3
    with pytest.raises(UserError, match=r"a batch of 16 tasks needs about .* set task_batch=9,"):
        planning.batch_size(16, 16, 1, needed, room)


def test_devices_that_share_the_tasks_hold_more_of_them():
    room = int((needed(9) + needed(10)) / 2 / 0.9)
    assert planning.batch_size(100, 0, 4, needed, room) == 36
    # As even as a multiple of the devices can be.
    assert planning.batch_size(40, 0, 4, needed, room) == 20
    with pytest.raises(
        UserError, match=r"a batch of 40 tasks .*GiB on each device.* task_batch=36"
    ):
        planning.batch_size(40, 40, 4, needed, room)


def test_not_even_one_task_fits():
    for asked in (0, 1):
        with pytest.raises(UserError, match=r"a batch of 1 task needs .* lower search.subset_size"):
            planning.batch_size(8, asked, 1, needed, memory.data_bytes(SHAPE))


def test_memory_grows_with_what_a_task_keeps():
    unrolled = SETTINGS._replace(inner=InnerFit(adjoint="unrolled", solver="gradient", steps=300))
    assert memory.task_bytes(SHAPE, unrolled) > memory.task_bytes(SHAPE, SETTINGS)
    more = SHAPE._replace(inner=(129, 129))
    assert memory.task_bytes(more, SETTINGS) > memory.task_bytes(SHAPE, SETTINGS)
    assert memory.data_bytes(more) > memory.data_bytes(SHAPE)
    half = memory.stored_bytes("bfloat16")
    assert 2 * memory.data_bytes(SHAPE, half) == memory.data_bytes(SHAPE)
    assert 2 * memory.data_bytes(SHAPE.part(2)) == memory.data_bytes(SHAPE)


def test_more_rows_than_can_be_scored(monkeypatch):
    config = config_lib.resolve(config_lib.load("configs/quickstart.py"))
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 2**34)
    planning.make_plan(config, 10**6, 16, (1001,))
    config.score.rows = 10**6
    with pytest.raises(UserError, match=r"scoring on 1000000 rows needs about .* lower score.rows"):
        planning.make_plan(config, 10**6, 16, (1001,))
    assert memory.score_bytes(1000, 128, 10, 4) < memory.score_bytes(1000, 128, 10, 8)
    # Tasks take turns once their labels fill the memory meant for them.
    many = 10 * memory.SCORE_BATCH // memory.score_task_bytes(1000, 10)
    assert memory.score_bytes(1000, 128, 10, many) == memory.score_bytes(1000, 128, 10, 2 * many)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as workdir:
        pipeline.run(config_lib.load("configs/testing.py"), workdir)
        values = golden_values(finished(pathlib.Path(workdir)))
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
