r"""What a search of ImageNet's size takes: memory by phase, seconds of a step, time spent reading.

    python experiments/imagenet_size.py --folder=runs/imagenet_size --out=runs/imagenet_size.json
    python experiments/imagenet_size.py --folder=runs/small --scale=64 --out=runs/small.json \
        -- --config.n_classes=100 --config.search.subset_size=2000

Makes two float16 spaces of noisy classes, 1,281,167 x 2,048 and 1,281,167 x 1,536 (9.2 GB;
`--scale` divides the rows), with a test split of ImageNet's proportion, and runs `hume_jax.main` on
them in a process of its own: one task, K = 1000, a few outer steps on one subset of 20,000. While
it runs, its resident memory is read from /proc (Linux) 20 times a second: `RssAnon` is what it
holds itself, `RssFile` pages of files, which the system takes back when it needs them.

To keep the measurement short, tasks are scored in few steps, and k-means and the probe are left
out; fields behind a lone -- change that. The files stay for another run unless `--remove` is given.

`--whole` leaves tasks, subsets, steps and scores to the preset: a whole search, on an accelerator.
`--shape=cifar10` is 50,000 x 512 and 50,000 x 1,536, ten classes:

    python experiments/imagenet_size.py --shape=cifar10 --whole --rows=memory \
        --folder=runs/cifar10_size --out=runs/cifar10_size.json -- --config.n_tasks=100
    python experiments/imagenet_size.py --whole --rows=memory --folder=runs/imagenet_size \
        --out=runs/imagenet_whole.json -- --config.n_tasks=8 --config.search.subset_size=20000

Prints Markdown tables.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import figures
import numpy as np

from hume_jax import memory, planning
from hume_jax.errors import UserError
from hume_jax.representations import store


class Shape(NamedTuple):
    """Of a dataset."""

    rows: int
    test_rows: int
    columns: dict[str, int]
    classes: int


SHAPES = {
    "imagenet": Shape(1_281_167, 50_000, {"phi1": 2048, "phi2": 1536}, 1000),
    "cifar10": Shape(50_000, 10_000, {"phi1": 512, "phi2": 1536}, 10),
}
FIELDS = ("--config.search.spaces=given", "--config.baselines=false", "--config.plots=false")
# Of a search that is not whole.
SHORT = (
    "--config.n_tasks=1",
    "--config.search.subset_size=20000",
    "--config.search.steps=2",
    "--config.score.steps=2",
    "--config.log_every=1",
    "--config.checkpoint_seconds=0",
)
# What the process is at from the first line on that its log has of each kind.
PHASES = (
    (r"checking the values", "values checked"),
    (r"\] phi1 \d+/", "means of phi1"),
    (r"reads its rows from disk", "second moments of phi2"),
    (r"rows are searched in memory", "copies of the rows"),
    (r"directions hold", "time of a product"),
    (r"\bcompiling$", "compiling, first step"),
    (r"search \d+/", "further steps"),
    (r"read \d+ subset", "labels of tasks"),
    (r"scoring \d+ task", "scores"),
    (r"scores (\d+)/\1\b", "labels, results"),
    (r"k-means in phi1", "k-means, probe"),
)
_BLOCK = 8192
_EVERY = 0.05


class Sample(NamedTuple):
    """Resident memory at one moment, bytes."""

    seconds: float
    anonymous: int
    file: int


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="of the files")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="imagenet")
    parser.add_argument("--whole", action="store_true", help="all steps, tasks, scores")
    parser.add_argument("--scale", type=int, default=1, help="what the rows are divided by")
    parser.add_argument(
        "--rows", choices=("auto", "memory", "disk"), default="disk", help="search.rows"
    )
    parser.add_argument("--remove", action="store_true", help="remove the files afterwards")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file, .json")
    parser.add_argument(
        "fields", nargs="*", metavar="-- --config.FIELD=VALUE", help="further fields"
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.scale <= 1000:
        raise UserError(f"--scale={options.scale} is not between 1 and 1000")
    return options


def make_files(folder: pathlib.Path, shape: Shape) -> list[str]:
    """Writes the arrays that are not there yet.

    Returns:
      Flags of `configs/arrays.py` that point to them.
    """
    figures.make_folder(folder, "--folder")
    sizes = {"train": shape.rows, "test": shape.test_rows}
    files = {
        (split, name): folder / f"{name}_{split}_{n}.npy"
        for split, n in sizes.items()
        for name in (*shape.columns, "labels")
    }
    _check_space(
        folder,
        sum(
            2 * sizes[s] * shape.columns.get(f, 0) for (s, f), p in files.items() if not p.exists()
        ),
    )
    for split, n in sizes.items():
        labels = np.random.default_rng(n).integers(0, shape.classes, n)
        store.save_array(files[split, "labels"], labels)
        for name, columns in shape.columns.items():
            path = files[split, name]
            if not path.exists():
                print(f"writing {path}", file=sys.stderr)
                _write_rows(path, labels, columns, shape.classes)
    return [f"--config.data.{split}.{name}={path}" for (split, name), path in files.items()]


def _check_space(folder: pathlib.Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free: give "
            "another --folder, or --scale=4"
        )


def _write_rows(path: pathlib.Path, labels: np.ndarray, columns: int, classes: int) -> None:
    """Writes rows around the means of their classes, block by block."""
    # Both splits have the same means.
    means = np.random.default_rng(columns).standard_normal((classes, columns), np.float32)
    rng = np.random.default_rng([columns, len(labels)])
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(labels), columns)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(labels), _BLOCK):
            rows = means[labels[start : start + _BLOCK]]
            rows += 2 * rng.standard_normal(rows.shape, np.float32)
            # About unit norm, as encoders give it.
            file.write((rows * (5 * columns) ** -0.5).astype(np.float16).tobytes())
    part.rename(path)


def status(pid: int) -> tuple[int, int] | None:
    """Anonymous and file pages that are resident, bytes; None once the process has ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = dict(re.findall(r"^(RssAnon|RssFile):\s+(\d+) kB", text, re.MULTILINE))
    # A process that has ended but was not waited for has none.
    return (1024 * int(found["RssAnon"]), 1024 * int(found["RssFile"])) if found else None


