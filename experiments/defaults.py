"""How the preset `fast` was chosen: settings side by side, by scores without labels.

    python experiments/defaults.py --out=runs/defaults
    python experiments/defaults.py --config=experiments/datasets/imagenette.py \
        --variants default "T 0.1" "T 0.4" "rate 0.1" --out=runs/defaults_imagenette

One factor at a time from the default, each a run of `python -m hume_jax.main`. The choice goes by
the mean agreement of the tasks and the objective of the best one (on hard labels, so that settings
compare); accuracies stand beside them for the reader and were not looked at for the choice. A run
that is finished in `OUT/NAME/` is taken from there.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import figures
import numpy as np

VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "T 0.1": ("--config.encoder.temperature=0.1",),
    "T 0.4": ("--config.encoder.temperature=0.4",),
    "T kept": ("--config.search.anneal_temperature=1.0",),
    "T / 10 at each anneal": ("--config.search.anneal_temperature=0.1",),
    "train fraction 0.9": ("--config.search.train_fraction=0.9",),
    "rate 0.01": ("--config.search.learning_rate=0.01",),
    "rate 0.1": ("--config.search.learning_rate=0.1",),
    "eta 3": ("--config.search.entropy_weight=3.0",),
    "lambda 1e-3": ("--config.inner.penalty=1e-3",),
    "first-order adjoint": ("--config.inner.adjoint=first_order",),
    "Nesterov 15": ("--config.inner.solver=nesterov", "--config.inner.steps=15"),
}


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One run's figures."""
    workdir = options.out / name.replace(" ", "_").replace("/", "by")
    if not (workdir / "results.json").exists():
        command = [sys.executable, "-m", "hume_jax.main", f"--config={options.config}"]
        flags = ("--noconfig.baselines", "--noconfig.plots", *VARIANTS[name], *options.fields)
        print(name, file=sys.stderr)
        subprocess.run(
            [*command, *flags, f"--workdir={workdir}"], check=True, stdout=subprocess.DEVNULL
        )
    found = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    tasks = found["tasks"]
    return {
        "agreement": float(np.mean([task["agreement"] for task in tasks])),
        "objective": min(task["objective"] for task in tasks),
        "single": float(np.mean([task["train"]["acc"] for task in tasks])),
        "train": found["ensemble"]["train"]["acc"],
        "test": found["ensemble"]["test"]["acc"],
        "seconds": found["seconds"]["search"],
    }


def main(arguments: Sequence[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, "configs/quickstart.py")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
        help=f"of {', '.join(VARIANTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs")
    options = parser.parse_args(arguments)
    head = ["setting", "mean agreement", "best objective", "single tasks, train ACC"]
    head += ["ensemble, train ACC", "test ACC", "search, s"]
    rows = []
    for name in options.variants:
        entry = run(name, options)
        stored = options.out / "figures.json"
        figures.write_json(stored, {**figures.read_json(stored), name: entry})
        digits = [f"{entry[key]:.4f}" for key in ("agreement", "objective")]
        digits += [f"{entry[key]:.3f}" for key in ("single", "train", "test")]
        rows.append([name, *digits, f"{entry['seconds']:.0f}"])
    print(figures.table(head, rows))


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
