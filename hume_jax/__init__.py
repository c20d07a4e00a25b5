"""Unsupervised discovery of human labelings from two pretrained representations, in JAX."""

__version__ = "0.1.0"
