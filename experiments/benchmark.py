r"""How fast the search is, beside the plain matrix products that it is made of.

    python experiments/benchmark.py steps --out=runs/benchmark/steps
    python experiments/benchmark.py steps --rows 5000 10000 --tasks 32 --out=runs/benchmark/steps
    python experiments/benchmark.py cost --out=runs/benchmark/cost
    python experiments/benchmark.py memory --out=runs/benchmark/memory
    python experiments/benchmark.py sparsemax --out=runs/benchmark/sparsemax
    python experiments/benchmark.py scaling --out=runs/benchmark/scaling
    python experiments/benchmark.py authors --hume=CHECKOUT \
        --torch-python=PATH --out=runs/benchmark/authors
    python experiments/benchmark.py quality --hume=CHECKOUT \
        --torch-python=PATH --out=runs/benchmark/quality
    python experiments/benchmark.py turtle --turtle=CHECKOUT \
        --torch-python=PATH --out=runs/benchmark/turtle

`steps`: seconds of an outer step and of a step and task, the rate of the operations that it needs
(`hume_jax.work.step_flops`, whatever is executed) beside that of the plain products of the inner
fit, compiled alone and timed in turns with it; bytes those products move; seconds of compilation;
peak memory. A row for each of the grid's sizes of subset, columns of phi2, classes and tasks.

`cost`: whether the time of a step grows as its work does: along the rows of a subset, the columns
of phi2 and the classes, one at a time, with the least-squares line through each, and a picture; the
directions of phi2 (an eigendecomposition), found once a run, apart.

`memory`: bytes that searches are planned to take, beside those that XLA lays their programs out
for; nothing is run.

`sparsemax`: labels of made logits, by Newton's method as here and by a sort, in turns.

`scaling`: times faster than one device, of processes held to a core each, and of devices of one
process (virtual ones of a CPU), with the tasks shared, with the rows shared, and with as many tasks
each as one had. All of it takes turns in one run, and with plain products in all processes at once,
which exchange nothing: what the machine itself gives.

`authors`: seconds of an outer step for a task, from the authors' released HUME (one task, 20
subsets of 300 inner steps) over our paper preset, alone and in a batch, to the fast preset; on a
config's arrays, one core. `quality`: a problem so small that the released code can finish, its
labels and ours by one outside judge, the cross-validated log loss of scikit-learn's logistic
regression on phi2; entropy, ACC. `turtle`: seconds until the test ACC is within 0.005 of that which
the authors' TURTLE ends at; a picture. CHECKOUT is a clone of github.com/mlbio-epfl/hume or
/turtle, PATH a Python with PyTorch, NumPy, SciPy, scikit-learn and tqdm. Arrays are written once,
phi1 centred and of unit norm, phi2 centred and scaled, and both sides read those files.

`steps`, `cost` and `scaling` run on made data, all directions kept, by the numbers of inner and
adjoint steps that the default preset comes down to on real features; fields behind a lone -- change
that, such as --config.preset=paper. Each case is a process of its own, held to `--threads` cores.
Cases that OUT holds are not run anew. Times are medians of blocks; what else runs on the machine
falls on step and product alike.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import benchmark_authors
import benchmark_memory
import benchmark_runs
import benchmark_scaling
import benchmark_sparsemax
import figures
import numpy as np

from hume_jax import work
from hume_jax.errors import UserError

CASE = pathlib.Path(__file__).with_name("benchmark_case.py")
# What the default preset comes down to, all directions kept.
FIELDS = (
    "--config.inner.tolerance=0",
    f"--config.inner.steps={work.USUAL_STEPS}",
    f"--config.inner.adjoint_steps={work.USUAL_ADJOINT_STEPS}",
    "--config.inner.variance_floor=0",
)
# Along each axis the others stay at these.
MIDDLE = {"rows": 4000, "columns": 768, "n_classes": 10, "tasks": 16}
AXES: dict[str, tuple[int, ...]] = {
    "rows": (2000, 4000, 6000, 8000, 10000),
    "columns": (256, 512, 768, 1024, 1280),
    "n_classes": (10, 50, 100, 250, 500, 750, 1000),
}
# Fewest columns of the encoder's output, tasks times classes, for which the line is asked to hold.
_ENOUGH = 128


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    steps = commands.add_parser("steps", help="time of a step beside plain products")
    steps.add_argument("--rows", type=int, nargs="+", default=[5000, 10000], help="of a subset")
    steps.add_argument("--columns", type=int, nargs="+", default=[1280], help="of phi2")
    steps.add_argument("--classes", type=int, nargs="+", default=[10])
    steps.add_argument("--tasks", type=int, nargs="+", default=[32])
    cost = commands.add_parser("cost", help="how the time of a step grows")
    memory = commands.add_parser("memory", help="as planned with, and as compiled")
    memory.add_argument("--cases", nargs="+", default=list(benchmark_memory.CASES), metavar="NAME")
    memory.add_argument("--out", type=pathlib.Path, required=True, help="folder")
    authors = commands.add_parser("authors", help="an outer step beside the authors' HUME")
    benchmark_authors.add_options(authors, "hume")
    authors.add_argument("--iterations", type=int, default=2, help="outer steps of their code")
    authors.add_argument("--paper-tasks", type=int, default=8, help="in a batch, paper preset")
    authors.add_argument("--paper-steps", type=int, default=3, help="that are timed of it")
    authors.add_argument("--fast-tasks", type=int, default=32, help="in a batch, fast preset")
    quality = commands.add_parser("quality", help="labels beside the authors' HUME, one judge")
    benchmark_authors.add_options(quality, "hume")
    quality.add_argument("--rows", type=int, default=benchmark_authors.REDUCED_ROWS)
    quality.add_argument("--seeds", type=int, default=3)
    quality.add_argument("--tasks", type=int, default=16, help="that vote")
    turtle = commands.add_parser("turtle", help="time to the ACC of the authors' TURTLE")
    benchmark_authors.add_options(turtle, "turtle")
    turtle.add_argument("--iterations", type=int, default=6000, help="of their code")
    turtle.add_argument("--tasks", type=int, nargs="+", default=[1, 5], help="of ours")
    turtle.add_argument("--seed", type=int, default=0)
    for each, threads in ((authors, 1), (quality, 1), (turtle, 0)):
        default = "configs/quickstart.py" if each is quality else figures.IMAGENETTE
        figures.add_config(each, default)
        each.add_argument("--threads", type=int, default=threads, help="cores, 0: all")
    sparsemax = commands.add_parser("sparsemax", help="beside a sort")
    sparsemax.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    sparsemax.add_argument("--rows", type=int, default=20000)
    sparsemax.add_argument("--repeats", type=int, default=7)
    sparsemax.add_argument("--out", type=pathlib.Path, required=True, help="folder")
    scaling = commands.add_parser("scaling", help="over processes of a core each, and devices")
    scaling.add_argument("--processes", type=int, nargs="+", default=[2])
    scaling.add_argument("--devices", type=int, nargs="+", default=[2, 4], help="of one process")
    scaling.add_argument("--rows", type=int, default=5000, help="of a subset")
    scaling.add_argument("--columns", type=int, default=1280, help="of phi2")
    scaling.add_argument("--classes", type=int, default=10)
    scaling.add_argument("--tasks", type=int, default=16)
    for each in (steps, cost, scaling):
        each.add_argument("--phi1", type=int, default=1280, help="columns of phi1")
        each.add_argument("--block", type=int, default=3, help="outer steps of a compiled call")
        each.add_argument(
            "--repeats",
            type=int,
            default=7,
            help="timed blocks of each case; three of those that take minutes",
        )
        each.add_argument("--threads", type=int, default=0, help="cores of a case, 0: all")
        each.add_argument("--out", type=pathlib.Path, required=True, help="folder")
        each.add_argument("fields", nargs="*", metavar="-- --config.FIELD=VALUE")
    return parser.parse_args(arguments)


def run_case(case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What `benchmark_case.measure` returns, from OUT or else from a process of its own."""
    return benchmark_runs.run(CASE, case, options.out, options.threads)