def sample(pid: int, samples: list[Sample], began: float) -> None:
    """Reads the memory of a process until it ends."""
    while (now := status(pid)) is not None:
        samples.append(Sample(time.perf_counter() - began, *now))
        time.sleep(_EVERY)


def measure(flags: Sequence[str], workdir: pathlib.Path) -> dict[str, Any]:
    """Runs a search and watches it.

    Returns:
      The memory of each phase, and what the run says of its time.
    """
    command = [sys.executable, "-m", "hume_jax.main", "--config=configs/arrays.py", *flags]
    began = time.perf_counter()
    samples: list[Sample] = []
    with subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watcher = threading.Thread(target=sample, args=(process.pid, samples, began))
        watcher.start()
        try:
            assert process.stderr is not None
            starts = list(phases(process.stderr, began))
        except BaseException:
            process.kill()
            raise
    watcher.join()
    if process.returncode:
        raise UserError(f"the run ended with status {process.returncode}, see above")
    results = figures.read_json(workdir / "results.json")
    metrics = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "phases": by_phase(samples, starts),
        "peak_anonymous": max(s.anonymous for s in samples),
        "peak_total": max(s.anonymous + s.file for s in samples),
        "samples": len(samples),
        "wall_seconds": time.perf_counter() - began,
        "seconds": results["seconds"],
        "steps": json.loads(metrics[-1])["step"],
        "device": results["device"],
        "acc": results["ensemble"]["train"]["acc"],
    }


def phases(log: IO[str], began: float) -> Iterator[tuple[float, str]]:
    """When each phase begins, by the lines of a run's log, which are passed on."""
    yield 0.0, "start"
    seen = set()
    for line in log:
        sys.stderr.write(line)
        for pattern, name in PHASES:
            if name not in seen and re.search(pattern, line.rstrip()):
                seen.add(name)
                yield time.perf_counter() - began, name


