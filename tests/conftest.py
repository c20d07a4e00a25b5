"""What all tests share: strict jax, two CPU devices, the larger datasets where they are at hand."""

import os
import pathlib
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator

# Before matplotlib is imported: tests have no display. Inherited by the commands that tests run.
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import jax
import numpy as np
import pytest

# Before the first computation, which fixes the number of devices.
jax.config.update("jax_num_cpu_devices", 4)
# (n, d) - (d,) is more often a slip than meant; the code says `[None]` where it is meant.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples in every run: `make test`. Without it, others each time: `make test-all`.
hypothesis.settings.register_profile("fixed", derandomize=True)

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs before small parts: the processes that share the files end at about one time."""
    items.sort(key=lambda item: len(item.path.parts))


@pytest.fixture(scope="session", autouse=True)
def _compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests, and the commands they run, share what was compiled: it takes most of their time."""
    base, worker = tmp_path_factory.getbasetemp(), os.environ.get("PYTEST_XDIST_WORKER")
    # One folder for all workers of pytest-xdist, which have a folder each beneath that of the run.
    # A size, however large, makes JAX lock the folder while it writes.
    settings = {
        "jax_compilation_cache_dir": str((base.parent if worker else base) / "compiled"),
        "jax_compilation_cache_max_size": 2**34,
        "jax_persistent_cache_min_compile_time_secs": 0.05,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module")
def quickly_compiled() -> Iterator[None]:
    """Programs that compile faster and run slower, for a module of many that run once.

    In the commands that its tests run, too.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    yield
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder `shared/` beside the checkout, with real datasets under `data/`."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(
            f"needs the datasets of {folder / 'data'}, which are not part of the repository"
        )
    return folder


@pytest.fixture(scope="session")
def save_objects() -> Callable[[pathlib.Path | str, tuple[int, ...]], None]:
    """Writes what `np.save` makes of Python objects up to their pickle, which nothing may read."""

    def save(path: pathlib.Path | str, shape: tuple[int, ...]) -> None:
        header = {"descr": "|O", "fortran_order": False, "shape": shape}
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)

    return save


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """A bucket, gs://..., of a server on this machine that answers as Google's object store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ROOT / "tests" / "object_store_server.py"
    server = subprocess.Popen(
        [sys.executable, script, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    settings = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        # It would ask Google what kind of bucket this is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    os.environ |= settings
    try:
        wait_for_port(port)
        yield "gs://bucket"
    finally:
        server.terminate()
        server.wait()
        for name in settings:
            del os.environ[name]


def wait_for_port(port: int, seconds: float = 60) -> None:
    """Until something listens on a port of this machine."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end, f"nothing listens on port {port}"
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def two_processes(free_port: int) -> Callable[..., None]:
    """Runs a test file as two processes, `FILE PORT INDEX ARGUMENT`, each with one device."""

    def run(file: str, argument: pathlib.Path, **environment: str) -> None:
        settings = {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1", **environment}
        workers = [
            subprocess.Popen(
                [sys.executable, file, str(free_port), str(index), str(argument)],
                env=os.environ | settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]
        try:
            printed = [worker.communicate(timeout=240)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        for worker, text in zip(workers, printed, strict=True):
            assert worker.returncode == 0, text[-3000:]

    return run


@pytest.fixture
def command() -> Callable[..., None]:
    """A command without a config, in this process, which has parsed other flags before."""
    from absl import flags

    from hume_jax import command_line

    def run(module: types.ModuleType, *arguments: str) -> None:
        flags.FLAGS.unparse_flags()
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flag.unparse()
        argv = command_line.guarded(command_line.parse_plain)(["command", *arguments])
        command_line.guarded(module.main)(argv)

    return run


@pytest.fixture
def mistake(command: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that such a command answers a mistake with, and ends by status 2."""

    def told(module: types.ModuleType, *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            command(module, *arguments)
        printed = capsys.readouterr()
        assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
        assert printed.err.startswith("error: ")
        return printed.err

    return told


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def x64() -> Iterator[None]:
    """Double precision inside the test."""
    with jax.enable_x64(True):
        yield
