"""More than two spaces: several phi1 are joined to one, several phi2 are averaged over."""

import csv
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hume_jax import config as config_lib
from hume_jax import labelling, pipeline, scoring
from hume_jax.core import inner_fit, objective, search
from hume_jax.core.inner_fit import InnerFit
from hume_jax.errors import UserError
from hume_jax.representations import prepare, store
from hume_jax.representations.scaling import statistics
from hume_jax.representations.store import Space, Split

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CONVERGED = InnerFit(steps=12, newton_steps=100, adjoint_steps=200)


# ---- phi2


def problems(rng):
    """One task on one split, seen in two second spaces."""
    sizes = {"n_train": 60, "n_test": 30, "d1": 6, "d2": 5, "n_classes": 3}
    one = oracles.problem(0, **sizes)
    train, test = (part + rng.normal(size=part.shape) for part in (one.phi2_train, one.phi2_test))
    return [one, one._replace(phi2_train=train, phi2_test=test)]


def inner_space(problem):
    train, test = (
        np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
        for rows in (problem.phi2_train, problem.phi2_test)
    )
    change = inner_fit.coordinates(train.T @ train / len(train), problem.penalty)
    train, test, penalty = (
        jnp.asarray(a) for a in (train @ change.basis, test @ change.basis, change.penalty)
    )
    step = 2 / inner_fit.largest_curvature(train, penalty)
    return objective.InnerSpace(train, test, penalty, step)


def test_the_objective_is_the_mean_over_second_spaces(x64, rng):
    """And so are its held-out part and its gradient, each space by the oracle."""
    several = problems(rng)
    first = several[0]
    spaces = tuple(map(inner_space, several))
    subset = objective.Subset(jnp.asarray(first.phi1_train), jnp.asarray(first.phi1_test), spaces)
    k = first.theta.shape[1]
    starts = tuple(jnp.zeros((k, space.train.shape[1])) for space in spaces)

    @jax.jit
    def run(theta):
        fixed = (starts, subset, first.temperature, jnp.full(k, -jnp.log(k)))
        return objective.objective(theta, *fixed, first.entropy_weight, CONVERGED)

    (value, terms), gradient = jax.value_and_grad(run, has_aux=True)(jnp.asarray(first.theta))
    values, gradients = zip(*(oracles.implicit_gradient(*one) for one in several), strict=True)
    # Different enough that a sum, a maximum or one of them would be seen.
    assert np.ptp(values) > 0.05
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-9)
    expected = np.mean(gradients, axis=0)
    assert np.linalg.norm(gradient - expected) < 1e-6 * np.linalg.norm(expected)
    heldout = np.mean(values) - first.entropy_weight * terms.divergence
    np.testing.assert_allclose(terms.heldout_ce, heldout, rtol=1e-9)
    assert len(terms.solutions) == 2


@pytest.mark.slow
def test_what_a_step_reports_is_the_mean_over_second_spaces(rng):
    """The same space twice is that space."""
    x = rng.normal(size=(64, 6)).astype(np.float32)
    phi1 = rng.normal(size=(64, 5)).astype(np.float32)
    phi1 /= np.linalg.norm(phi1, axis=1, keepdims=True)
    space = (x, np.full(6, 1e-3, np.float32))
    inner = InnerFit(solver="gradient", steps=2, step_size=0.5, adjoint_steps=2)
    settings = search.Search(3, 20, 20, inner=inner)
    infos, step = [], jax.jit(search.step, static_argnums=4)
    for spaces in ([space], [space, space]):
        data = search.make_data(phi1, spaces, 1)
        state = search.blank(0, jnp.arange(2), 5, (6,) * len(spaces), settings)
        infos.append(step(state, 0, data, jnp.log(jnp.full(3, 1 / 3)), settings)[1])
    assert np.all(infos[0].adjoint_residual > 0)
    for one, both in zip(*infos, strict=True):
        np.testing.assert_allclose(both, one, rtol=1e-3)


