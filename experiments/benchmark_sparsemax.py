"""What `benchmark.py sparsemax` times: thresholds by Newton's method beside those by a sort."""

import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hume_jax import compiling
from hume_jax.core.task_encoder import sparsemax

Table = tuple[list[str], list[list[str]]]


def by_sort(z: Array) -> Array:
    """`sparsemax` along the first axis, Martins & Astudillo 2016, Algorithm 1."""
    ordered = jnp.sort(z, axis=0, descending=True)
    total = jnp.cumsum(ordered, axis=0) - 1
    rank = jnp.arange(1, len(z) + 1, dtype=z.dtype)[:, None]
    support = jnp.sum(ordered * rank > total, axis=0, keepdims=True)
    threshold = jnp.take_along_axis(total, support - 1, axis=0) / support
    return jnp.maximum(z - threshold, 0)


def logits(n_classes: int, rows: int, soft: float) -> Array:
    """Made ones, of which about so many classes a row end above the threshold."""
    z = jax.random.normal(jax.random.key(0), (n_classes, rows))
    return z / soft


def run(classes: Sequence[int], rows: int, repeats: int) -> Table:
    """Times both in turns; a row for each number of classes and softness."""
    head = ["classes", "rows", "classes above 0", "by a sort, s", "here, s", "times faster"]
    found = []
    for k in classes:
        for soft in (0.3, 10.0):
            z = logits(k, rows, soft)
            functions = [by_sort, lambda z: sparsemax(z, axis=0)]
            programs = [_compiled(function, z) for function in functions]
            out = [np.asarray(program(z)) for program in programs]
            np.testing.assert_allclose(out[0], out[1], atol=1e-5)
            seconds = np.asarray([[_seconds(p, z) for p in programs] for _ in range(repeats)])
            above = np.mean(np.sum(out[1] > 0, axis=0))
            sort, ours = np.median(seconds, axis=0)
            faster = np.median(seconds[:, 0] / seconds[:, 1])
            found.append(
                [str(k), str(rows), f"{above:.1f}", f"{sort:.4g}", f"{ours:.4g}", f"{faster:.2f}"]
            )
    return head, found


def _compiled(function: Callable[[Array], Array], z: Array) -> Callable[[Array], Array]:
    return jax.jit(function).lower(z).compile(compiling.options())


def _seconds(program: Callable[[Array], Array], z: Array) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program(z))
    return time.perf_counter() - began
