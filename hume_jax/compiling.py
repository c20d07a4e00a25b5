"""How programs are compiled, on each kind of device."""

import functools

import jax
import jax.numpy as jnp

_CPU: dict[str, str | bool] = {
    # XLA:CPU hands a product and what is computed from it to one kernel of YNNPACK, which takes
    # longer than the product by Eigen and the rest apart (jaxlib 0.10.2).
    "xla_cpu_experimental_ynn_fusion_type": "",
    # Its older way to write code compiles in half the time what then takes as long.
    "xla_cpu_use_fusion_emitters": False,
    # LLVM's third level takes two seconds for a program that draws random numbers, and nothing that
    # is drawn or computed comes sooner for it.
    "xla_backend_optimization_level": "2",
}


@functools.cache
def options() -> dict[str, str | bool]:
    """Options of `jax.stages.Lowered.compile` for the default device."""
    if jax.default_backend() != "cpu":
        return {}
    return {name: value for name, value in _CPU.items() if _is_known({name: value})}


def _is_known(option: dict[str, str | bool]) -> bool:
    """Whether this release has an option."""
    try:
        jax.jit(jnp.negative).lower(jnp.zeros(())).compile(option)
    except jax.errors.JaxRuntimeError:
        return False
    return True
