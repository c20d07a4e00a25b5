"""What docs/recipes.md tells to type works: the blocks run, the commands reach the search."""

import contextlib
import os
import pathlib
import runpy
import shlex
import subprocess
import sys
import types

import doc_blocks
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hume_jax.representations.arrays import formats

N, BLOCKS = 24, doc_blocks.blocks("docs/recipes.md")
MAIN = "python -m hume_jax.main "
# Runs the command line up to the search, which prints the paths of its config.
UP_TO_THE_SEARCH = """
import sys, types
pipeline = types.ModuleType("hume_jax.pipeline")
pipeline.run = lambda config, *rest: print(config.data.train.phi1, config.data.train.phi2)
sys.modules["hume_jax.pipeline"] = pipeline
from hume_jax import main
from hume_jax.report import results
results.table = lambda summary: "the table"
main.run()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def block(section):
    """The one block of Python in a section."""
    (code,) = [b.text for b in BLOCKS if b.section == section and b.language == "python"]
    return code


def command(section):
    """The arguments of the one command in a section."""
    (line,) = [b.text for b in BLOCKS if b.section == section and b.text.startswith(MAIN)]
    return shlex.split(line.replace("\\\n", " "))[len(MAIN.split()) :]


def run_block(section, monkeypatch, **modules):
    """Runs a section's block with stand-ins for what it imports."""
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    pathlib.Path("block.py").write_text(block(section))
    return runpy.run_path("block.py")


def reaches_the_search(section, repository):
    arguments = command(section)
    # No list of devices, no compilation.
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_THE_SEARCH, *arguments],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the table" in done.stdout
    return done.stdout


class Encoder:
    """Stands for a model of sentence-transformers 6.2, with its method's names."""

    def __init__(self, name):
        self.width = len(name)

    def encode(self, inputs, *, batch_size=32, show_progress_bar=None):
        assert all(isinstance(text, str) for text in inputs)
        return np.random.default_rng(self.width).normal(size=(len(inputs), 32)).astype(np.float32)


def test_every_block_is_run_by_a_test():
    sections = [b.section for b in BLOCKS if b.language == "python"]
    assert sections == [
        "Text",
        "Audio",
        "From Hugging Face `datasets`",
        "A table larger than memory",
    ]


def test_text(monkeypatch, repository):
    pathlib.Path("texts.txt").write_text("\n".join(f"text {i}" for i in range(N)))
    run_block("Text", monkeypatch, sentence_transformers={"SentenceTransformer": Encoder})
    for name in ("phi1.npy", "phi2.npy"):
        array = formats.open_array(name)
        assert (array.shape, array.dtype) == ((N, 32), np.float16)
    reaches_the_search("Text", repository)


def test_audio(monkeypatch, repository):
    clips = pathlib.Path("clips", "more")
    clips.mkdir(parents=True)
    for i in range(N):
        (clips / f"{i:02}.wav").touch()

    class Tensor(np.ndarray):
        def mean(self, dim):
            return np.asarray(self).mean(axis=dim).view(Tensor)

        def numpy(self):
            return np.asarray(self)

    class Part:
        sampling_rate = 16_000

        @classmethod
        def from_pretrained(cls, name):
            return cls()

        def eval(self):
            return self

    class Extractor(Part):
        def __call__(self, wave, *, sampling_rate, return_tensors):
            assert (sampling_rate, return_tensors) == (16_000, "pt")
            return {"input_values": wave[None]}

    class Model(Part):
        def __call__(self, *, input_values):
            frames = np.repeat(input_values[:, :32, None], 9, axis=2).transpose(0, 2, 1)
            return types.SimpleNamespace(last_hidden_state=frames.view(Tensor))

    def load(path, *, sr):
        assert path.exists()
        return np.random.default_rng(int(path.stem)).normal(size=sr).astype(np.float32), sr

    run_block(
        "Audio",
        monkeypatch,
        librosa={"load": load},
        torch={"inference_mode": contextlib.nullcontext},
        transformers={"AutoFeatureExtractor": Extractor, "AutoModel": Model},
    )
    assert formats.open_array("speech1.npy").shape == (N, 32)
    assert pathlib.Path("clips.txt").read_text().split() == sorted(map(str, clips.iterdir()))
    reaches_the_search("Audio", repository)


def test_hugging_face_datasets(monkeypatch, repository):
    made = {}

    class Splits:
        def __init__(self, columns):
            self.columns = columns

        def map(self, function, *, batched):
            assert batched
            return Splits({**self.columns, **function(self.columns)})

        def save_to_disk(self, path):
            made.update(self.columns)
            for split in ("train", "test"):
                folder = pathlib.Path(path, split)
                folder.mkdir(parents=True)
                columns = {name: pa.array(list(values)) for name, values in made.items()}
                table = pa.table({**columns, "intent": pa.array(np.arange(N) % 20)})
                with pa.ipc.new_stream(folder / "a.arrow", table.schema) as file:
                    file.write_table(table)
                (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')

    def load_dataset(kind, *, data_files):
        assert (kind, set(data_files)) == ("json", {"train", "test"})
        return Splits({"text": [f"text {i}" for i in range(N)]})

    run_block(
        "From Hugging Face `datasets`",
        monkeypatch,
        datasets={"load_dataset": load_dataset},
        sentence_transformers={"SentenceTransformer": Encoder},
    )
    np.testing.assert_array_equal(formats.open_array("requests/train:small"), made["small"])
    reaches_the_search("From Hugging Face `datasets`", repository)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_table_larger_than_memory(monkeypatch, rng, fixed):
    rows = rng.normal(size=(9000, 512)).astype(np.float16)
    lists = pa.array(list(rows[:3]), pa.list_(pa.float16(), 512 if fixed else -1))
    column = pa.chunked_array([lists] * 3000)
    pq.write_table(pa.table({"clip": column}), "features.parquet")
    run_block("A table larger than memory", monkeypatch)
    copied = formats.open_array("clip.npy")
    assert copied.shape == rows.shape
    np.testing.assert_array_equal(copied, np.tile(rows[:3], (3000, 1)))


@pytest.mark.parametrize("section", ["Which files", "More than two models"])
def test_paths_with_names(section, rng, repository):
    features = rng.normal(size=(4, N, 32)).astype(np.float32)
    np.save("phi1.npy", features[0])
    np.save("phi2.npy", features[1])
    np.savez("features.npz", vit=features[2], more=features)
    table = {"clip": pa.array(list(features[3])), "species": pa.array(["ant", "bee"] * (N // 2))}
    pq.write_table(pa.table(table), "features.parquet")
    said = reaches_the_search(section, repository)
    assert "features.npz:vit" in said
    assert "features.parquet:clip" in said
