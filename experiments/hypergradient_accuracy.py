"""How close the search's hypergradient is to the converged one, on the same split.

    python experiments/hypergradient_accuracy.py --out=runs/hypergradient.json
    python experiments/hypergradient_accuracy.py --config=experiments/datasets/clinc150.py \
        --out=runs/hypergradient_clinc150.json -- --config.seed=1

Runs a search and stops at some of the first steps, every tenth of the search, just before and just
after each anneal step and at the last step. There the gradient that the step is about to take, by
the numbers of inner and conjugate-gradient steps that the search has come to, its warm start and
float32, is compared with the converged one: the same split and temperature, all directions of the
second spaces whatever the config leaves out, float64, the inner fit solved until its gradient is
below `--tolerance`, and `--adjoint_steps` conjugate-gradient steps. The gradient is the one in the
free matrix theta, before clipping.

Prints a Markdown table: cosine (lowest and median over the tasks), ratio of the norms, what is left
of the inner and the adjoint's problem, relative, the largest over tasks, and the products of the
step, then those of a step on average over the whole search: two for each inner gradient, that at
the solution among them, and each product with the inner Hessian, the larger by the more directions
there are, one where there are all. Where both gradients are zero, as those of a task whose labels
are all hard, cosine and ratio are 1. The file has the figures of every task; stopped and started
again, points that it holds are not computed anew.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import figures
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from ml_collections import config_dict

from hume_jax import config as config_lib
from hume_jax import work
from hume_jax.core import inner_fit, search, solvers, task_encoder
from hume_jax.core.objective import Subset
from hume_jax.errors import UserError

# Steps of one compiled call on the way between two points.
BLOCK = 10
# Conjugate-gradient steps in each Newton step of the converged fit.
NEWTON_STEPS = 60
# Steps near the start, where encoders move most.
_EARLY = (1, 2, 4, 7)


class Gradients(NamedTuple):
    """Hypergradients of S tasks on one split."""

    gradient: Array  # (S, d1, K)
    inner_residual: Array  # (S,) norm of the inner gradient at the solution
    adjoint_residual: Array  # (S,) relative


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    figures.add_config(parser, figures.IMAGENETTE)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="file, .json")
    parser.add_argument("--tolerance", type=float, default=1e-9, help="of the converged inner fit")
    parser.add_argument("--inner_steps", type=int, default=50, help="Newton steps, at most")
    parser.add_argument("--adjoint_steps", type=int, default=100, help="of the converged adjoint")
    return parser.parse_args(arguments)


def points(steps: int, anneal_steps: Sequence[int]) -> dict[int, str]:
    """The steps to stop at (numbers of steps done before them), in order, with their names."""
    found = {0: "first"}
    for i, step in enumerate(anneal_steps, 1):
        if 0 < step < steps:
            found.setdefault(step - 1, f"before anneal {i}")
            found.setdefault(step, f"after anneal {i}")
    found.setdefault(steps - 1, "last")
    tenths = [steps * i // 10 for i in range(1, 10)]
    for step in (step for step in (*_EARLY, *tenths) if 0 < step < steps):
        found.setdefault(step, f"step {step + 1}")
    return dict(sorted(found.items()))


def walk(
    problem: figures.Problem, seed: int, tasks: int, stops: Sequence[int], seen: list[search.Info]
) -> Iterator[search.State]:
    """Searches, and yields the state before each of the steps named.

    Args:
      problem: what is searched.
      seed: of the search.
      tasks: their number.
      stops: numbers of the steps.
      seen: the info of the steps taken is added to it.
    """
    log_prior = jnp.asarray(problem.log_prior)
    program = functools.partial(search.run_steps, settings=problem.settings)
    run = jax.jit(program, static_argnames="steps", donate_argnums=0)
    init = jax.jit(search.init, static_argnames="settings")
    state = init(seed, jnp.arange(tasks), problem.data, settings=problem.settings)
    at = 0
    for stop in stops:
        while at < stop:
            # Two lengths, hence two compilations, whatever the distances.
            length = BLOCK if stop - at >= BLOCK else 1
            state, info = run(state, seed, problem.data, log_prior, steps=length)
            seen.append(jax.device_get(info))
            at += length
        yield state


def default_gradients(
    state: search.State, seed: int, data: search.Data, log_prior: Array, settings: search.Search
) -> tuple[Gradients, Array]:
    """The gradient that the next step takes on its first split, and the temperature there."""
    temperature = search.schedules(settings)[0](state.step)
    subset, starts = search.split(state, seed, 0, data, settings)
    gradient, _, report = search.hypergradients(
        state.theta, starts, subset, temperature, log_prior, settings, search.effort_of(state)
    )
    return Gradients(gradient, report.inner_residual, report.adjoint_residual), temperature


def converged_gradients(
    theta: Array,
    subset: Subset,
    temperature: Array,
    log_prior: Array,
    *,
    settings: search.Search,
    tolerance: float,
    inner_steps: int,
    adjoint_steps: int,
) -> Gradients:
    """The hypergradient at the solution of the inner problem, in the dtype of the arguments."""

    def solve(theta: Array) -> tuple[Array, ...]:
        y = task_encoder.labels(theta, subset.phi1_train, temperature, settings.labels)
        return tuple(
            solvers.minimise(
                jnp.zeros((settings.n_classes, space.train.shape[1]), theta.dtype),
                space.train,
                y,
                space.penalty,
                0.0,
                steps=inner_steps,
                solver="newton",
                newton_steps=NEWTON_STEPS,
                tolerance=tolerance,
            ).w
            for space in subset.spaces
        )

    solutions = jax.vmap(solve)(theta)
    # One more step from the solution, whose gradient is reported, and the implicit adjoint there.
    inner = inner_fit.InnerFit(adjoint="implicit", steps=1, adjoint_steps=adjoint_steps)
    gradient, _, report = search.hypergradients(
        theta, solutions, subset, temperature, log_prior, settings._replace(inner=inner)
    )
    return Gradients(gradient, report.inner_residual, report.adjoint_residual)


class Programs(NamedTuple):
    """Both gradients, compiled once for all points."""

    default: Callable[..., tuple[Gradients, Array]]
    split: Callable[..., Subset]
    converged: Callable[..., Gradients]


def programs(settings: search.Search, options: argparse.Namespace) -> Programs:
    """The programs for the settings of a search."""

    def split(step: Array, seed: int, data: search.Data) -> Subset:
        return search.draw(seed, step, 0, data, settings)

    return Programs(
        jax.jit(functools.partial(default_gradients, settings=settings)),
        jax.jit(split),
        jax.jit(
            functools.partial(
                converged_gradients,
                settings=settings,
                tolerance=options.tolerance,
                inner_steps=options.inner_steps,
                adjoint_steps=options.adjoint_steps,
            )
        ),
    )


def compare(
    state: search.State,
    seed: int,
    problem: figures.Problem,
    whole: figures.Problem,
    both: Programs,
) -> dict[str, Any]:
    """Compares the two gradients of all tasks at one point of the search.

    Args:
      state: before the step.
      seed: of the search.
      problem: what is searched.
      whole: the same in all directions of the second spaces.
      both: the programs.
    """
    log_prior = jnp.asarray(problem.log_prior)
    now, temperature = both.default(state, seed, problem.data, log_prior)
    subset = both.split(state.step, seed, whole.data)
    arguments = (state.theta, subset, temperature, log_prior)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), arguments)
        want = jax.device_get(both.converged(*double))
    have = jax.device_get(now)
    a, b = (g.gradient.reshape(len(g.gradient), -1).astype(np.float64) for g in (have, want))
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return {
        "temperature": float(temperature),
        "cosine": _quotient(np.sum(a * b, axis=1), norm_a * norm_b, norm_a, norm_b),
        "norm_ratio": _quotient(norm_a, norm_b, norm_a, norm_b),
        "norm": norm_b,
        "products": products(
            int(state.effort.steps[0]), int(state.effort.adjoint_steps[0]), problem, whole
        ),
        "inner_residual": have.inner_residual,
        "adjoint_residual": have.adjoint_residual,
        "converged_inner_residual": want.inner_residual,
        "converged_adjoint_residual": want.adjoint_residual,
    }


def products(steps: int, adjoint: int, problem: figures.Problem, whole: figures.Problem) -> float:
    """Products of a step, on average over the second spaces, one where all directions are kept.

    Args:
      steps: of the inner fit.
      adjoint: steps of its implicit adjoint.
      problem: what is searched.
      whole: the same in all directions.
    """
    inner = problem.settings.inner._replace(steps=steps, adjoint_steps=adjoint, tolerance=0)
    taken = work.inner_products(problem.settings._replace(inner=inner))
    widths = [[s.x.shape[-1] for s in p.data.spaces] for p in (problem, whole)]
    return taken * sum(widths[0]) / sum(widths[1])


def info_products(
    info: search.Info, problem: figures.Problem, whole: figures.Problem
) -> np.ndarray:
    """`products` of every step of a block; all tasks share their numbers of steps."""
    effort = info.effort
    counts = zip(effort.steps[:, 0], effort.adjoint_steps[:, 0], strict=True)
    return np.array([products(int(fit), int(adjoint), problem, whole) for fit, adjoint in counts])


def _quotient(
    above: np.ndarray, below: np.ndarray, norm_a: np.ndarray, norm_b: np.ndarray
) -> np.ndarray:
    """``above / below``; 1 where both gradients are zero and hence the same, 0 where one is.

    Once all labels of a task are hard, sparsemax has no derivative left.
    """
    found = np.where((norm_a == 0) & (norm_b == 0), 1.0, 0.0)
    return np.divide(above, below, out=found, where=(norm_a > 0) & (norm_b > 0))


def report(found: dict[str, dict[str, Any]], mean_products: float) -> str:
    """The table, a row for each point and one for all of them."""
    head = ["point", "step", "T", "cosine: lowest", "median", "norm / converged: median"]
    head += ["inner residual", "converged", "adjoint residual", "converged", "products"]
    residuals = [
        f"{of}{kind}_residual" for kind in ("inner", "adjoint") for of in ("", "converged_")
    ]
    rows = []
    for point, entry in found.items():
        rows.append(
            [
                point,
                str(entry["step"] + 1),
                f"{entry['temperature']:.3g}",
                *_cosines(entry["cosine"]),
                f"{np.median(entry['norm_ratio']):.4f}",
                *(f"{np.max(entry[name]):.1e}" for name in residuals),
                f"{entry['products']:.1f}",
            ]
        )
    cosines = [c for entry in found.values() for c in entry["cosine"]]
    rows.append(["all", "", "", *_cosines(cosines), *[""] * 5, f"{mean_products:.1f}"])
    return figures.table(head, rows)


def _cosines(values: Sequence[float]) -> list[str]:
    return [f"{np.min(values):.5f}", f"{np.median(values):.5f}"]


def heading(config: config_dict.ConfigDict, rows: int) -> str:
    """What was compared, in a line."""
    inner = config.inner
    return (
        f"{config.n_tasks} tasks, {config.n_classes} classes, {rows} rows; {inner.solver} "
        f"{inner.steps} steps, {inner.start} start, adjoint {inner.adjoint}"
        + (f" {inner.adjoint_steps} steps" if inner.adjoint == "implicit" else "")
        + (f" at first, tolerance {inner.tolerance:g}" if inner.tolerance else "")
        + f", lambda {inner.penalty:g}"
    )


def main(arguments: Sequence[str]) -> None:
    """Computes the points that are missing, prints and writes all."""
    options = parse_arguments(arguments)
    config = figures.load_config(options.config, options.fields)
    if config.inner.penalty <= 0:
        raise UserError("inner.penalty is 0: without it the inner problem has no solution")
    made_with = {
        "config_hash": config_lib.config_hash(config),
        "tolerance": options.tolerance,
        "inner_steps": options.inner_steps,
        "adjoint_steps": options.adjoint_steps,
    }
    stored = figures.read_json(options.out) or {**made_with, "points": {}}
    if any(stored[name] != value for name, value in made_with.items()):
        raise UserError(f"{options.out} was made with other settings: give another --out")
    figures.use_precision()
    problem = figures.build(config)
    stops = points(config.search.steps, config.search.anneal_steps)
    whole = _whole(config, problem)
    both = programs(problem.settings, options)
    missing = [step for step, name in stops.items() if name not in stored["points"]]
    seen: list[search.Info] = []
    for state in walk(problem, config.seed, config.n_tasks, missing, seen):
        step = int(state.step)
        print(f"step {step + 1} ({stops[step]})", file=sys.stderr)
        stored["points"][stops[step]] = {
            "step": step,
            **compare(state, config.seed, problem, whole, both),
        }
        if step == config.search.steps - 1:
            steps = [info_products(info, problem, whole) for info in seen]
            last = stored["points"][stops[step]]["products"]
            stored["products"] = float(np.mean(np.concatenate([*steps, [last]])))
        figures.write_json(options.out, stored)
    ordered = {name: stored["points"][name] for name in stops.values()}
    print(f"{heading(config, problem.rows)}\n\n{report(ordered, stored['products'])}")


def _whole(config: config_dict.ConfigDict, problem: figures.Problem) -> figures.Problem:
    """The problem in all directions of the second spaces."""
    if not (config.inner.variance_floor or config.inner.directions):
        return problem
    config = config_dict.ConfigDict(config)
    config.inner.variance_floor, config.inner.directions = 0.0, 0
    return figures.build(config)


if __name__ == "__main__":
    with figures.one_line_errors():
        main(sys.argv[1:])
