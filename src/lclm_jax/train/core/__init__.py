"""The training step, what it is made of, and the loop over steps."""
