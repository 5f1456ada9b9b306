"""Faults on purpose: a run that is killed, starved and damaged must end bit for bit as one that was left alone."""

from lclm_jax.drills.rehearsal import run_drill

__all__ = ["run_drill"]
