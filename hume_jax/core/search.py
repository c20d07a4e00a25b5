"""The outer search: many task encoders at once, ``step(state, ...) -> (state, info)``.

All tasks of a batch share each step's random split, so the representations are read once a step.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from hume_jax.core import inner_fit, task_encoder
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.objective import InnerSpace, Subset, objective

# Steps of the fit that a warm start begins with, from zero.
_FIRST_STEPS = 60


class Search(NamedTuple):
    """Settings of the search. Static under jit."""

    n_classes: int
    train_rows: int  # rows of each split the inner model is fitted on, in each shard
    test_rows: int  # rows of each split it is judged on, in each shard
    subsets_per_step: int = 1
    entropy_weight: float = 10.0  # eta of Eq. 7
    temperature: float = 0.1  # T of Eq. 3 at the start
    learning_rate: float = 0.03  # Adam's, at the start
    clip: float = 1.0  # norm a task's gradient is clipped to
    anneal_steps: tuple[int, ...] = (120, 160)
    anneal_learning_rate: float = 0.1  # factor at each anneal step
    anneal_temperature: float = 0.1  # factor at each anneal step
    start: str = "warm"  # of the inner fit: 'warm' | 'cold' | 'fixed' | 'random'
    inner: InnerFit = InnerFit()


class Rows(NamedTuple):
    """One second representation, dealt to virtual shards, in the coordinates of the inner fit."""

    x: Array  # (V, m, r) float32
    penalty: Array  # (r,) float32


class Data(NamedTuple):
    """The search rows. Row ``i`` of the dataset is row ``i // V`` of virtual shard ``i % V``."""

    phi1: Array  # (V, m, d1) float32, unit norm
    spaces: tuple[Rows, ...]
    counts: Array  # (V,) int32, rows present in each shard; the rest is padding


class State(NamedTuple):
    """What the search carries from step to step, for S tasks."""

    task: Array  # (S,) int32, number of each task within the run
    theta: Array  # (S, d1, K) float32, orthonormal columns
    inner: tuple[Array, ...]  # (S, K, r) float32, last inner solution in each second space
    optimiser: optax.OptState  # leaves (S, ...)
    step: Array  # () int32


class Info(NamedTuple):
    """What is only looked at."""

    objective: Array  # (S,) float32, Eq. 7 on this step's split, soft labels
    heldout_ce: Array  # (S,) float32
    entropy: Array  # (S,) float32, nats
    gradient_norm: Array  # (S,) float32, before clipping
    inner_residual: Array  # (S,) float32, norm of the last inner gradient
    adjoint_residual: Array  # (S,) float32, relative; 0 unless the adjoint is implicit
    temperature: Array  # () float32
    learning_rate: Array  # () float32


def make_data(
    phi1: np.ndarray, spaces: Sequence[tuple[np.ndarray, np.ndarray]], shards: int
) -> Data:
    """Deals the search rows to virtual shards.

    Args:
      phi1: ``(n, d1)`` float32, unit norm.
      spaces: ``(x, penalty)`` of each second space, ``(n, r)`` and ``(r,)`` float32.
      shards: V.
    """
    counts = [len(range(shard, len(phi1), shards)) for shard in range(shards)]
    return Data(
        jnp.asarray(deal(phi1, shards)),
        tuple(Rows(jnp.asarray(deal(x, shards)), jnp.asarray(p)) for x, p in spaces),
        jnp.asarray(counts, jnp.int32),
    )


