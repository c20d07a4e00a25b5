"""What the methods minimise, against NumPy written anew, by hand, and by finite differences."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from oracles import softmax

from hume_jax.baselines import fine_tune, heads, scan, self_classifier, spice, temi, turtle, twist
from hume_jax.baselines.method import Data

pytestmark = pytest.mark.usefixtures("quickly_compiled")

S, N, K = 2, 6, 3


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(S, N, K))


# Logits of two views, and the same again for what is constant in the loss: a teacher, labels.
Views = tuple[jax.Array, jax.Array]


def scan_loss(own: jax.Array, near: jax.Array, _: Views) -> jax.Array:
    own, near = jax.nn.log_softmax(own), jax.nn.log_softmax(near)
    return scan.consistency(own, near) - 5 * scan.entropy(own)


def self_labelling_loss(_: jax.Array, near: jax.Array, fixed: Views) -> jax.Array:
    return scan.self_labelling(fixed[0], jax.nn.log_softmax(near), 0.4)


def temi_loss(own: jax.Array, near: jax.Array, fixed: Views) -> jax.Array:
    p, q = jax.nn.softmax(own), jax.nn.softmax(near)
    teacher = (jax.nn.softmax(2 * fixed[0]), jax.nn.softmax(fixed[1] - fixed[0]))
    return temi.loss((p, q), teacher, jnp.mean(teacher[0], axis=1), 0.6)


def spice_loss(own: jax.Array, _: jax.Array, fixed: Views) -> jax.Array:
    return spice.taught(own, jnp.argmax(fixed[1], axis=-1))


LOSSES: dict[str, Callable[[jax.Array, jax.Array, Views], jax.Array]] = {
    "scan": scan_loss,
    "self-labelling of scan": self_labelling_loss,
    "self_classifier": lambda own, near, _: self_classifier.cross_entropy(own, near),
    "twist": lambda own, near, _: twist.loss(own, near, 1.0, 0.7),
    "twist of normalised logits": lambda own, near, _: twist.loss(
        twist._normalised(own), twist._normalised(near), 1.0, 0.7
    ),
    "temi": temi_loss,
    "spice": spice_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        arguments = tuple(jnp.asarray(logits(seed)) for seed in (0, 1))
        total = jax.jit(lambda *z: jnp.sum(LOSSES[name](*z, arguments)))
        check_grads(total, arguments, order=1, modes=["rev"])


@pytest.mark.parametrize("name", LOSSES)
def test_classes_may_change_places(name: str) -> None:
    views = jnp.asarray(logits(0)), jnp.asarray(logits(1))
    moved = tuple(z[..., jnp.array([2, 0, 1])] for z in views)
    np.testing.assert_allclose(
        LOSSES[name](*views, views), LOSSES[name](*moved, (moved[0], moved[1])), rtol=1e-5
    )


def test_scan() -> None:
    p, q = softmax(logits(0)), softmax(logits(1))
    expected = [
        -np.mean([np.log(a @ b) for a, b in zip(*pair, strict=True)])
        for pair in zip(p, q, strict=True)
    ]
    np.testing.assert_allclose(scan.consistency(np.log(p), np.log(q)), expected, rtol=1e-5)
    mean = p.mean(axis=1)
    np.testing.assert_allclose(
        scan.entropy(jnp.log(p)), -(mean * np.log(mean)).sum(axis=1), rtol=1e-5
    )
    # By hand: of two rows the first is sure, and its other view says class 1 with 3/4.
    own = jnp.array([[[0.0, 9.0], [0.0, 1.0]]])
    near = jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5]]]))
    np.testing.assert_allclose(scan.self_labelling(own, near, 0.99), [-np.log(0.75)], rtol=1e-5)
    np.testing.assert_array_equal(scan.self_labelling(own, near, 0.9999), [0.0])


def test_self_classifier() -> None:
    z, w = logits(0), logits(1)
    target = softmax(z, axis=1)
    target /= target.sum(axis=2, keepdims=True)
    share = softmax(w, axis=2)
    share /= share.sum(axis=1, keepdims=True)
    expected = -(target * np.log(N / K * share)).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(self_classifier.cross_entropy(z, w), expected, rtol=1e-5)


def test_twist() -> None:
    one, other = logits(0), logits(1)
    p, q = softmax(one), softmax(other)
    expected = np.zeros(S)
    for a, b in ((p, q), (q, p)):
        mean = a.mean(axis=1)
        expected += (a * np.log(a / b)).sum(axis=2).mean(axis=1) / 2
        expected += -1.5 * (a * np.log(a)).sum(axis=2).mean(axis=1) / 2
        expected += 0.5 * (mean * np.log(mean)).sum(axis=1) / 2
    found = twist.loss(jnp.asarray(one), jnp.asarray(other), 1.5, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("together", [False, True])
def test_temi(together: bool) -> None:
    p, q, t, u = (softmax(logits(seed)) for seed in range(4))
    marginal = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    expected = np.zeros(S)
    for s in range(S):
        for i in range(N):
            heads = range(S) if together else [s]
            weight = np.mean([t[h, i] @ u[h, i] for h in heads])
            for own, other in ((p, u), (q, t)):
                information = np.log(((own[s, i] * other[s, i]) ** 0.6 / marginal[s]).sum())
                expected[s] -= weight * information / (2 * N)
    student, teacher = ((jnp.asarray(a), jnp.asarray(b)) for a, b in ((p, q), (t, u)))
    found = temi.loss(student, teacher, jnp.asarray(marginal), 0.6, together)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_prototypes_of_spice() -> None:
    rng = np.random.default_rng(0)
    p, x = softmax(rng.normal(size=(12, K))), rng.normal(size=(12, 5))
    found, labels = spice.prototypes(jnp.asarray(p), jnp.asarray(x), 0.5)
    for k in range(K):
        surest = np.argsort(-p[:, k])[:2]
        nearest = np.argsort(-(x @ x[surest].mean(axis=0)))[:4]
        assert set(np.asarray(found)[np.asarray(labels) == k]) == set(nearest)


def test_labels_of_spice() -> None:
    z = logits(0)
    labels = np.random.default_rng(1).integers(0, K, (S, N))
    twice = softmax(softmax(z))
    expected = -np.log(np.take_along_axis(twice, labels[..., None], 2))[..., 0].mean(axis=1)
    np.testing.assert_allclose(spice.taught(jnp.asarray(z), jnp.asarray(labels)), expected, 1e-5)
    near = jnp.array([[1, 2], [0, 2], [0, 1]])
    share = spice.confirmed(jnp.array([[0, 0, 1], [2, 2, 2]]), near)
    np.testing.assert_array_equal(share, [[0.5, 0.5, 0.0], [1, 1, 1]])


def test_turtle() -> None:
    rng = np.random.default_rng(0)
    spaces = [rng.normal(size=(N, d)) for d in (4, 5)]
    encoders, models, own = [], [], []
    for x in spaces:
        v, b = rng.normal(size=(S, x.shape[1], K)), rng.normal(size=(S, K))
        length = rng.uniform(0.5, 2, size=(S, K))
        encoders.append(turtle.Encoder(*map(jnp.asarray, (v, length, b))))
        w = v / np.linalg.norm(v, axis=1, keepdims=True) * length[:, None]
        own.append(softmax(np.einsum("nd,sdk->snk", x, w) + b[:, None]))
        w, b = rng.normal(size=(S, x.shape[1], K)), rng.normal(size=(S, K))
        models.append(heads.Linear(jnp.asarray(w), jnp.asarray(b)))
    labels = (own[0] + own[1]) / 2
    expected = np.zeros(S)
    for x, model, each in zip(spaces, models, own, strict=True):
        z = np.einsum("nd,sdk->snk", x, np.asarray(model.w)) + np.asarray(model.b)[:, None]
        expected -= (labels * np.log(softmax(z))).sum(axis=2).mean(axis=1)
        mean = each.mean(axis=1)
        expected += 10 * (mean * np.log(mean)).sum(axis=1)
    objective = jax.jit(turtle.objective, static_argnums=3)
    found = objective(tuple(encoders), tuple(models), tuple(map(jnp.asarray, spaces)), 10.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    def loss(encoders: tuple[turtle.Encoder, ...]) -> jax.Array:
        wide = jax.tree.map(jnp.asarray, (tuple(models), tuple(spaces)))
        return jnp.sum(turtle.objective(encoders, *wide, 10.0))

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), tuple(encoders))
        check_grads(jax.jit(loss), (wide,), order=1, modes=["rev"])


def test_classes_of_turtle_may_change_places() -> None:
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(N, 4)))
    v, w = (jnp.asarray(rng.normal(size=(S, 4, K))) for _ in range(2))
    length, b, c = (jnp.asarray(rng.uniform(0.5, 2, size=(S, K))) for _ in range(3))
    order = jnp.array([2, 0, 1])
    one, other = (
        turtle.objective(
            (turtle.Encoder(v[..., p], length[..., p], b[..., p]),),
            (heads.Linear(w[..., p], c[..., p]),),
            (x,),
            10.0,
        )
        for p in (jnp.arange(K), order)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_linear_models_of_turtle_take_steps_of_adam() -> None:
    rng = np.random.default_rng(4)
    x, labels = rng.normal(size=(N, 4)), softmax(logits(5))
    start = {"w": rng.normal(size=(S, 4, K)), "b": rng.normal(size=(S, K))}
    settings = turtle.Settings(K, inner_steps=3, inner_learning_rate=0.1)
    models = (heads.Linear(*(jnp.asarray(start[n], jnp.float32) for n in "wb")),)
    optimiser = optax.adam(0.1).init(models)
    (found,), _ = turtle._fit(
        models, optimiser, (jnp.asarray(x, jnp.float32),), jnp.asarray(labels), settings
    )
    now = {n: a.copy() for n, a in start.items()}
    m, v = ({n: np.zeros_like(a) for n, a in start.items()} for _ in range(2))
    for t in range(1, 4):
        apart = softmax(np.einsum("nd,sdk->snk", x, now["w"]) + now["b"][:, None]) - labels
        g = {"w": np.einsum("nd,snk->sdk", x, apart) / N, "b": apart.mean(axis=1)}
        for n in now:
            m[n] = 0.9 * m[n] + 0.1 * g[n]
            v[n] = 0.999 * v[n] + 0.001 * g[n] ** 2
            now[n] -= 0.1 * m[n] / (1 - 0.9**t) / (np.sqrt(v[n] / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(found.w, now["w"], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(found.b, now["b"], rtol=2e-3, atol=1e-4)


def test_the_last_layer_of_temi_rests_at_first_and_biases_do_not_decay() -> None:
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
    data = Data((x,), jnp.asarray(rng.integers(0, 12, (12, 3)), jnp.int32))
    settings = temi.Settings(K, hidden=6, bottleneck=5, batch=4, warmup=1, weight_decay=0.5)
    first = temi.init(0, jnp.arange(2), data, settings)
    step = jax.jit(temi.step, static_argnums=3)
    second, _ = step(first, 0, data, settings)
    third, _ = step(second, 0, data, settings)
    states = [state.pair.student for state in (first, second, third)]
    for layer in ("v", "length"):
        before, resting, moved = (getattr(state, layer) for state in states)
        # Not even by its decay.
        np.testing.assert_array_equal(resting, before)
        assert np.abs(moved - resting).max() > 1e-5
    assert np.abs(states[1].second.w - states[0].second.w).max() > 1e-5
    decayed = temi._decayed(states[0])
    assert (decayed.first, decayed.v, decayed.length) == (heads.Linear(True, False), True, True)


def test_heads_of_temi_begin_as_the_authors_do() -> None:
    data = Data((jnp.zeros((8, 40)),), jnp.zeros((8, 1), jnp.int32))
    head = temi.init(0, jnp.arange(20), data, temi.Settings(K)).pair.student
    for layer in (head.first, head.second):
        assert np.std(layer.w) == pytest.approx(0.02, rel=0.02)
        assert np.abs(layer.b).max() == 0
    # PyTorch's of a layer of 256 inputs: even up to 1 / 16.
    assert np.abs(head.v).max() == pytest.approx(1 / 16, rel=1e-3)
    assert np.std(head.v) == pytest.approx(1 / 16 / 3**0.5, rel=0.02)
    np.testing.assert_array_equal(head.length, 1)


def test_the_first_step_of_temis_last_layer_is_adams_first() -> None:
    """As in PyTorch, whose moments of a parameter begin with its first gradient."""
    rng = np.random.default_rng(5)
    data = Data((jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),), jnp.zeros((8, 1), jnp.int32))
    settings = temi.Settings(K, hidden=6, bottleneck=5, batch=8, warmup=1, weight_decay=0.0)
    states = [temi.init(0, jnp.arange(1), data, settings)]
    for _ in range(2):
        states.append(temi.step(states[-1], 0, data, settings)[0])
    moved = np.abs(states[2].pair.student.v - states[1].pair.student.v)
    rate = settings.learning_rate * settings.batch / 256
    # The first step of Adam is the rate, whatever the gradient; where it is not nearly zero.
    np.testing.assert_allclose(np.median(moved), rate, rtol=1e-3)


def test_teacher_and_marginal_of_temi_follow() -> None:
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    # Each row is its own neighbour, and a batch holds all of them.
    data = Data((x,), jnp.arange(8, dtype=jnp.int32)[:, None])
    settings = temi.Settings(K, hidden=6, bottleneck=5, batch=8, warmup=1, momentum=0.7)
    before = temi.init(0, jnp.arange(2), data, settings)
    after, _ = temi.step(before, 0, data, settings)
    for old, student, new in zip(
        *(
            jax.tree.leaves(p)
            for p in (before.pair.teacher, after.pair.student, after.pair.teacher)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(new, 0.7 * old + 0.3 * student, rtol=1e-5, atol=1e-6)
    seen = temi._probabilities(before.pair.teacher, x, settings).mean(axis=1)
    expected = 0.9 * before.pair.marginal + 0.1 * seen
    np.testing.assert_allclose(after.pair.marginal, expected, rtol=1e-5)


def test_reliable_labels_of_spice_are_those_that_neighbours_have() -> None:
    near = jnp.asarray([[1, 2], [0, 2], [3, 0], [4, 5], [3, 5], [4, 3]], jnp.int32)
    labels = jnp.asarray([[0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1]], jnp.int32)
    expected = [[1, 1, 0.5, 1, 1, 1], [0.5, 0, 0.5, 0.5, 0, 0.5]]
    np.testing.assert_allclose(spice.confirmed(labels, near), expected)


def test_spice_teaches_reliable_labels_and_those_it_is_sure_of() -> None:
    """The gradient of a pass of one batch, against one that is taken by hand."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    near = np.array([[1], [0], [3], [2], [5], [4]])
    data = Data((jnp.asarray(x),), jnp.asarray(near, jnp.int32))
    settings = spice.Settings(K, hidden=5, sub_batch=6, threshold=0.5, label_learning_rate=1e-2)
    state = spice.init(0, jnp.arange(1), data, settings)
    fixed = np.array([2, -1, 0, -1, -1, 1])
    state = state._replace(fixed=jnp.asarray(fixed[None], jnp.int32))
    head = state.trained.params

    def loss(head: heads.Mlp) -> jax.Array:
        z = heads.logits(head, jnp.asarray(x))[0]
        p = np.asarray(jax.nn.softmax(heads.logits(state.trained.params, jnp.asarray(x))[0]))
        total = jnp.zeros(())
        for row, label in enumerate(fixed):
            if label >= 0 or p[row].max() > settings.threshold:
                target = label if label >= 0 else p[row].argmax()
                total -= jax.nn.log_softmax(z[near[row, 0]])[target]
        return total / len(x)

    gradient = jax.grad(loss)(head)
    found = spice._pass(state, jax.random.key(0), data.spaces[0], data.near, settings).params
    for g, old, new in zip(*map(jax.tree.leaves, (gradient, head, found)), strict=True):
        clear = np.abs(g) > 1e-4
        # The first step of Adam goes by the sign of the gradient.
        np.testing.assert_allclose((new - old)[clear], -1e-2 * np.sign(g[clear]), rtol=1e-2)
        assert np.abs(new - old)[g == 0].sum() < 1e-6


