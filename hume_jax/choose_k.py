r"""How many classes? Searches for several numbers of them, and recommends one if the rows do.

    python -m hume_jax.choose_k --config=configs/quickstart.py --k=2..20
    python -m hume_jax.choose_k --config=configs/arrays.py --k=2..50 \
        --config.data.train.phi1=a.npy --config.data.train.phi2=b.npy

`--k` is a range, which is looked at coarsely first and number by number around its peaks, or a list
as `5,10,20`, of which all are. No label is read. Random halves of the rows are searched separately,
and the number is recommended on which they agree most (`hume_jax.evaluation.n_classes`). Stopped at
any moment, the same command goes on with what is left; with another --k it keeps what is done.
"""

import csv
import functools
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import config_dict

from hume_jax import command_line, config_checks
from hume_jax import config as config_lib
from hume_jax.errors import UserError
from hume_jax.evaluation import n_classes as criteria
from hume_jax.evaluation.n_classes import Measured, Recommendation
from hume_jax.processes import ALONE, Processes, leave
from hume_jax.progress import Progress
from hume_jax.representations import store
from hume_jax.workdir import Workdir, placed

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# Up to this many numbers of a range are all looked at.
_ALL = 8
# Rows of a half that there should be for each class.
_ROWS_EACH = 4


class Numbers(NamedTuple):
    """Numbers of classes to look at."""

    first: tuple[int, ...]  # to begin with, ascending
    refined: bool  # whether others between them may follow

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest."""
        return self.first[0], self.first[-1]


class Sizes(NamedTuple):
    """How much is searched for each number of classes."""

    tasks: int = 4  # of each half
    pairs: int = 2  # of halves
    rows: int = 20_000  # at most


def parse_numbers(text: str) -> Numbers:
    """Reads `2..50` or `2,3,5`.

    Raises:
      UserError: it is neither, or holds a number below 2.
    """
    if match := _RANGE.fullmatch(text.strip()):
        first, last = int(match[1]), int(match[2])
        if not 2 <= first <= last:
            raise UserError(f"--k={text}: a range runs upwards from 2 or more, --k=2..50")
        if last - first < _ALL:
            return Numbers(tuple(range(first, last + 1)), False)
        return Numbers(tuple(criteria.grid(first, last)), True)
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise UserError(f"--k={text}: give a range, --k=2..50, or a list, --k=2,3,5") from error
    if numbers[0] < 2:
        raise UserError(f"--k={text}: there must be at least 2 classes")
    return Numbers(tuple(numbers), False)


def recommend(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    processes: Processes = ALONE,
    *,
    numbers: Numbers | None = None,
    sizes: Sizes | None = None,
    files: store.Dataset | None = None,
) -> Recommendation:
    """Looks at several numbers of classes and recommends one, or says why none.

    Writes `choose_k.json`, `choose_k.csv` and `choose_k.png`. What is finished is kept, and used
    again when it is called once more for the same folder, with whatever numbers.

    Args:
      config: resolved or not; its numbers of classes and of tasks are not read, nor its labels.
      workdir: folder, of the results and of what is kept.
      processes: of the run; there must be one.
      numbers: to look at; 2..50 by default, less where rows or columns are few.
      sizes: how much is searched for each.
      files: what `config.data` names, if it is open already.

    Returns:
      The recommendation.

    Raises:
      UserError: what a user can mend, before any long work.
      Preempted: by SIGTERM.
    """
    from hume_jax import halves, parallel
    from hume_jax.preemption import ending

    sizes = sizes or Sizes()
    _check(sizes, processes)
    if not isinstance(placed(workdir), Path):
        raise UserError(f"--workdir={workdir}: choose_k writes to a local folder alone")
    parallel.check_devices()
    config = prepare(config, sizes)
    with ending():
        files = files or store.open_files(config.data)
        fingerprint = _fingerprint(files, sizes)
        numbers = _fitting(config, files, numbers, sizes)
        with Workdir(workdir, config) as folder:
            folder.check_data(fingerprint)
            dataset = halves.sample(config, files, sizes.rows)
            looker = _Looker(config, folder, halves.halve(config, dataset, sizes.pairs))
            measured = looker.look(numbers)
            against = looker.reference(criteria.choose(criteria.curve_of(measured)))
            found = criteria.recommend(measured, against, limits=numbers.limits, seed=config.seed)
            _write(folder, config, sizes, numbers, measured, against, found)
    return found


def prepare(config: config_dict.ConfigDict, sizes: Sizes) -> config_dict.ConfigDict:
    """The resolved config of the searches: without labels, K and what a run of one K needs.

    Raises:
      UserError: as `config.resolve`, or there is a class prior, which is one of some K.
    """
    config = config_dict.ConfigDict(config)
    if config.class_prior and config.class_prior != config_checks.ESTIMATE:
        raise UserError(
            "config field 'class_prior' is of one number of classes: leave it () to choose one"
        )
    with config.unlocked():
        # They may be words; sizes of classes are estimated once their number is known.
        del config.n_classes, config.class_prior
        # Any will do; that of each search takes its place.
        config.n_classes, config.n_tasks, config.seeds = 2, sizes.tasks, ()
        config.class_prior = ()
        for split in (config.data.train, config.data.test):
            split.labels = ""
    return config_lib.resolve(config)


def _check(sizes: Sizes, processes: Processes) -> None:
    for name, least in (("tasks", 2), ("pairs", 1), ("rows", 16)):
        if getattr(sizes, name) < least:
            raise UserError(f"--{name}={getattr(sizes, name)}: it must be at least {least}")
    if processes.total > 1:
        raise UserError("choose_k runs in one process: leave out --distributed")


def _fingerprint(files: store.Dataset, sizes: Sizes) -> dict[str, Any]:
    found: dict[str, Any] = dict(store.fingerprint(files))
    return {**found, **{f"--{name}": [value] for name, value in sizes._asdict().items()}}


def _fitting(
    config: config_dict.ConfigDict, files: store.Dataset, numbers: Numbers | None, sizes: Sizes
) -> Numbers:
    """Numbers that rows and columns allow.

    Raises:
      UserError: some that were asked for are too large.
    """
    searched = store.search_spaces(files, config.search.spaces)
    n = sum(split.n for split in store.search_splits(searched, config.setting))
    columns = searched.train.phi1.columns
    most = min(columns, min(n, sizes.rows) // 2 // _ROWS_EACH)
    if most < 2:
        raise UserError(f"{n} rows of {columns} columns are too few to choose a number of classes")
    if numbers is None:
        return parse_numbers(f"2..{min(50, most)}")
    if numbers.limits[1] > most:
        raise UserError(
            f"--k: {numbers.limits[1]} classes are too many: the encoders read {columns} columns, "
            f"and a half of the rows holds {min(n, sizes.rows) // 2}, of which each class should "
            f"have {_ROWS_EACH}: at most {most}"
        )
    return numbers


class _Looker:
    """Measures numbers of classes, and keeps what it measured."""

    def __init__(self, config: config_dict.ConfigDict, folder: Workdir, rows: Any) -> None:
        self._config, self._folder, self._rows = config, folder, rows
        self._measured: dict[int, Measured] = {}

    def look(self, numbers: Numbers) -> list[Measured]:
        """Measures the numbers, those around the peaks if they are to be refined, and those again.

        One pair of halves shows where the peaks are, the others how sure they are.
        """
        # The largest first: they take longest, so that what is left is not more than is said.
        self._measure(numbers.first[::-1], 1, "looking at K")
        while True:
            more = criteria.refine(self._curve(), *numbers.limits) if numbers.refined else []
            unsure = [
                k
                for k in criteria.contenders(self._curve())
                if len(self._measured[k].across) < len(self._rows.pairs)
            ]
            if more:
                self._measure(more[::-1], 1, "looking closer")
            elif unsure:
                self._measure(unsure[::-1], len(self._rows.pairs), "other halves")
            else:
                return [self._measured[k] for k in sorted(self._measured)]

    def reference(self, k: int) -> Measured:
        """Measures rows without classes."""
        from hume_jax import halves

        dataset = halves.without_classes(self._rows.dataset, self._config.seed)
        rows = halves.halve(self._config, dataset, 1)
        with self._progress([k], 1, "rows without classes") as progress:
            done = functools.partial(progress.update, _weight(k))
            place = self._folder.path / f"k_{k}_reference"
            return halves.measure(self._of(k), rows, place, done)

    def _measure(self, numbers: Sequence[int], pairs: int, label: str) -> None:
        from hume_jax import halves

        rows = self._rows._replace(pairs=self._rows.pairs[:pairs])
        with self._progress(numbers, pairs, label) as progress:
            for k in numbers:
                done = functools.partial(progress.update, _weight(k), K=str(k))
                place = self._folder.path / f"k_{k}"
                self._measured[k] = halves.measure(self._of(k), rows, place, done)
                agreement = self._measured[k].across.mean()
                logging.info("K = %d: disjoint halves agree by %.3f (ARI)", k, agreement)

    def _curve(self) -> dict[int, float]:
        return criteria.curve_of(list(self._measured.values()))

    def _progress(self, numbers: Sequence[int], pairs: int, label: str) -> Progress:
        return Progress(2 * pairs * sum(map(_weight, numbers)), label, unit="units")

    def _of(self, k: int) -> config_dict.ConfigDict:
        config = config_dict.ConfigDict(self._config)
        with config.unlocked():
            config.n_classes = k
        return config.lock()


def _weight(k: int) -> int:
    """Work of a search, roughly: a part is the same for every K, the other grows with it."""
    return 10 + k


def _write(
    folder: Workdir,
    config: config_dict.ConfigDict,
    sizes: Sizes,
    numbers: Numbers,
    measured: Sequence[Measured],
    reference: Measured,
    found: Recommendation,
) -> None:
    from hume_jax.report import plots

    *rows, against = _rows([*measured, reference], config.seed)
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([list(rows[0]), *(r.values() for r in rows)])
    folder.write_text("choose_k.csv", lines.getvalue())
    plots.draw_numbers_of_classes(folder.path / "choose_k.png", measured, reference, found)
    folder.publish()
    folder.write_json(
        "choose_k.json",
        {
            "recommendation": {**found._asdict(), "interval": found.interval},
            "limits": numbers.limits,
            "settings": {**sizes._asdict(), "seed": config.seed},
            "reference": against,
            "numbers": rows,
        },
    )


def _rows(measured: Sequence[Measured], seed: int) -> list[dict[str, float]]:
    """What is told of each number of classes."""
    errors = criteria.resampled(measured, seed).std(axis=0)
    return [_row(m, float(error)) for m, error in zip(measured, errors, strict=True)]


def _row(m: Measured, error: float) -> dict[str, float]:
    accuracy = m.cv_accuracy
    return {
        "n_classes": m.n_classes,
        "agreement_of_halves": float(m.across.mean()),
        "agreement_of_halves_se": error,
        "agreement_within_halves": float(m.within.mean()),
        "cv_accuracy": float(accuracy.mean()),
        "cv_accuracy_above_chance": float(criteria.above_chance(accuracy, m.n_classes).mean()),
        "classes_used": float(m.used.mean()),
        "smallest_class": float(m.smallest.mean()),
    }


def table(summary: dict[str, Any]) -> str:
    """The criteria as lines of text, from choose_k.json."""
    return "\n".join(_lines(summary))


def _lines(summary: dict[str, Any]) -> Iterator[str]:
    yield "   K  halves agree  within a half  CV accuracy above chance  classes used  smallest"
    for row in summary["numbers"]:
        mark = "*" if row["n_classes"] == summary["recommendation"]["value"] else " "
        yield (
            f"{mark}{row['n_classes']:>3}  {row['agreement_of_halves']:.3f} ± "
            f"{row['agreement_of_halves_se']:.3f}  {row['agreement_within_halves']:13.3f}  "
            f"{row['cv_accuracy_above_chance']:24.3f}  {row['classes_used']:12.1f}  "
            f"{row['smallest_class']:8.2f}"
        )
    reference = summary["reference"]
    yield (
        f"rows without classes, K = {reference['n_classes']}: halves agree by "
        f"{reference['agreement_of_halves']:.3f}"
    )
    looked = [row["n_classes"] for row in summary["numbers"]]
    yield f"looked at K = {', '.join(map(str, looked))}"


def main(argv: list[str]) -> None:
    """Does what the flags say."""
    del argv  # all of it is in FLAGS
    config, spec = command_line.given()
    given = flags.FLAGS
    sizes = Sizes(given.tasks, given.pairs, given.rows)
    numbers = parse_numbers(given.k) if given.k else None
    default = config_lib.default_workdir(spec, prepare(config, sizes))
    workdir = given.workdir or default.with_name(f"choose_k-{default.name}")
    with command_line.joined() as processes:
        try:
            if config_lib.has_images(config):
                config = command_line.load_encoding().ensure(prepare(config, sizes), processes)
            found = recommend(config, workdir, processes, numbers=numbers, sizes=sizes)
        except KeyboardInterrupt:
            print("stopped; the same command goes on with what is left", file=sys.stderr)
            leave(130)
    summary = json.loads((placed(workdir) / "choose_k.json").read_text(encoding="utf-8"))
    with command_line.printing():
        print(table(summary))
        print(found.reason)
        print(f"\ncriteria and plots: {placed(workdir)}")


def define_flags() -> None:
    """Flags of this command alone: others import the module, and have some of the same names."""
    flags.adopt_module_key_flags(command_line)
    sizes = Sizes()
    flags.DEFINE_string(
        "k", "", "Numbers of classes to look at, 2..50 or 2,3,5 (default: 2..50 or fewer)."
    )
    flags.DEFINE_integer("tasks", sizes.tasks, "Tasks searched on each half of the rows.")
    flags.DEFINE_integer("pairs", sizes.pairs, "How often the rows are cut in two halves.")
    flags.DEFINE_integer("rows", sizes.rows, "Rows to look at, drawn where there are more.")
    flags.DEFINE_string(
        "workdir", None, "Folder of the results (default: runs/choose_k-CONFIG-HASH)."
    )


def run() -> None:
    """`python -m hume_jax.choose_k`."""
    define_flags()
    command_line.run(main)


if __name__ == "__main__":
    run()
