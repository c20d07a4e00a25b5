"""The outer search: many task encoders at once, ``step(state, ...) -> (state, info)``.

All tasks of a batch share each step's random split, so the representations are read once a step.
`step` draws its splits from rows that lie on the device. Where they do not, the same step is taken
piece by piece, with splits from elsewhere: `nothing`, `learn` from each split, `update`.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.core import householder, inner_fit, solvers, subsets, task_encoder
from hume_jax.core.effort import Effort, adjoint_tolerance, adjust
from hume_jax.core.inner_fit import InnerFit, Watch
from hume_jax.core.objective import Subset, Terms, objective
from hume_jax.core.subsets import Data as Data
from hume_jax.core.subsets import Rows as Rows
from hume_jax.core.subsets import deal as deal
from hume_jax.core.subsets import make_data as make_data

# Steps of spherical k-means on the first split, of encoders that begin at clusters.
_LLOYD_STEPS = 30
# Steps of the fit that a warm start begins with, from zero.
_FIRST_STEPS = 60


class Search(NamedTuple):
    """Settings of the search. Static under jit."""

    n_classes: int
    train_rows: int  # rows of each split the inner model is fitted on, in each shard
    test_rows: int  # rows of each split it is judged on, in each shard
    subsets_per_step: int = 1
    splits: str = "random"  # 'random' | 'folds', see `split_rows`
    entropy_weight: float = 10.0  # eta of Eq. 7
    temperature: float = 0.1  # T of Eq. 3 at the start
    learning_rate: float = 0.03  # Adam's, at the start
    clip: float = 1.0  # norm a task's gradient is clipped to
    anneal_steps: tuple[int, ...] = (120, 160)
    anneal_learning_rate: float = 0.1  # factor at each anneal step
    anneal_temperature: float = 0.1  # factor at each anneal step
    labels: str = "sparsemax"  # of the task encoder: 'sparsemax' | 'softmax'
    encoder_start: str = "random"  # of theta: 'random' | 'rows' | 'clusters'
    coordinates: str = "matrix"  # in which Adam moves theta: 'matrix' | 'householder'
    start: str = "warm"  # of the inner fit: 'warm' | 'cold' | 'fixed' | 'random'
    inner: InnerFit = InnerFit()


class State(NamedTuple):
    """What the search carries from step to step, for S tasks."""

    task: Array  # (S,) int32, number of each task within the run
    theta: Array  # (S, d1, K) float32, orthonormal columns
    inner: tuple[Array, ...]  # (S, K, r) float32, last inner solution in each second space
    optimiser: optax.OptState  # leaves (S, ...)
    effort: Effort  # (1,) int32 each: steps of the inner solves of all tasks
    # (S,) int32, the step, from 1, that was not finite and left a task as it was for good; 0: none.
    dropped: Array
    step: Array  # () int32


class Report(NamedTuple):
    """What is looked at of one split, for S tasks; (S,) float32 each."""

    objective: Array  # Eq. 7, soft labels
    heldout_ce: Array
    entropy: Array  # nats
    # Mean over the second spaces of the norm of the inner gradient at the solution, and before the
    # solver's last step, relative to the gradient of the held-out cross-entropy in W: by so much,
    # about, does what the solver leaves change the latter.
    inner_residual: Array
    inner_before: Array
    # Of the implicit adjoint's linear system, relative, mean over the second spaces; 0 for others.
    adjoint_residual: Array
    adjoint_before: Array  # before its last step


class Info(NamedTuple):
    """What is only looked at."""

    objective: Array  # (S,) float32, as in `Report`, mean over the splits of the step
    heldout_ce: Array  # (S,) float32
    entropy: Array  # (S,) float32, nats
    gradient_norm: Array  # (S,) float32, before clipping
    inner_residual: Array  # (S,) float32
    adjoint_residual: Array  # (S,) float32
    effort: Effort  # (1,) int32 each: steps that the inner solves took
    dropped: Array  # (S,) int32, as in `State`
    temperature: Array  # () float32
    learning_rate: Array  # () float32


class Learned(NamedTuple):
    """What the splits of a step that were looked at so far add up to, for S tasks."""

    gradients: Array  # (S, d1, K) float32, sum
    inner: tuple[Array, ...]  # (S, K, r) float32, last inner solution in each second space
    report: Report  # sums


def init(seed: Array | int, tasks: Array, data: Data, settings: Search) -> State:
    """The state before the first step.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the tasks. A task's start depends on the seed and its number
        only, not on the batch it is in.
      data: the search rows.
      settings: of the search.
    """
    widths = tuple(space.x.shape[-1] for space in data.spaces)
    dtype = subsets.computed(data.phi1.dtype)
    state = blank(seed, tasks, data.phi1.shape[-1], widths, settings, dtype)
    if begins_from_rows(settings):
        settings = first_settings(settings)
        state = begin(state, seed, draw(seed, 0, 0, data, settings), settings)
    return state


def blank(
    seed: Array | int,
    tasks: Array,
    dim: int,
    widths: tuple[int, ...],
    settings: Search,
    dtype: jnp.dtype = jnp.float32,
) -> State:
    """The state before the first step, but for what `begin` adds.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the tasks.
      dim: columns of phi1.
      widths: coordinates of the inner fit in each second space.
      settings: of the search.
      dtype: of the rows.
    """

    def one(task: Array) -> tuple[Array, tuple[Array, ...], optax.OptState]:
        encoder_key, inner_key = jax.random.split(_task_key(seed, task))
        theta = task_encoder.init(encoder_key, dim, settings.n_classes, dtype)
        inner = tuple(
            _inner_start(jax.random.fold_in(inner_key, i), settings, width, dtype)
            for i, width in enumerate(widths)
        )
        return theta, inner, _start_optimiser(seed, task, theta, settings)

    theta, inner, opt = jax.vmap(one)(tasks)
    none = jnp.zeros(len(tasks), jnp.int32)
    effort = Effort(*(count[None] for count in settings.inner.effort))
    return State(tasks, theta, inner, opt, effort, none, jnp.zeros((), jnp.int32))


def first_settings(settings: Search) -> Search:
    """Settings of the fit that a warm start begins with: careful whatever the search does."""
    careful = settings.inner._replace(solver="nesterov", steps=_FIRST_STEPS, step_size=0.0)
    return settings._replace(inner=careful)


def begins_from_rows(settings: Search) -> bool:
    """Whether the start depends on rows: those of the first split of the first step."""
    return settings.start == "warm" or settings.encoder_start != "random"


def begin(state: State, seed: Array | int, subset: Subset, settings: Search) -> State:
    """What of the start depends on rows: encoders that begin at some of them, and a warm start.

    The few steps of the inner fit that follow the labels start near their solution.

    Args:
      state: as `blank` returns it.
      seed: of the run.
      subset: the first split of the first step.
      settings: `first_settings` of the search; the split was made with them.
    """
    if settings.encoder_start != "random":
        theta = _encoders_at_rows(state.task, seed, subset, settings)
        start = functools.partial(_start_optimiser, seed, settings=settings)
        state = state._replace(theta=theta, optimiser=jax.vmap(start)(state.task, theta))
    if settings.start != "warm":
        return state

    def one(theta: Array, starts: tuple[Array, ...]) -> tuple[Array, ...]:
        y = task_encoder.labels(theta, subset.phi1_train, settings.temperature, settings.labels)
        return tuple(
            solvers.minimise(
                start, space.train, y, space.penalty, space.step, steps=settings.inner.steps
            ).w
            for space, start in zip(subset.spaces, starts, strict=True)
        )

    return state._replace(inner=jax.vmap(one)(state.theta, state.inner))


def _encoders_at_rows(tasks: Array, seed: Array | int, subset: Subset, settings: Search) -> Array:
    """``(S, d1, K)`` encoders that begin at rows of the split, other ones for each task."""
    # Shard by shard, so that devices which share the rows keep theirs.
    parts = (subset.phi1_train, subset.phi1_test)
    by_shard = [x.reshape(shards_of(subset, settings), -1, x.shape[-1]) for x in parts]
    rows = jnp.concatenate(by_shard, axis=1).reshape(-1, by_shard[0].shape[-1])

    def one(task: Array) -> Array:
        key = jax.random.fold_in(_task_key(seed, task), 1)
        steps = _LLOYD_STEPS if settings.encoder_start == "clusters" else 0
        return task_encoder.init_from_rows(key, rows, settings.n_classes, steps)

    return jax.vmap(one)(tasks)


def shards_of(subset: Subset, settings: Search) -> int:
    """Virtual shards that a split has equally many rows of, one after the other."""
    return len(subset.phi1_train) // settings.train_rows


def _task_key(seed: Array | int, task: Array) -> Array:
    """The key of all that a task begins with: of the run's seed and the task's number."""
    return jax.random.fold_in(jax.random.key(seed), task)


def _inner_start(key: Array, settings: Search, width: int, dtype: jnp.dtype) -> Array:
    shape = (settings.n_classes, width)
    if settings.start in ("warm", "cold"):
        return jnp.zeros(shape, dtype)
    return _uniform_start(key, shape, dtype)


def _uniform_start(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """U(+-1/sqrt(d2)) for weights and bias, the start of the reference's linear layer."""
    bound = (shape[-1] - 1) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def schedules(settings: Search) -> tuple[optax.Schedule, optax.Schedule]:
    """Temperature and learning rate as functions of the step; both drop at the same steps."""

    def drops(start: float, factor: float) -> optax.Schedule:
        return optax.piecewise_constant_schedule(
            start, {int(step): factor for step in settings.anneal_steps}
        )

    return (
        drops(settings.temperature, settings.anneal_temperature),
        drops(settings.learning_rate, settings.anneal_learning_rate),
    )


