"""`preset=paper` against numbers from the authors' own code, run by `experiments/paper_parity.py`.

For the same orthonormal matrix, subset, split and inner start: the soft labels, the inner fit, the
objective (Eq. 7) and its gradient with respect to that matrix, in float32.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hume_jax import config
from hume_jax.core import inner_fit, solvers, task_encoder
from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.objective import InnerSpace, Subset, Terms, objective

pytestmark = pytest.mark.usefixtures("quickly_compiled")

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "paper_parity.npz"
CASES = (
    "small",
    "imagenet",
    "small_annealed",
    "imagenet_annealed",
    "small_no_entropy",
    "imagenet_no_entropy",
)
# The reference's step sizes and their number, which its two groups of datasets differ in.
SPEC = {"small": "configs/cifar10.py:preset=paper", "imagenet": "configs/imagenet.py:preset=paper"}


class Case(NamedTuple):
    """One case of the golden file, as the arguments of our objective."""

    want: dict[str, np.ndarray]
    settings: dict[str, Any]
    q: jax.Array
    starts: tuple[jax.Array, ...]
    subset: Subset
    inner: InnerFit


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def meta(golden: dict[str, np.ndarray]) -> dict[str, Any]:
    return json.loads(str(golden["meta"]))


def resolved(spec: str) -> Any:
    return config.resolve(config.load(spec))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, golden: dict, meta: dict) -> Case:
    """The case under the inner settings of `preset=paper`: what they hold is tested below."""
    name = request.param
    want = {key.partition("/")[2]: v for key, v in golden.items() if key.startswith(f"{name}/")}
    settings = meta["cases"][name]
    inner = resolved(SPEC[name.partition("_")[0]]).inner

    def with_constant(rows: np.ndarray) -> jax.Array:
        return jnp.asarray(np.column_stack([rows, np.ones(len(rows), np.float32)]))

    phi1, phi2 = golden["phi1"], golden["phi2"]
    start = jnp.asarray(np.column_stack([want["w0"], want["b0"]]))
    space = InnerSpace(
        train=with_constant(phi2[want["train"]]),
        test=with_constant(phi2[want["test"]]),
        penalty=jnp.full(start.shape[1], inner.penalty, jnp.float32),
        step=jnp.asarray(inner.step_size, jnp.float32),
    )
    return Case(
        want=want,
        settings=settings,
        q=jnp.asarray(want["q"]),
        starts=(start,),
        subset=Subset(jnp.asarray(phi1[want["train"]]), jnp.asarray(phi1[want["test"]]), (space,)),
        inner=InnerFit(
            adjoint=inner.adjoint,
            solver=inner.solver,
            steps=inner.steps,
            adjoint_steps=inner.adjoint_steps,
            step_size=inner.step_size,
        ),
    )


# Compiled once for all cases of one shape; so is the next function.
labels = jax.jit(task_encoder.labels)
minimise = jax.jit(solvers.minimise, static_argnames="solver")
orthonormalise = jax.jit(task_encoder.orthonormalise)


@functools.partial(jax.jit, static_argnames="inner")
def value_and_gradient(
    q: jax.Array,
    starts: tuple[jax.Array, ...],
    subset: Subset,
    temperature: float,
    entropy_weight: float,
    inner: InnerFit,
) -> tuple[tuple[jax.Array, Terms], jax.Array]:
    """Our Eq. 7 at an orthonormal matrix and its gradient."""
    log_prior = jnp.full(q.shape[1], -np.log(q.shape[1]), jnp.float32)
    with jax.default_matmul_precision("highest"):
        return jax.value_and_grad(objective, has_aux=True)(
            q, starts, subset, temperature, log_prior, entropy_weight, inner
        )


def run(case: Case, inner: InnerFit) -> tuple[tuple[jax.Array, Terms], jax.Array]:
    settings = case.settings
    return value_and_gradient(
        case.q, case.starts, case.subset, settings["tau"], settings["H_reg"], inner
    )


@pytest.fixture(scope="module")
def ours(case: Case) -> tuple[tuple[jax.Array, Terms], jax.Array]:
    return run(case, case.inner)


def relative_error(got: jax.Array, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want))


def test_the_golden_file_is_small_and_says_where_it_comes_from(
    golden: dict[str, np.ndarray], meta: dict[str, Any]
) -> None:
    assert GOLDEN.stat().st_size < 1_000_000
    assert tuple(sorted(meta["cases"])) == tuple(sorted(CASES))
    assert meta["reference"]["repository"] == "mlbio-epfl/hume"
    assert len(meta["reference"]["commit"]) == 40
    assert {v.dtype.kind for v in golden.values()} == {"f", "i", "U"}


def test_sparsemax_and_its_derivative(golden: dict[str, np.ndarray]) -> None:
    part = {key: jnp.asarray(golden[f"sparsemax/{key}"]) for key in ("z", "cotangent")}
    p, pull = jax.vjp(lambda z: task_encoder.sparsemax(z, axis=1), part["z"])
    np.testing.assert_allclose(p, golden["sparsemax/p"], atol=1e-5)
    np.testing.assert_array_equal(p > 0, golden["sparsemax/p"] > 0)
    np.testing.assert_allclose(pull(part["cotangent"])[0], golden["sparsemax/vjp"], atol=1e-6)


def test_soft_labels(case: Case) -> None:
    rows = jnp.concatenate([case.subset.phi1_train, case.subset.phi1_test])
    got = labels(case.q, rows, case.settings["tau"])
    np.testing.assert_allclose(got.T, case.want["labels"], atol=1e-5)


@pytest.mark.parametrize("position", [0, -1])
def test_inner_fit_takes_the_same_steps(case: Case, position: int) -> None:
    """The reference notes the train cross-entropy before each of its steps."""
    (space,), (start,) = case.subset.spaces, case.starts
    y = labels(case.q, case.subset.phi1_train, case.settings["tau"])
    assert len(case.want["inner_ce"]) == case.inner.steps
    before = position % case.inner.steps
    w = minimise(
        start, space.train, y, space.penalty, space.step, steps=before, solver=case.inner.solver
    ).w
    got = inner_fit.cross_entropy(w, space.train, y)
    np.testing.assert_allclose(got, case.want["inner_ce"][position], rtol=1e-5)


def test_heldout_cross_entropy(ours: Any, case: Case) -> None:
    (_, terms), _ = ours
    np.testing.assert_allclose(terms.heldout_ce, case.want["heldout_ce"], rtol=1e-5)


def test_loss(ours: Any, case: Case) -> None:
    """Ours holds KL(mean label || uniform) = log K - H where the reference holds -H."""
    (value, _), _ = ours
    constant = case.settings["H_reg"] * np.log(case.q.shape[1])
    np.testing.assert_allclose(value - constant, case.want["loss"], rtol=1e-5)


def test_hypergradient(ours: Any, case: Case) -> None:
    _, gradient = ours
    assert relative_error(gradient, case.want["gradient"]) < 1e-4


def test_hypergradient_needs_the_path_through_the_inner_fit(case: Case) -> None:
    """Guards the test above: without that path it would fail by far."""
    _, gradient = run(case, case.inner._replace(adjoint="first_order"))
    assert relative_error(gradient, case.want["gradient"]) > 1e-2


def test_the_orthonormal_map_passes_the_tangent_part_on(case: Case) -> None:
    """The search differentiates in a free matrix, read through the nearest orthonormal one.

    At an orthonormal matrix that map is the projection on the tangent space, so the search follows
    the reference's gradient without the part that leaves the orthonormal matrices.
    """
    q, want = case.want["q"], case.want["gradient"]
    _, pull = jax.vjp(orthonormalise, case.q)
    symmetric = (q.T @ want + want.T @ q) / 2
    assert relative_error(pull(jnp.asarray(want))[0], want - q @ symmetric) < 1e-4


def test_preset_holds_the_reference_defaults(meta: dict[str, Any]) -> None:
    defaults, ours = meta["defaults"], resolved(SPEC["small"])
    assert defaults["anneal"]
    assert defaults["rand_init"]
    assert settings_of(ours) == {name: defaults[name] for name in settings_of(ours)}
    assert ours.search.anneal_steps == (100, 200)
    assert ours.search.anneal_learning_rate == pytest.approx(0.1)
    assert ours.search.anneal_temperature == pytest.approx(0.1)
    assert ours.search.clip == 1.0
    assert ours.inner.start == "random"


def test_preset_holds_the_reference_settings_for_imagenet(meta: dict[str, Any]) -> None:
    ours = resolved(SPEC["imagenet"])
    # The reference's README starts it with these flags instead of the defaults.
    flags = {"outer_lr": 0.1, "inner_lr": 0.1, "adaptation_steps": 100}
    flags |= {"subset_size": 20000, "train_fraction": 0.7}
    want = meta["defaults"] | flags
    assert settings_of(ours) == {name: want[name] for name in settings_of(ours)}
    assert ours.search.anneal_steps == ()
    assert ours.inner.start == "fixed"


@pytest.mark.parametrize("group", sorted(SPEC))
def test_preset_leaves_out_what_the_reference_has_not(group: str, meta: dict[str, Any]) -> None:
    ours = resolved(SPEC[group])
    assert not ours.encoder.normalise
    assert ours.encoder.coordinates == "householder"
    assert not ours.inner.normalise
    assert not ours.inner.precondition
    assert (ours.inner.penalty, ours.inner.directions) == (0.0, 0)
    assert (ours.inner.adjoint, ours.inner.solver) == ("unrolled", "gradient")
    used = settings_of(ours)
    golden = meta["cases"][group]
    assert {name: used[name] for name in golden if name in used} == {
        name: golden[name] for name in golden if name in used
    }


def settings_of(ours: Any) -> dict[str, float]:
    """A resolved config under the reference's names."""
    return {
        "tau": ours.encoder.temperature,
        "H_reg": ours.search.entropy_weight,
        "num_iters": ours.search.steps,
        "subset_size": ours.search.subset_size,
        "train_fraction": ours.search.train_fraction,
        "num_subsets": ours.search.subsets_per_step,
        "outer_lr": ours.search.learning_rate,
        "adaptation_steps": ours.inner.steps,
        "inner_lr": ours.inner.step_size,
    }