def case_of(sizes: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """A case of given sizes, as `benchmark_case.Case` has it."""
    return {
        "rows": sizes["rows"],
        "columns": [options.phi1, sizes["columns"]],
        "n_classes": sizes["n_classes"],
        "tasks": sizes["tasks"],
        "fields": [*FIELDS, *options.fields],
        "block": options.block,
        "repeats": options.repeats,
    }


# ---- steps


def grid(options: argparse.Namespace) -> Iterator[dict[str, int]]:
    """The sizes that `steps` times."""
    every = itertools.product(options.rows, options.columns, options.classes, options.tasks)
    for sizes in every:
        yield dict(zip(MIDDLE, sizes, strict=True))


def shares(found: dict[str, Any]) -> np.ndarray:
    """The step's rate as a share of the products' that took turns with it, of each block."""
    rates = found["step_flops"] / np.asarray(found["step_seconds"])
    return rates / np.asarray(found["product_flops"])


def steps_rows(
    cases: Sequence[tuple[dict[str, int], dict[str, Any]]],
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table, a row for each case."""
    head = ["rows", "columns", "classes", "tasks", "step, s", "step and task, s", "inner products"]
    head += ["GFLOP/s", "of plain products", "GB a step", "compile, s", "planned, GiB", "peak, GiB"]
    rows = []
    for sizes, found in cases:
        step = float(np.median(found["step_seconds"]))
        low, median, high = np.percentile(shares(found), [0, 50, 100])
        rows.append(
            [
                *(str(sizes[name]) for name in MIDDLE),
                f"{step:.4g}",
                f"{step / sizes['tasks']:.4g}",
                str(found["inner_products"]),
                f"{found['step_flops'] / step / 1e9:.1f}",
                f"{median:.3f} ({low:.3f} to {high:.3f})",
                f"{found['step_bytes'] / 1e9:.2f}",
                f"{found['compile_seconds']:.1f}",
                f"{found['planned_bytes'] / 2**30:.2f}",
                f"{found['peak_bytes'] / 2**30:.2f}",
            ]
        )
    return head, rows


def steps(options: argparse.Namespace) -> str:
    """Times the grid."""
    cases = [(sizes, run_case(case_of(sizes, options), options)) for sizes in grid(options)]
    table = figures.write_table(options.out, *steps_rows(cases), name="steps")
    return (
        f"{cases[0][1]['device']}, medians (extremes) of up to {options.repeats} blocks\n\n{table}"
    )


# ---- cost


def line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares line with an intercept: its values, and how far off the points are.

    Points count by their relative distance, or the largest would decide alone.
    """
    x, y = np.asarray(sizes, float), np.asarray(seconds)
    design = np.stack([np.ones_like(x), x], axis=1)
    fit, *_ = np.linalg.lstsq(design / y[:, None], np.ones_like(y), rcond=None)
    values = design @ fit
    return values, y / values - 1


def cost(options: argparse.Namespace) -> str:
    """Times along each axis."""
    rows, curves, device = [], {}, ""
    for axis, sizes in AXES.items():
        seconds, once = [], []
        for size in sizes:
            found = run_case(case_of({**MIDDLE, axis: size}, options), options)
            seconds.append(float(np.median(found["step_seconds"])))
            once.append(found["directions_seconds"])
            device = found["device"]
        values, off = line(sizes, seconds)
        curves[axis] = (sizes, seconds, values)
        for size, directions, *step, away in zip(sizes, once, seconds, values, off, strict=True):
            times = [f"{value:.4g}" for value in (directions, *step)]
            rows.append([axis, str(size), *times, f"{away:+.1%}"])
    draw(options.out / "cost.png", curves)
    head = ["along", "size", "directions, once, s", "step, s", "line", "off"]
    table = figures.write_table(options.out, head, rows, name="cost")
    middle = ", ".join(f"{value} {name}" for name, value in MIDDLE.items())
    return f"{device}; {middle} but for the axis\n\n{table}"


def draw(path: pathlib.Path, curves: dict[str, tuple]) -> None:
    """A panel for each axis: the times and the line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    panels = figure.subplots(1, len(curves))
    for panel, (axis, (sizes, seconds, values)) in zip(panels, curves.items(), strict=True):
        panel.plot(sizes, values, color="#d1611c", label="least-squares line")
        panel.plot(sizes, seconds, "o", color="#2f6690", label="median of blocks")
        panel.spines[["top", "right"]].set_visible(False)
        panel.set(xlabel=axis.replace("n_", ""), ylim=(0, None), xlim=(0, None))
    panels[0].set_ylabel("seconds of a step")
    panels[0].legend(frameon=False)
    figures.write_png(path, figure)


# ---- scaling


def scaling(options: argparse.Namespace) -> str:
    """Times processes and devices together."""
    names = ("rows", "columns", "classes", "tasks")
    sizes = dict(zip(MIDDLE, (getattr(options, name) for name in names), strict=True))
    head, rows = benchmark_scaling.run(case_of(sizes, options), options)
    table = figures.write_table(options.out, head, rows, name="scaling")
    return f"{figures.device()}; times faster than one, medians (extremes)\n\n{table}"


# ---- memory


def memory(options: argparse.Namespace) -> str:
    """Compiles the cases."""
    unknown = [name for name in options.cases if name not in benchmark_memory.CASES]
    if unknown:
        raise UserError(
            f"--cases: there is no {unknown[0]!r}, there are {', '.join(benchmark_memory.CASES)}"
        )
    rows = benchmark_memory.rows_of(options.cases)
    table = figures.write_table(options.out, *rows, name="memory")
    return f"{figures.device()}\n\n{table}"


# ---- beside the authors' code


def beside(options: argparse.Namespace) -> str:
    """Times our search and theirs, one after the other, on as many cores."""
    command = getattr(benchmark_authors, options.command)
    head, rows = command(options)
    table = figures.write_table(options.out, head, rows, name=options.command)
    threads = options.threads or figures.cores()
    return f"{threads} CPU core{'s' if threads > 1 else ''}\n\n{table}"


def sparsemax(options: argparse.Namespace) -> str:
    """Times both ways."""
    head, rows = benchmark_sparsemax.run(options.classes, options.rows, options.repeats)
    table = figures.write_table(options.out, head, rows, name="sparsemax")
    return f"{figures.device()}, medians of {options.repeats}\n\n{table}"


def main(arguments: Sequence[str]) -> None:
    """Runs a command."""
    options = parse_arguments(arguments)
    figures.check_repeats(getattr(options, "repeats", 1))
    figures.make_folder(options.out)
    commands = {"steps": steps, "cost": cost, "memory": memory, "scaling": scaling}
    commands |= {"sparsemax": sparsemax}
    commands |= dict.fromkeys(("authors", "quality", "turtle"), beside)
    print(commands[options.command](options))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
