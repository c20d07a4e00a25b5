"""Unsupervised discovery of human labelings from two pretrained representations, in JAX."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["HUME", "OneSpaceHUME", "__version__"]

if TYPE_CHECKING:
    from hume_jax.estimator import HUME as HUME
    from hume_jax.estimator import OneSpaceHUME as OneSpaceHUME


def __getattr__(name: str) -> Any:
    """Gives the estimators, loaded with all they need when they are first asked for."""
    if name in __all__:
        from hume_jax import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
