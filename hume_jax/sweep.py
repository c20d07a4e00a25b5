r"""Runs the settings that a config file's `sweep()` lists, each as `python -m hume_jax.main`.

    python -m hume_jax.sweep --config=mine.py --out=runs/mine
    python -m hume_jax.sweep --config=mine.py --out=runs/mine --jobs=4 --config.n_tasks=8
    python -m hume_jax.sweep --config=mine.py --out=runs/mine --launch=slurm --jobs=8 \
        --sbatch="--partition=gpu --gres=gpu:1 --time=2:00:00"
    python -m hume_jax.sweep --config=mine.py --out=runs/mine --launch=print

A config file that other commands take too, with one more function:

    from hume_jax import config

    def sweep():
        return config.product({"search.steps": (80, 320), "seed": range(3)})

`sweep()` returns a list of settings, each a mapping of config fields to values (`config.product`
makes a grid, here of six); the key `variant` is what stands after the colon of `--config`. Settings
that differ in `seed` alone are one run, which searches all of their seeds in one batched program.
What a setting says itself goes before the fields of the command line, which are for all of them.

* `--launch=local` runs `--jobs` of them at a time, each on its share of the cores.
* `--launch=slurm` writes OUT/sweep.sbatch, a job array, and hands it to `sbatch`; given again, it
  hands over all that is not finished, so wait for the array first.
* `--launch=print` prints the commands, one a line.
* `--launch=table` starts nothing: the table of what is there, as while an array of SLURM runs.

Started again, finished runs are kept, interrupted ones go on and failed ones are tried again. What
is finished stands in OUT/table.md, OUT/table.csv and the picture OUT/table.png, a line a setting; a
run that fails is listed with the last line of its OUT/NAME.log, and the others go on. Sweeps may
share OUT: a setting that is in several of them runs once, and `--table=NAME` keeps their tables
apart.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from absl import flags, logging

from hume_jax import command_help, command_line
from hume_jax import config as config_lib
from hume_jax.errors import UserError
from hume_jax.evaluation import metrics
from hume_jax.files import atomic_write, make_folder, read_json
from hume_jax.progress import count, duration
from hume_jax.report import results
from hume_jax.report.tables import spread, write_table

# Longest name of a run's folder.
_NAME = 100
_POLL_SECONDS = 0.2
_SCRIPT = """#!/bin/bash
#SBATCH --job-name="{name}"
#SBATCH --array=0-{last}%{jobs}
#SBATCH --output="{out}/slurm-%A_%a.log"
{options}cd {folder} || exit 1
case $SLURM_ARRAY_TASK_ID in
{cases}esac
"""


class Job(NamedTuple):
    """All seeds of one setting: one run."""

    name: str  # of its folder
    setting: dict[str, Any]  # fields and values, without the seed
    seeds: tuple[int, ...]
    command: tuple[str, ...]
    workdir: pathlib.Path
    config_hash: str = ""  # of its config; '' takes what is there

    @property
    def results(self) -> list[pathlib.Path]:
        """Where the results of each seed are, or will be."""
        if len(self.seeds) == 1:
            return [self.workdir / "results.json"]
        return [self.workdir / f"seed_{seed}" / "results.json" for seed in self.seeds]

    @property
    def finished(self) -> bool:
        """Whether it is done, with these settings: defaults may have changed since."""
        if not all(path.exists() for path in self.results):
            return False
        stored = read_json(self.workdir / "results.json").get("config_hash", "")
        return self.config_hash in ("", stored)

    @property
    def log(self) -> pathlib.Path:
        """What it says while it runs."""
        return self.workdir.with_name(f"{self.workdir.name}.log")


class _Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", required=True, help="File that defines sweep(), FILE.py or FILE.py:variant."
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="Folder of the runs.")
    parser.add_argument("--table", default="table", help="Name of the table and the picture.")
    launches = ("local", "slurm", "print", "table")
    parser.add_argument(
        "--launch", choices=launches, default="local", help="Where the runs start, if at all."
    )
    parser.add_argument("--jobs", type=int, default=1, help="Runs at a time.")
    parser.add_argument("--sbatch", default="", help="Options of sbatch, as one text.")
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line.

    Args:
      arguments: without the name of the program.

    Returns:
      The flags, and `fields`: those of the config, `--config.FIELD=VALUE` each.

    Raises:
      UserError: a flag that there is not, or a value that will not do.
    """
    own, fields = _split(arguments)
    options = _parser().parse_args(own)
    options.fields = fields
    if options.jobs < 1:
        raise UserError(f"--jobs={options.jobs}: it must be at least 1")
    if not re.fullmatch(r"[\w+-]+", options.table):
        raise UserError(f"--table={options.table}: a name of letters, digits, _, + and -")
    return options


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts the flags of the sweep from the fields of the config."""
    own: list[str] = []
    fields: list[str] = []
    waiting = [argument for argument in arguments if argument != "--"]
    while waiting:
        argument = waiting.pop(0)
        if not re.match(r"--?(no)?config\.", argument):
            own.append(argument)
            continue
        # As other commands take it: the value may be the next argument.
        if "=" not in argument and waiting and not waiting[0].startswith("-"):
            argument += f"={waiting.pop(0)}"
        fields.append(f"-{argument}" if argument[1] != "-" else argument)
    return own, fields


def jobs(options: argparse.Namespace) -> list[Job]:
    """The runs of a sweep, every one of their configs checked.

    Raises:
      UserError: no `sweep()`, a setting twice, or a field or value that will not do.
    """
    for field in options.fields:
        if field.partition("=")[0] in ("--config.seed", "--config.seeds"):
            raise UserError(f"{field}: the seeds of a sweep are those that its settings list")
    grouped: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for setting in config_lib.load_sweep(options.config):
        rest = {name: value for name, value in setting.items() if name != "seed"}
        name = _name(rest)
        seeds = grouped.setdefault(name, (rest, []))[1]
        seed = setting.get("seed", 0)
        if seed in seeds:
            raise UserError(f"{options.config}: sweep() lists {name} twice with seed {seed}")
        seeds.append(seed)
    return [_job(options, name, rest, seeds) for name, (rest, seeds) in grouped.items()]


def _job(
    options: argparse.Namespace, name: str, setting: Mapping[str, Any], seeds: Sequence[int]
) -> Job:
    file, colon, variant = options.config.partition(":")
    variants = [v for v in (variant, setting.get("variant", "")) if v]
    spec = f"{file}:{','.join(variants)}" if variants else file + colon
    # A setting goes before what is asked for all of them.
    own = [f"--config.{k}={_text(v)}" for k, v in setting.items() if k != "variant"]
    fields = [*options.fields, *own]
    fields.append(f"--config.seed={seeds[0]}" if len(seeds) == 1 else f"--config.seeds={(*seeds,)}")
    try:
        config = config_lib.load_resolved(spec, fields)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    workdir = options.out.resolve() / name
    command = (sys.executable, "-m", "hume_jax.main", f"--config={spec}", *fields)
    command = (*command, f"--workdir={workdir}")
    return Job(name, dict(setting), tuple(seeds), command, workdir, config_lib.config_hash(config))


def _text(value: Any) -> str:
    """A value as flags take it."""
    return value if isinstance(value, str) else repr(value)


def _name(setting: Mapping[str, Any]) -> str:
    """A folder's name for a setting: short, readable, and no other's."""
    text = ",".join(f"{name}={_text(value)}" for name, value in setting.items()) or "base"
    name = re.sub(r"[^\w.=,+-]+", "_", text)
    if name == text and len(name) <= _NAME:
        return name
    return f"{name[: _NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_locally(waiting: Sequence[Job], at_a_time: int) -> None:
    """Runs jobs, some at a time, each on its share of the cores; failures do not stop the others.

    Args:
      waiting: the jobs.
      at_a_time: how many run side by side.
    """
    shares = [set(part.tolist()) for part in np.array_split(_cores(), at_a_time) if len(part)]
    # More runs than cores: they share.
    free = list(itertools.islice(itertools.cycle(shares), at_a_time))
    running: dict[subprocess.Popen[bytes], tuple[Job, set[int]]] = {}
    queue, began, done = list(waiting), time.monotonic(), 0
    with _stopping(running):
        while queue or running:
            while queue and free:
                job, cores = queue.pop(0), free.pop(0)
                print(f"{job.name}: started", file=sys.stderr)
                running[_start(job, cores)] = job, cores
            for process in [process for process in running if process.poll() is not None]:
                job, cores = running.pop(process)
                free.append(cores)
                done += 1
                status = "done" if process.returncode == 0 else f"FAILED, {_last_line(job)}"
                left = (time.monotonic() - began) / done * (len(waiting) - done)
                print(
                    f"{job.name}: {status} ({done} of {len(waiting)}, about {duration(left)} left)",
                    file=sys.stderr,
                )
            time.sleep(_POLL_SECONDS)


def _cores() -> list[int]:
    """The cores that this process may use; of systems that do not tell, none."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def _start(job: Job, cores: set[int]) -> subprocess.Popen[bytes]:
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    own = _cores()
    bound = hasattr(os, "sched_setaffinity")
    # A process begins on the cores of the one that starts it, and counts them for its threads.
    if bound:
        os.sched_setaffinity(0, cores)
    try:
        with job.log.open("ab") as log:
            return subprocess.Popen(job.command, stdout=log, stderr=log)
    finally:
        if bound:
            os.sched_setaffinity(0, own)