def deal(rows: np.ndarray, shards: int) -> np.ndarray:
    """Deals rows to virtual shards: ``(n, d)`` to ``(V, ceil(n / V), d)``, padded with zeros.

    Neighbours go to different shards, so a dataset stored class by class gives the same subsets,
    up to chance, as a shuffled one.
    """
    n, dim = rows.shape
    dealt = np.zeros((shards, -(-n // shards), dim), rows.dtype)
    for shard in range(shards):
        part = rows[shard::shards]
        dealt[shard, : len(part)] = part
    return dealt


def init(seed: int, tasks: Array, data: Data, settings: Search) -> State:
    """The state before the first step.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the tasks. A task's start depends on the seed and its number
        only, not on the batch it is in.
      data: the search rows.
      settings: of the search.
    """
    dim, dtype = data.phi1.shape[-1], data.phi1.dtype

    def one(task: Array) -> tuple[Array, tuple[Array, ...], optax.OptState]:
        key = jax.random.fold_in(jax.random.key(seed), task)
        encoder_key, inner_key = jax.random.split(key)
        theta = task_encoder.init(encoder_key, dim, settings.n_classes, dtype)
        inner = tuple(
            _inner_start(jax.random.fold_in(inner_key, i), settings, space)
            for i, space in enumerate(data.spaces)
        )
        return theta, inner, optimiser(settings).init(theta)

    theta, inner, opt = jax.vmap(one)(tasks)
    state = State(tasks, theta, inner, opt, jnp.zeros((), jnp.int32))
    if settings.start == "warm":
        state = state._replace(inner=_first_solutions(state, seed, data, settings))
    return state


def _first_solutions(state: State, seed: int, data: Data, settings: Search) -> tuple[Array, ...]:
    """Inner solutions on the first split: the few steps that follow the labels start near them."""
    careful = settings.inner._replace(solver="nesterov", steps=_FIRST_STEPS, step_size=0.0)
    settings = settings._replace(inner=careful)
    subset, starts = split(state, seed, 0, data, settings)

    def one(theta: Array, starts: tuple[Array, ...]) -> tuple[Array, ...]:
        y = task_encoder.labels(theta, subset.phi1_train, settings.temperature)
        return tuple(
            inner_fit.minimise(
                start, space.train, y, space.penalty, space.step, steps=_FIRST_STEPS
            )[0]
            for space, start in zip(subset.spaces, starts, strict=True)
        )

    return jax.vmap(one)(state.theta, starts)


def _inner_start(key: Array, settings: Search, space: Rows) -> Array:
    shape = (settings.n_classes, space.x.shape[-1])
    if settings.start in ("warm", "cold"):
        return jnp.zeros(shape, space.x.dtype)
    return _uniform_start(key, shape, space.x.dtype)


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
    """Adam on a gradient of clipped norm, for one task."""
    _, learning_rate = schedules(settings)
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(learning_rate))


def draw(key: Array, data: Data, settings: Search) -> Subset:
    """A random split: from every virtual shard the same number of train and of test rows.

    The rows drawn from a shard depend on the key and the shard's number only, so the split does not
    depend on the number of devices or hosts the shards lie on.
    """
    shards, depth, _ = data.phi1.shape

    def order(shard: Array, count: Array) -> Array:
        chance = jax.random.uniform(jax.random.fold_in(key, shard), (depth,), jnp.float32)
        ranking = jnp.argsort(jnp.where(jnp.arange(depth) < count, chance, 2.0))
        return ranking[: settings.train_rows + settings.test_rows]

    rows = jax.vmap(order)(jnp.arange(shards), data.counts)
    train, test = rows[:, : settings.train_rows], rows[:, settings.train_rows :]

    def take(x: Array, index: Array) -> Array:
        return jax.vmap(lambda a, i: a[i])(x, index).reshape(-1, x.shape[-1])

    spaces = []
    for space in data.spaces:
        x = take(space.x, train)
        spaces.append(
            InnerSpace(x, take(space.x, test), space.penalty, _step_size(x, space, settings.inner))
        )
    return Subset(take(data.phi1, train), take(data.phi1, test), tuple(spaces))


def _step_size(x: Array, space: Rows, settings: InnerFit) -> Array:
    """Step size of the inner solver; Newton's has none."""
    if settings.step_size or settings.solver == "newton":
        return jnp.asarray(settings.step_size, x.dtype)
    return 2 / inner_fit.largest_curvature(x, space.penalty)


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
    temperature_at, learning_rate_at = schedules(settings)
    temperature = jnp.asarray(temperature_at(state.step), data.phi1.dtype)
    tasks = state.theta.shape[0]

    def one_subset(carry: tuple, index: Array) -> tuple:
        gradients, inner = carry
        # Only warm starts pass from one split of a step to the next.
        before = state._replace(inner=inner) if settings.start == "warm" else state
        subset, starts = split(before, seed, index, data, settings)
        more, inner, values = hypergradients(
            state.theta, starts, subset, temperature, log_prior, settings
        )
        return (gradients + more, inner), values

    zeros = jnp.zeros_like(state.theta)
    if settings.subsets_per_step == 1:
        (gradients, inner), values = one_subset((zeros, state.inner), jnp.zeros((), jnp.int32))
    else:
        (gradients, inner), values = jax.lax.scan(
            one_subset, (zeros, state.inner), jnp.arange(settings.subsets_per_step)
        )
        gradients = gradients / settings.subsets_per_step
        values = jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
    updates, opt = jax.vmap(optimiser(settings).update)(gradients, state.optimiser)
    # The orthonormal image takes the place of the free matrix, so that its scale does not drift.
    theta = jax.vmap(task_encoder.orthonormalise)(optax.apply_updates(state.theta, updates))
    kept = inner if settings.start == "warm" else state.inner
    norm = jnp.sqrt(jnp.sum(gradients.reshape(tasks, -1) ** 2, axis=1))
    total, heldout_ce, entropy, inner_residual, adjoint_residual = values
    info = Info(
        total,
        heldout_ce,
        entropy,
        gradient_norm=norm,
        inner_residual=inner_residual,
        adjoint_residual=adjoint_residual,
        temperature=temperature,
        learning_rate=jnp.asarray(learning_rate_at(state.step), temperature.dtype),
    )
    return State(state.task, theta, kept, opt, state.step + 1), info


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
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), index)
    subset = draw(key, data, settings)
    if settings.start != "random":
        # The last solutions if 'warm'; if 'cold' or 'fixed', what `init` made, which steps keep.
        return subset, state.inner
    start_key = jax.random.fold_in(key, 2**31 - 1)

    def one(task: Array, w: Array, space: int) -> Array:
        task_key = jax.random.fold_in(jax.random.fold_in(start_key, task), space)
        return _uniform_start(task_key, w.shape, w.dtype)

    starts = tuple(
        jax.vmap(functools.partial(one, space=i))(state.task, w) for i, w in enumerate(state.inner)
    )
    return subset, starts


