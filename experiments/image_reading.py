"""How many photographs a second are read, decoded and prepared, from a tar, a folder and a zip.

    python experiments/image_reading.py --out=runs/image_reading.json

Goes through the images as encoding does, with 0 (no threads), 1 and 2 threads, and throws the
pixels away. All sources and numbers of threads take turns, so that whatever else the machine does
falls on all of them alike; the median counts. Images a second of processor time are what one core
is good for, whatever other programs do.

With `--side` the photographs are enlarged first, as JPEGs of 95 % quality whose shorter side has so
many pixels: what comes from a camera has about 3,000.

Prints a Markdown table, and what each part costs on its own: reading, decoding, preparing. To
compare: `encoder_throughput.py` prints what a ViT-S/14 encodes.
"""

import argparse
import functools
import io
import os
import pathlib
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import figures
import numpy as np
from PIL import Image

from hume_jax.errors import UserError
from hume_jax.representations.images import loader, preprocess, sources

ARCHIVE = "../shared/data/imagenette/images96_train.tar"


class Timing(NamedTuple):
    """One way through the images."""

    wall: float  # seconds
    processor: float  # seconds of all threads together


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", default=ARCHIVE, help="a .tar file (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="how many of each source")
    parser.add_argument("--side", type=int, default=0, help="enlarge them (default: as they are)")
    parser.add_argument("--size", type=int, default=98, help="side of the crop")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5, help="times through each source")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file, .json")
    return parser.parse_args(arguments)


def rule(size: int) -> preprocess.Preprocessing:
    """The preprocessing of DINOv2 (resize to 256, crop of 224, bicubic), scaled to another crop."""
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return preprocess.Preprocessing(256, 224, "shortest", "bicubic", *imagenet).at(size)


def unpack(
    archive: str, folder: pathlib.Path, count: int, side: int = 0
) -> dict[str, sources.Source]:
    """Makes a tar, a folder and a zip of the first images of a tar, enlarged if `side` is set."""
    source = sources.open_images(archive)
    folder.mkdir(exist_ok=True)
    paths = {
        "tar": folder / "images.tar",
        "folder": folder / "images",
        "zip": folder / "images.zip",
    }
    with (
        zipfile.ZipFile(paths["zip"], "w", zipfile.ZIP_DEFLATED) as packed,
        tarfile.open(paths["tar"], "w") as joined,
    ):
        for i in range(min(count, len(source))):
            content = enlarged(source.read(i), side) if side else source.read(i)
            path = paths["folder"] / source.ids[i]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            packed.writestr(source.ids[i], content)
            joined.add(path, source.ids[i])
    return {name: sources.open_images(str(path)) for name, path in paths.items()}


def enlarged(data: bytes, side: int) -> bytes:
    """The image as a JPEG whose shorter side has so many pixels."""
    image = sources.decode(data)
    factor = side / min(image.size)
    stream = io.BytesIO()
    size = round(image.width * factor), round(image.height * factor)
    image.resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def timed(work: Callable[[], object]) -> Timing:
    """Runs something."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Timing(time.perf_counter() - wall, time.process_time() - processor)


def parts(source: sources.Source, count: int, how: preprocess.Preprocessing) -> dict[str, float]:
    """Processor time of each part, in one thread without a loader: microseconds an image."""
    data: list[bytes] = []
    decoded: list[Any] = []
    read = timed(lambda: data.extend(source.read(i) for i in range(count)))
    decode = timed(lambda: decoded.extend(map(sources.decode, data)))
    prepare = timed(lambda: [preprocess.crop(image, how) for image in decoded])
    steps = {"read": read, "decode": decode, "prepare": prepare}
    return {name: 1e6 * spent.processor / count for name, spent in steps.items()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times all sources and numbers of threads in turns."""
    how = rule(options.size)
    timings: dict[tuple[str, int], list[Timing]] = {}
    costs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        opened = unpack(options.archive, pathlib.Path(folder), options.images, options.side)
        count = min(options.images, len(opened["tar"]))
        index = timed(lambda: sources.open_images(opened["tar"].name)).wall
        for i in range(options.repeats + 1):
            print(f"timing, {i} of {options.repeats}", file=sys.stderr)
            for name, source in opened.items():
                for threads in options.threads:
                    work = functools.partial(run, source, count, how, options.batch, threads)
                    spent = timed(work)
                    # The first round warms up what is imported and cached.
                    if i:
                        timings.setdefault((name, threads), []).append(spent)
                costs.setdefault(name, []).append(parts(source, count, how))
    return {
        "images": count,
        "side": options.side,
        "size": options.size,
        "batch": options.batch,
        "cores": len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)),
        "repeats": options.repeats,
        "index_seconds_per_image": index / len(opened["tar"]),
        "timings": [
            {"source": name, "threads": threads, "spent": [spent._asdict() for spent in several]}
            for (name, threads), several in timings.items()
        ],
        "microseconds": {name: median(several) for name, several in costs.items()},
    }


def run(
    source: sources.Source, count: int, how: preprocess.Preprocessing, batch: int, threads: int
) -> None:
    """Goes through the images once."""
    found = loader.batches(
        source,
        range(count),
        lambda image: preprocess.crop(image, how),
        size=how.crop,
        batch=batch,
        threads=threads,
    )
    broken = [row for item in found for row in item.broken]
    if broken:
        raise UserError(f"{source.name}: image {source.ids[broken[0][0]]} is broken")


def median(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each value."""
    return {name: float(np.median([values[name] for values in several])) for name in several[0]}


def report(found: Mapping[str, Any]) -> str:
    """The tables."""
    count = found["images"]
    rows = []
    for timing in found["timings"]:
        spent = median(timing["spent"])
        walls = [each["wall"] for each in timing["spent"]]
        rows.append(
            [
                timing["source"],
                str(timing["threads"]),
                f"{count / spent['wall']:.0f}",
                f"{count / max(walls):.0f} to {count / min(walls):.0f}",
                f"{count / spent['processor']:.0f}",
            ]
        )
    head = ["source", "threads", "images/s", "range", "images/s of processor time"]
    costs = [
        [name, *(f"{cost[part]:.0f}" for part in ("read", "decode", "prepare"))]
        for name, cost in found["microseconds"].items()
    ]
    parts_head = ["source", "read, us", "decode, us", "prepare, us"]
    return (
        f"{count} images, crops of {found['size']} px, batches of {found['batch']}; "
        f"{found['cores']} CPU cores; median of {found['repeats']}; the tar's index took "
        f"{1e6 * found['index_seconds_per_image']:.0f} us an image\n\n"
        f"{figures.table(head, rows)}\n\n{figures.table(parts_head, costs)}"
    )


def main(arguments: Sequence[str]) -> None:
    """Times, prints and writes."""
    options = parse_arguments(arguments)
    found = measure(options)
    figures.write_json(options.out, found)
    print(report(found))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