def test_tasks_are_scored_by_the_mean_over_second_spaces(rng):
    n, k = 120, 3
    true = rng.integers(k, size=n)
    phi2 = [rng.normal(size=(k, d))[true] + rng.normal(size=(n, d)) for d in (5, 5)]
    tasks = np.stack([true, rng.permutation(true)]).astype(np.int32)
    config = config_lib.resolve(config_lib.load("configs/testing.py"))
    config.n_classes = k
    config.score.rows = n

    def scores(*arrays):
        space = Space(tuple(a.astype(np.float32) for a in arrays), ("f.npy",) * len(arrays), ())
        split = Split(space, space, None, n)
        return scoring.score_tasks(config, [split], tasks, np.log(np.full(k, 1 / k)))

    both, *each = scores(*phi2), scores(phi2[0]), scores(phi2[1])
    for name in ("objective", "heldout_ce", "cv_accuracy"):
        parts = [single[name] for single in each]
        assert np.ptp(parts, axis=0).max() > 1e-3
        np.testing.assert_allclose(both[name], np.mean(parts, axis=0), rtol=1e-5)


# ---- phi1


def unit(rows):
    centred = rows - rows.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["rows", "stored"])
def test_first_spaces_are_joined_after_each_was_normalised(rng, kind):
    # Of very different scale: what is joined before it is normalised is another space.
    arrays = [rng.normal(size=(30, d)) * scale + 1 for d, scale in ((4, 100), (3, 0.01), (5, 1))]
    stats = [statistics([array], kind=kind) for array in arrays]
    joined = prepare.joined_rows([a.astype(np.float32) for a in arrays], stats, kind)
    parts = [unit(a) for a in arrays] if kind == "rows" else arrays
    expected = np.concatenate(parts, axis=1) / (np.sqrt(3) if kind == "rows" else 1)
    np.testing.assert_allclose(joined, expected, rtol=1e-4, atol=1e-5)
    if kind == "rows":
        np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, rtol=1e-5)


# ---- a whole run


@pytest.mark.slow
def test_a_run_of_two_first_and_two_second_spaces(tmp_path, monkeypatch, rng):
    """Every space in another format."""
    monkeypatch.chdir(tmp_path)
    n, k = 160, 3
    true = rng.integers(k, size=n)
    a, b, c, d = (
        (rng.normal(size=(k, width))[true] * 2 + rng.normal(size=(n, width))).astype(np.float32)
        for width in (4, 3, 5, 5)
    )
    np.save("a.npy", a)
    np.savez_compressed("b.npz", b=b, more=true)
    names = pa.array([("ant", "bee", "cat")[i] for i in true])
    pq.write_table(pa.table({"c": pa.array(list(c)), "class": names}), "c.parquet")
    np.savez("d.npz", d)
    config = config_lib.load("configs/arrays.py")
    config.data.train.phi1 = ("a.npy", "b.npz:b")
    config.data.train.phi2 = ("c.parquet:c", "d.npz")
    config.data.train.labels = "c.parquet:class"
    config.update({"n_classes": k, "n_tasks": 2, "plots": False, "baselines": False})
    config.search.update({"steps": 2, "spaces": "given"})
    config.inner.update({"solver": "gradient", "adjoint": "first_order", "start": "cold"})
    config.score.update({"rows": 60, "folds": 2, "steps": 5})
    results = pipeline.run(config, "run")
    assert 1 / k <= results["ensemble"]["train"]["acc"] <= 1
    with np.load("run/model.npz", allow_pickle=False) as arrays:
        model = labelling.from_arrays(arrays)
    assert model.theta.shape[1:] == (7, k)
    assert [len(stats.mean) for stats in model.statistics] == [4, 3]
    with open("run/labels.csv", newline="") as file:
        found = [int(row["label"]) for row in csv.DictReader(file)]
    np.testing.assert_array_equal(found, labelling.predict(model, [a, b]).labels)
    state = pathlib.Path("run/data.json").read_text()
    assert {name: len(digests) for name, digests in json.loads(state).items()} == {
        "data.train.phi1": 2,
        "data.train.phi2": 2,
        "data.train.labels": 1,
    }