@contextlib.contextmanager
def _stopping(running: Mapping[subprocess.Popen[bytes], Any]) -> Iterator[None]:
    """Ends what still runs when this does, by SIGTERM too."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _last_line(job: Job) -> str:
    """What a run said last: of one that failed, the error."""
    if not job.log.exists():
        return "it was not started"
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def submit(waiting: Sequence[Job], options: argparse.Namespace) -> None:
    """Writes a SLURM job array and hands it over.

    Raises:
      UserError: there is no sbatch here, or it refuses.
    """
    out = options.out.resolve()
    script = out / "sweep.sbatch"
    lines = [f"{shlex.join(job.command)} >> {shlex.quote(str(job.log))} 2>&1" for job in waiting]
    text = _SCRIPT.format(
        name=out.name,
        last=len(waiting) - 1,
        jobs=options.jobs,
        out=out,
        options="".join(f"#SBATCH {shlex.quote(word)}\n" for word in shlex.split(options.sbatch)),
        folder=shlex.quote(str(pathlib.Path.cwd())),
        # In the script itself, which sbatch copies: a later one changes no array that waits.
        cases="".join(f"{number}) {line} ;;\n" for number, line in enumerate(lines)),
    )
    with atomic_write(script) as file:
        file.write(text.encode())
    if shutil.which("sbatch") is None:
        raise UserError(f"there is no sbatch here; {script} is ready for a machine that has it")
    if subprocess.run(["sbatch", str(script)]).returncode:
        raise UserError(f"sbatch did not take {script}, see above")


def collect(finished: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """The table of all finished runs: a head, and a line a setting.

    A grid has a column a field; settings of different fields stand in one column, as text.
    """
    fields = list(dict.fromkeys(name for job in finished for name in job.setting))
    grid = all(set(job.setting) == set(fields) for job in finished)
    rows = [(job, [read_json(path) for path in job.results]) for job in finished]
    splits = [
        s for s in ("all", "train", "test") if any(s in r["ensemble"] for _, f in rows for r in f)
    ]
    head = fields if grid else ["setting"]
    head = [*head, "seeds", "best objective", "mean agreement", "agreement of the votes"]
    head += [f"{split} {score}" for split in splits for score in ("ACC", "ARI", "NMI")]
    head += ["single tasks, ACC", "search, s"]
    lines = []
    for job, found in rows:
        first = [_text(job.setting[name]) for name in fields] if grid else [_in_words(job.setting)]
        lines.append([*first, *_line(job, found, splits)])
    return head, lines


def _in_words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in setting.items()) or "as configured"


def _line(job: Job, found: Sequence[dict[str, Any]], splits: Sequence[str]) -> list[str]:
    tasks = [each["tasks"] for each in found]
    line = [str(len(found))]
    line.append(spread([min(t["objective"] for t in each) for each in tasks], 4))
    line.append(spread([_mean(t["agreement"] for t in each) for each in tasks], 4))
    line.append(_agreement_of_votes([path.with_name("labels.csv") for path in job.results]))
    for split in splits:
        for score in ("acc", "ari", "nmi"):
            line.append(spread([f["ensemble"].get(split, {}).get(score, np.nan) for f in found]))
    # Nothing, and no mean of it, where no label was given.
    single = [_mean(t[s]["acc"] for t in each if s in t) for s in splits[:1] for each in tasks]
    line.append(spread(single))
    # A run that was stopped and went on knows the time of its last process alone.
    took = [each["seconds"] for each in found]
    known = [seconds["search"] for seconds in took if "resumed" not in seconds]
    line.append(spread(known, 1))
    return line


def picture(finished: Sequence[Job]) -> tuple[list[tuple[str, list[float], float]], str]:
    """A line a setting for `plots.draw_methods`, a dot a seed, and what the axis says.

    ACC of the votes where labels were given, of rows that no search saw if there are any; the mean
    agreement of the tasks without labels.
    """
    found = [[read_json(path) for path in job.results] for job in finished]
    every = [each for files in found for each in files]
    shown = [s for s in ("test", "train", "all") if all(s in each["ensemble"] for each in every)]

    def value(each: dict[str, Any]) -> float:
        if shown:
            return float(each["ensemble"][shown[0]]["acc"])
        return _mean(task["agreement"] for task in each["tasks"])

    lines = []
    for job, files in zip(finished, found, strict=True):
        values = [value(each) for each in files]
        lines.append((_in_words(job.setting), values, float(np.mean(values))))
    return lines, f"ACC of the vote, {shown[0]} rows" if shown else "mean agreement of the tasks"


def _agreement_of_votes(files: Sequence[pathlib.Path]) -> str:
    """How far the votes of each pair of seeds are the same labelling, on train rows."""
    if len(files) < 2:
        return "-"
    votes = [results.read_labels(path, "train") for path in files]
    return spread(
        [metrics.clustering_accuracy(a, b) for a, b in itertools.combinations(votes, 2)], 4
    )


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values) or [np.nan]))


def report(all_jobs: Sequence[Job], out: pathlib.Path, name: str = "table") -> str:
    """Writes the table of what is finished, and lists what is not."""
    finished = [job for job in all_jobs if job.finished]
    text = ""
    if finished:
        text = write_table(out, *collect(finished), name=name)
        from hume_jax.report.plots import draw_methods  # with matplotlib, which takes its time

        draw_methods(out / f"{name}.png", *picture(finished))
    missing = [f"* {job.name}: {_last_line(job)}" for job in all_jobs if not job.finished]
    if missing:
        text += f"\n\nnot finished, {len(missing)} of {count(len(all_jobs), 'run')}:\n"
        text += "\n".join(missing)
    return text.strip()


def main(arguments: Sequence[str]) -> int:
    """Runs what is not finished, then prints the table.

    Returns:
      The exit status: 1 where a run failed.
    """
    options = parse_arguments(arguments)
    all_jobs = jobs(options)
    waiting = [job for job in all_jobs if not job.finished]
    if options.launch == "print":
        print("\n".join(shlex.join(job.command) for job in waiting))
        return 0
    make_folder(options.out)
    if options.launch == "slurm" and waiting:
        submit(waiting, options)
    elif options.launch == "local":
        run_locally(waiting, options.jobs)
    print(report(all_jobs, options.out, options.table))
    return int(options.launch == "local" and not all(job.finished for job in all_jobs))


def run() -> None:
    """`python -m hume_jax.sweep`."""
    if command_line.helped(sys.modules[__name__], lambda: command_help.of_parser(_parser())):
        return
    # The log of what it draws with waits for absl's flags, of which it has none of its own.
    flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    sys.exit(command_line.guarded(main)(sys.argv[1:]))


if __name__ == "__main__":
    run()
