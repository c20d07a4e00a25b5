"""TEMI: student and teacher heads see a row and a neighbour of it and are to tell the same of them.

Adaloglou, Michels, Kalisch & Kollmann, *Exploring the Limits of Deep Image Clustering using
Pretrained Models*, BMVC 2023. The loss is a pointwise mutual information of a student's and a
teacher's class distributions on neighbouring rows (Eq. 5), its exponent beta below 1 so that
classes do not collapse, each pair weighted by how much the teacher sees one class in both (Eq. 8);
the teacher is a moving average of the student.

Kept, for it is made for frozen features: 50 neighbours, heads of two layers and a last one of
weight normalisation that rests for the first pass, temperatures, momenta and AdamW without decay of
biases are those of the authors' command for CIFAR-10 (github.com/HHU-MMBS/TEMI-official-BMVC2023,
c6a81a6). Rows of unit norm are scaled to a mean square of 1 a column, as long as the features that
the rates were chosen for. There 100 passes of 50,000 rows are 4,900 steps; smaller sets see fewer
in a pass, so the batch is the one of lowest loss after 60 passes over Imagenette's 9,469 rows,
which takes no label, and the rate one of those where that loss is level (0.001 to 0.03;
`experiments/baseline_settings.py`, docs/RESULTS.md); it rises over 5 passes, 20 there. The weight
of a pair is averaged there over the heads that are trained together, and `together` does so;
without it a head has its own, as theirs has where there is one, and does not depend on what runs
beside it. They train many heads and keep the one of lowest loss, which `score` names. A head whose
labels rest (fewer than 0.1 % of the rows change in each of `patience` passes) stops there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from hume_jax.baselines import heads
from hume_jax.baselines.heads import Linear
from hume_jax.baselines.method import Data, Info, step_key, task_keys


class Settings(NamedTuple):
    """The authors', but for passes, warm-up, batch and rate. Static under jit."""

    n_classes: int
    beta: float = 0.6
    temperature: float = 0.1  # of student and teacher
    neighbours: int = 50  # of a row, one of which it is paired with
    hidden: int = 512
    bottleneck: int = 256
    momentum: float = 0.996  # of the teacher
    marginal_momentum: float = 0.9  # of the mean class distribution
    passes: int = 60
    warmup: int = 5  # passes until the rate is full
    frozen: int = 1  # passes in which the last layer rests
    batch: int = 256
    learning_rate: float = 3e-3  # AdamW's, for batches of 256
    weight_decay: float = 1e-4
    patience: int = 5  # passes in which labels rest before a head stops; 0: it never does
    together: bool = False  # whether heads share the weights of pairs: the mean over all of them

    @property
    def length(self) -> int:
        """Number of steps: passes over the rows."""
        return self.passes


class Head(NamedTuple):
    """A head of each task: two layers, then directions of the classes for features of unit norm."""

    first: Linear  # d to hidden
    second: Linear  # hidden to bottleneck
    v: Array  # (S, bottleneck, K) float32
    length: Array  # (S, K) float32, of the columns of v


class Pair(NamedTuple):
    """What a pass carries from batch to batch."""

    student: Head
    optimiser: optax.OptState
    teacher: Head
    marginal: Array  # (S, K) float32, moving average of the teacher's mean distribution


class State(NamedTuple):
    """S heads."""

    task: Array  # (S,) int32
    pair: Pair
    loss: Array  # (S,) float32, mean of the last pass
    watch: heads.Watch
    settled: Array  # (S,) bool
    step: Array  # () int32, passes so far


def init(seed: Array | int, tasks: Array, data: Data, settings: Settings) -> State:
    """The state before the first pass.

    Args:
      seed: of the run.
      tasks: ``(S,)`` int32 numbers of the heads.
      data: the rows, and their nearest neighbours in the first space.
      settings: of the method.
    """
    n, dim = data.spaces[0].shape
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(task_keys(seed, tasks))
    head = Head(
        _layer(keys[:, 0], dim, settings.hidden),
        _layer(keys[:, 1], settings.hidden, settings.bottleneck),
        # As PyTorch starts it: a step of Adam turns a shorter one further.
        heads.linear(keys[:, 2], settings.bottleneck, settings.n_classes).w,
        jnp.ones((len(tasks), settings.n_classes)),
    )
    marginal = jnp.full((len(tasks), settings.n_classes), 1 / settings.n_classes)
    # Buffers of their own: the state's are given away step by step.
    pair = Pair(head, _optimiser(settings, n).init(head), jax.tree.map(jnp.copy, head), marginal)
    loss = jnp.full(len(tasks), jnp.inf)
    rest = heads.unwatched(len(tasks), n)
    return State(tasks, pair, loss, rest, jnp.zeros(len(tasks), bool), jnp.zeros((), jnp.int32))


def _layer(keys: Array, inputs: int, outputs: int) -> Linear:
    """Weights N(0, 0.02^2) and biases of zero, a layer of each task."""
    w = jax.vmap(lambda key: 0.02 * jax.random.normal(key, (inputs, outputs)))(keys)
    return Linear(w, jnp.zeros((len(keys), outputs)))


