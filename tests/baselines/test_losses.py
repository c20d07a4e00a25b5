"""What the methods minimise, against NumPy written anew, by hand, and by finite differences."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from hume_jax.baselines import heads, scan, self_classifier, spice, temi, turtle, twist

S, N, K = 2, 6, 3


def softmax(z: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(S, N, K))


def scan_loss(own: jax.Array, near: jax.Array) -> jax.Array:
    own, near = jax.nn.log_softmax(own), jax.nn.log_softmax(near)
    return scan.consistency(own, near) - 5 * scan.entropy(own)


def temi_loss(own: jax.Array, near: jax.Array) -> jax.Array:
    p, q = jax.nn.softmax(own), jax.nn.softmax(near)
    teacher = (jax.nn.softmax(2 * jnp.asarray(logits(2))), jax.nn.softmax(jnp.asarray(logits(3))))
    marginal = jnp.broadcast_to(jnp.array([0.5, 0.3, 0.2], own.dtype), (S, K))
    return temi.loss((p, q), teacher, marginal, 0.6)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "scan": scan_loss,
    "self_classifier": self_classifier.cross_entropy,
    "twist": lambda own, near: twist.loss(own, near, 1.0, 0.7),
    "temi": temi_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        arguments = tuple(jnp.asarray(logits(seed)) for seed in (0, 1))
        total = jax.jit(lambda *z: jnp.sum(LOSSES[name](*z)))
        check_grads(total, arguments, order=1, modes=["rev"])


@pytest.mark.parametrize("name", ["scan", "self_classifier", "twist"])
def test_classes_may_change_places(name: str) -> None:
    one, other = logits(0), logits(1)
    order = [2, 0, 1]
    np.testing.assert_allclose(
        LOSSES[name](jnp.asarray(one), jnp.asarray(other)),
        LOSSES[name](jnp.asarray(one[..., order]), jnp.asarray(other[..., order])),
        rtol=1e-5,
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