@pytest.fixture
def two_files(tmp_path, monkeypatch, rng):
    """A quick config of two spaces, train and test rows, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    true = rng.integers(3, size=200)
    for name, width in (("a", 4), ("b", 3)):
        x = (rng.normal(size=(3, width))[true] * 2 + rng.normal(size=(200, width))).astype("f4")
        np.save(f"{name}_train.npy", x[:160])
        np.save(f"{name}_test.npy", x[160:])
    np.save("true.npy", true[:160])
    config = config_lib.load("configs/arrays.py")
    for split in ("train", "test"):
        config.data[split].update({"phi1": f"a_{split}.npy", "phi2": f"b_{split}.npy"})
    config.data.train.labels = "true.npy"
    config.update({"n_classes": 3, "n_tasks": 2, "plots": False})
    config.search.steps = 2
    config.inner.update({"solver": "gradient", "adjoint": "first_order", "start": "cold"})
    config.score.update({"rows": 60, "folds": 2, "steps": 5})
    return config


@pytest.mark.parametrize("where", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_both_spaces_are_the_joined_files_and_an_inner_fit_in_each(two_files, where):
    config = two_files
    config.search.update({"spaces": "both", "rows": where})
    both = pipeline.run(config, "both")
    config.search.spaces = "given"
    if where == "disk":
        given = pipeline.run(config, "given")
        # The floor is that of the spaces as they were given.
        assert both["baselines"] == given["baselines"]
        assert both["tasks"] != given["tasks"]
    for split in ("train", "test"):
        files = (f"a_{split}.npy", f"b_{split}.npy")
        config.data[split].update({"phi1": files, "phi2": files})
    named = pipeline.run(config, "named")
    assert (
        pathlib.Path("both/labels.csv").read_text() == pathlib.Path("named/labels.csv").read_text()
    )
    assert both["tasks"] == named["tasks"]
    # Whoever predicts gives the files in the order of phi1, then phi2.
    with np.load("both/model.npz", allow_pickle=False) as arrays:
        model = labelling.from_arrays(arrays)
    vote = labelling.predict(model, [np.load("a_test.npy"), np.load("b_test.npy")])
    with open("both/labels.csv", newline="") as file:
        labels = [int(row["label"]) for row in csv.DictReader(file) if row["split"] == "test"]
    np.testing.assert_array_equal(vote.labels, labels)


@pytest.mark.parametrize(
    ("spaces", "field"), [("first", "phi1"), pytest.param("second", "phi2", marks=pytest.mark.slow)]
)
def test_one_space_alone_is_on_both_sides(two_files, spaces, field):
    config = two_files
    config.search.spaces = spaces
    alone = pipeline.run(config, "alone")
    config.search.spaces = "given"
    for split in ("train", "test"):
        other = "phi2" if field == "phi1" else "phi1"
        config.data[split][other] = config.data[split][field]
    twice = pipeline.run(config, "twice")
    assert (
        pathlib.Path("alone/labels.csv").read_text() == pathlib.Path("twice/labels.csv").read_text()
    )
    assert alone["tasks"] == twice["tasks"]
    # The floor is that of the spaces as they were given.
    assert alone["baselines"] != twice["baselines"]
    with np.load("alone/model.npz", allow_pickle=False) as arrays:
        assert [len(stats.mean) for stats in labelling.from_arrays(arrays).statistics] == [
            {"first": 4, "second": 3}[spaces]
        ]


def test_which_test_rows_one_space_needs(two_files):
    data = two_files.data
    data.test.phi2 = ""
    for setting in ("inductive", "transductive"):
        store.check_headers(data, 3, setting, spaces="first")
    given = store.open_dataset(data)
    assert store.search_spaces(given, "first").test.phi2.paths == ("a_test.npy",)
    message = r"search.spaces=second labels the test rows by phi2: give data.test.phi2 too"
    with pytest.raises(UserError, match=message):
        store.check_headers(data, 3, "inductive", spaces="second")
    with pytest.raises(UserError, match=message):
        store.search_spaces(given, "second")
    # Classes are counted against the columns of the one.
    data.test.phi1 = ""
    with pytest.raises(UserError, match="more than the 3 columns"):
        store.check_headers(data, 4, "inductive", spaces="second")


def test_both_spaces_need_both_of_the_test_rows(two_files):
    config = two_files
    config.search.spaces = "both"
    config.data.test.phi2 = ""
    with pytest.raises(UserError, match=r"search.spaces=both .* data.test.phi2"):
        store.check_headers(config.data, 3, "inductive", spaces="both")
    with pytest.raises(UserError, match="search.spaces=given"):
        pipeline.run(config, "run")
    assert not pathlib.Path("run").exists()


def test_classes_are_counted_against_the_columns_of_both_spaces(two_files):
    data = two_files.data
    store.check_headers(data, 7, "inductive", spaces="both")
    with pytest.raises(UserError, match="more than the 4 columns"):
        store.check_headers(data, 7, "inductive")
    with pytest.raises(UserError, match="more than the 7 columns"):
        store.check_headers(data, 8, "inductive", spaces="both")
