"""What a pass does around its loss: views, temperatures, scales, moments, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import softmax

from hume_jax.baselines import heads, scan, self_classifier, spice, twist
from hume_jax.baselines.method import Data

pytestmark = pytest.mark.usefixtures("quickly_compiled")

S, N, D, K = 2, 8, 5, 3


def rows(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(N, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


# Each row has one neighbour, so that nothing of a pass over one batch is random.
NEAR = np.roll(np.arange(N), 3)[:, None]


def one_space() -> tuple[np.ndarray, Data]:
    x = rows(0)
    return x, Data((jnp.asarray(x),), jnp.asarray(NEAR, jnp.int32))


def logits(head: heads.Linear, x: np.ndarray) -> np.ndarray:
    return np.einsum("nd,sdk->snk", x, np.asarray(head.w)) + np.asarray(head.b)[:, None]


def test_a_pass_of_self_classifier_takes_each_view_as_target_of_the_other() -> None:
    x, data = one_space()
    settings = self_classifier.Settings(K, row_temperature=0.5, column_temperature=0.2, batch=N)
    state = self_classifier.init(0, jnp.arange(S), data, settings)
    # Lengths of the classes take no part.
    longer = state.trained._replace(params=state.trained.params * jnp.array([[[1.0, 2, 5]]]))
    _, info = self_classifier.step(state._replace(trained=longer), 0, data, settings)
    w = np.asarray(state.trained.params)
    own = np.einsum("nd,sdk->snk", x, w / np.linalg.norm(w, axis=1, keepdims=True))
    expected = np.zeros(S)
    for target, prediction in ((own, own[:, NEAR[:, 0]]), (own[:, NEAR[:, 0]], own)):
        t = softmax(target / 0.2, axis=1)
        t /= t.sum(axis=2, keepdims=True)
        p = softmax(prediction / 0.5, axis=2)
        p /= p.sum(axis=1, keepdims=True)
        expected -= (t * np.log(N / K * p)).sum(axis=2).mean(axis=1) / 2
    np.testing.assert_allclose(info.loss, expected, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_pass_of_twist_sees_logits_of_one_scale(count: int) -> None:
    x, data = one_space()
    spaces = (x, rows(1))[:count]
    data = data._replace(spaces=tuple(map(jnp.asarray, spaces)))
    settings = twist.Settings(K, sharpness_weight=1.5, diversity_weight=0.5, batch=N)
    state = twist.init(0, jnp.arange(S), data, settings)
    z = [logits(head, s) for head, s in zip(state.trained.params, spaces, strict=True)]
    views = (z[0], z[0][:, NEAR[:, 0]]) if count == 1 else z
    scaled = [(v - v.mean(axis=1, keepdims=True)) / v.std(axis=1, keepdims=True) for v in views]
    _, info = twist.step(state, 0, data, settings)
    expected = twist.loss(*map(jnp.asarray, scaled), 1.5, 0.5)
    # The variance has a small number added to it.
    np.testing.assert_allclose(info.loss, expected, rtol=2e-3)
    # Two spaces: the mean of both probabilities, of logits scaled by the rows that were searched.
    new = tuple(s[:4] for s in spaces)
    total = sum(
        softmax((logits(head, n) - v.mean(axis=1, keepdims=True)) / v.std(axis=1, keepdims=True))
        for head, n, v in zip(state.trained.params, new, z, strict=True)
    )
    found = twist.predict(state, tuple(map(jnp.asarray, new)))
    np.testing.assert_array_equal(found, np.argmax(total, axis=-1))


def test_the_score_of_scan_is_its_loss_over_all_neighbours() -> None:
    x = rows(0)
    near = np.stack([np.roll(np.arange(N), shift) for shift in (1, 3, 4)], axis=1)
    data = Data((jnp.asarray(x),), jnp.asarray(near, jnp.int32))
    settings = scan.Settings(K, entropy_weight=2.0)
    state = scan.init(0, jnp.arange(S), data, settings)
    p = softmax(logits(state.trained.params, x))
    consistency = -np.log(np.einsum("snk,snjk->snj", p, p[:, near])).mean(axis=(1, 2))
    mean = p.mean(axis=1)
    expected = consistency + 2.0 * (mean * np.log(mean)).sum(axis=1)
    np.testing.assert_allclose(scan.score(state, data, settings), expected, rtol=1e-5)


def test_the_stages_of_scan_share_no_momentum() -> None:
    _, data = one_space()
    settings = scan.Settings(K, passes=2, batch=N, threshold=0.0, label_passes=2)
    start = scan.init(0, jnp.arange(S), data, settings)

    def after(step: int, momentum: float) -> jax.Array:
        kept = jax.tree.map(lambda leaf: jnp.full_like(leaf, momentum), start.trained.optimiser)
        trained = start.trained._replace(optimiser=kept)
        state = start._replace(trained=trained, step=jnp.int32(step))
        return scan.step(state, 0, data, settings)[0].trained.params.w

    # At the first pass of self-labelling what was there is dropped, at the next it is not.
    np.testing.assert_array_equal(after(2, 0.0), after(2, 1.0))
    assert np.abs(after(3, 0.0) - after(3, 1.0)).max() > 1e-3


def test_a_turn_of_spice_teaches_the_labels_of_its_prototypes() -> None:
    x, data = one_space()
    settings = spice.Settings(K, hidden=4, batch=N, repeats=1, sub_batch=K * (N // K))
    state = spice.init(0, jnp.arange(S), data, settings)
    head = state.trained.params
    _, info = spice.step(state, 0, data, settings)
    hidden = np.maximum(logits(head.first, x), 0)
    z = np.einsum("snh,shk->snk", hidden, np.asarray(head.last.w))
    p = softmax(z + np.asarray(head.last.b)[:, None])
    expected = []
    for own in p:
        # Half of n / K = 2 rows make a prototype, and the two rows nearest to it get its label.
        total = 0.0
        for k in range(K):
            prototype = x[np.argmax(own[:, k])]
            for row in np.argsort(-(x @ prototype))[: N // K]:
                total -= np.log(softmax(own[row])[k])
        expected.append(total / (K * (N // K)))
    np.testing.assert_allclose(info.loss, expected, rtol=1e-5)


@pytest.mark.parametrize("patience", [0, 2])
def test_turns_of_spice_are_left_out_where_labels_rest(patience: int) -> None:
    _, data = one_space()
    settings = spice.Settings(K, hidden=4, batch=N, sub_batch=N, patience=patience)
    state = spice.init(0, jnp.arange(S), data, settings)
    quiet = state._replace(watch=state.watch._replace(quiet=jnp.full(S, 2)))
    after, _ = spice.step(quiet, 0, data, settings)
    moved = np.abs(after.trained.params.last.w - state.trained.params.last.w).max() > 0
    assert moved == (patience == 0)


def test_the_stages_of_spice_share_no_moments() -> None:
    _, data = one_space()
    settings = spice.Settings(K, hidden=4, turns=2, batch=N, sub_batch=N, passes=2, threshold=0.0)
    start = spice.init(0, jnp.arange(S), data, settings)

    def after(step: int, moment: float) -> jax.Array:
        kept = jax.tree.map(lambda leaf: jnp.full_like(leaf, moment), start.trained.optimiser)
        trained = start.trained._replace(optimiser=kept)
        state = start._replace(trained=trained, step=jnp.int32(step))
        return spice.step(state, 0, data, settings)[0].trained.params.last.w

    np.testing.assert_array_equal(after(2, 0.0), after(2, 1.0))
    assert np.abs(after(3, 0.0) - after(3, 1.0)).max() > 1e-4
