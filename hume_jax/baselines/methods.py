"""All methods of this folder by name."""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from hume_jax.baselines import (
    fine_tune,
    kmeans,
    probe,
    running,
    scan,
    self_classifier,
    spice,
    temi,
    turtle,
    twist,
)


class Entry(NamedTuple):
    """A method with its settings."""

    title: str
    module: ModuleType  # a `running.Method`
    settings: Callable[[int], running.Settings]  # of the number of classes
    spaces: str = "one"  # how many spaces it looks at: 'one', or 'several' (one or two)
    supervised: bool = False  # whether it is given true labels


METHODS = {
    "kmeans": Entry("k-means", kmeans, kmeans.Settings),
    "spherical_kmeans": Entry(
        "spherical k-means", kmeans, lambda k: kmeans.Settings(k, spherical=True)
    ),
    "scan": Entry("SCAN", scan, scan.Settings),
    "spice": Entry("SPICE", spice, spice.Settings),
    "twist": Entry("TWIST", twist, twist.Settings, spaces="several"),
    "self_classifier": Entry("Self-classifier", self_classifier, self_classifier.Settings),
    "temi": Entry("TEMI", temi, temi.Settings),
    "turtle": Entry("TURTLE, cold start", turtle, turtle.Settings, spaces="several"),
    "turtle_warm": Entry(
        "TURTLE, warm start", turtle, lambda k: turtle.Settings(k, warm=True), spaces="several"
    ),
    "probe": Entry("supervised linear probe", probe, probe.Settings, supervised=True),
    "fine_tune": Entry("supervised head", fine_tune, fine_tune.Settings, supervised=True),
}


def neighbours_of(settings: running.Settings) -> int:
    """How many nearest neighbours of each row a method looks at where it has one space; 0: none."""
    return getattr(settings, "neighbours", 0)
