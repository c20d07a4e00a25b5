"""A class prior that nobody knows: how large the classes are, as searches find them.

Under the uniform prior large classes are cut and small ones joined; without an entropy term classes
are lost. So tasks are searched for with a little of it first, which holds their classes to no size
much. Their sizes, sorted and averaged over the half of the tasks that agrees most with the others,
are the prior of another search; and those that it finds in turn, for as many rounds as
`prior.rounds` says. The prior of the search itself is that of the last round. (Of all tasks, sizes
in their order would be too unequal: those that lost a class or cut one are among them.)

No label is seen: the sizes are those of the tasks.
"""

import json
from collections.abc import Callable

import numpy as np
from absl import logging
from ml_collections import config_dict

from hume_jax import config_checks
from hume_jax.core import aggregate
from hume_jax.processes import ALONE, Processes
from hume_jax.workdir import Workdir

# Where a run keeps what it has estimated, round by round.
FILE = "class_sizes.json"


def asked_for(config: config_dict.ConfigDict) -> bool:
    """Whether the class prior of a resolved config is to be estimated."""
    return config.class_prior == config_checks.ESTIMATE


def following(
    config: config_dict.ConfigDict, prior: tuple[float, ...] = ()
) -> config_dict.ConfigDict:
    """The config of the search that follows an estimate; any other config as it is.

    Args:
      config: resolved.
      prior: the estimate; () stands for one that is still to come.
    """
    if not asked_for(config):
        return config
    return _with(config, prior, config.prior.weight, config.n_tasks)


def rounds(config: config_dict.ConfigDict, prior: tuple[float, ...]) -> config_dict.ConfigDict:
    """The config of a search that estimates: the first, of no prior, or one that has one."""
    weight = config.prior.weight if prior else config.prior.first_weight
    return _with(config, prior, weight, min(config.prior.tasks, config.n_tasks))


def _with(
    config: config_dict.ConfigDict, prior: tuple[float, ...], weight: float, tasks: int
) -> config_dict.ConfigDict:
    values = config.to_dict()
    values |= {"class_prior": prior, "n_tasks": tasks}
    values["search"]["entropy_weight"] = weight
    return config_dict.ConfigDict(values).lock()


def _sizes(tasks: np.ndarray, n_classes: int) -> list[float]:
    """Shares of the classes, descending, by the half of (S, n) tasks that agrees most."""
    agreement = aggregate.mean_agreement(aggregate.agreement_matrix(tasks, n_classes))
    order = aggregate.rank(agreement, highest_first=True)
    return aggregate.mean_sizes(tasks[order[: -(-len(order) // 2)]], n_classes).tolist()


def estimate(
    config: config_dict.ConfigDict,
    folder: Workdir,
    search: Callable[[config_dict.ConfigDict, str], np.ndarray | None],
    processes: Processes = ALONE,
) -> tuple[float, ...]:
    """Estimates the class prior of a run, from where an interrupted one has come to.

    Args:
      config: resolved, of the run.
      folder: of the run.
      search: labels (S, n) of the searched rows by the tasks of a search, of its config and the
        name of its folder in that of the run; on process 0, where the others have None.
      processes: of the run, which search together.

    Returns:
      (K,) shares, descending.
    """
    known = folder.path / FILE
    there = processes.first and known.exists()
    found = processes.share(json.loads(known.read_text(encoding="utf-8")) if there else [])
    for number in range(len(found), config.prior.rounds):
        logging.info("sizes of the classes, round %d of %d", number + 1, config.prior.rounds)
        before = tuple(found[-1]) if found else ()
        tasks = search(rounds(config, before), f"sizes_{number + 1}")
        sizes = None if tasks is None else _sizes(tasks, config.n_classes)
        found.append(processes.share(sizes))
        if processes.first:
            folder.write_json(FILE, found)
    prior = tuple(map(float, found[-1]))
    logging.info("estimated shares of the classes: %s", ", ".join(f"{p:.3f}" for p in prior))
    return prior