def step(state: State, seed: Array | int, data: Data, settings: Settings) -> tuple[State, Info]:
    """One pass over the rows."""
    x = data.spaces[0]
    optimiser = _optimiser(settings, len(x))
    order_key, draw_key = jax.random.split(step_key(seed, state.step))
    batches = heads.batches(order_key, len(x), settings.batch)
    others = heads.random_neighbours(draw_key, batches, data.near)

    def one(pair: Pair, rows_and_others: tuple[Array, Array]) -> tuple[Pair, Array]:
        views = jnp.concatenate([x[rows] for rows in rows_and_others])
        teacher = _split(_probabilities(pair.teacher, views, settings))
        mean = jnp.mean(jnp.concatenate(teacher, axis=1), axis=1)
        momentum = settings.marginal_momentum
        marginal = momentum * pair.marginal + (1 - momentum) * mean

        def total(student: Head) -> tuple[Array, Array]:
            own = _split(_probabilities(student, views, settings))
            each = loss(own, teacher, marginal, settings.beta, settings.together)
            return jnp.sum(each), each

        gradients, each = jax.grad(total, has_aux=True)(pair.student)
        updates, moments = optimiser.update(gradients, pair.optimiser, pair.student)
        student = optax.apply_updates(pair.student, updates)
        follows = optax.incremental_update(student, pair.teacher, 1 - settings.momentum)
        return Pair(student, moments, follows, marginal), each

    pair, losses = jax.lax.scan(one, state.pair, (batches, others))
    pair, mean = heads.keep(state.settled, (state.pair, state.loss), (pair, losses.mean(axis=0)))
    seen = heads.watch(state.watch, _most_probable(pair.teacher, x))
    settled = state.settled | (seen.quiet >= settings.patience) & (settings.patience > 0)
    return State(state.task, pair, mean, seen, settled, state.step + 1), Info(mean)


def predict(state: State, spaces: tuple[Array, ...]) -> Array:
    """The teacher's most probable class of every row, ``(S, m)`` int32."""
    return _most_probable(state.pair.teacher, spaces[0])


def score(state: State, data: Data, settings: Settings) -> Array:
    """The loss of the last pass, ``(S,)``; the authors choose heads by it."""
    del data, settings
    return state.loss


def loss(
    student: tuple[Array, Array],
    teacher: tuple[Array, Array],
    marginal: Array,
    beta: float,
    together: bool = False,
) -> Array:
    """Eqs. 5 and 8, the mean over rows and over both ways.

    Args:
      student: ``(S, n, K)`` distributions of rows and of a neighbour of each.
      teacher: the same of the teacher.
      marginal: ``(S, K)`` mean distribution.
      beta: exponent, at most 1.
      together: whether the weight of a pair is its mean over the heads, one for all.

    Returns:
      ``(S,)``: ``-<q, q'> log sum_k (p_k q'_k)^beta / marginal_k``, student p on the one row and
      teacher q' on the other, weighted by the teacher's view of both.
    """
    weight = jnp.sum(teacher[0] * teacher[1], axis=-1)
    if together:
        weight = jnp.mean(weight, axis=0, keepdims=True)
    total = jnp.zeros(len(marginal), marginal.dtype)
    for own, other in ((student[0], teacher[1]), (student[1], teacher[0])):
        # Probabilities of float32 reach zero, where a power below one has no derivative.
        common = jnp.maximum(own * other, 1e-30) ** beta
        information = jnp.log(jnp.sum(common / marginal[:, None], axis=-1))
        total -= jnp.mean(weight * information, axis=-1)
    return total / 2


def _cosines(head: Head, x: Array) -> Array:
    """``(S, n, K)`` logits of rows ``(n, d)``, before the temperature."""
    # As long as the features that the rates were chosen for.
    h = jax.nn.gelu(heads.logits(head.first, x * x.shape[-1] ** 0.5), approximate=False)
    z = heads.logits(head.second, h)
    z /= jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    w = head.v * (head.length / jnp.linalg.norm(head.v, axis=1))[:, None]
    return jnp.einsum("snb,sbk->snk", z, w)


def _probabilities(head: Head, x: Array, settings: Settings) -> Array:
    return jax.nn.softmax(_cosines(head, x) / settings.temperature, axis=-1)


def _split(both: Array) -> tuple[Array, Array]:
    """Rows, and the neighbours below them."""
    rows, near = jnp.split(both, 2, axis=1)
    return rows, near


def _most_probable(head: Head, x: Array) -> Array:
    return jnp.argmax(_cosines(head, x), axis=-1).astype(jnp.int32)


def _optimiser(settings: Settings, n: int) -> optax.GradientTransformation:
    """AdamW whose rate rises over the first passes, the last layer resting for some; n rows."""
    batch = min(settings.batch, n)
    steps = n // batch
    rate = optax.linear_schedule(
        0.0, settings.learning_rate * batch / 256, max(1, settings.warmup * steps)
    )
    adam = optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(settings.weight_decay, _decayed)
    )
    # While it rests it does not decay, nor do its moments count steps.
    last = optax.conditionally_mask(adam, lambda step: step >= settings.frozen * steps)
    return optax.chain(
        optax.partition({"last": last, "others": adam}, _parts), optax.scale_by_learning_rate(rate)
    )


def _parts(head: Head) -> heads.Params:
    """Which optimiser a parameter has."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "last" if path[0].name in ("v", "length") else "others", head
    )


def _decayed(head: Head) -> heads.Params:
    """Which parameters decay: all but the biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].name != "b", head)
