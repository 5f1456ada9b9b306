"""Training: loss, optimizer, step, loop, stages, checkpoints, progress."""
