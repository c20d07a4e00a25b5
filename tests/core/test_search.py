"""The outer search: its random splits, its schedules; the tasks of a batch are independent."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hume_jax.core import householder, search, solvers, task_encoder
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.objective import objective
from hume_jax.representations.prepare import inner_rows

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# 203 rows on 4 shards: the last one has 50 rows and one of padding, the others have 51.
N, D1, D2, K, V = 203, 12, 8, 4, 4
TASKS = (4, 0, 7)
SETTINGS = search.Search(K, 30, 6, anneal_steps=(1, 3), inner=InnerFit(steps=2, adjoint_steps=10))
# So few inner steps that where they start is seen in the result.
RANDOM = SETTINGS._replace(
    start="random", inner=InnerFit(solver="nesterov", steps=3, adjoint_steps=3)
)
SUBSETS = SETTINGS._replace(start="cold", subsets_per_step=3)
LOG_PRIOR = np.log(np.full(K, 1 / K, np.float32))

_traced: list[str] = []


@functools.partial(jax.jit, static_argnames="settings")
def init(seed, tasks, data, settings):
    return search.init(seed, tasks, data, settings)


@functools.partial(jax.jit, static_argnames="settings")
def step(state, seed, data, settings):
    return search.step(state, seed, data, jnp.asarray(LOG_PRIOR), settings)


@functools.partial(jax.jit, static_argnames=("settings", "steps"))
def run_steps(state, seed, data, log_prior, settings, steps):
    _traced.append(f"{steps} steps of {len(state.task)} tasks, {settings}")
    return search.run_steps(state, seed, data, log_prior, settings, steps)


@functools.partial(jax.jit, static_argnames="settings")
def split(state, seed, index, data, settings):
    return search.split(state, seed, index, data, settings)


@functools.partial(jax.jit, static_argnames="settings")
def draw(seed, data, settings, step=0, index=0):
    return search.draw(seed, step, index, data, settings)


def arrays(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clustered rows in two spaces, phi1 of unit norm."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(K, size=N)
    phi1, phi2 = (
        rng.normal(size=(K, width))[classes] + 0.7 * rng.normal(size=(N, width))
        for width in (D1, D2)
    )
    return (phi1 / np.linalg.norm(phi1, axis=1, keepdims=True)).astype(np.float32), phi2


def dealt(phi1: np.ndarray, phi2: np.ndarray) -> search.Data:
    space = inner_rows(
        [phi2.astype(np.float32)], normalised=True, precondition=True, directions=0, penalty=1e-3
    )
    return search.make_data(phi1, [(space.x, space.penalty)], V)


@pytest.fixture(scope="module")
def data() -> search.Data:
    return dealt(*arrays())


@pytest.fixture(scope="module")
def start(data: search.Data) -> search.State:
    return init(0, jnp.asarray(TASKS), data, SETTINGS)


@pytest.fixture(scope="module")
def random_start(data: search.Data) -> search.State:
    return init(0, jnp.asarray(TASKS), data, RANDOM)


def blocks(state: search.State, data: search.Data, *lengths: int, seed: int = 0) -> tuple:
    """The state after blocks of steps, and the info of each."""
    infos = []
    for length in lengths:
        state, info = run_steps(state, jnp.uint32(seed), data, LOG_PRIOR, SETTINGS, length)
        infos.append(info)
    return state, infos


@pytest.fixture(scope="module")
def after(data: search.Data, start: search.State) -> tuple:
    """The state after four steps and their info."""
    state, (info,) = blocks(start, data, 4)
    return state, info


def take(state: search.State, index: Any) -> search.State:
    """Some tasks of a state."""
    some = jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, state._replace(effort=()))
    return some._replace(effort=state.effort)


def equal(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


# ---- rows: dealt to shards, drawn from them


def test_rows_are_dealt_in_turn():
    rows = np.arange(2 * N, dtype=np.float32).reshape(N, 2)
    shards = search.deal(rows, V)
    assert shards.shape == (V, 51, 2)
    for i in (0, 1, 5, 101, N - 1):
        np.testing.assert_array_equal(shards[i % V, i // V], rows[i])
    np.testing.assert_array_equal(shards.swapaxes(0, 1).reshape(-1, 2)[:N], rows)
    np.testing.assert_array_equal(shards[3, 50], 0)
    data = search.make_data(rows, [(rows, np.zeros(2, np.float32))], V)
    np.testing.assert_array_equal(data.counts, [51, 51, 51, 50])


def numbered(shards: int = V) -> search.Data:
    """Rows that say which they are, padding that is not a number."""
    data = search.make_data(
        np.arange(N, dtype=np.float32)[:, None],
        [(np.arange(N, dtype=np.float32)[:, None], np.zeros(1, np.float32))],
        V,
    )
    phi1 = data.phi1.at[V - 1, -1].set(np.nan)
    space = data.spaces[0]._replace(x=phi1)
    data = search.Data(phi1, (space,), data.counts)
    return jax.tree.map(lambda leaf: leaf[:shards] if leaf.shape[0] == V else leaf, data)


def test_a_split_takes_the_same_number_of_rows_from_each_shard_and_no_padding():
    data, drawn = numbered(), []
    for seed in range(20):
        # 44 + 6 rows: all that the last shard has.
        subset = draw(seed, data, SETTINGS._replace(train_rows=44))
        train, test = (np.asarray(rows)[:, 0] for rows in (subset.phi1_train, subset.phi1_test))
        np.testing.assert_array_equal(subset.spaces[0].train[:, 0], train)
        np.testing.assert_array_equal(subset.spaces[0].test[:, 0], test)
        rows = np.concatenate([train, test])
        assert np.isfinite(rows).all()
        assert len(np.unique(rows)) == 4 * 50
        np.testing.assert_array_equal(np.bincount(train.astype(int) % V), 44)
        np.testing.assert_array_equal(np.bincount(test.astype(int) % V), 6)
        drawn.append(test)
    assert len(np.unique(np.concatenate(drawn))) > 0.8 * N


def test_a_split_depends_on_the_key_and_on_a_shard_for_its_own_rows_only():
    settings = SETTINGS._replace(train_rows=44)
    first, again, other = (draw(seed, numbered(), settings) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not np.array_equal(np.sort(first.phi1_test[:, 0]), np.sort(other.phi1_test[:, 0]))
    # As on the first of two hosts that hold half the shards each.
    half = draw(0, numbered(2), settings)
    np.testing.assert_array_equal(half.phi1_train, first.phi1_train[: 2 * 44])
    np.testing.assert_array_equal(half.phi1_test, first.phi1_test[: 2 * 6])


@pytest.mark.parametrize("subsets", [1, 2])
def test_folds_of_a_subset_are_judged_on_one_after_the_other(subsets):
    """Of 20 rows of a shard, 3 folds of 6, and 2 rows that are always fitted on."""
    settings = SETTINGS._replace(splits="folds", train_rows=14, subsets_per_step=subsets)
    splits = [
        draw(0, numbered(), settings, step, index) for step in range(6) for index in range(subsets)
    ]
    rows = [
        [np.asarray(part)[:, 0].astype(int) for part in (split.phi1_train, split.phi1_test)]
        for split in splits
    ]
    every = [frozenset(np.concatenate(parts).tolist()) for parts in rows]
    assert {len(each) for each in every} == {V * 20}
    for first in range(0, len(rows), 3):
        assert len(set(every[first : first + 3])) == 1
        judged = np.concatenate([test for _, test in rows[first : first + 3]])
        assert len(np.unique(judged)) == 3 * V * 6
        np.testing.assert_array_equal(np.bincount(judged % V), 18)
    # Other rows for the next folds.
    assert len(set(every)) == len(rows) // 3


# ---- starts


def test_a_start_depends_on_the_seed_and_the_task_only(data, random_start):
    alone = init(0, jnp.asarray(TASKS[1:2]), data, RANDOM)
    np.testing.assert_allclose(alone.theta, random_start.theta[1:2], atol=1e-6)
    assert equal(alone.inner, take(random_start, slice(1, 2)).inner)
    other = init(1, jnp.asarray(TASKS), data, RANDOM)
    assert difference(other.theta, random_start.theta) > 0.1
    assert difference(random_start.theta[0], random_start.theta[1]) > 0.1
    gram = np.einsum("sdk,sdl->skl", random_start.theta, random_start.theta)
    np.testing.assert_allclose(gram, np.eye(K)[None].repeat(3, 0), atol=1e-5)


def test_warm_starts_are_the_last_solutions(data, start, after):
    """Before the first step: solutions on its split."""
    subset, (inner,) = split(start, 0, 0, data, SETTINGS)
    np.testing.assert_array_equal(inner, start.inner[0])
    space = subset.spaces[0]

    @jax.jit
    @jax.vmap
    def residual(theta, w):
        y = task_encoder.labels(theta, subset.phi1_train, SETTINGS.temperature)
        return jnp.linalg.norm(solvers.gradient(w, space.train, y, space.penalty))

    assert np.all(residual(start.theta, inner) < 0.05 * residual(start.theta, 0 * inner))
    assert difference(after[0].inner[0], inner) > 0.1


def test_cold_starts_stay_zero(data):
    cold = init(0, jnp.asarray(TASKS), data, SUBSETS)
    np.testing.assert_array_equal(cold.inner[0], 0)
    state, _ = step(cold, jnp.uint32(0), data, SUBSETS)
    np.testing.assert_array_equal(state.inner[0], 0)


def test_fixed_starts_are_one_draw_that_is_kept(data, random_start):
    (inner,) = random_start.inner
    bound = D2**-0.5
    assert 0.9 * bound < np.abs(inner).max() <= bound
    assert np.abs(np.mean(inner)) < 0.2 * bound
    assert difference(inner[0], inner[1]) > 0.1 * bound
    fixed = RANDOM._replace(start="fixed")
    for at in (0, 1):
        state = random_start._replace(step=jnp.int32(at))
        _, (starts,) = split(state, 0, 0, data, fixed)
        np.testing.assert_array_equal(starts, inner)


def test_random_starts_are_new_for_each_task_and_each_subset(data, random_start):
    later = random_start._replace(step=random_start.step + 1)
    draws = [
        split(state, seed, index, data, RANDOM)[1][0]
        for state, seed, index in (
            (random_start, 0, 0),
            (random_start, 0, 1),
            (random_start, 1, 0),
            (later, 0, 0),
        )
    ]
    values = np.concatenate(draws)
    assert len(np.unique(values)) > 0.99 * values.size
    bound = D2**-0.5
    assert 0.95 * bound < np.abs(values).max() <= bound
    (again,) = split(random_start, 0, 0, data, RANDOM)[1]
    np.testing.assert_array_equal(again, draws[0])
    # The task's number makes the start, not its place in the batch.
    order = jnp.asarray([1, 2, 0])
    (turned,) = split(take(random_start, order), 0, 0, data, RANDOM)[1]
    np.testing.assert_array_equal(turned, draws[0][order])


# ---- tasks are independent


def test_a_batch_of_tasks_equals_single_tasks(data, start):
    together, (info,) = blocks(start, data, 2)
    for i in range(len(TASKS)):
        one, (its_info,) = blocks(take(start, slice(i, i + 1)), data, 2)
        np.testing.assert_allclose(one.theta[0], together.theta[i], atol=1e-5)
        np.testing.assert_allclose(its_info.objective[:, 0], info.objective[:, i], rtol=1e-5)
        np.testing.assert_allclose(its_info.gradient_norm[0], info.gradient_norm[0, i], rtol=1e-5)
        pairs = zip(
            jax.tree.leaves(one.optimiser), jax.tree.leaves(together.optimiser), strict=True
        )
        for its_leaf, leaf in pairs:
            np.testing.assert_allclose(its_leaf[0], leaf[i], atol=1e-5)


def test_clipping_and_optimiser_state_are_per_task(data, start):
    assert all(leaf.shape[0] == len(TASKS) for leaf in jax.tree.leaves(start.optimiser))
    # Plain steps, which do not come back from an inner start that is far off.
    inner = InnerFit(solver="gradient", steps=2, step_size=0.1)
    settings = SETTINGS._replace(inner=inner)
    arguments = (jnp.uint32(0), data, LOG_PRIOR, settings, 2)
    usual, info = run_steps(start, *arguments)
    far = start._replace(inner=(start.inner[0].at[0].set(1e4 * (1 + jnp.arange(K))[:, None]),))
    state, far_info = run_steps(far, *arguments)
    assert far_info.gradient_norm[0, 0] > 100 * SETTINGS.clip
    assert equal(take(state, slice(1, 3)), take(usual, slice(1, 3)))
    np.testing.assert_array_equal(far_info.objective[:, 1:], info.objective[:, 1:])
    moments = [leaf for leaf in jax.tree.leaves(state.optimiser) if leaf.shape == far.theta.shape]
    # Adam's first moment after two steps weighs clipped gradients by 0.09 and 0.1.
    assert np.linalg.norm(moments[0][0]) <= 0.19 * SETTINGS.clip + 1e-6
    assert difference(moments[0][0], jax.tree.leaves(usual.optimiser)[1][0]) > 1e-3


# ---- steps


def test_steps_keep_the_columns_orthonormal_and_lower_the_objective(start, after, data):
    state, info = after
    gram = np.einsum("sdk,sdl->skl", state.theta, state.theta)
    np.testing.assert_allclose(gram, np.eye(K)[None].repeat(3, 0), atol=1e-5)
    assert difference(state.theta, start.theta) > 0.5 * SETTINGS.learning_rate
    assert int(state.step) == 4
    np.testing.assert_array_equal(state.task, TASKS)
    for name, value in info._asdict().items():
        assert np.isfinite(value).all(), name
    assert np.mean(info.objective[-1]) < np.mean(info.objective[0])
    assert np.all(info.entropy <= np.log(K) + 1e-6)


def test_temperature_and_learning_rate_drop_together_at_the_steps_asked(data, start, after):
    state, info = after
    drops = np.float32([1, 0.1, 0.1, 0.01])
    np.testing.assert_allclose(info.temperature, SETTINGS.temperature * drops, rtol=1e-6)
    np.testing.assert_allclose(info.learning_rate, SETTINGS.learning_rate * drops, rtol=1e-6)
    # Adam moves by about the learning rate an entry: 1 + 0.1 of it, then 0.1 + 0.01.
    middle, _ = blocks(start, data, 2)
    assert difference(middle.theta, start.theta) > 0.7 * SETTINGS.learning_rate
    assert difference(state.theta, middle.theta) < 0.3 * SETTINGS.learning_rate


def test_blocks_of_any_length_are_the_same_search(data, start, after):
    """Bitwise: a resumed run may continue with blocks of another length."""
    state, (first, second) = blocks(start, data, 2, 2)
    assert equal(state, after[0])
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    assert equal(joined, after[1])


@pytest.fixture(scope="module")
def following(data) -> tuple:
    """Steps whose inner solves take as many steps as what they leave asks for."""
    inner = InnerFit(steps=5, newton_steps=3, adjoint_steps=9, tolerance=0.2)
    settings = SETTINGS._replace(anneal_steps=(), inner=inner)
    state = init(0, jnp.asarray(TASKS), data, settings)
    return settings, state, run_steps(state, jnp.uint32(0), data, LOG_PRIOR, settings, 8)


def test_the_inner_solves_take_as_many_steps_as_what_they_leave_asks_for(following):
    settings, start, (state, info) = following
    for counts, most in ((info.effort.steps, 5), (info.effort.adjoint_steps, 9)):
        counts = np.asarray(counts)
        # All tasks share them: first the most, then fewer, by two at a time at most.
        assert counts.shape == (8, 1)
        assert counts[0, 0] == most > counts[-1, 0] >= 1
        assert np.all(np.diff(counts[:, 0]) >= -2)
        # What the first ones left tells nothing of those that follow.
        assert counts[1, 0] == most
    for residual in (info.inner_residual, info.adjoint_residual):
        assert np.all(np.mean(residual, axis=1)[1:] < 2 * 0.2)
    assert np.mean(info.adjoint_residual[-1]) > np.mean(info.adjoint_residual[0])
    np.testing.assert_array_equal(state.effort.newton_steps, [3])
    np.testing.assert_array_equal(start.effort.steps, [5])


@pytest.mark.parametrize(
    ("done", "expected"), [(1, (4, 6)), (2, (5, 10)), (3, (4, 10))], ids=["warm", "then", "cold"]
)
def test_colder_labels_ask_for_more_steps(start, done, expected):
    """One of the fit as they get colder; the adjoint takes 6 to 0.05, hence 9.3 to 0.01."""
    inner = InnerFit(steps=8, adjoint_steps=20, tolerance=0.1)
    settings = SETTINGS._replace(
        temperature=0.5, anneal_steps=(3,), anneal_temperature=0.1, inner=inner
    )
    effort = search.Effort(*(jnp.full(1, count, jnp.int32) for count in (4, 6, 6)))
    state = start._replace(step=jnp.int32(done), effort=effort)
    # What would leave both as they are, were all labels as warm as at first.
    learned = search.nothing(state)
    left = [jnp.full(len(TASKS), value) for value in (0.05, 0.2, 0.05, 0.2)]
    report = search.Report(*learned.report[:3], *left)
    after, _ = search.update(state, learned._replace(report=report), settings)
    assert (int(after.effort.steps[0]), int(after.effort.adjoint_steps[0])) == expected


def test_blocks_of_any_length_take_the_same_numbers_of_steps(data, following):
    settings, start, (whole, info) = following
    state, counts = start, []
    for length in (3, 5):
        state, part = run_steps(state, jnp.uint32(0), data, LOG_PRIOR, settings, length)
        counts.append(part.effort.adjoint_steps)
    assert equal(state, whole)
    np.testing.assert_array_equal(np.concatenate(counts), info.effort.adjoint_steps)


@pytest.mark.parametrize("adjoint", ["first_order", "unrolled"])
def test_numbers_of_steps_with_other_adjoints(data, adjoint):
    """Without a linear system the solver's follow alone; what is unrolled has a fixed length."""
    inner = InnerFit(adjoint, steps=4, newton_steps=4, adjoint_steps=7, tolerance=0.5)
    settings = SETTINGS._replace(inner=inner)
    state = init(0, jnp.asarray(TASKS), data, settings)
    _, info = run_steps(state, jnp.uint32(0), data, LOG_PRIOR, settings, 4)
    np.testing.assert_array_equal(info.effort.adjoint_steps, 7)
    assert np.all(np.isfinite(info.inner_residual))
    if adjoint == "unrolled":
        np.testing.assert_array_equal(info.effort.steps, 4)
    else:
        assert info.effort.steps[-1, 0] < 4


