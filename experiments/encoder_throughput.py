"""Images per second of an encoder here and in PyTorch, taking turns on the same two cores.

    python -m venv ~/torch && ~/torch/bin/pip install torch transformers
    python experiments/encoder_throughput.py --torch-python=$HOME/torch/bin/python \\
        --weights=../shared/weights/vits14_saliency.safetensors --out=runs/throughput.json

Runs the ViT-S/14 of DINOv2 with one file of weights in two processes: in this project's, compiled
as `hume_jax.encode` compiles it, and in `Dinov2Model` of Hugging Face transformers, in PyTorch's
inference mode with its default attention. Both take the same random uint8 pixels, normalise them,
and hand over class tokens as a NumPy array, in float32. Blocks of some batches take turns, so that
whatever else the machine does falls on both alike; the medians count, and how the two compare from
turn to turn. Both processes are held to the same cores (where the system has such a thing), PyTorch
is also told so. Ends with an error if the two do not give the same features.

Prints a Markdown table and the ratio.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

THREADS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the largest value: the two add in another order.
TOLERANCE = 1e-3

Encode = Callable[[np.ndarray], np.ndarray]  # (b, s, s, 3) uint8 to (b, d) float32


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=pathlib.Path, required=True, help="file, .safetensors")
    parser.add_argument("--torch-python", help="interpreter that has torch and transformers")
    parser.add_argument("--size", type=int, default=98, help="side of the images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--block", type=int, default=4, help="batches of a turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each")
    parser.add_argument("--out", type=pathlib.Path, help="file, .json")
    # This script starts itself in both processes.
    parser.add_argument("--worker", choices=tuple(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--features", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def ours(options: argparse.Namespace) -> Encode:
    """This project's encoder."""
    import jax

    from hume_jax.representations.encoders import presets

    spec = f"dinov2_vits14:weights={options.weights},size={options.size}"
    encoder = presets.parse(spec)
    params, _ = presets.load(encoder)
    params = jax.device_put(params)
    program = jax.jit(lambda params, pixels: presets.features(encoder, params, pixels))
    return lambda pixels: np.asarray(program(params, pixels))


def pytorch(options: argparse.Namespace) -> Encode:
    """That of transformers."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=518
    )
    # As from the hub: the names in the file are not those of the class any more.
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        (pathlib.Path(folder) / "model.safetensors").symlink_to(options.weights.resolve())
        model = transformers.Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def encode(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
            images = (images / 255 - mean) / std
            return model(pixel_values=images).last_hidden_state[:, 0].numpy()

    return encode


WORKERS = {"hume_jax": ours, "PyTorch": pytorch}


def work(options: argparse.Namespace) -> None:
    """Encodes one block for every line on the standard input, and answers with its seconds."""
    encode = WORKERS[options.worker](options)
    shape = (options.batch, options.size, options.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(options.features, encode(pixels))
    encode(pixels)
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(options.block):
            encode(pixels)
        print(time.perf_counter() - began, flush=True)


class Worker:
    """A process that encodes a block when it is asked to."""

    def __init__(self, name: str, python: str, arguments: Sequence[str], folder: str) -> None:
        """Starts it, and waits until it has compiled and run once."""
        self._name, features = name, pathlib.Path(folder) / f"{name}.npy"
        command = [python, __file__, *arguments, f"--worker={name}", f"--features={features}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        self.features = np.load(features)

    def seconds_of_block(self) -> float:
        """Encodes a block."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def stop(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            sys.exit(f"error: {self._name} has ended, see above")
        return answer


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Times both in turns."""
    if hasattr(os, "sched_setaffinity"):
        # Inherited by the two.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    pythons = {"hume_jax": sys.executable, "PyTorch": options.torch_python}
    with tempfile.TemporaryDirectory() as folder:
        workers = {n: Worker(n, python, arguments, folder) for n, python in pythons.items()}
    one, other = (worker.features for worker in workers.values())
    difference = float(np.abs(one - other).max() / np.abs(other).max())
    if not difference < TOLERANCE:
        sys.exit(f"error: the features differ by {difference:.2g} of the largest value")
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(options.turns):
        print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
        for name, worker in workers.items():
            # Threads of the other one spin for a while before they sleep.
            time.sleep(0.5)
            seconds[name].append(worker.seconds_of_block())
    for worker in workers.values():
        worker.stop()
    images = options.batch * options.block
    rates = {name: images / np.array(values) for name, values in seconds.items()}
    ratios = rates["hume_jax"] / rates["PyTorch"]
    return {
        "size": options.size,
        "batch": options.batch,
        "block": options.block,
        "threads": THREADS,
        "difference": difference,
        "images_per_second": {name: list(values) for name, values in rates.items()},
        "median": {name: float(np.median(values)) for name, values in rates.items()},
        "ratio_of_medians": float(np.median(rates["hume_jax"]) / np.median(rates["PyTorch"])),
        "ratio_by_turn": list(ratios),
    }


def report(found: dict[str, Any]) -> str:
    """The table, and the ratio below it."""
    import figures

    rows = [
        [name, f"{found['median'][name]:.1f}", f"{min(rates):.1f}", f"{max(rates):.1f}"]
        for name, rates in found["images_per_second"].items()
    ]
    ratios = found["ratio_by_turn"]
    return (
        f"ViT-S/14, {found['size']} px, batches of {found['batch']}, {found['threads']} threads, "
        f"{len(ratios)} turns of {found['block']} batches\n\n"
        f"{figures.table(['images per second', 'median', 'lowest', 'highest'], rows)}\n\n"
        f"ratio of the medians {found['ratio_of_medians']:.2f}; by turn: median "
        f"{np.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}; features differ by "
        f"{found['difference']:.1e} of the largest value"
    )


def main(arguments: Sequence[str]) -> None:
    """Times, prints and writes."""
    options = parse_arguments(arguments)
    if options.worker:
        work(options)
        return
    import figures

    with figures.one_line_errors():
        if not options.torch_python:
            sys.exit("error: --torch-python=PATH names an interpreter with torch and transformers")
        found = measure(options, arguments)
    if options.out:
        figures.write_json(options.out, found)
    print(report(found))


if __name__ == "__main__":
    main(sys.argv[1:])