def optimiser(settings: Search) -> optax.GradientTransformation:
    """Adam on a gradient of clipped norm, for one task, in whatever coordinates."""
    _, learning_rate = schedules(settings)
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(learning_rate))


def _start_optimiser(
    seed: Array | int, task: Array, theta: Array, settings: Search
) -> optax.OptState:
    """The optimiser's state before the first step of a task that begins at ``theta``."""
    if settings.coordinates == "matrix":
        return optimiser(settings).init(theta)
    key = jax.random.fold_in(_task_key(seed, task), 2)
    return householder.init(key, theta, optimiser(settings))


def _move(
    theta: Array, gradient: Array, state: optax.OptState, settings: Search
) -> tuple[Array, optax.OptState]:
    """A step of the optimiser, from one task encoder to the next."""
    if settings.coordinates == "matrix":
        updates, state = optimiser(settings).update(gradient, state)
        theta = theta + updates
    else:
        theta, state = householder.update(gradient, state, optimiser(settings))
    # The orthonormal image takes the place of the free matrix, so that its scale does not drift;
    # of reflections it takes the rounding.
    return task_encoder.orthonormalise(theta), state


def split_key(seed: Array | int, step: Array | int, index: Array | int) -> Array:
    """The key of a split: of the run's seed, the step and the split's number within it."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), index)


def split_rows(
    seed: Array | int,
    step: Array | int,
    index: Array | int,
    counts: Array,
    depth: int,
    settings: Search,
) -> Array:
    """Which rows a split has: those that the inner model is fitted on, then those to judge it on.

    With `splits='random'` each split draws rows of its own. With 'folds' it is K-fold: of the
    splits of the run, counted over its steps, as many in a row as there are folds share their rows,
    and each fold is judged on in one of them. There are as many folds as test rows fit into a
    subset; what is left over is fitted on alone.

    Args:
      seed: of the run.
      step: of the search.
      index: number of the split within the step.
      counts: ``(V,)`` rows present in each virtual shard.
      depth: rows of a shard, padding included.
      settings: of the search.

    Returns:
      ``(V, train_rows + test_rows)`` int32 row numbers within each shard.
    """
    size = settings.train_rows + settings.test_rows
    if settings.splits == "random":
        return subsets.draw(split_key(seed, step, index), counts, depth, size)
    folds = size // settings.test_rows
    number = jnp.asarray(step) * settings.subsets_per_step + index
    rows = subsets.draw(split_key(seed, number // folds, 0), counts, depth, size)
    return jnp.roll(rows, -(number % folds) * settings.test_rows, axis=1)


def draw(
    seed: Array | int, step: Array | int, index: Array | int, data: Data, settings: Search
) -> Subset:
    """A random split: from every virtual shard the same number of train and of test rows."""
    with jax.named_scope("split"):
        rows = split_rows(seed, step, index, data.counts, data.phi1.shape[1], settings)
        return subsets.take(data, rows, settings.train_rows, settings.inner)


def step(
    state: State, seed: Array | int, data: Data, log_prior: Array, settings: Search
) -> tuple[State, Info]:
    """One outer step of all tasks.

    Args:
      state: of S tasks.
      seed: of the run; the splits depend on it and on the step's number.
      data: the search rows.
      log_prior: ``(K,)`` log of the class prior.
      settings: of the search.

    Returns:
      The next state and the `Info` of this step.
    """

    def one_subset(learned: Learned, index: Array) -> tuple[Learned, None]:
        subset = draw(seed, state.step, index, data, settings)
        return learn(state, learned, seed, index, subset, log_prior, settings), None

    learned = nothing(state)
    if settings.subsets_per_step == 1:
        learned, _ = one_subset(learned, jnp.zeros((), jnp.int32))
    else:
        learned, _ = jax.lax.scan(one_subset, learned, jnp.arange(settings.subsets_per_step))
    with jax.named_scope("update"):
        return update(state, learned, settings)


def nothing(state: State) -> Learned:
    """What a step has learned before its first split."""
    zeros = jnp.zeros(len(state.task), state.theta.dtype)
    report = Report(*(zeros for _ in Report._fields))
    return Learned(jnp.zeros_like(state.theta), state.inner, report)


def learn(
    state: State,
    learned: Learned,
    seed: Array | int,
    index: Array | int,
    subset: Subset,
    log_prior: Array,
    settings: Search,
) -> Learned:
    """Adds the hypergradients on one split of a step.

    Args:
      state: of S tasks, before the step.
      learned: from the splits before this one.
      seed: of the run.
      index: number of the split within the step.
      subset: the split.
      log_prior: ``(K,)`` log of the class prior.
      settings: of the search.
    """
    # Only warm starts pass from one split of a step to the next.
    before = state._replace(inner=learned.inner) if settings.start == "warm" else state
    starts = inner_starts(before, split_key(seed, state.step, index), settings)
    temperature = _temperature(state, settings)
    gradients, inner, report = hypergradients(
        state.theta, starts, subset, temperature, log_prior, settings, effort_of(state)
    )
    total = jax.tree.map(jnp.add, learned.report, report)
    return Learned(learned.gradients + gradients, inner, total)


def update(state: State, learned: Learned, settings: Search) -> tuple[State, Info]:
    """Ends a step by what was learned from all of its splits.

    Args:
      state: of S tasks, before the step.
      learned: from the step's splits.
      settings: of the search.

    Returns:
      The next state and the `Info` of this step.
    """
    _, learning_rate_at = schedules(settings)
    temperature = _temperature(state, settings)
    gradients = learned.gradients / settings.subsets_per_step
    report = jax.tree.map(lambda value: value / settings.subsets_per_step, learned.report)
    move = functools.partial(_move, settings=settings)
    theta, opt = jax.vmap(move)(state.theta, gradients, state.optimiser)
    inner = learned.inner if settings.start == "warm" else state.inner
    dropped = _dropped(state, (report.objective, theta, inner, opt))
    # A task that is dropped stays as it was before the step that was not finite.
    theta, inner, opt = jax.tree.map(
        lambda new, old: jnp.where(_along(dropped > 0, new), old, new),
        (theta, inner, opt),
        (state.theta, state.inner, state.optimiser),
    )
    info = Info(
        report.objective,
        report.heldout_ce,
        report.entropy,
        gradient_norm=jnp.sqrt(jnp.sum(gradients.reshape(len(theta), -1) ** 2, axis=1)),
        inner_residual=report.inner_residual,
        adjoint_residual=report.adjoint_residual,
        effort=state.effort,
        dropped=dropped,
        temperature=temperature,
        learning_rate=jnp.asarray(learning_rate_at(state.step), temperature.dtype),
    )
    new = State(state.task, theta, inner, opt, state.effort, dropped, state.step + 1)
    return new._replace(effort=_next_effort(new, report, settings)), info


def _along(tasks: Array, like: Array) -> Array:
    """``(S,)`` values, to be broadcast to an array ``(S, ...)``."""
    return tasks.reshape(len(tasks), *(1,) * (like.ndim - 1))


def _dropped(state: State, new: Any) -> Array:
    """``(S,)`` steps at which tasks were dropped, those of this one among them."""

    def finite(leaf: Array) -> Array:
        return jnp.all(jnp.isfinite(leaf.reshape(len(leaf), -1)), axis=1)

    whole = jnp.all(jnp.stack([finite(leaf) for leaf in jax.tree.leaves(new)]), axis=0)
    return jnp.where((state.dropped == 0) & ~whole, state.step + 1, state.dropped)


def effort_of(state: State) -> Effort:
    """The numbers of steps of the inner solves that the next step takes, () int32 each."""
    return Effort(*(count[0] for count in state.effort))


def _next_effort(state: State, report: Report, settings: Search) -> Effort:
    """Numbers of steps that the inner solves of the next step take.

    Args:
      state: after the step, but for its effort, which is that of the step.
      report: of the step.
      settings: of the search.
    """
    inner = settings.inner
    if not inner.tolerance or inner.adjoint == "unrolled":
        return state.effort
    following = _following(state, report, settings)
    # The first fits begin near the solution of their own labels: what they leave tells nothing of
    # those to come, and none move as far as those of the second step.
    return jax.tree.map(functools.partial(jnp.where, state.step > 1), following, state.effort)


def _following(state: State, report: Report, settings: Search) -> Effort:
    """Those that what the last ones left asks for, on average over the tasks."""
    effort, inner, alive = state.effort, settings.inner, state.dropped == 0
    seen = [
        report.inner_residual,
        report.inner_before,
        report.adjoint_residual,
        report.adjoint_before,
    ]
    # What is above 1 is no worse, it is as if nothing had been solved.
    left = jnp.where(alive[None], jnp.minimum(jnp.stack(seen), 1), 0)
    # One sum for all, of which devices that share the tasks need to hear.
    *sums, count = jnp.sum(jnp.concatenate([left, alive[None].astype(left.dtype)]), axis=1)
    after, before, adjoint_after, adjoint_before = (s / jnp.maximum(count, 1) for s in sums)
    steps = adjust(effort.steps, after, before, inner.tolerance, inner.steps)
    # Colder labels are other labels: a warm start is further from its solution than it was.
    now, last = (_temperature(state._replace(step=state.step - i), settings) for i in range(2))
    steps = jnp.where(now == last, steps, jnp.minimum(steps + 1, inner.steps))
    if inner.adjoint == "first_order":
        return effort._replace(steps=steps)
    tolerance = adjoint_tolerance(inner.tolerance, now)
    adjoint_steps = adjust(
        effort.adjoint_steps, adjoint_after, adjoint_before, tolerance, inner.adjoint_steps
    )
    return effort._replace(steps=steps, adjoint_steps=adjoint_steps)


def _temperature(state: State, settings: Search) -> Array:
    return jnp.asarray(schedules(settings)[0](state.step), state.theta.dtype)


def split(
    state: State, seed: Array | int, index: Array | int, data: Data, settings: Search
) -> tuple[Subset, tuple[Array, ...]]:
    """A split of the step that ``state`` is before, and where the inner fits on it start.

    Args:
      state: of S tasks.
      seed: of the run.
      index: number of the split within the step.
      data: the search rows.
      settings: of the search.

    Returns:
      The split, and ``(S, K, r)`` starts in each second space.
    """
    starts = inner_starts(state, split_key(seed, state.step, index), settings)
    return draw(seed, state.step, index, data, settings), starts


def inner_starts(state: State, key: Array, settings: Search) -> tuple[Array, ...]:
    """Where the inner fits on the split of a key start, ``(S, K, r)`` in each second space."""
    if settings.start != "random":
        # The last solutions if 'warm'; if 'cold' or 'fixed', what `init` made, which steps keep.
        return state.inner
    start_key = jax.random.fold_in(key, 2**31 - 1)

    def one(task: Array, w: Array, space: int) -> Array:
        task_key = jax.random.fold_in(jax.random.fold_in(start_key, task), space)
        return _uniform_start(task_key, w.shape, w.dtype)

    return tuple(
        jax.vmap(functools.partial(one, space=i))(state.task, w) for i, w in enumerate(state.inner)
    )


def hypergradients(
    theta: Array,
    starts: tuple[Array, ...],
    subset: Subset,
    temperature: Array,
    log_prior: Array,
    settings: Search,
    effort: Effort | None = None,
) -> tuple[Array, tuple[Array, ...], Report]:
    """Gradients of Eq. 7 on one split, of all tasks.

    Args:
      theta: ``(S, d1, K)``.
      starts: ``(S, K, r)`` starts of the inner fits in each second space.
      subset: the split.
      temperature: T.
      log_prior: ``(K,)`` log of the class prior.
      settings: of the search.
      effort: numbers of steps of the inner solves, () each; those of the settings by default.

    Returns:
      The gradients ``(S, d1, K)`` in the free matrices, the inner solutions ``(S, K, r)`` in each
      second space, and the `Report`.
    """
    one = functools.partial(
        _hypergradient,
        subset=subset,
        temperature=temperature,
        log_prior=log_prior,
        settings=settings,
        effort=effort,
    )
    return jax.vmap(one)(theta, starts)


def _hypergradient(
    theta: Array,
    starts: tuple[Array, ...],
    *,
    subset: Subset,
    temperature: Array,
    log_prior: Array,
    settings: Search,
    effort: Effort | None,
) -> tuple[Array, tuple[Array, ...], Report]:
    """Gradient of Eq. 7 in the free matrix of one task, its inner solutions, and what to report."""

    def value(theta: Array, watches: tuple[Watch, ...]) -> tuple[Array, Terms]:
        return objective(
            theta,
            starts,
            subset,
            temperature,
            log_prior,
            settings.entropy_weight,
            settings.inner,
            settings.labels,
            effort,
            watches,
            shards_of(subset, settings),
        )

    probes = (inner_fit.probe(theta.dtype),) * len(subset.spaces)
    (total, terms), (gradient, seen) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(
        theta, probes
    )
    gradient = task_encoder.tangent(theta, gradient)
    return gradient, terms.solutions, _report(total, terms, seen)


def _report(total: Array, terms: Terms, seen: tuple[Watch, ...]) -> Report:
    """What one task has to report."""
    # The objective has the mean over the spaces, of which each sees its share.
    tiny = jnp.finfo(total.dtype).tiny
    heldout = [jnp.maximum(watch.heldout * len(seen), tiny) for watch in seen]

    def mean(values: Iterable[Array]) -> Array:
        return sum(values, jnp.zeros_like(total)) / len(seen)

    return Report(
        total,
        terms.heldout_ce,
        terms.entropy,
        inner_residual=mean(r.after / b for r, b in zip(terms.residuals, heldout, strict=True)),
        inner_before=mean(r.before / b for r, b in zip(terms.residuals, heldout, strict=True)),
        adjoint_residual=mean(watch.adjoint.after for watch in seen),
        adjoint_before=mean(watch.adjoint.before for watch in seen),
    )


def run_steps(
    state: State,
    seed: Array | int,
    data: Data,
    log_prior: Array,
    settings: Search,
    steps: int,
) -> tuple[State, Info]:
    """``steps`` outer steps in one compiled program, no host round-trip inside.

    Returns:
      The last state and the `Info` of every step, leaves ``(steps, ...)``.
    """

    def body(state: State, _: None) -> tuple[State, Info]:
        return step(state, seed, data, log_prior, settings)

    return jax.lax.scan(body, state, None, length=steps)