def test_a_task_whose_step_is_not_finite_stays_as_it_was(data, start, after):
    """Dropped at its first step; the others go on, bit for bit."""
    ill = start._replace(theta=start.theta.at[1, 2].set(jnp.nan))
    state, (info,) = blocks(ill, data, 4)
    np.testing.assert_array_equal(info.dropped, np.tile([0, 1, 0], (4, 1)))
    np.testing.assert_array_equal(state.dropped, [0, 1, 0])
    for name in ("theta", "inner", "optimiser"):
        for leaf, before in zip(
            *(jax.tree.leaves(getattr(s, name)) for s in (state, ill)), strict=True
        ):
            np.testing.assert_array_equal(leaf[1], before[1])
    others = jnp.asarray([0, 2])
    assert equal(take(state, others), take(after[0], others))


def test_the_seed_makes_the_splits(data, start, after):
    _, (other,) = blocks(start, data, 4, seed=1)
    assert np.all(np.asarray(other.objective) != np.asarray(after[1].objective))


def test_permuting_the_classes_of_a_start_permutes_the_result(data, start, after):
    order = jnp.asarray([2, 0, 3, 1])
    permuted = start._replace(theta=start.theta[..., order], inner=(start.inner[0][:, order],))
    state, (info,) = blocks(permuted, data, 4)
    np.testing.assert_allclose(state.theta, after[0].theta[..., order], atol=1e-4)
    np.testing.assert_allclose(state.inner[0], after[0].inner[0][:, order], atol=1e-2)
    np.testing.assert_allclose(info.objective, after[1].objective, rtol=1e-4)


