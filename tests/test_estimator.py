"""The estimator: the command line's labels, scikit-learn's conventions, Ctrl-C, files."""

import csv
import json
import os
import pathlib
import signal
import threading
import time
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hume_jax
from hume_jax import HUME, OneSpaceHUME, search_loop
from hume_jax import config as config_lib
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics

pytestmark = pytest.mark.usefixtures("quickly_compiled")

K = 3
# Few steps of small subsets, of one shard.
SMALL = {
    "search.steps": 6,
    "search.anneal_steps": (3, 5),
    "search.subset_size": 120,
    "score.folds": 3,
    "log_every": 2,
    "checkpoint_seconds": 0.0,
}


def small(n_classes: int = K, **parameters: Any) -> HUME:
    given = {"n_tasks": 3, "random_state": 0, "config": SMALL, **parameters}
    return HUME(n_classes, **given)


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two views of three clusters of unequal sizes, and which row is of which."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(K), [40, 50, 60])
    spaces = [
        (rng.normal(size=(K, d))[true] * 3 + rng.normal(size=(len(true), d))).astype(np.float32)
        for d in (8, 6)
    ]
    return spaces[0], spaces[1], true


@pytest.fixture(scope="module")
def fitted(rows: tuple[np.ndarray, ...]) -> HUME:
    return small().fit(rows[0], rows[1])


def test_finds_clusters_and_numbers_them_by_size(
    fitted: HUME, rows: tuple[np.ndarray, ...]
) -> None:
    assert metrics.score(fitted.labels_, rows[2])["acc"] > 0.95
    assert fitted.labels_.dtype == np.int32
    sizes = np.bincount(fitted.labels_, minlength=K)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert list(fitted.classes_) == list(range(K))
    assert fitted.tasks_.shape == (3, 150)
    for share in (fitted.agreement_, fitted.margin_):
        assert share.shape == (150,)
        assert 0 <= share.min() <= share.max() <= 1
    assert 0.9 < fitted.score_ <= 1
    assert fitted.objective_ > 0


def test_predicts_what_it_found(fitted: HUME, rows: tuple[np.ndarray, ...]) -> None:
    phi1, phi2, _ = rows
    np.testing.assert_array_equal(fitted.predict(phi1, phi2), fitted.labels_)
    np.testing.assert_array_equal(fitted.predict(phi1[7:9], phi2[7:9]), fitted.labels_[7:9])


def test_probabilities_are_shares_of_the_votes(fitted: HUME, rows: tuple[np.ndarray, ...]) -> None:
    phi1, phi2, _ = rows
    hard = fitted.predict_proba(phi1, phi2)
    expected = (fitted.tasks_[:, :, None] == np.arange(K)).mean(axis=0)
    np.testing.assert_allclose(hard, expected, atol=1e-12)
    soft = fitted.predict_proba(phi1, phi2, vote="soft")
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    np.testing.assert_array_equal(soft.argmax(axis=1), fitted.labels_)
    np.testing.assert_allclose(soft.max(axis=1), fitted.agreement_, rtol=1e-6)


