"""results.json, labels.csv, the table and the plots, from made-up runs."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from hume_jax.core import aggregate
from hume_jax.evaluation import metrics
from hume_jax.report import plots, results


def make_run(
    n_classes: int = 5, n_tasks: int = 6, labelled: bool = True, setting: str = "inductive"
) -> dict[str, Any]:
    """Makes the results of a run whose tasks are noisy copies of the true labels."""
    rng = np.random.default_rng(0)
    true = {"train": rng.integers(0, n_classes, 400), "test": rng.integers(0, n_classes, 200)}
    if setting == "transductive":
        true["all"] = np.concatenate([true["train"], true["test"]])
    noise = np.linspace(0.05, 0.4, n_tasks)

    def noisy(share: float) -> dict[str, np.ndarray]:
        found = {}
        for split in ("train", "test"):
            wrong = rng.random(len(true[split])) < share
            other = rng.integers(0, n_classes, len(true[split]))
            found[split] = np.where(wrong, other, true[split])
        if "all" in true:
            found["all"] = np.concatenate([found["train"], found["test"]])
        return found

    tasks = []
    for i, share in enumerate(noise):
        entry: dict[str, Any] = {
            "seed": i,
            "objective": np.float32(share + 0.01 * rng.normal()),
            "cv_accuracy": np.float64(1 - share / 2),
            "agreement": 1 - share,
            "n_classes_used": np.int64(n_classes),
            "collapsed": np.bool_(False),
        }
        if labelled:
            entry |= results.score_splits(noisy(share), true, "task")
        tasks.append(entry)
    voted, baseline = noisy(0.02), noisy(0.3)
    scores = {} if not labelled else results.score_splits(voted, true, "ensemble")
    baselines = {}
    if labelled:
        baselines = {
            "kmeans_phi1": results.score_splits(baseline, true),
            "kmeans_phi2": results.score_splits(baseline, true),
            "probe_phi1": results.score_splits({"test": voted["test"]}, true),
            "probe_phi2": results.score_splits({"test": voted["test"]}, true),
        }
    return results.assemble(
        version="1.2.3",
        config_hash="ab" * 32,
        setting=setting,
        n_classes=n_classes,
        ensemble={"members": [0, 1, 2], **scores},
        tasks=tasks,
        baselines=baselines,
        correlation=results.correlations(tasks, "test"),
        seconds={"total": 83.2, "compile": 11.0, "search": 60.0, "score": 9.0},
        device="cpu",
        versions={"jax": "0.0"},
        duplicates=[],
    )


def make_rows(n_tasks: int = 6, n_classes: int = 5) -> list[dict[str, Any]]:
    """Makes the rows of metrics.jsonl of two batches of tasks."""
    rows = []
    for batch in range(2):
        tasks = list(range(batch * n_tasks // 2, (batch + 1) * n_tasks // 2))
        for step in range(10, 101, 10):
            rows.append(
                {
                    "batch": batch,
                    "step": step,
                    "tasks": tasks,
                    "objective": [3 * np.exp(-step / 20) + 0.05 * (task + 1) for task in tasks],
                    "entropy": [np.log(n_classes) - 1 / step for _ in tasks],
                    "temperature": 0.1 if step <= 50 else 0.01,
                    "learning_rate": 0.03 if step <= 50 else 0.003,
                }
            )
    return rows


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is made during the test."""
    made: list[Figure] = []

    class Recorded(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(plots, "Figure", Recorded)
    return made


def texts(figure: Figure) -> str:
    """All that a figure says."""
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return "\n".join(artist.get_text() for artist in found)


# ---------------------------------------------------------------------- results.json


def test_score_splits_gives_the_scores_of_metrics() -> None:
    true = np.array([-1, -1, 4, 4, 4, 9])
    found = np.array([2, 2, 0, 0, 1, 1])
    entry = results.score_splits({"train": found}, {"train": true}, "ensemble")["train"]
    assert {key: entry[key] for key in ("acc", "ari", "nmi")} == metrics.score(found, true)
    np.testing.assert_allclose(entry["recall"], [1, 2 / 3, 1])
    np.testing.assert_array_equal(entry["confusion"], [[2, 0, 0], [0, 2, 1], [0, 0, 1]])
    np.testing.assert_array_equal(entry["classes"], [-1, 4, 9])
    # Columns of the confusion matrix, as labels.csv numbers them.
    np.testing.assert_array_equal(entry["found"], [2, 0, 1])


def test_score_splits_leaves_out_what_has_no_labels() -> None:
    found = {"train": np.zeros(3, int), "test": np.zeros(2, int)}
    assert results.score_splits(found, {"train": None, "test": None}) == {}
    assert results.score_splits(found, {}) == {}
    assert list(results.score_splits(found, {"train": None, "test": np.arange(2)})) == ["test"]
    plain = results.score_splits(found, {"train": np.arange(3)})
    assert set(plain["train"]) == {"acc", "ari", "nmi"}


def test_large_confusion_matrices_are_kept_for_the_ensemble_only() -> None:
    labels = {"train": np.arange(201)}
    assert "confusion" not in results.score_splits(labels, labels, "task")["train"]
    assert "recall" in results.score_splits(labels, labels, "task")["train"]
    assert "confusion" in results.score_splits(labels, labels, "ensemble")["train"]
    fewer = {"train": np.arange(200)}
    assert "confusion" in results.score_splits(fewer, fewer, "task")["train"]


def test_results_have_the_keys_of_the_contract() -> None:
    run = make_run()
    assert list(run)[:11] == [
        "version",
        "config_hash",
        "setting",
        "n_classes",
        "ensemble",
        "tasks",
        "baselines",
        "correlation",
        "seconds",
        "device",
        "versions",
    ]
    assert run["duplicates"] == []
    for split in ("train", "test"):
        assert {"acc", "ari", "nmi", "recall", "confusion", "classes", "found"} == set(
            run["ensemble"][split]
        )
    assert "all" not in run["ensemble"]
    for task in run["tasks"]:
        assert {"seed", "objective", "cv_accuracy", "n_classes_used", "train", "test"} <= set(task)
        assert {"recall", "confusion"} <= set(task["test"])
        assert 0 <= task["test"]["acc"] <= 1
    assert set(run["baselines"]) == {"kmeans_phi1", "kmeans_phi2", "probe_phi1", "probe_phi2"}
    assert set(run["baselines"]["probe_phi1"]) == {"test"}
    assert {"objective_acc", "cv_accuracy_acc"} <= set(run["correlation"])
    assert run["correlation"]["objective_acc"]["pearson"] < -0.9
    assert "all" in make_run(setting="transductive")["ensemble"]


def test_without_labels_scores_are_absent() -> None:
    run = make_run(labelled=False)
    assert run["correlation"] == run["baselines"] == {}
    text = results.to_json(run)
    for word in ("acc", "ari", "nmi", "recall", "confusion", "null"):
        assert f'"{word}"' not in text
    assert "null" not in text


def test_none_and_not_a_number_are_left_out() -> None:
    run = results.assemble(
        version="1",
        config_hash="a",
        setting="inductive",
        n_classes=2,
        ensemble={"train": None},
        tasks=[{"seed": 0, "objective": np.float32("nan"), "cv_accuracy": float("inf")}],
        seconds={"total": 1.0},
        device="cpu",
        versions={},
    )
    assert run["ensemble"] == {}
    assert run["tasks"] == [{"seed": 0}]
    json.loads(results.to_json(run))


def test_json_is_readable_by_people_and_machines(tmp_path: Path) -> None:
    run = make_run()
    path = tmp_path / "results.json"
    results.write_results(path, run)
    text = path.read_text()
    assert json.loads(text) == run
    assert f'"classes": {run["ensemble"]["train"]["classes"]}' in text
    row = run["tasks"][1]["test"]["confusion"][2]
    assert f"\n          {row},\n" in text
    assert results.to_json({"a": {}, "b": [], "c": [[]], "d": "é"}) == (
        '{\n  "a": {},\n  "b": [],\n  "c": [\n    []\n  ],\n  "d": "\\u00e9"\n}\n'
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_correlations_skip_tasks_without_a_score() -> None:
    tasks = make_run()["tasks"]
    del tasks[0]["objective"]
    tasks[1]["cv_accuracy"] = None
    for task in tasks:
        task["agreement"] = 0.5
    found = results.correlations(tasks, "test", seed=3)
    assert set(found) == {"objective_acc", "cv_accuracy_acc"}
    assert found["objective_acc"]["n"] == found["cv_accuracy_acc"]["n"] == 5
    assert found["objective_acc"]["split"] == "test"
    assert results.correlations(tasks, "all") == {}
    # Fewer classes are easier to predict: such tasks are left out for cross-validated accuracy.
    tasks[2]["n_classes_used"] -= 1
    found = results.correlations(tasks, "test", seed=3)
    assert (found["objective_acc"]["n"], found["cv_accuracy_acc"]["n"]) == (5, 4)


# ---------------------------------------------------------------------- labels.csv


def test_labels_csv(tmp_path: Path) -> None:
    train = aggregate.vote(np.array([[0, 1, 2], [0, 1, 1], [0, 2, 0]]), 3)
    test = aggregate.vote(np.array([[2], [2], [1]]), 3)
    path = tmp_path / "labels.csv"
    path.write_text(results.to_csv({"train": train, "test": test}), newline="")
    assert path.read_bytes() == (
        b"index,split,label,agreement,margin\n"
        b"0,train,0,1.000000,1.000000\n"
        b"1,train,1,0.666667,0.333333\n"
        b"2,train,0,0.333333,0.000000\n"
        b"0,test,2,0.666667,0.333333\n"
    )
    assert results.read_labels(path, "train").tolist() == [0, 1, 0]
    assert results.read_labels(path, "test").tolist() == [2]
    assert len(results.read_labels(path, "all")) == 0


def test_labels_csv_refuses_columns_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="shorter"):
        results.to_csv({"train": (np.arange(3), np.ones(3), np.ones(2))})


# ---------------------------------------------------------------------- the table


def test_table_shows_methods_against_scores() -> None:
    run = make_run()
    lines = results.table(run).splitlines()
    assert lines[0] == "inductive, 5 classes, 6 tasks, 1 min 23 s on cpu"
    assert lines[2].split() == ["train", "test"]
    assert lines[3].split() == ["ACC", "ARI", "NMI"] * 2
    names = [line[:23].strip() for line in lines[4:14]]
    assert names == [
        "HUME ensemble, 3/6",
        "best task, objective",
        "best task, cv accuracy",
        "best task, agreement",
        "tasks, mean",
        "tasks, std. deviation",
        "k-means, phi1",
        "k-means, phi2",
        "supervised probe, phi1",
        "supervised probe, phi2",
    ]
    figures = lines[4][23:].split()
    expected = [run["ensemble"][split][s] for split in ("train", "test") for s in metrics_order()]
    assert figures == [f"{value:.3f}" for value in expected]
    accuracies = [task["test"]["acc"] for task in run["tasks"]]
    assert lines[8][23:].split()[3] == f"{np.mean(accuracies):.3f}"
    assert lines[9][23:].split()[3] == f"{np.std(accuracies, ddof=1):.3f}"
    assert lines[12][23:].split()[:3] == ["-", "-", "-"]
    assert lines[15] == "correlation with ACC on test over 6 tasks:"
    assert lines[16].split()[:2] == ["objective", "Pearson"]
    assert max(map(len, lines)) <= 80
    assert not any(line != line.rstrip() for line in lines)


def metrics_order() -> tuple[str, ...]:
    return "acc", "ari", "nmi"


def test_table_of_a_transductive_run_has_the_union() -> None:
    lines = results.table(make_run(setting="transductive")).splitlines()
    assert lines[2].split() == ["train", "test", "all"]
    assert len(lines[4][23:].split()) == 9


@pytest.mark.parametrize("setting", ["inductive", "transductive"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_summary_of_a_large_run_fits_a_screen(setting: str, labelled: bool) -> None:
    """80 columns and 24 lines, with the two that the command adds and that of the prompt."""
    run = make_run(150, 100, labelled, setting)
    for i in range(40):
        run["tasks"][i]["collapsed"] = True
    run["duplicates"] = [[50, 51, 52], [60, 61]]
    run["seconds"] = {"total": 123456.0, "resumed": True}
    run["device"] = "8 NVIDIA H100 80GB HBM3"
    run["ensemble"]["members"] = list(range(50))
    if labelled:
        run["ensemble"]["train"] |= {"acc": 0.006667, "ari": -0.0012, "nmi": 0.2}
    lines = results.table(run).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) + 3 <= 24
    assert ", ".join(lines[:2]).count("5 the same as another") == 1
    if labelled:
        (ensemble,) = (line for line in lines if line.startswith("HUME ensemble"))
        ari = "-.001" if setting == "transductive" else "-0.001"
        assert ensemble.split()[3:6] == ["0.007", ari, "0.200"]


@pytest.mark.parametrize("setting", ["inductive", "transductive"])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("seeds", [3, 14, 60])
def test_the_summary_of_many_seeds_fits_a_screen(setting: str, labelled: bool, seeds: int) -> None:
    runs = [make_run(4, 2, labelled, setting) for _ in range(2)] * (seeds // 2 + 1)
    for run in runs:
        run["ensemble"]["agreement"] = 0.75
    found = results.over_seeds(runs[:seeds], range(seeds), "ab")
    lines = results.seeds_table(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) + 3 <= 24
    assert lines[0] == f"{setting}, 4 classes, {seeds} seeds"
    names = [line[:18].strip() for line in lines[-4:]]
    assert names[2:] == ["mean", "standard deviation"]
    assert names[:2] == (
        ["lowest", "highest"] if seeds == 60 else [f"seed {seeds - 2}", f"seed {seeds - 1}"]
    )
    if labelled:
        mean = found["ensemble"]["train"]["acc"]["mean"]
        assert lines[-2].split()[1] == f"{mean:.3f}"


def test_table_without_labels_shows_label_free_scores() -> None:
    run = make_run(labelled=False)
    text = results.table(run)
    assert "ACC" not in text
    lines = text.splitlines()
    assert lines[2].split() == ["objective", "cv", "accuracy", "agreement", "classes"]
    assert lines[3].startswith("best task, objective")
    assert lines[3].split()[-4:] == [
        f"{run['tasks'][0]['objective']:.3f}",
        "0.975",
        "0.950",
        "5",
    ]
    assert [line.split(",")[0] for line in lines[6:]] == ["tasks", "tasks"]


def test_table_of_one_collapsed_task() -> None:
    run = make_run(n_tasks=1)
    run["tasks"][0]["collapsed"] = True
    text = results.table(run)
    assert "1 task, 1 collapsed" in text
    assert "tasks, mean" not in text
    assert "correlation" not in text


def test_best_task_passes_over_collapsed_ones_and_compares_like_with_like() -> None:
    tasks: list[dict[str, Any]] = [
        {"objective": 0.1, "cv_accuracy": 0.99, "n_classes_used": 3, "collapsed": True},
        {"objective": 0.3, "cv_accuracy": 0.98, "n_classes_used": 4},
        {"objective": 0.2, "cv_accuracy": 0.90, "n_classes_used": 5},
        {"objective": 0.2, "cv_accuracy": 0.95, "n_classes_used": 5},
        {"n_classes_used": 5},
    ]
    assert results.best_task(tasks, "objective") == 2
    assert results.best_task(tasks, "cv_accuracy") == 3
    assert results.best_task(tasks, "agreement") is None
    assert results.best_task(tasks[:1], "objective") == 0
    assert results.best_task([], "objective") is None
    # Two tasks agree equally with each other.
    pair = [{"objective": value, "agreement": 0.7} for value in (0.5, 0.4)]
    assert results.best_task(pair, "agreement") == 1


def test_compared_split() -> None:
    tasks = [{"objective": 0.1, "train": {}, "test": {}}]
    assert results.compared_split(tasks) == "train"
    assert results.compared_split([{"test": {}}]) == "test"
    assert results.compared_split([{"train": {}, "test": {}, "all": {}}]) == "all"


# ---------------------------------------------------------------------- plots


def test_draw_writes_every_plot(tmp_path: Path, figures: list[Figure]) -> None:
    before = dict(matplotlib.rcParams)
    paths = plots.draw(tmp_path, make_run(), make_rows())
    assert [path.name for path in paths] == ["curves.png", "objective.png", "confusion.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        height, width, _ = matplotlib.image.imread(path).shape
        assert 1000 <= width <= 1700
        assert 500 <= height <= width
    assert dict(matplotlib.rcParams) == before
    for figure in figures:
        for axes in figure.axes:
            assert axes.get_ylabel()
            assert axes.get_xlabel() or axes.get_label() == "<colorbar>"


def test_equal_plots_are_equal_files(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in plots.draw(tmp_path, make_run(), make_rows())]
    assert first == [path.read_bytes() for path in plots.draw(tmp_path, make_run(), make_rows())]


def test_draw_without_labels_shows_label_free_scores(tmp_path: Path, figures: list[Figure]) -> None:
    paths = plots.draw(tmp_path, make_run(labelled=False), make_rows())
    assert [path.name for path in paths] == ["curves.png", "objective.png"]
    assert "cross-validated accuracy" in texts(figures[1])
    assert "ACC" not in texts(figures[1])


def test_draw_without_metrics_or_scores(tmp_path: Path) -> None:
    run = make_run(labelled=False)
    for task in run["tasks"]:
        del task["objective"]
    assert plots.draw(tmp_path, run, []) == []


def test_curves_show_every_task_and_mark_the_anneals(tmp_path: Path, figures: list[Figure]) -> None:
    rows = make_rows()
    rows[3]["objective"][1] = None
    plots.draw_curves(tmp_path / "curves.png", rows, [0.2] * 5, best=4)
    left, right = figures[0].axes
    steps = np.arange(10, 101, 10)
    curves = [line for line in left.lines if len(line.get_xdata()) == len(steps)]
    assert len(curves) == 6
    for line in curves:
        np.testing.assert_array_equal(line.get_xdata(), steps)
    assert left.get_yscale() == "log"
    upright = [line.get_xdata()[0] for line in left.lines if len(set(line.get_xdata())) == 1]
    assert upright == [50]
    assert "log 5" in texts(figures[0])
    assert right.get_ylim()[1] > np.log(5)


def test_curves_show_the_entropy_of_the_class_prior(tmp_path: Path, figures: list[Figure]) -> None:
    run = make_run() | {"class_prior": [0.6, 0.1, 0.1, 0.1, 0.1]}
    plots.draw(tmp_path, run, make_rows())
    limit = -0.6 * np.log(0.6) - 0.4 * np.log(0.1)
    levels = [line.get_ydata() for line in figures[0].axes[1].lines]
    assert any(np.allclose(level, limit) for level in levels if len(level) == 2)
    assert "of the class prior" in texts(figures[0])


def test_axes_of_equal_tasks_show_no_rounding(tmp_path: Path, figures: list[Figure]) -> None:
    task = {"objective": 0.04, "test": {"acc": 0.999}}
    plots.draw_objective(tmp_path / "a.png", [task, task], "test", None, 0.999)
    (axes,) = figures[0].axes
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert right - left >= 0.0008 - 1e-9
    assert high - low >= 0.01
    assert high <= 1.01


def test_curves_of_a_negative_objective_stay_linear(tmp_path: Path, figures: list[Figure]) -> None:
    rows = make_rows()
    for row in rows:
        row["objective"] = [value - 23 for value in row["objective"]]
    plots.draw_curves(tmp_path / "curves.png", rows[:1], [0.2] * 5)
    assert figures[0].axes[0].get_yscale() == "linear"


def test_objective_plot_states_the_correlation_and_the_ensemble(
    tmp_path: Path, figures: list[Figure]
) -> None:
    run = make_run()
    run["tasks"][-1]["collapsed"] = True
    entry = run["correlation"]["objective_acc"]
    plots.draw_objective(tmp_path / "a.png", run["tasks"], "test", entry, 0.987)
    said = texts(figures[0])
    assert f"Pearson \N{MINUS SIGN}{abs(entry['pearson']):.2f} [\N{MINUS SIGN}" in said
    assert "Spearman" in said
    assert "ensemble 0.987" in said
    assert "collapsed task" in said
    points = np.concatenate([dots.get_offsets() for dots in figures[0].axes[0].collections])
    expected = [[task["objective"], task["test"]["acc"]] for task in run["tasks"]]
    np.testing.assert_allclose(points, expected)


def test_confusion_numbers_small_matrices_only(tmp_path: Path, figures: list[Figure]) -> None:
    counts = np.diag([11, 22, 33])
    counts[0, 2] = 7
    wide = np.hstack([counts, [[0], [44], [0]]])
    plots.draw_confusion(tmp_path / "a.png", wide, ["cat", "a long name", "dog"], "test", 0.5)
    said = texts(figures[0])
    for word in ("11", "22", "33", "44", "7", "a long name", "none", "ensemble on test, ACC 0.500"):
        assert word in said.split("\n")
    plots.draw_confusion(tmp_path / "b.png", np.diag(np.full(31, 77)))
    assert "77" not in texts(figures[1]).split("\n")


def test_a_failing_plot_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(plots.FigureCanvasAgg, "print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.draw_confusion(path, np.eye(3, dtype=int))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