def test_rotating_the_second_space_changes_nothing(data, after):
    phi1, phi2 = arrays()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((D2, D2)))
    rotated = dealt(phi1, phi2 @ rotation)
    # In other coordinates, unless the test tests nothing.
    assert difference(rotated.spaces[0].x, data.spaces[0].x) > 0.1
    state, (info,) = blocks(init(0, jnp.asarray(TASKS), rotated, SETTINGS), rotated, 4)
    np.testing.assert_allclose(state.theta, after[0].theta, atol=1e-4)
    np.testing.assert_allclose(info.objective, after[1].objective, rtol=1e-4)


def test_several_subsets_are_averaged(data, start):
    """Against `jax.grad` of Eq. 7 on each of the step's splits."""

    @jax.jit
    def one(theta, index):
        subset, _ = search.split(start, 0, index, data, SUBSETS)

        def value(theta):
            return objective(
                task_encoder.orthonormalise(theta),
                (jnp.zeros((K, D2 + 1)),),
                subset,
                SUBSETS.temperature,
                jnp.asarray(LOG_PRIOR),
                SUBSETS.entropy_weight,
                SUBSETS.inner,
            )[0]

        return jax.vmap(jax.value_and_grad(value))(theta)

    values, gradients = zip(*(one(start.theta, index) for index in range(3)), strict=True)
    cold = start._replace(inner=(jnp.zeros_like(start.inner[0]),))
    _, info = step(cold, jnp.uint32(0), data, SUBSETS)
    np.testing.assert_allclose(info.objective, np.mean(values, axis=0), rtol=1e-5)
    mean = np.mean(gradients, axis=0)
    norms = np.linalg.norm(mean.reshape(3, -1), axis=1)
    np.testing.assert_allclose(info.gradient_norm, norms, rtol=1e-4)
    each = np.linalg.norm(np.stack(gradients).reshape(3, 3, -1), axis=2)
    assert np.all(norms < each.mean(axis=0))


