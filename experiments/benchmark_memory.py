"""What `benchmark.py memory` compares: memory as it is planned with, and as XLA lays it out.

Programs are compiled from the shapes of their arguments alone, so that no case needs the memory
that it is about.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import figures
import jax
import jax.numpy as jnp

from hume_jax import compiling, memory, planning
from hume_jax.core import search, seeds
from hume_jax.core.subsets import HELD


class Case(NamedTuple):
    """A search that is compiled."""

    rows: int
    columns: tuple[int, ...]  # of phi1 and of each second space
    n_classes: int
    tasks: int
    fields: tuple[str, ...] = ()  # of the config


CASES = {
    "Imagenette, one space": Case(9469, (1280, 1281), 10, 16),
    "Imagenette, both spaces": Case(9469, (2560, 1281, 1281), 10, 16),
    "Imagenette, both spaces, 5 seeds": Case(
        9469, (2560, 1281, 1281), 10, 64, ("--config.seeds=(0,1,2,3,4)",)
    ),
    "CLINC150's intents": Case(18000, (384, 385), 150, 8, ("--config.inner.adjoint=first_order",)),
    "paper preset, CIFAR-10": Case(50000, (2048, 1536), 10, 8, ("--config.preset=paper",)),
    "ImageNet-1k, 1 task": Case(
        40000, (2048, 1537), 1000, 1, ("--config.search.subset_size=20000",)
    ),
    "ImageNet-1k, 8 tasks": Case(
        40000, (2048, 1537), 1000, 8, ("--config.search.subset_size=20000",)
    ),
    "ImageNet-1k, 8 tasks, bfloat16": Case(
        1_281_167,
        (2048, 1537),
        1000,
        8,
        ("--config.search.subset_size=20000", "--config.search.storage=bfloat16"),
    ),
}


class Settings(NamedTuple):
    """What memory depends on."""

    shape: memory.Shape
    search: search.Search
    tasks: int
    seeds: int
    storage: str

    @property
    def predicted(self) -> int:
        """Bytes that the search is planned to take while its steps run."""
        stored = memory.stored_bytes(self.storage)
        return memory.steps_bytes(
            self.shape, self.search, self.tasks, seeds=self.seeds, stored=stored
        )


def settings_of(case: Case) -> Settings:
    """A case as a run would plan it."""
    flags = [f"--config.n_classes={case.n_classes}", f"--config.n_tasks={case.tasks}"]
    config = figures.load_config("configs/arrays.py", [*flags, *case.fields])
    shards = planning.shard_count(config, case.rows)
    train, test = planning.draws(config, case.rows, shards)
    shape = memory.Shape(
        -(-case.rows // shards) * shards,
        train * shards,
        test * shards,
        case.columns[0],
        case.columns[1:],
    )
    found = planning.settings_of(config, train, test)
    return Settings(shape, found, case.tasks, len(config.seeds) or 1, config.search.storage)


def compiled_bytes(settings: Settings) -> int:
    """Bytes of a block of steps: its arguments, and what XLA allocates beside them."""
    found, data = settings.search, _data(settings)
    run_seeds, tasks = _array((settings.seeds,), jnp.uint32), _array((settings.tasks,), jnp.int32)
    state = jax.eval_shape(functools.partial(seeds.init, settings=found), run_seeds, tasks, data)
    program = functools.partial(seeds.run_steps, settings=found, steps=3)
    arguments = (state, run_seeds, data, _array((found.n_classes,), jnp.float32))
    compiled = jax.jit(program, donate_argnums=0).lower(*arguments).compile(compiling.options())
    taken = compiled.memory_analysis()
    assert taken is not None, "XLA does not say on this platform"
    fresh = taken.output_size_in_bytes - taken.alias_size_in_bytes
    return taken.argument_size_in_bytes + taken.temp_size_in_bytes + fresh


def _data(settings: Settings) -> search.Data:
    """The shapes of the rows that are held."""
    shape = settings.shape
    shards = shape.train // settings.search.train_rows

    def rows(width: int) -> Any:
        return _array((shards, shape.rows // shards, width), HELD[settings.storage])

    spaces = tuple(search.Rows(rows(r), _array((r,), jnp.float32)) for r in shape.inner)
    return search.Data(rows(shape.phi1), spaces, _array((shards,), jnp.int32))


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def rows_of(names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    head = ["search", "rows", "subset", "columns", "classes", "tasks", "planned, GiB"]
    head += ["compiled, GiB", "planned / compiled"]
    rows = []
    for name in names:
        case, found = CASES[name], settings_of(CASES[name])
        planned, compiled = found.predicted, compiled_bytes(found)
        rows.append(
            [
                name,
                str(case.rows),
                f"{found.shape.train} + {found.shape.test}",
                " → ".join(map(str, case.columns)),
                str(case.n_classes),
                f"{found.seeds} x {case.tasks}" if found.seeds > 1 else str(case.tasks),
                f"{planned / 2**30:.3f}",
                f"{compiled / 2**30:.3f}",
                f"{planned / compiled:.2f}",
            ]
        )
    return head, rows
