"""The dataset inside the package, and the script that writes it."""

import importlib.util

import numpy as np
import pytest

SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def script(repository):
    path = repository / "experiments" / "make_quickstart_data.py"
    spec = importlib.util.spec_from_file_location("make_quickstart_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder):
    names = [f"{kind}_{split}" for kind in ("phi1", "phi2", "labels") for split in SPLITS]
    return {name: np.load(folder / f"{name}.npy") for name in names}


def write_source(folder, rng, *, n_columns=12, n_rows=(60, 30)):
    """A folder laid out like the source, two well separated classes."""
    (folder / "classes.txt").write_text("cat\ndog\n")
    means = 8 * rng.normal(size=(2, n_columns))
    for split, n in zip(SPLITS, n_rows, strict=True):
        labels = rng.integers(0, 2, n)
        np.save(folder / f"labels_{split}.npy", labels)
        for encoder in ("effnet_lite0", "effnet_lite2"):
            rows = means[labels] + rng.normal(size=(n, n_columns))
            np.save(folder / f"{encoder}_{split}.npy", rows.astype(np.float16))


def run_script(script, source, output, *more):
    script.main([f"--source={source}", f"--output={output}", *more])


def test_shipped_arrays_are_what_the_readme_says(script):
    arrays = load(script.PACKAGE_DATA)
    for split, n in (("train", 6000), ("test", 1600)):
        assert arrays[f"labels_{split}"].shape == (n,)
        assert np.array_equal(np.unique(arrays[f"labels_{split}"]), np.arange(10))
        for space in ("phi1", "phi2"):
            rows = arrays[f"{space}_{split}"]
            assert (rows.shape, rows.dtype) == ((n, 128), np.float16)
            assert np.isfinite(rows).all()
    files = script.PACKAGE_DATA.glob("*")
    assert sum(path.stat().st_size for path in files) <= script.MAX_BYTES


def test_script_keeps_directions_of_the_train_rows_alone(script, rng, tmp_path):
    train, test = rng.normal(size=(50, 6)), rng.normal(size=(20, 6))
    reduced = script.reduce_space(train, test, 6)
    assert reduced.variance == pytest.approx(1)
    # All directions kept: a rotation about the mean of the train rows.
    distances = np.linalg.norm(test - train.mean(0), axis=1)
    assert np.linalg.norm(reduced.splits["test"], axis=1) == pytest.approx(distances, rel=1e-2)
    fewer = script.reduce_space(train, 5 * test, 2)
    assert np.array_equal(fewer.splits["train"], reduced.splits["train"][:, :2])


def test_script_is_deterministic_and_labels_choose_nothing(script, rng, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_source(source, rng)
    sizes = ("--train_rows=40", "--test_rows=10", "--directions=4")
    run_script(script, source, tmp_path / "a", *sizes)
    run_script(script, source, tmp_path / "b", *sizes)
    labels = np.load(source / "labels_train.npy")
    np.save(source / "labels_train.npy", 1 - labels)
    run_script(script, source, tmp_path / "c", *sizes)
    a, b, c = (load(tmp_path / name) for name in "abc")
    for name, array in a.items():
        assert np.array_equal(array, b[name])
        assert np.array_equal(array, 1 - c[name] if name == "labels_train" else c[name])
    assert "cat, dog" in (tmp_path / "a" / "README.md").read_text()


def test_script_refuses_more_rows_than_there_are(script, rng, tmp_path):
    write_source(tmp_path, rng)
    with pytest.raises(SystemExit, match="61 rows wanted, the source has 60"):
        run_script(script, tmp_path, tmp_path / "out", "--train_rows=61", "--test_rows=10")


@pytest.mark.slow
def test_script_writes_the_shipped_arrays(script, shared, tmp_path):
    run_script(script, shared / "data" / "imagenette", tmp_path)
    for name, array in load(tmp_path).items():
        shipped = np.load(script.PACKAGE_DATA / f"{name}.npy")
        if name.startswith("labels"):
            assert np.array_equal(array, shipped)
        else:
            # The last float16 bit depends on the linear algebra library.
            scale = np.abs(shipped).max()
            assert np.abs(array.astype(np.float32) - shipped).max() < 2e-3 * scale
