"""How programs are compiled, on each kind of device."""

import functools

import jax
import jax.numpy as jnp

# XLA:CPU hands a product and what is computed from it to one kernel of YNNPACK, which takes longer
# than the product by Eigen and the rest apart (jaxlib 0.10.2).
_CPU: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def options() -> dict[str, str | bool]:
    """Options of `jax.stages.Lowered.compile` for the default device."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(jnp.negative).lower(jnp.zeros(())).compile(_CPU)
    except jax.errors.JaxRuntimeError:  # another release, without this option
        return {}
    return _CPU
