"""``run(config, workdir)``: the one place where files, devices and the algorithm meet."""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import config_dict

import hume_jax
from hume_jax import (
    class_sizes,
    config_checks,
    labelling,
    parallel,
    planning,
    prediction,
    rows,
    scoring,
    search_loop,
)
from hume_jax import config as config_lib
from hume_jax.core import aggregate
from hume_jax.errors import UserError
from hume_jax.evaluation import n_classes
from hume_jax.evaluation.n_classes import Recommendation
from hume_jax.preemption import ending
from hume_jax.processes import ALONE, Processes
from hume_jax.progress import count, duration, rows_progress
from hume_jax.report import results
from hume_jax.representations import samples, scaling, store
from hume_jax.representations.images import table
from hume_jax.representations.prepare import NormalisedRows
from hume_jax.representations.prepared import Prepared
from hume_jax.representations.scaling import Statistics
from hume_jax.workdir import Workdir

# Scores of the vote, without labels.
_OF_VOTE = ("objective", "heldout_ce", "cv_accuracy", "entropy")
_PACKAGES = ("jax", "jaxlib", "jaxopt", "optax", "numpy", "scikit-learn")


class Found(NamedTuple):
    """Labels of one split."""

    tasks: np.ndarray  # (S, n) int32, each task in its own class numbers
    vote: aggregate.Vote


def run(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    processes: Processes = ALONE,
    profile: bool = False,
    *,
    dataset: store.Dataset | None = None,
    interruptible: bool = False,
) -> dict[str, Any]:
    """Searches, scores and reports what a config asks for.

    Started again in the same workdir, it goes on from the last checkpoint; a finished run is left
    as it is.

    Args:
      config: as a config file and flags left it; it is resolved here.
      workdir: the run's folder, on disk or in an object store, gs://BUCKET/FOLDER.
      processes: those of the run, of which each calls this. They search together; the first checks
        the data, writes the files of the folder and does all that follows the search.
      profile: whether to say where the time of a step goes, see `profiling`.
      dataset: arrays in memory, in the place of the files that `data` names.
      interruptible: whether Ctrl-C ends the search with what it has, of one seed. Labels of the
        tasks as they are then are written, but no results.json: the run is not finished.

    Returns:
      What is written to results.json; {} on other processes than the first. Of a search that was
      interrupted, `stopped` says after how many steps.

    Raises:
      UserError: anything a user can mend, before any long work starts.
      LostProcess: another process was killed.
      Preempted: by SIGTERM; what was found is kept, of the search its state.
      KeyboardInterrupt: Ctrl-C, see `search_loop.run`.
    """
    # The inner fit's products have a field of their own.
    with ending(processes), jax.default_matmul_precision("highest"):
        return _run(config, workdir, processes, profile, dataset, interruptible)


def _run(
    config: config_dict.ConfigDict,
    workdir: str | os.PathLike[str],
    processes: Processes,
    profile: bool,
    dataset: store.Dataset | None,
    interruptible: bool,
) -> dict[str, Any]:
    began = time.perf_counter()
    config = config_lib.resolve(config)
    parallel.check_devices()
    with processes.together():
        files = dataset or store.open_files(config.data)
    with processes.together():
        folder = Workdir(workdir, config, owner=processes.first)
    given = {f"--config.{name}": value for name, value in config_lib.flatten(config).items()}
    processes.agree({"--workdir": str(folder.place), **given})
    fingerprint = store.fingerprint(files)
    processes.agree(fingerprint)
    with processes.together():
        finished = _finished(config, folder, fingerprint) if processes.first else None
    if processes.share(finished is not None):
        if profile:
            logging.warning("nothing is profiled: there are no steps left")
        return finished or {}
    asked, chosen = config, None
    if config.n_classes == config_checks.AUTO:
        chosen = _number_of_classes(config, folder, files, processes)
        config = config_dict.ConfigDict({**config.to_dict(), "n_classes": chosen.value}).lock()
    # Before the folder is taken, so that a plan or data that will not do leave nothing behind.
    searched = store.search_spaces(files, config.search.spaces)
    store.check_classes(searched, config.n_classes, config.setting)
    n = sum(split.n for split in store.search_splits(searched, config.setting))
    with processes.together():
        kept = processes.share(planning.kept_rows(folder.path))
        plan = _plan(class_sizes.following(config), searched, n, kept)
        planning.check_processes(plan)
    plan = planning.shared(plan, processes)
    with processes.together():
        checked = rows.check(config, files, plan.rows, folder, first=processes.first)
    processes.check_shared(folder.place)
    with _entered(folder, processes):
        with processes.together():
            if processes.first:
                folder.check_data(fingerprint)
        notes = (*planning.clamped(config, n, plan.shape), *planning.idle(plan))
        for warning in (*checked.warnings, *notes):
            logging.warning("%s", warning)
        logging.info("%s", planning.where(plan))
        stages = _Run(config, checked, folder, began, processes)
        stages.hash, stages.chosen = config_lib.config_hash(asked), chosen
        plan = planning.shared(planning.keep_batches(plan, folder), processes)
        stages.prepare(plan)
        if class_sizes.asked_for(config):
            stages.estimate_sizes(lambda config: _plan(config, searched, n, plan.rows))
        outcome = stages.search(plan, profile, interruptible and not config.seeds)
        if not processes.first:
            logging.info("the search is done: process 0 scores and writes what it found")
            return {}
        with ending():
            if not config.seeds:
                return stages.found(outcome.theta[0], outcome.dropped[0])
            return _each_seed(stages, outcome)