def test_reliable_rows_are_those_that_reach_both_thresholds(fitted: HUME) -> None:
    least = float(np.quantile(fitted.margin_, 0.5)), float(np.quantile(fitted.agreement_, 0.3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class may have none
        rows, labels = fitted.reliable(agreement=least[1], margin=least[0])
    sure = np.flatnonzero((fitted.margin_ >= least[0]) & (fitted.agreement_ >= least[1]))
    assert 0 < len(rows) < len(fitted.labels_)
    np.testing.assert_array_equal(np.sort(rows), sure)
    np.testing.assert_array_equal(labels, fitted.labels_[rows])
    rows, labels = fitted.reliable(agreement=0.0, margin=0.0, balanced=True)
    assert set(np.bincount(labels)) == {np.bincount(fitted.labels_).min()}
    with pytest.warns(UserWarning, match=r"fewer sure rows than 100000: class 0 \("):
        fitted.reliable(agreement=0.0, margin=0.0, per_class=100_000)
    with pytest.raises(UserError, match="the least agreement is 80"):
        fitted.reliable(agreement=80)


def test_labels_are_those_of_the_command_line(
    fitted: HUME, rows: tuple[np.ndarray, ...], tmp_path: pathlib.Path
) -> None:
    """Bit for bit, and the agreement with them."""
    from hume_jax import pipeline

    for name, array in zip(("phi1", "phi2"), rows, strict=False):
        np.save(tmp_path / f"{name}.npy", array)
    config = config_lib.load("configs/arrays.py")
    config.update_from_flattened_dict(
        {
            **SMALL,
            "n_classes": K,
            "n_tasks": 3,
            "plots": False,
            "data.train.phi1": str(tmp_path / "phi1.npy"),
            "data.train.phi2": str(tmp_path / "phi2.npy"),
        }
    )
    results = pipeline.run(config, tmp_path / "run")
    with (tmp_path / "run" / "labels.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["label"]) for line in lines] == fitted.labels_.tolist()
    assert [line["agreement"] for line in lines] == [f"{a:.6f}" for a in fitted.agreement_]
    assert results["ensemble"]["cv_accuracy"] == fitted.score_
    assert results["tasks"] == fitted.results_["tasks"]


def test_one_seed_one_result_whatever_holds_the_rows(
    fitted: HUME, rows: tuple[np.ndarray, ...], tmp_path: pathlib.Path
) -> None:
    pandas = pytest.importorskip("pandas")
    np.save(tmp_path / "phi1.npy", rows[0])
    mapped = np.load(tmp_path / "phi1.npy", mmap_mode="r")
    for phi1, phi2 in ((mapped, jnp.asarray(rows[1])), (pandas.DataFrame(rows[0]), rows[1])):
        again = sklearn.clone(fitted).fit(phi1, phi2)
        np.testing.assert_array_equal(again.labels_, fitted.labels_)
        np.testing.assert_array_equal(again.agreement_, fitted.agreement_)


@pytest.mark.slow
def test_several_files_of_a_space(rows: tuple[np.ndarray, ...]) -> None:
    phi1, phi2, true = rows
    hume = small().fit((phi1[:, :4], phi1[:, 4:]), (phi2,))
    assert metrics.score(hume.labels_, true)["acc"] > 0.9
    np.testing.assert_array_equal(hume.predict((phi1[:, :4], phi1[:, 4:]), phi2), hume.labels_)
    with pytest.raises(UserError, match=r"2 arrays, the task encoders read 3"):
        hume.predict(phi1, phi2)


@pytest.mark.slow
def test_where_encoders_read_phi1_alone_so_does_predict(rows: tuple[np.ndarray, ...]) -> None:
    phi1, phi2, _ = rows
    hume = small(spaces="given").fit(phi1, phi2)
    np.testing.assert_array_equal(hume.predict(phi1), hume.labels_)


@pytest.mark.slow
def test_saved_and_loaded_it_is_the_same(
    fitted: HUME, rows: tuple[np.ndarray, ...], tmp_path: pathlib.Path
) -> None:
    fitted.save(tmp_path / "hume.npz")
    loaded = HUME.load(tmp_path / "hume.npz")
    np.testing.assert_array_equal(loaded.predict(*rows[:2]), fitted.labels_)
    for name, value in vars(fitted).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(loaded, name), value)
    assert (loaded.score_, loaded.seed_) == (fitted.score_, fitted.seed_)
    assert loaded.results_ == json.loads(json.dumps(fitted.results_))
    # What is fitted again by the parameters that were saved is the same again.
    again = loaded.fit(*rows[:2])
    np.testing.assert_array_equal(again.labels_, fitted.labels_)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), (b"no archive", "not a file of HUME.save")],
)
def test_what_save_did_not_write_is_refused(
    content: bytes | None, says: str, tmp_path: pathlib.Path
) -> None:
    if content is not None:
        (tmp_path / "file.npz").write_bytes(content)
    with pytest.raises(UserError, match=says):
        HUME.load(tmp_path / "file.npz")


def test_other_archives_are_refused(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(UserError, match="not a file of HUME.save"):
        HUME.load(tmp_path / "other.npz")


def test_a_pickle_is_never_loaded(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="not a file of HUME.save"):
        HUME.load(tmp_path / "objects.npy")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"n_classes": 1}, "'n_classes' is 1, it must be at least 2"),
        ({"n_classes": 2.5}, "n_classes is 2.5"),
        ({"n_classes": "many"}, "'n_classes' is 'many', it must be a whole number, or 'auto'"),
        ({"n_classes": "auto", "class_prior": [0.5, 0.5]}, "give the number of classes"),
        ({"n_classes": 200}, "more than the 150 searched rows"),
        ({"spaces": "three"}, "'search.spaces' is 'three', it must be one of"),
        ({"vote": "sft"}, "did you mean 'soft'"),
        ({"class_prior": [0.5, 0.5]}, "has 2 values for 3 classes"),
        ({"config": {"search.stps": 3}}, "did you mean 'search.steps'"),
        ({"config": {"n_tasks": 3}}, "is the parameter 'n_tasks'"),
        ({"config": {"data.train.phi1": "a.npy"}}, "no meaning for arrays in memory"),
        ({"config": {"search.steps": "many"}}, "'search.steps' is 'many'"),
        ({"random_state": -1}, "'seed' is -1"),
    ],
)
def test_parameters_that_will_not_do(
    parameters: dict[str, Any], says: str, rows: tuple[np.ndarray, ...]
) -> None:
    hume = small(**parameters)
    with pytest.raises(UserError, match=says):
        hume.fit(*rows[:2])