# ---- compiled programs


def test_one_trace_for_each_shape(data, start, after):
    blocks(start, data, 4)
    before = len(_traced)
    for seed in (1, 2):
        state, _ = blocks(start, data, 4, 4, seed=seed)
        blocks(state, dealt(*arrays(seed)), 4)
    assert len(_traced) == before
    assert len(set(_traced)) == len(_traced)


def test_nothing_leaves_the_device_inside_a_block(data, start, after):
    arguments = jax.device_put((start, np.uint32(0), data, LOG_PRIOR))
    with jax.transfer_guard("disallow"):
        state, _ = run_steps(*arguments, SETTINGS, 4)
        jax.block_until_ready(state)
        # The guard is on: what is not placed would have to be sent.
        with pytest.raises(jax.errors.JaxRuntimeError, match="[Dd]isallowed"):
            run_steps(start, arguments[1], data, LOG_PRIOR, SETTINGS, 4)
    assert equal(state, after[0])
    text = run_steps.lower(*arguments, SETTINGS, 4).as_text()
    for call in ("callback", "infeed", "outfeed"):
        assert call not in text


@pytest.mark.parametrize("begin", ["random", "rows"])
def test_the_encoder_is_that_of_its_householder_coordinates(data, begin):
    settings = SETTINGS._replace(coordinates="householder", encoder_start=begin)
    start = init(5, jnp.array(TASKS), data, settings)
    bases = start.optimiser.basis
    np.testing.assert_allclose(bases[:, :, :K], start.theta, atol=1e-5)
    # Like all that a task begins with, its basis comes of the seed and its number.
    alone = init(5, jnp.array(TASKS[1:2]), data, settings)
    np.testing.assert_allclose(alone.optimiser.basis[0], bases[1], atol=1e-5)
    assert difference(init(6, jnp.array(TASKS), data, settings).optimiser.basis, bases) > 0.1
    state, _ = run_steps(start, jnp.uint32(0), data, LOG_PRIOR, settings, 2)
    np.testing.assert_array_equal(state.optimiser.basis, bases)
    vectors = state.optimiser.vectors
    for theta, basis, v in zip(state.theta, bases, vectors, strict=True):
        np.testing.assert_allclose(householder.matrix(basis, v), theta, atol=1e-5)
    # Adam's first step moves every coordinate by the learning rate, if its gradient is more than 0.
    first, _ = step(start, jnp.uint32(0), data, settings)
    moved = np.abs(first.optimiser.vectors)[:, *np.tril_indices(D1, -1, K)]
    np.testing.assert_allclose(np.median(moved, axis=1), settings.learning_rate, rtol=1e-3)
    assert moved.max() <= settings.learning_rate * (1 + 1e-5)


