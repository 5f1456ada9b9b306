"""``python -m lclm_jax``: the ``lclm`` command."""

from lclm_jax.cli import main

main()
