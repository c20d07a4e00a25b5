"""Products of matrices as accelerators compute them where they may be coarse, on any device.

A CPU computes float32 products in float32 whatever precision is asked for. Within `emulated`, what
is traced of them by a lower precision than 'highest' has its operands rounded as an accelerator
would round them; sums stay float32, as there. Of a TPU: 'default' is one pass of bfloat16, 'high'
three passes of the leading and the following eight bits (without that of both following parts). Of
a GPU with tensor cores both are TensorFloat-32.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax._src.lax import (
    lax as jax_lax,
)  # No public name is asked by `jax.numpy` and by reverse mode.

_EXPONENT_BITS = 8
# Bits of a fraction.
_BFLOAT16, _TENSORFLOAT32 = 7, 10
DEVICES = ("tpu", "gpu")


def _rounded(x: Array, bits: int) -> Array:
    return jax.lax.reduce_precision(x, _EXPONENT_BITS, bits)


def _product(
    dot: Callable[..., Array], a: Array, b: Array, dimensions: Any, device: str, precision: str
) -> Array:
    if device == "gpu":
        return dot(_rounded(a, _TENSORFLOAT32), _rounded(b, _TENSORFLOAT32), dimensions)
    (a, a_left), (b, b_left) = (_parts(x) for x in (a, b))
    leading = dot(a, b, dimensions)
    if precision == "default":
        return leading
    return dot(a, b_left, dimensions) + dot(a_left, b, dimensions) + leading


def _parts(x: Array) -> tuple[Array, Array]:
    """The leading bits of a number, and as many of those that follow."""
    first = _rounded(x, _BFLOAT16)
    return first, _rounded(x - first, _BFLOAT16)


def _asked(precision: Any) -> str:
    """The name of a product's precision: its own, or that of the context it is traced in."""
    here = getattr(jax.config, "jax_default_matmul_precision", None)
    given = here if precision is None else precision
    given = given[0] if isinstance(given, tuple) else given
    return str(getattr(given, "name", given or "default")).lower()


@contextlib.contextmanager
def emulated(device: str) -> Iterator[None]:
    """Rounds what is traced within; what JAX has traced before is forgotten.

    Args:
      device: one of `DEVICES`.
    """
    jax.clear_caches()
    exact: Callable[..., Array] = jax_lax.dot_general

    def dot_general(
        lhs: Array, rhs: Array, dimension_numbers: Any, precision: Any = None, **how: Any
    ) -> Array:
        name = _asked(precision)
        floats = lhs.dtype == rhs.dtype == jnp.float32
        if not floats or name not in ("default", "high"):
            return exact(lhs, rhs, dimension_numbers, precision, **how)

        def dot(a: Array, b: Array, dimensions: Any) -> Array:
            return exact(a, b, dimensions, precision, **how)

        return _product(dot, lhs, rhs, dimension_numbers, device, name)

    setattr(jax_lax, "dot_general", dot_general)  # noqa: B010  (types know its arguments)
    try:
        yield
    finally:
        setattr(jax_lax, "dot_general", exact)  # noqa: B010
        jax.clear_caches()
