"""Writing, checking and reading checkpoints."""
