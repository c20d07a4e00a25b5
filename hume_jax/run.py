"""`python -m hume_jax.run`, by the name that the verb has: the same as `hume_jax.main`."""

from hume_jax.main import run

if __name__ == "__main__":
    run()
