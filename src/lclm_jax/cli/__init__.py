"""The ``lclm`` command. Thin: a command imports what it runs, so that ``lclm --help`` never waits for JAX."""

from lclm_jax.cli.main import main

__all__ = ["main"]
