"""HUME as an estimator with scikit-learn's conventions.

    from hume_jax import HUME

    hume = HUME(n_classes=10, random_state=0).fit(phi1, phi2)
    hume.labels_, hume.agreement_, hume.score_
    hume.predict(new_phi1, new_phi2)
    hume.save("hume.npz")

A fit is a run of `hume_jax.pipeline`, as the command line's are, in a temporary folder or in one
that is kept; rows are labelled by the functions that label them there.
"""

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from absl import logging as absl_logging
from ml_collections import config_dict
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from hume_jax import config as config_lib
from hume_jax import labelling, pipeline, progress
from hume_jax.config_checks import LAST_SEED
from hume_jax.core import selection
from hume_jax.errors import UserError
from hume_jax.files import atomic_write
from hume_jax.prediction import SPACES
from hume_jax.representations import in_memory

# What a file of `save` holds beside the model.
_FITTED = ("labels_", "agreement_", "margin_", "tasks_")
_NUMBERS = ("score_", "objective_", "seed_")
_FORMAT = 1
# Fields that have a parameter of their own, or that a fit has no use for.
_TAKEN = {
    "n_classes": "n_classes",
    "n_tasks": "n_tasks",
    "seed": "random_state",
    "class_prior": "class_prior",
    "search.spaces": "spaces",
    "ensemble.vote": "vote",
    "preset": "preset",
}
_WITHOUT = ("seeds", "setting", "images.", "encode.", "data.")