def test_the_supervised_head_learns_from_rows_that_are_not_held_out() -> None:
    rng = np.random.default_rng(8)
    x, true = rng.normal(size=(20, 4)).astype(np.float32), rng.integers(0, K, 20)
    data = Data((jnp.asarray(x),), labels=jnp.asarray(true, jnp.int32))
    settings = fine_tune.Settings(K, hidden=5, batch=20)
    state = fine_tune.init(0, jnp.arange(1), data, settings)
    held = np.asarray(state.held_out[0])
    assert held.sum() == 2
    z = np.asarray(heads.logits(state.trained.params, data.spaces[0])[0], np.float64)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    expected = -np.where(held, 0, log_p[np.arange(20), true]).mean()
    after, info = fine_tune.step(state, 0, data, settings)
    np.testing.assert_allclose(info.loss[0], expected, rtol=1e-5)
    right = fine_tune.predict(after, data.spaces)[0] == true
    np.testing.assert_allclose(after.accuracy[0], right[held].mean())
    # A pass that is no better than the best so far goes on, and is not what labels rows.
    best = after._replace(accuracy=jnp.ones(1))
    worse, _ = fine_tune.step(best, 0, data, settings)
    assert np.abs(worse.trained.params.last.w - best.trained.params.last.w).max() > 1e-4
    np.testing.assert_array_equal(worse.best.last.w, best.best.last.w)
    np.testing.assert_array_equal(worse.accuracy, [1.0])


def test_batches_hold_every_row_once_but_for_those_left_over() -> None:
    rows = np.asarray(heads.batches(jax.random.key(0), 10, 4))
    assert rows.shape == (2, 4)
    assert len(np.unique(rows)) == 8
    assert heads.batches(jax.random.key(0), 3, 4).shape == (1, 3)


def test_a_head_settles_once_labels_rest_and_stays() -> None:
    labels = jnp.zeros((2, 4), jnp.int32)
    seen = heads.watch(heads.watch(heads.unwatched(2, 4), labels), labels.at[1, 0].set(1))
    np.testing.assert_array_equal(seen.quiet, [1, 0])
    before, after = {"w": jnp.zeros((2, 3)), "t": jnp.zeros(())}, {"w": jnp.ones((2, 3)), "t": 1.0}
    kept = heads.keep(jnp.array([True, False]), before, jax.tree.map(jnp.asarray, after))
    np.testing.assert_array_equal(kept["w"], [[0] * 3, [1] * 3])
    assert kept["t"] == 1
