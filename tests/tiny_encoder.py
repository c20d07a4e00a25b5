"""A preset more, `tiny`: a ViT of eight columns, for tests; and the commands with it.

python tests/tiny_encoder.py encode --config=...
python tests/tiny_encoder.py main --config=...

With KILLED_AT=n in the environment the process kills itself when it has noted rows n times, which
it then does after every batch.
"""

import importlib
import os
import signal
import sys

import numpy as np

from hume_jax.representations import encode
from hume_jax.representations.arrays import growing
from hume_jax.representations.encoders import presets, vit_names
from hume_jax.representations.encoders.vit import ViT
from hume_jax.representations.images.preprocess import Preprocessing

MODEL = ViT(size=28, patch=14, width=8, depth=1, heads=2, hidden=16, layer_scale=True)
PREPROCESSING = Preprocessing(32, 28, "shortest", "bicubic", (0.5,) * 3, (0.25,) * 3)
# Of Hugging Face's Dinov2Model.
_NAMES = ["embeddings.patch_embeddings.projection.weight"]


def preset():
    return presets.Preset(
        MODEL,
        vit_names.rules,
        vit_names.IGNORED,
        presets.Weights(licence="none", source="tests"),
        PREPROCESSING,
        MODEL.outputs,
    )


def write_weights(path, seed=0):
    """Writes random weights under the names of a Dinov2Model."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.normal(size=[MODEL.positions if s < 0 else s for s in shape]).astype(np.float32)
        for rule in vit_names.rules(MODEL, _NAMES).values()
        for name, shape in zip(rule.names, rule.shapes, strict=True)
    }
    save_file(tensors, path)


def kill_at(number):
    """Kills this process when it has noted rows so many times."""
    flush = growing.GrowingArray.flush
    left = iter(range(number - 1, -1, -1))

    def flush_and_count(array):
        flush(array)
        if next(left, 1) == 0:
            os.kill(os.getpid(), int(os.environ.get("KILLED_BY", signal.SIGKILL)))

    growing.GrowingArray.flush = flush_and_count
    encode._FLUSH_SECONDS = 0


if __name__ == "__main__":
    presets.PRESETS["tiny"] = preset
    if "KILLED_AT" in os.environ:
        kill_at(int(os.environ["KILLED_AT"]))
    command = sys.argv.pop(1)
    importlib.import_module(f"hume_jax.{command}").run()