class HUME(ClusterMixin, BaseEstimator):
    """Finds the labelling that people would have given, from two representations and no label.

    Gadetsky & Brbic, *The Pursuit of Human Labeling*, NeurIPS 2023 (arXiv:2311.02940), see the
    README for what this implementation adds. Each of many *tasks* is a labelling, linear in its
    representation, that is searched for from a random start; they are aligned and put to the vote.

    Args:
      n_classes: K, the number of classes to find; 'auto': the one that the rows support best, by
        many searches first (docs/choose_k.md); an error where they support none.
      n_tasks: searches from different random starts; None: as the preset has it, 16.
      random_state: seed, a generator to draw one from, or None for one of the system's.
      spaces: 'both': task encoders are linear in phi1 and phi2 joined, and each has an inner fit;
        'given': encoders in phi1, inner fit in phi2, as in the paper; 'first' or 'second': phi1 or
        phi2 alone for both.
      class_prior: (K,) positive shares that the classes are expected to hold, in any order;
        'estimate' where nobody knows them; None: all alike.
      vote: 'soft' or 'hard', by which the tasks decide on a row.
      preset: 'fast' or 'paper', which fills every field that nothing else sets.
      config: further fields by their dotted names, as `{"search.steps": 160}`; configs/common.py
        lists them all.
      workdir: folder of the run, kept, with its page, report.html; a fit that was stopped goes on
        from it when it is called again with the same data and parameters, one that is finished is
        read back. None: a temporary one, which is deleted.
      verbose: whether progress is shown.

    Attributes:
      labels_: (n,) int32, the class of each row, from 0, the largest, to K - 1.
      agreement_: (n,) float32, the share of the votes that this class got, 0 to 1.
      margin_: (n,) float32, by how much of the votes it is ahead of the next.
      tasks_: (M, n) int32, labels of each task that votes, in the class numbers of `labels_`.
      n_classes_: K, int.
      classes_: (K,) int64, class numbers in the order of their size; empty ones are the last.
      score_: how well linear models, trained on part of `labels_`, predict the rest, without a true
        label: accuracy in cross-validation, 0 to 1, mean of the spaces. Higher is better; compare
        it between fits of the same K alone.
      objective_: Eq. 7 of `labels_`: held-out cross-entropy (nats) and `search.entropy_weight`
        times the divergence of class sizes from the prior. Lower is better.
      results_: as a run's results.json has them.
      model_: `labelling.Model`.
      seed_: int, that the fit used.
    """

    def __init__(
        self,
        n_classes: int | str = 10,
        *,
        n_tasks: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        spaces: str = "both",
        class_prior: Sequence[float] | str | None = None,
        vote: str = "soft",
        preset: str = "fast",
        config: Mapping[str, Any] | None = None,
        workdir: str | os.PathLike[str] | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_classes = n_classes
        self.n_tasks = n_tasks
        self.random_state = random_state
        self.spaces = spaces
        self.class_prior = class_prior
        self.vote = vote
        self.preset = preset
        self.config = config
        self.workdir = workdir
        self.verbose = verbose

    def fit(self, phi1: Any, phi2: Any = None) -> Self:
        """Searches for the labelling of the rows.

        Ctrl-C ends the search at its next block of steps (some seconds), with the tasks as they
        are then; a second one gives up.

        Args:
          phi1: (n, d1) numbers: NumPy, memory-mapped or not, JAX or pandas; a tuple of arrays is
            joined column by column.
          phi2: (n, d2) of the same rows; of a tuple each is a second space. None only with `spaces`
            'first'.

        Raises:
          UserError: a ValueError: whatever is wrong with parameters or arrays, before any long work
            starts.
        """
        first = in_memory.space(phi1, "phi1")
        second = first if phi2 is None else in_memory.space(phi2, "phi2")
        self.seed_ = _seed(self.random_state)
        config = self._resolved()
        if phi2 is None and self.spaces != "first":
            raise UserError(
                "phi2 is not given: fit(phi1, phi2) with what another model says of the same rows, "
                "or HUME(spaces='first') to search in one space"
            )
        return self._fit(config, first, second)

    def fit_predict(self, phi1: Any, phi2: Any = None) -> np.ndarray:
        """Searches for the labelling of the rows, and returns it: (n,) int32. See `fit`."""
        return self.fit(phi1, phi2).labels_

    def predict(self, phi1: Any, phi2: Any = None) -> np.ndarray:
        """Labels rows by the vote of the found task encoders.

        Args:
          phi1: (m, d1), as in `fit`.
          phi2: (m, d2); asked for where encoders read it, with `spaces` 'both' or 'second'.

        Returns:
          (m,) int32; for the rows of the fit, `labels_`.
        """
        return labelling.predict(self._model(), self._arrays(phi1, phi2)).labels

    def predict_proba(self, phi1: Any, phi2: Any = None, *, vote: str = "hard") -> np.ndarray:
        """Shares of the votes for every class.

        Args:
          phi1: (m, d1), as in `fit`.
          phi2: (m, d2), as in `predict`.
          vote: 'hard': the share of the tasks that have the row in the class; 'soft': each class of
            a task gives shares of its vote to several classes (`core/consensus.py`), and classes
            are weighted: what `predict` decides by where the estimator's `vote` is 'soft'.

        Returns:
          (m, K) float64, sums of 1; columns as `classes_`.
        """
        model = self._model()
        if vote not in ("hard", "soft"):
            raise UserError(f"vote is {vote!r}, it must be 'hard' or 'soft'")
        if vote == "soft" and model.tables is None:
            raise UserError("there are no soft votes of an ensemble of vote='hard': vote='hard'")
        tasks = labelling.encode(
            model.theta, self._arrays(phi1, phi2), model.statistics, model.kind
        )
        return labelling.shares(model, tasks, soft=vote == "soft")

    def reliable(
        self,
        agreement: float = selection.AGREEMENT,
        margin: float = selection.MARGIN,
        per_class: int | None = None,
        balanced: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the fit whose class is sure, to train with as if they were labelled.

        Sure is what the tasks agree on. They can agree on a class that people would not have made.

        Args:
          agreement: least share of the votes for the class, 0 to 1.
          margin: least share of the votes by which it is ahead of the next, 0 to 1.
          per_class: take no more rows of a class than this; None: all.
          balanced: take as many of each class as the class with the fewest sure rows has of them,
            and no more than `per_class`. A class without one is left out.

        Returns:
          (m,) int64 row numbers, class by class, the surest of each class first; (m,) int32 labels.
          Classes that have fewer rows than asked for, or none, are told in a `UserWarning`.

        Raises:
          UserError: a ValueError: a number out of range.
        """
        self._model()
        try:
            found = selection.reliable(
                self.labels_,
                self.agreement_,
                self.margin_,
                least_agreement=agreement,
                least_margin=margin,
                per_class=per_class,
                balanced=balanced,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        if found.short:
            warnings.warn(selection.told(found), stacklevel=2)
        return found.rows, self.labels_[found.rows]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a fitted estimator to one .npz file of plain arrays, whole or not at all."""
        model = self._model()
        about = {
            "format": _FORMAT,
            "class": type(self).__name__,
            "parameters": self._plain_parameters(),
            "results": self.results_,
            **{name: getattr(self, name) for name in _NUMBERS},
        }
        try:
            text = json.dumps(about)
        except TypeError as error:
            raise UserError(
                f"a parameter cannot be saved ({error}): use numbers, text and lists of them"
            ) from error
        arrays: dict[str, Any] = {f"model.{k}": v for k, v in labelling.to_arrays(model).items()}
        arrays |= {name: getattr(self, name) for name in _FITTED}
        with atomic_write(path) as file:
            np.savez(file, estimator=np.array(text), **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` wrote; nothing in the file is executed.

        Raises:
          UserError: there is no such file, it is no file of `save`, or of another class.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(str(arrays["estimator"]))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        except Exception as error:  # whatever a damaged archive raises
            raise UserError(f"{path} is not a file of HUME.save: {error}") from error
        if about["class"] != cls.__name__:
            raise UserError(f"{path} holds a {about['class']}: {about['class']}.load(path)")
        found = cls(**about["parameters"])
        for name in _NUMBERS:
            setattr(found, name, about[name])
        found.results_ = about["results"]
        model = {k.removeprefix("model."): v for k, v in arrays.items() if k.startswith("model.")}
        found._set(labelling.from_arrays(model), **{name: arrays[name] for name in _FITTED})
        return found

    def _fit(
        self,
        config: config_dict.ConfigDict,
        first: tuple[np.ndarray, ...],
        second: tuple[np.ndarray, ...],
    ) -> Self:
        dataset = in_memory.dataset(first, second)
        with _folder(self.workdir) as folder, _shown(self.verbose):
            self.results_ = pipeline.run(config, folder, dataset=dataset, interruptible=True)
            model = labelling.read(folder / "model.npz")
        given = {"phi1": first, "phi2": second}
        read = [array for name in SPACES[self.spaces] for array in given[name]]
        tasks = labelling.encode(model.theta, read, model.statistics, model.kind)
        vote = labelling.vote(model, tasks)
        ensemble = self.results_["ensemble"]
        self.score_, self.objective_ = ensemble["cv_accuracy"], ensemble["objective"]
        self._set(
            model, labels_=vote.labels, agreement_=vote.agreement, margin_=vote.margin, tasks_=tasks
        )
        if "stopped" in self.results_:
            stopped = self.results_["stopped"]
            warnings.warn(
                f"the fit was stopped after {stopped['steps']} of {stopped['of']} steps: labels_ "
                "are those of the tasks as they were then",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _set(self, model: labelling.Model, **fitted: np.ndarray) -> None:
        self.model_ = model
        self.n_classes_ = model.theta.shape[2]
        self.classes_ = np.arange(self.n_classes_)
        for name, value in fitted.items():
            setattr(self, name, value)

    def _resolved(self) -> config_dict.ConfigDict:
        """The config of a run with these parameters.

        Raises:
          UserError: a parameter or field that is not known, or cannot have its value.
        """
        config = config_lib.common.get_config()
        fields = {
            "n_classes": self.n_classes,
            "seed": self.seed_,
            "class_prior": _shares(self.class_prior) or (),
            "search.spaces": self.spaces,
            "ensemble.vote": self.vote,
            "preset": self.preset,
            "plots": False,
            # For people who look into the folder.
            "report": self.workdir is not None,
            "baselines": False,
        }
        if self.n_tasks is not None:
            fields["n_tasks"] = self.n_tasks
        for name, value in (self.config or {}).items():
            if name in _TAKEN:
                raise UserError(f"config field {name!r} is the parameter {_TAKEN[name]!r}: set it")
            if name.startswith(_WITHOUT):
                raise UserError(f"config field {name!r} has no meaning for arrays in memory")
            fields[name] = value
        for name, value in fields.items():
            config_lib.check_field(name, config)
            plain = value.item() if isinstance(value, np.generic) else value
            try:
                config.update_from_flattened_dict({name: plain})
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{_TAKEN.get(name, f'config field {name!r}')} is {value!r}: {error}"
                ) from error
        return config_lib.resolve(config)

    def _model(self) -> labelling.Model:
        check_is_fitted(self, "model_")
        return self.model_

    def _arrays(self, phi1: Any, phi2: Any) -> list[np.ndarray]:
        """What the task encoders read of rows to label.

        Raises:
          UserError: a space that they read is not given, or of another width than in the fit.
        """
        given = {"phi1": phi1, "phi2": phi2}
        arrays: list[np.ndarray] = []
        names: list[str] = []
        for name in SPACES[self.spaces]:
            if given[name] is None:
                raise UserError(
                    f"{name} is not given, which the task encoders of spaces={self.spaces!r} read: "
                    "predict(phi1, phi2); search with spaces='given' to label rows by phi1 alone"
                )
            space = in_memory.space(given[name], name)
            arrays += space
            names += in_memory.each(name, space)
        labelling.check(self._model(), arrays, names)
        return arrays

    def _plain_parameters(self) -> dict[str, Any]:
        return {
            **self.get_params(deep=False),
            "random_state": self.seed_,
            "class_prior": _shares(self.class_prior),
            "config": None if self.config is None else dict(self.config),
            "workdir": None if self.workdir is None else os.fspath(self.workdir),
        }


class OneSpaceHUME(ClusterMixin, BaseEstimator):
    """HUME in one space, phi1 = phi2 = X, for whatever expects `fit(X)`: pipelines, grid searches.

    One representation says less than two: no other one tells labellings that people would give from
    those that this model alone makes easy.

    Args:
      hume: a `HUME`, of which each fit takes a copy with `spaces='first'`; None: one as it comes.

    Attributes:
      hume_: the fitted `HUME`.
      labels_: (n,) int32.
      n_features_in_: d.
    """

    def __init__(self, hume: HUME | None = None) -> None:
        self.hume = hume

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Searches for the labelling of (n, d) rows; `y` is not looked at."""
        # Two classes take two rows, and two columns that a task encoder reads.
        least = {"ensure_min_samples": 2, "ensure_min_features": 2}
        rows = validate_data(self, X, dtype=in_memory.DTYPES, **least)
        hume = HUME() if self.hume is None else clone(self.hume)
        self.hume_ = hume.set_params(spaces="first").fit(rows)
        self.labels_ = self.hume_.labels_
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Labels (m, d) rows: (m,) int32. See `HUME.predict`."""
        return self._checked().predict(self._rows(X))

    def predict_proba(self, X: Any, *, vote: str = "hard") -> np.ndarray:  # noqa: N803
        """Shares of the votes, (m, K) float64. See `HUME.predict_proba`."""
        return self._checked().predict_proba(self._rows(X), vote=vote)

    def _checked(self) -> HUME:
        check_is_fitted(self, "hume_")
        return self.hume_

    def _rows(self, X: Any) -> np.ndarray:  # noqa: N803
        return validate_data(self, X, dtype=in_memory.DTYPES, reset=False)


def _shares(class_prior: Any) -> tuple[float, ...] | str | None:
    """A class prior as a config has it."""
    if class_prior is None or isinstance(class_prior, str):
        return class_prior
    return tuple(map(float, class_prior))


def _seed(random_state: Any) -> int:
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(LAST_SEED))


@contextlib.contextmanager
def _folder(workdir: str | os.PathLike[str] | None) -> Iterator[Path]:
    if workdir is not None:
        yield Path(workdir).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="hume_jax-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _shown(verbose: bool) -> Iterator[None]:
    """What a run tells: its progress and log, or warnings alone."""
    logger = absl_logging.get_absl_logger()
    before = logger.level
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    with contextlib.nullcontext() if verbose else progress.hidden():
        try:
            yield
        finally:
            logger.setLevel(before)
