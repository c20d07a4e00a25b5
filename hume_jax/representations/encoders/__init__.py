"""Frozen image encoders in Flax, and the published weights they run with."""