def hypergradients(
    theta: Array,
    starts: tuple[Array, ...],
    subset: Subset,
    temperature: Array,
    log_prior: Array,
    settings: Search,
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Gradients of Eq. 7 on one split, of all tasks.

    Args:
      theta: ``(S, d1, K)``.
      starts: ``(S, K, r)`` starts of the inner fits in each second space.
      subset: the split.
      temperature: T.
      log_prior: ``(K,)`` log of the class prior.
      settings: of the search.

    Returns:
      The gradients ``(S, d1, K)`` in the free matrices, the inner solutions ``(S, K, r)`` in each
      second space, and ``(S,)`` each: objective, held-out CE, entropy, inner and adjoint residual.
    """
    one = functools.partial(
        _hypergradient,
        subset=subset,
        temperature=temperature,
        log_prior=log_prior,
        settings=settings,
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
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Gradient of Eq. 7 in the free matrix of one task, its inner solutions, and what to report."""

    def value(theta: Array, probe: Array) -> tuple:
        return objective(
            task_encoder.orthonormalise(theta),
            starts,
            subset,
            temperature,
            log_prior,
            settings.entropy_weight,
            settings.inner,
            probe,
        )

    probe = jnp.zeros((), theta.dtype)
    (total, terms), (gradient, residual) = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(
        theta, probe
    )
    report = (total, terms.heldout_ce, terms.entropy, terms.inner_residual, jnp.abs(residual))
    return gradient, terms.solutions, report


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
