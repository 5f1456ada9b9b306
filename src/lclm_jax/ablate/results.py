"""The measures of a study, and the result of one variant over its seeds: plain numbers in one JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from lclm_jax.config.study import Measurement
from lclm_jax.errors import LclmError
from lclm_jax.files import write_text
from lclm_jax.types import ReadOnlyJson


class Measure(NamedTuple):
    """One number per seed."""

    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    """None: neither, it only describes the variant."""


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
"""Measures of quality; those of cost are ``Cost``."""


@dataclass(frozen=True)
class Cost:
    """What a variant costs; per raw token where it says so."""

    encoder_parameters: int
    adapter_parameters: int
    decoder_parameters: int
    encoder_flops: float
    """Of the forward pass, per raw token of a training batch, encoder alone (by formula)."""
    decoder_flops: float
    """The same of adapter, decoder and head."""
    train_flops: float
    """Model FLOPs of the whole training of one seed, by formula."""
    raw_tokens_per_second: float
    """Raw tokens of all seeds trained at once, per second of training steps; compiling and evaluating left out."""
    peak_memory_bytes: int
    """Peak memory of the process that trained and measured the variant."""
    positions_per_raw_token: float
    """Decoder positions in use per raw token of a training batch: what compression leaves."""


@dataclass(frozen=True)
class VariantResult:
    """What was measured of one variant; lists of numbers are in the order of ``seeds``."""

    variant: str
    overrides: ReadOnlyJson
    config_hash: str
    seeds: Sequence[int]
    measures: Mapping[str, Sequence[float]]
    """Name of ``MEASURES`` -> one number per seed."""
    curves: Mapping[str, Sequence[Sequence[float]]]
    """``steps``: one list of step numbers; ``train_loss``: one list per seed."""
    verbatim_by_depth: Sequence[Sequence[float]]
    """[seed][position in the repeated span] accuracy."""
    cost: Cost
    seconds: Mapping[str, float]
    """``train``, ``compile``, ``evaluate``."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "VariantResult":
        """Read what ``write`` wrote; raises ``LclmError`` that names the file if it is damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "cost": Cost(**values["cost"])})
        except (ValueError, KeyError, TypeError) as error:
            raise LclmError(f"{path} is no result of a variant ({error}); delete it to run the variant again") from None