@contextlib.contextmanager
def _entered(folder: Workdir, processes: Processes) -> Iterator[None]:
    """The folder taken by process 0, then by the others."""
    with contextlib.ExitStack() as stack:
        with processes.together():
            if processes.first:
                stack.enter_context(folder)
        if not processes.first:
            stack.enter_context(folder)
        yield


def _number_of_classes(
    config: config_dict.ConfigDict, folder: Workdir, files: store.Dataset, processes: Processes
) -> Recommendation:
    """The number of classes that the rows support.

    Raises:
      UserError: none, and why.
    """
    from hume_jax import choose_k

    place = folder.place / "choose_k"
    found = choose_k.recommend(config, place, processes, files=files)
    logging.info("%s", found.reason)
    if found.value is None:
        raise UserError(
            f"n_classes='auto': {found.reason} ({place} has the criteria and plots): give "
            "'n_classes' a number"
        )
    return found


def _each_seed(stages: "_Run", outcome: search_loop.Outcome) -> dict[str, Any]:
    """Results of every seed in a folder of its own, as if it had run alone; their spread here.

    Args:
      stages: of the run, after the search.
      outcome: of the search.
    """
    config, folder = stages.config, stages.folder
    share = {name: s / len(config.seeds) for name, s in stages.seconds.items() if s is not True}
    summaries = []
    for seed, theta, dropped in zip(config.seeds, outcome.theta, outcome.dropped, strict=True):
        own = config_dict.ConfigDict(config)
        with own.unlocked():
            own.seed, own.seeds = seed, ()
        part = Workdir(folder.place / f"seed_{seed}", own)
        done = part.path / "results.json"
        if done.exists():
            summaries.append(json.loads(done.read_text(encoding="utf-8")))
            continue
        logging.info("seed %d", seed)
        with part:
            # As if it had begun by its share of what all of them took together.
            its = _Run(own, stages.checked, part, time.perf_counter() - sum(share.values()))
            its.seconds = {**share, **({"resumed": True} if "resumed" in stages.seconds else {})}
            its.prepared, its.bounded = stages.prepared, stages.bounded
            part.write_metrics(_of_seed(folder.metrics(), seed))
            summaries.append(its.found(theta, dropped))
    summary = results.over_seeds(summaries, config.seeds, config_lib.config_hash(config))
    folder.write_text("results.json", results.to_json(summary))
    return summary