def by_phase(samples: Sequence[Sample], starts: Sequence[tuple[float, str]]) -> list[dict]:
    """The peaks of each phase."""
    ends = [*(start for start, _ in starts[1:]), float("inf")]
    found = []
    for (start, name), end in zip(starts, ends, strict=True):
        within = [s for s in samples if start <= s.seconds < end]
        if within:
            found.append(
                {
                    "phase": name,
                    "seconds": within[-1].seconds - within[0].seconds,
                    "anonymous": max(s.anonymous for s in within),
                    "file": max(s.file for s in within),
                }
            )
    return found


def estimate(flags: Sequence[str], shape: Shape) -> dict[str, int]:
    """Bytes that the search is planned to take, by where it reads its rows."""
    config = figures.load_config("configs/arrays.py", flags)
    inner = (shape.columns["phi2"] + 1,)
    plan = planning.make_plan(config, shape.rows, shape.columns["phi1"], inner, "disk")
    return {
        rows: memory.search_bytes(plan.shape, plan.settings, len(plan.batches[0]), rows=rows)
        for rows in ("memory", "disk")
    }


def report(found: dict[str, Any]) -> str:
    """The tables."""
    gib = 2**30
    rows = [
        [p["phase"], f"{p['seconds']:.0f}", f"{p['anonymous'] / gib:.2f}", f"{p['file'] / gib:.2f}"]
        for p in found["phases"]
    ]
    rows.append(
        ["whole run", f"{found['wall_seconds']:.0f}", f"{found['peak_anonymous'] / gib:.2f}", ""]
    )
    seconds, steps = found["seconds"], found["steps"]
    lines = [
        f"{found['rows']} x {' + '.join(map(str, found['columns']))} float16, {found['device']}, "
        f"{' '.join(found['fields'])}",
        figures.table(["phase", "seconds", "peak RssAnon, GiB", "peak RssFile, GiB"], rows),
        f"{steps} steps in {seconds['search']:.1f} s, the first solutions of a warm start "
        f"included; compiling {seconds['compile']:.1f} s.",
    ]
    if seconds.get("gather"):
        hidden = 1 - seconds["gather_waited"] / seconds["gather"]
        lines.append(
            f"Reading took {seconds['gather']:.2f} s, of which {seconds['gather_waited']:.2f} s "
            f"were waited for: {max(0, hidden):.0%} hidden."
        )
    planned = {name: f"{value / gib:.2f} GiB" for name, value in found["planned"].items()}
    lines.append(
        f"Planned, beside the interpreter and its libraries: {planned['disk']} from disk, "
        f"{planned['memory']} in memory. ACC {found['acc']:.3f} on made classes."
    )
    return "\n\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Makes the files, runs, prints and writes."""
    options = parse_arguments(arguments)
    if not pathlib.Path("/proc/self/status").exists():
        raise UserError("this system has no /proc/self/status to read RssAnon from")
    folder = options.folder.resolve()
    shape = SHAPES[options.shape]
    shape = shape._replace(
        rows=shape.rows // options.scale, test_rows=shape.test_rows // options.scale
    )
    made = make_files(folder, shape)
    flags = [*made, f"--config.n_classes={shape.classes}", *FIELDS]
    flags += [*(() if options.whole else SHORT), f"--config.search.rows={options.rows}"]
    flags += options.fields
    planned = estimate(flags, shape)
    workdir = folder / f"run-{os.getpid()}"
    try:
        found = measure(flags, workdir)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
        if options.remove:
            for flag in made:
                pathlib.Path(flag.partition("=")[2]).unlink(missing_ok=True)
    found |= {"rows": shape.rows, "columns": list(shape.columns.values())}
    found |= {"planned": planned, "read_from": options.rows}
    found["fields"] = [flag for flag in flags if flag not in made]
    figures.write_json(options.out, found)
    print(report(found))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
