"""What a study measures of every variant: names, units, and which direction is better."""

from typing import Literal, NamedTuple

from lclm_jax.config.study import Measurement


class Measure(NamedTuple):
    """One number per seed."""

    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    """None: neither, it describes the variant."""


MEASURES: dict[Measurement, Measure] = {
    "held_out_loss": Measure("held-out loss", "nats per token", "lower"),
    "train_loss": Measure("training loss at the end", "nats per token", "lower"),
    "latent_loss": Measure("loss after a compressed context", "nats per token", "lower"),
    "raw_loss": Measure("loss after a raw context", "nats per token", "lower"),
    "no_context_loss": Measure("loss without context", "nats per token", "lower"),
    "recovered_share": Measure("recovered share of the context gain", "", "higher"),
    "repetition_loss": Measure("loss of verbatim repetition", "nats per token", "lower"),
    "verbatim_accuracy": Measure("verbatim repetition, teacher-forced", "share of tokens", "higher"),
    "needle_accuracy": Measure("needle, teacher-forced", "share of tokens", "higher"),
    "needle_loss": Measure("loss of the needle", "nats per token", "lower"),
}
"""Measures of quality; those of cost are ``results.Cost``."""