def _of_seed(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of one seed, as if it had run alone."""
    own = [row for row in rows if row.get("seed", seed) == seed]
    return [{name: value for name, value in row.items() if name != "seed"} for row in own]


def _finished(
    config: config_dict.ConfigDict, folder: Workdir, fingerprint: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What a finished run found, without a look at all values of its data; or None."""
    # Written last; its times stay those of the work.
    done = folder.path / "results.json"
    if not (done.exists() and (config.seeds or (folder.path / "labels.csv").exists())):
        return None
    with folder:
        folder.check_data(fingerprint)
        logging.info("this run is finished; delete %s to score it again", folder.place / done.name)
        return json.loads(done.read_text(encoding="utf-8"))


def _plan(
    config: config_dict.ConfigDict, dataset: store.Dataset, n: int, kept: str | None
) -> search_loop.Plan:
    """The plan by what the files' headers say; some directions of phi2 may yet be left out."""
    most = config.inner.directions or sys.maxsize
    inner = tuple(min(most, array.shape[1] + 1) for array in dataset.train.phi2.arrays)
    return planning.make_plan(config, n, dataset.train.phi1.columns, inner, kept)


class _Run:
    """The stages of one run; what a stage needs of an earlier one is passed on."""

    def __init__(
        self,
        config: config_dict.ConfigDict,
        checked: rows.Checked,
        folder: Workdir,
        began: float,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        # The config, which has an estimate in the place of a class prior that is to be estimated.
        self.config, self.hash = config, config_lib.config_hash(config)
        self.chosen: Recommendation | None = None  # of the number of classes
        self.checked, self.folder, self.began = checked, folder, began
        self.dataset, self.statistics = checked.dataset, checked.statistics
        self.prepared: Prepared | None = None
        self.unsupported: list[str] = []  # what speaks against as many classes
        self.bounded = False  # whether memory has no room for copies of the rows
        # Beside files, not beside arrays in memory, stands what made them.
        self.in_files = bool(config.data.train.phi1)
        self.splits = store.search_splits(self.dataset, config.setting)
        self.n = sum(split.n for split in self.splits)
        self.kind = rows.kind(config)
        self.seconds: dict[str, float] = {}
        self.stopped: dict[str, int] | None = None  # by Ctrl-C, after how many steps of how many
        # Steps at which tasks were dropped, and the numbers of those that were not.
        self.dropped = np.zeros(config.n_tasks, np.int32)
        self.numbers = np.arange(config.n_tasks)
        if (folder.path / "batches.json").exists():
            # What the process before this one took is not counted.
            self.seconds["resumed"] = True

    def found(self, theta: np.ndarray, dropped: np.ndarray) -> dict[str, Any]:
        """Every stage after the search, in order.

        Args:
          theta: (S, d1, K) float32 task encoders.
          dropped: (S,) int32, see `search.State`. Tasks that were dropped take no part.
        """
        searched = time.perf_counter()
        self.dropped = dropped
        self.numbers = np.flatnonzero(dropped == 0)
        theta = theta[self.numbers]
        tasks = self._tasks(theta)
        # For the tasks and for their vote, unless both were scored before a restart.
        scored = functools.cache(lambda: scoring.scored_rows(self.config, self.splits))
        scores = self._scores(tasks, scored)
        ensemble = self._ensemble(tasks, scores)
        found = self._label(theta, tasks, ensemble)
        vote = np.concatenate([part.vote.labels for part in found.values()][: len(self.splits)])
        of_vote = self._kept("vote_scores", lambda: self._score(vote[None], scored))
        scored.cache_clear()
        self.unsupported = self._unsupported(tasks[ensemble.members], vote)
        floor_and_ceiling = self._baselines()
        self.seconds["score"] = time.perf_counter() - searched
        return self._report(tasks, scores, ensemble, found, floor_and_ceiling, of_vote)

    def prepare(self, plan: search_loop.Plan) -> None:
        """What rows pass through on their way into a search."""
        with self.processes.together():
            if self.processes.first:
                self.prepared = rows.prepare(self.config, self.checked, self.folder)
        self.prepared = rows.shared(self.prepared, self.processes)
        self.bounded = plan.rows == "disk"

    def estimate_sizes(self, plan_of: Callable[[config_dict.ConfigDict], search_loop.Plan]) -> None:
        """Puts an estimate in the place of the class prior, see `class_sizes`."""
        first = self.processes.first

        def search(config: config_dict.ConfigDict, name: str) -> np.ndarray | None:
            part = Workdir(self.folder.place / name, config, owner=first)
            with _entered(part, self.processes):
                plan = planning.keep_batches(plan_of(config), part)
                outcome = self._searched(planning.shared(plan, self.processes), config, part)
            theta = outcome.theta[0][outcome.dropped[0] == 0]
            return self._tasks(theta) if first else None

        prior = class_sizes.estimate(self.config, self.folder, search, self.processes)
        self.config = class_sizes.following(self.config, prior)

    def search(
        self, plan: search_loop.Plan, profile: bool = False, interruptible: bool = False
    ) -> search_loop.Outcome:
        """The task encoders of every seed."""
        outcome = self._searched(plan, self.config, self.folder, profile, interruptible)
        self.processes.part()
        total = plan.steps * len(plan.batches)
        if outcome.steps < total:
            self.stopped = {"steps": outcome.steps, "of": total}
            logging.warning("the search was stopped after step %d of %d", outcome.steps, total)
        return outcome

    def _searched(
        self,
        plan: search_loop.Plan,
        config: config_dict.ConfigDict,
        folder: Workdir,
        profile: bool = False,
        interruptible: bool = False,
    ) -> search_loop.Outcome:
        assert self.prepared is not None
        found = rows.stored(config, self.checked, self.prepared)
        plan = plan._replace(shape=plan.shape._replace(inner=self.prepared.widths))
        seconds = search_loop.estimate_seconds(plan)
        logging.info(
            "searching %s in %s: %d steps on subsets of %d + %d of %d rows, about %s and the time "
            "to compile",
            f"{count(config.n_tasks, 'task')}{_of_seeds(plan)}",
            count(len(plan.batches), "batch", "batches"),
            plan.steps, plan.shape.train, plan.shape.test, self.n, duration(seconds),
        )  # fmt: skip
        with self.processes.computing():
            prior = np.log(planning.class_prior(config))
            outcome = search_loop.run(
                plan, found, prior, folder, self.processes, profile, interruptible
            )
        for name, taken in outcome.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
        return outcome

    @property
    def prior(self) -> np.ndarray:
        """(K,) float64, shares of the classes."""
        return planning.class_prior(self.config)

    def _tasks(self, theta: np.ndarray) -> np.ndarray:
        """Labels of every task for all searched rows, (S, n)."""
        return np.concatenate([self._encode(theta, split) for split in self.splits], axis=1)

    def _encode(self, theta: np.ndarray, split: store.Split) -> np.ndarray:
        """Labels of every task."""
        with rows_progress(split.n, "labels of the tasks") as done:
            return labelling.encode(theta, split.phi1.arrays, self.statistics, self.kind, done)

    def _predict(self, model: labelling.Model, split: store.Split) -> aggregate.Vote:
        """Labels of the stored model."""
        with rows_progress(split.n, "labels") as done:
            return labelling.predict(model, split.phi1.arrays, done)

    def _scores(
        self, tasks: np.ndarray, scored: Callable[[], scoring.ScoredRows]
    ) -> dict[str, np.ndarray]:
        """Label-free scores of every task, (S,) each, and their agreement (S, S)."""
        k = self.config.n_classes
        scores = self._kept("scores", lambda: self._score(tasks, scored))
        rough = int(np.sum(scores["residual"] > self.config.score.tolerance))
        if rough:
            logging.warning(
                "the scores of %s are rough: the fits ended at score.steps=%d, above "
                "score.tolerance", count(rough, "task"), self.config.score.steps,
            )  # fmt: skip
        matrix = aggregate.agreement_matrix(tasks, k)
        return {
            **scores,
            "agreement_matrix": matrix,
            "agreement": aggregate.mean_agreement(matrix),
            "collapsed": aggregate.collapsed(tasks, k, self.prior),
        }

    def _score(
        self, labels: np.ndarray, scored: Callable[[], scoring.ScoredRows]
    ) -> dict[str, np.ndarray]:
        """Label-free scores of (S, n) labels of the searched rows, (S,) each."""
        return scoring.score_tasks(self.config, self.splits, labels, np.log(self.prior), scored())

    def _ensemble(self, tasks: np.ndarray, scores: dict[str, np.ndarray]) -> aggregate.Ensemble:
        """The vote of the best tasks by the config's selector."""
        return aggregate.ensemble(
            tasks,
            self.config.n_classes,
            scoring.voters(self.config, tasks, scores),
            agreement=scores["agreement_matrix"],
        )

    def _label(
        self, theta: np.ndarray, tasks: np.ndarray, ensemble: aggregate.Ensemble
    ) -> dict[str, Found]:
        """Labels of every split by the stored model, which is what predicts new rows."""
        evenness = planning.evenness(self.config) if self.config.ensemble.vote == "soft" else None
        model = labelling.model_of(
            theta, tasks, ensemble, self.statistics, self.kind, evenness, self.prior
        )
        self.folder.write_npz("model.npz", labelling.to_arrays(model))
        train, test = self.dataset.train, self.dataset.test
        found = {"train": Found(tasks[:, : train.n], self._predict(model, train))}
        if test is not None:
            own = tasks[:, train.n :] if len(self.splits) == 2 else self._encode(theta, test)
            found["test"] = Found(own, self._predict(model, test))
        return found

    def _unsupported(self, voters: np.ndarray, vote: np.ndarray) -> list[str]:
        """Warnings if the rows do not support as many classes as were asked for."""
        lines = n_classes.unsupported(voters, vote, self.config.n_classes, prior=self.prior)
        for line in lines:
            logging.warning("%s", line)
        return lines

    def _baselines(self) -> dict[str, np.ndarray]:
        # Without labels there is nothing to compare.
        labelled = any(
            split is not None and split.labels is not None
            for split in (self.dataset.train, self.dataset.test)
        )
        if not (self.config.baselines and labelled):
            return {}
        given = self.checked.given
        return self._kept(
            "baselines",
            lambda: scoring.baselines(
                self.config,
                given,
                store.search_splits(given, self.config.setting),
                known=self._known_statistics(),
                bounded=self.bounded,
            ),
        )

    def _known_statistics(self) -> dict[str, tuple[Statistics, ...]]:
        """Statistics of the files of phi1 and phi2 as they were given, of those that are known."""
        of_file: dict[str, Statistics] = {}
        if self.prepared is not None and self.config.inner.normalise:
            means = [space.statistics.mean for space in self.prepared.spaces]
            of_file |= {
                path: Statistics(mean, scaling.ONE)
                for path, mean in zip(self.dataset.train.phi2.paths, means, strict=True)
            }
        if self.kind == "rows":
            of_file |= dict(zip(self.dataset.train.phi1.paths, self.statistics, strict=True))
        known = {}
        for name in ("phi1", "phi2"):
            paths = getattr(self.checked.given.train, name).paths
            if all(path in of_file for path in paths):
                known[name] = tuple(of_file[path] for path in paths)
        return known

    def _kept(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """What an interrupted run of this workdir has computed already, or else computes it."""
        if self.stopped is not None:
            return compute()
        path = self.folder.path / f"{name}.npz"
        if not path.exists():
            self.folder.write_npz(path.name, compute())
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def _report(
        self,
        tasks: np.ndarray,
        scores: dict[str, np.ndarray],
        ensemble: aggregate.Ensemble,
        found: dict[str, Found],
        floor_and_ceiling: dict[str, np.ndarray],
        of_vote: dict[str, np.ndarray],
    ) -> dict[str, Any]:
        """Writes labels.csv, the plots, the page and results.json."""
        entries = [self._task(i, task, scores, found) for i, task in enumerate(tasks)]
        votes = {split: part.vote.labels for split, part in found.items()}
        methods = {name.rpartition("_")[0] for name in floor_and_ceiling}
        self.seconds["total"] = time.perf_counter() - self.began
        summary = results.assemble(
            version=hume_jax.__version__,
            config_hash=self.hash,
            setting=self.config.setting,
            n_classes=self.config.n_classes,
            ensemble={
                **self._judge(votes, "ensemble"),
                **{name: of_vote[name][0] for name in _OF_VOTE},
                "members": ensemble.members,
                "reference": ensemble.reference,
                "select": self.config.ensemble.select,
                "vote": self.config.ensemble.vote,
                "agreement": float(np.mean(found["train"].vote.agreement)),
                "class_counts": np.bincount(votes["train"], minlength=self.config.n_classes),
            },
            tasks=entries,
            baselines={
                method: self._judge(
                    {
                        split: floor_and_ceiling[f"{method}_{split}"]
                        for split in ("train", "test")
                        if f"{method}_{split}" in floor_and_ceiling
                    }
                )
                for method in sorted(methods)
            },
            correlation=results.correlations(entries, results.compared_split(entries)),
            seconds=self.seconds,
            device=_device(),
            versions=_versions(),
            class_prior=self.config.class_prior or None,
            duplicates=aggregate.duplicates(scores["agreement_matrix"]),
            collapsed=np.flatnonzero(scores["collapsed"]),
            unsupported=self.unsupported or None,
            choose_k=None if self.chosen is None else self.chosen._asdict(),
            dropped={str(i): self.dropped[i] for i in np.flatnonzero(self.dropped)} or None,
            stopped=self.stopped,
        )
        if self.in_files:
            made = prediction.encoders_of(self.config.data)
            self.folder.write_json(prediction.ENCODERS, made)
        labels = {name: _in_files(split, found[name].vote) for name, split in self._named()}
        images, texts = self._sample_names()
        self.folder.write_text("labels.csv", results.to_csv(labels, images, texts))
        if self.config.plots:
            # Here, since it takes a second to import.
            from hume_jax.report import plots

            plots.draw(self.folder.path, summary, self.folder.metrics())
        if self.config.report:
            from hume_jax.report.page import writing

            writing.write(self.folder, self.config, summary, self._parts(found), scores)
        if self.stopped is None:
            self.folder.write_text("results.json", results.to_json(summary))
        return summary

    def _sample_names(self) -> tuple[dict[str, Sequence[str]], dict[str, Sequence[str]]]:
        """What the images are called, and the texts, of each split of which they are known."""
        images: dict[str, Sequence[str]] = {}
        texts: dict[str, Sequence[str]] = {}
        for name, split in self._named():
            given = self.config.data[name].samples
            if given:
                known = samples.open_samples(given)
                (images if known.texts is None else texts)[name] = known.names
            elif self.in_files and (encoded := table.names((*split.phi1.paths, *split.phi2.paths))):
                images[name] = encoded
        return images, texts

    def _parts(self, found: dict[str, Found]) -> dict[str, Any]:
        """Rows, labels and tasks of each split, as the page takes them."""
        from hume_jax.report.page.gather import Part

        return {
            name: Part(
                np.setdiff1d(np.arange(split.n + len(split.left_out)), split.left_out),
                split.n + len(split.left_out),
                found[name].tasks,
                found[name].vote,
                split.labels,
                NormalisedRows([split.phi1], self.statistics, self.kind).__getitem__,
            )
            for name, split in self._named()
        }

    def _named(self) -> list[tuple[str, store.Split]]:
        """The splits that are there, with their names."""
        pairs = zip(("train", "test"), self.dataset, strict=True)
        return [(name, split) for name, split in pairs if split is not None]

    def _task(
        self, i: int, task: np.ndarray, scores: dict[str, np.ndarray], found: dict[str, Found]
    ) -> dict[str, Any]:
        names = ("objective", "heldout_ce", "cv_accuracy", "entropy", "residual", "agreement")
        return {
            "seed": self.numbers[i],
            **{name: scores[name][i] for name in names},
            "n_classes_used": aggregate.classes_used(task, self.config.n_classes),
            "collapsed": bool(scores["collapsed"][i]),
            **self._judge({split: part.tasks[i] for split, part in found.items()}, "task"),
        }

    def _judge(self, predicted: dict[str, np.ndarray], detail: str | None = None) -> dict[str, Any]:
        """Scores of a labelling where labels were given; "all" beside them if transductive."""
        true = {name: split.labels for name, split in self._named()}
        known = [labels for labels in true.values() if labels is not None]
        if len(self.splits) == len(predicted) == len(known) == 2:
            predicted = {**predicted, "all": np.concatenate(list(predicted.values()))}
            true["all"] = np.concatenate(known)
        return results.score_splits(predicted, true, detail)


def _of_seeds(plan: search_loop.Plan) -> str:
    return f" of each of {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else ""


def _in_files(split: store.Split, vote: aggregate.Vote) -> aggregate.Vote:
    """A vote for all rows of the files: class -1, of no agreement, for those left out."""
    return aggregate.Vote(
        split.in_files(vote.labels, -1),
        split.in_files(vote.agreement, 0),
        split.in_files(vote.margin, 0),
    )


def _device() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }
