"""How much work a step of the search is, by its sizes alone."""

from hume_jax.core.inner_fit import InnerFit
from hume_jax.core.search import Search
from hume_jax.memory import Shape

_FLOAT = 4
# Steps of the inner fit and of its adjoint that a tolerance comes down to on real features.
USUAL_STEPS, USUAL_ADJOINT_STEPS = 2, 8
# Operations of a compiled call: about ten seconds on two CPU cores.
_BLOCK_FLOPS = 1e12


def usual(inner: InnerFit) -> InnerFit:
    """The numbers of steps that a search comes down to, where they follow a tolerance."""
    if not inner.tolerance or inner.adjoint == "unrolled":
        return inner
    return inner._replace(
        steps=min(inner.steps, USUAL_STEPS),
        adjoint_steps=min(inner.adjoint_steps, USUAL_ADJOINT_STEPS),
    )


def inner_products(settings: Search) -> int:
    """Products of train rows that one outer step needs in each second space.

    Each is (tasks * K, r) x (r, rows) or (tasks * K, rows) x (rows, r): two for an inner gradient,
    that at the solution among them, two for a product with the inner Hessian.
    """
    inner = usual(settings.inner)
    each = 2 + (2 * inner.newton_steps if inner.solver == "newton" else 0)
    fit = each * inner.steps + 2
    adjoint = {
        "implicit": 2 * inner.adjoint_steps,
        "first_order": 0,
        # On the way back each of the fit's products is passed once more.
        "unrolled": each * inner.steps,
    }[inner.adjoint]
    return (fit + adjoint) * settings.subsets_per_step


def step_flops(shape: Shape, settings: Search, tasks: int) -> float:
    """Floating-point operations that an outer step needs, of its products.

    Those of `inner_products`; two of test rows, the held-out loss and its gradient; the labels of
    all rows of a subset and their gradient. What else a program executes does not count.
    """
    one = 2.0 * tasks * settings.n_classes
    inner = one * sum(shape.inner) * shape.train * inner_products(settings)
    heldout = 2 * one * sum(shape.inner) * shape.test * settings.subsets_per_step
    labels = 2 * one * shape.phi1 * (shape.train + shape.test) * settings.subsets_per_step
    return inner + heldout + labels


def step_bytes(shape: Shape, settings: Search, tasks: int) -> float:
    """Bytes that these products read and write, each operand once."""
    size = tasks * settings.n_classes

    def product(rows: int, columns: int) -> float:
        return _FLOAT * float(rows * columns + size * (rows + columns))

    inner = sum(product(shape.train, r) for r in shape.inner) * inner_products(settings)
    heldout = 2 * sum(product(shape.test, r) for r in shape.inner)
    labels = 2 * (product(shape.train, shape.phi1) + product(shape.test, shape.phi1))
    return inner + (heldout + labels) * settings.subsets_per_step


def block_steps(shape: Shape, settings: Search, tasks: int, longest: int) -> int:
    """Outer steps of one compiled call: about ten seconds on two CPU cores, at most ``longest``.

    A rule of the sizes alone, never of a clock.
    """
    fitting = int(_BLOCK_FLOPS / step_flops(shape, settings, tasks))
    most = min(longest, max(fitting, 1))
    return next(d for d in range(most, 0, -1) if longest % d == 0)
