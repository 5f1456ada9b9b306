"""Fault injection: a run that is killed, starved and damaged must end bit for bit like one that was not."""

from lclm_jax.drills.rehearsal import run_drill

__all__ = ["run_drill"]
