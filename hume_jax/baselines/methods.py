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
    neighbours: int = 0  # nearest neighbours of each row that it looks at
    spaces: str = "one"  # how many spaces it looks at: 'one', or 'several' (one or two)
    supervised: bool = False  # whether it is given true labels


METHODS = {
    "kmeans": Entry("k-means", kmeans, kmeans.Settings),
    "spherical_kmeans": Entry(
        "spherical k-means", kmeans, lambda k: kmeans.Settings(k, spherical=True)
    ),
    "scan": Entry("SCAN", scan, scan.Settings, neighbours=50),
    "spice": Entry("SPICE", spice, spice.Settings, neighbours=100),
    "twist": Entry("TWIST", twist, twist.Settings, neighbours=50, spaces="several"),
    "self_classifier": Entry(
        "Self-classifier", self_classifier, self_classifier.Settings, neighbours=50
    ),
    "temi": Entry("TEMI", temi, temi.Settings, neighbours=50),
    "turtle": Entry("TURTLE, cold start", turtle, turtle.Settings, spaces="several"),
    "turtle_warm": Entry(
        "TURTLE, warm start", turtle, lambda k: turtle.Settings(k, warm=True), spaces="several"
    ),
    "probe": Entry("supervised linear probe", probe, probe.Settings, supervised=True),
    "fine_tune": Entry("supervised head", fine_tune, fine_tune.Settings, supervised=True),
}