def test_arrays_that_will_not_do(rows: tuple[np.ndarray, ...], fitted: HUME) -> None:
    phi1, phi2, _ = rows
    broken = phi1.copy()
    broken[5, 2] = np.nan
    for arguments, says in (
        ((phi1, phi2[1:]), "phi1 has 150 rows, phi2 149"),
        ((phi1,), "phi2 is not given"),
        ((phi1[0], phi2), "phi1: Expected 2D array"),
        ((broken, phi2), r"phi1: 1 of 1200 values .* row 5"),
        ((phi1.astype(complex), phi2), "Complex data not supported"),
    ):
        with pytest.raises(UserError, match=says):
            small().fit(*arguments)
    for arguments, says in (
        ((phi1,), "phi2 is not given, which the task encoders of spaces='both' read"),
        ((phi1[:, 1:], phi2), "phi1 has 7 columns, in the search it had 8"),
        ((phi1, phi2[1:]), "phi1 has 150 rows, phi2 149"),
        ((broken, phi2), "row 5"),
    ):
        with pytest.raises(UserError, match=says):
            fitted.predict(*arguments)
    with pytest.raises(NotFittedError):
        small().predict(phi1, phi2)


def test_says_nothing_unless_it_is_asked_to(
    rows: tuple[np.ndarray, ...],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    small().fit(*rows[:2])
    assert (*capfd.readouterr(), caplog.text) == ("", "", "")
    small(verbose=True).fit(*rows[:2])
    assert "search 6/6, done" in caplog.text


@pytest.mark.parametrize("kept", [False, True])
def test_ctrl_c_ends_a_fit_with_what_it_has(
    kept: bool,
    rows: tuple[np.ndarray, ...],
    fitted: HUME,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the block that it is at; with a folder, the same fit goes on from there."""
    phi1, phi2, true = rows
    advance, taken = search_loop.FromMemory.advance, []

    def interrupted(self: Any, state: Any, length: int) -> Any:
        taken.append(length)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(self, state, length)

    monkeypatch.setattr(search_loop.FromMemory, "advance", interrupted)
    hume = small(workdir=tmp_path / "run" if kept else None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.warns(ConvergenceWarning, match="after 4 of 6 steps"):
        hume.fit(phi1, phi2)
    assert signal.getsignal(signal.SIGINT) is before
    assert hume.results_["stopped"] == {"steps": 4, "of": 6}
    assert metrics.score(hume.labels_, true)["acc"] > 0.8
    np.testing.assert_array_equal(hume.predict(phi1, phi2), hume.labels_)
    if kept:
        hume.fit(phi1, phi2)
        assert len(taken) == 3
        np.testing.assert_array_equal(hume.labels_, fitted.labels_)
        # A third fit reads what the second found.
        hume.fit(phi1, phi2)
        assert len(taken) == 3
        np.testing.assert_array_equal(hume.labels_, fitted.labels_)


@pytest.mark.slow
def test_ctrl_c_leaves_out_tasks_that_were_not_begun(
    rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = search_loop.FromMemory.advance

    def interrupted(self: Any, state: Any, length: int) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return advance(self, state, length)

    monkeypatch.setattr(search_loop.FromMemory, "advance", interrupted)
    hume = small(config={**SMALL, "task_batch": 1})
    with pytest.warns(ConvergenceWarning, match="after 2 of 18 steps"):
        hume.fit(*rows[:2])
    assert len(hume.tasks_) == len(hume.results_["tasks"]) == 1


def test_a_second_ctrl_c_gives_up(
    rows: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any, state: Any, length: int) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    monkeypatch.setattr(search_loop.FromMemory, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small().fit(*rows[:2])


@pytest.mark.slow
def test_fits_in_a_thread(rows: tuple[np.ndarray, ...], fitted: HUME) -> None:
    """Which cannot listen to signals."""
    found = []
    thread = threading.Thread(target=lambda: found.append(small().fit_predict(*rows[:2])))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], fitted.labels_)


def test_parameters_as_scikit_learn_has_them() -> None:
    hume = small()
    assert hume.get_params()["n_classes"] == K
    copy = sklearn.clone(hume.set_params(n_classes=4))
    assert (copy.n_classes, copy.config) == (4, SMALL)
    # Equal, not the same object.
    assert copy is not hume


@pytest.mark.slow
def test_finds_the_number_of_classes_too(
    rows: tuple[np.ndarray, ...], tmp_path: pathlib.Path
) -> None:
    hume = small("auto", workdir=tmp_path / "run").fit(*rows[:2])
    assert hume.n_classes_ == K
    assert hume.results_["choose_k"]["value"] == K
    assert metrics.score(hume.labels_, rows[2])["acc"] > 0.95
    assert (tmp_path / "run" / "choose_k" / "choose_k.png").exists()
    noise = np.random.default_rng(0).normal(size=(2, 400, 8))
    with pytest.raises(UserError, match="n_classes='auto': no recommendation"):
        small("auto").fit(noise[0], noise[1])


def test_is_one_of_the_public_names() -> None:
    assert {"HUME", "OneSpaceHUME"} <= set(hume_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'HUM'"):
        hume_jax.HUM  # noqa: B018


@pytest.mark.slow
def test_one_space_stands_where_scikit_learn_expects_a_clusterer(
    rows: tuple[np.ndarray, ...],
) -> None:
    pipeline = make_pipeline(StandardScaler(), OneSpaceHUME(small()))
    labels = pipeline.fit_predict(rows[0])
    assert metrics.score(labels, rows[2])["acc"] > 0.9
    np.testing.assert_array_equal(pipeline.predict(rows[0]), labels)
