"""The result of one variant over its seeds: plain numbers in one JSON file, which the report reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lclm_jax.errors import LclmError


@dataclass(frozen=True)
class Cost:
    """What a variant takes; per raw token where it says so."""

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
    """Largest memory of the process that trained and measured the variant."""
    positions_per_raw_token: float
    """Decoder positions in use per raw token of a training batch: what compression leaves."""


@dataclass(frozen=True)
class VariantResult:
    """What was measured of one variant; lists of numbers are in the order of ``seeds``."""

    variant: str
    overrides: Mapping[str, Any]
    config_hash: str
    seeds: Sequence[int]
    measures: Mapping[str, Sequence[float]]
    """Name of ``measures.MEASURES`` -> one number per seed."""
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
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "VariantResult":
        """Read what ``write`` wrote; raises ``LclmError`` that names the file if it is damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "cost": Cost(**values["cost"])})
        except (LclmError, ValueError, KeyError, TypeError) as error:
            raise LclmError(f"{path} is no result of a variant ({error}); delete it to run the variant again") from None
