"""The commands: what `hume` calls them, the module of each, and what it does."""

from typing import NamedTuple


class Verb(NamedTuple):
    """A command, `hume NAME`."""

    name: str
    module: str  # it has a function `run()`, which reads `sys.argv`
    does: str

    @property
    def command(self) -> str:
        """The same by Python."""
        return f"python -m {self.module.removesuffix('.__main__')}"


VERBS = (
    Verb("run", "hume_jax.main", "finds the classes of a dataset, as a config file says"),
    Verb("encode", "hume_jax.encode", "encodes images to the arrays that a config names"),
    Verb("predict", "hume_jax.predict", "labels new samples by the vote of a finished run"),
    Verb("classes", "hume_jax.classes", "names, merges and splits classes, as classes.yaml says"),
    Verb("reliable", "hume_jax.reliable", "lists the surest rows, for semi-supervised training"),
    Verb("choose-k", "hume_jax.choose_k", "tells how many classes the data support"),
    Verb(
        "report",
        "hume_jax.report.__main__",
        "rebuilds the page of a run, or sets two runs side by side",
    ),
    Verb("sweep", "hume_jax.sweep", "runs many settings and puts them in one table"),
)