@pytest.mark.parametrize("begin", ["rows", "clusters"])
def test_an_encoder_that_begins_at_rows_depends_on_the_seed_and_the_task_only(data, begin):
    settings = SETTINGS._replace(encoder_start=begin)
    state = init(5, jnp.array(TASKS), data, settings)
    alone = init(5, jnp.array(TASKS[1:2]), data, settings)
    np.testing.assert_allclose(state.theta[1], alone.theta[0], atol=1e-6)
    np.testing.assert_allclose(
        jnp.swapaxes(state.theta, 1, 2) @ state.theta, np.stack([np.eye(K)] * 3), atol=1e-5
    )
    assert np.abs(state.theta[0] - state.theta[1]).max() > 0.1
    assert np.abs(init(6, jnp.array(TASKS), data, settings).theta - state.theta).max() > 0.1


def test_a_step_with_softmax_labels(data, start):
    """The kind of labels reaches the objective, and no entry of a label is zero."""
    soft = SETTINGS._replace(labels="softmax")
    _, info = step(start, jnp.uint32(0), data, soft)
    _, usual = step(start, jnp.uint32(0), data, SETTINGS)
    assert np.isfinite(info.gradient_norm).all()
    assert np.all(np.asarray(info.heldout_ce) > np.asarray(usual.heldout_ce))
