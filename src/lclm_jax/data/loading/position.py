"""What training and the loader tell each other: where to begin, batches, and what a batch holds."""

from typing import NamedTuple, Protocol

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.data.packing.mixture import Cursor
from lclm_jax.types import JsonObject, ReadOnlyJson


class Position(NamedTuple):
    """Where the loader begins."""

    rows: int = 0
    """Global rows already trained on: ``state()["rows_consumed"]`` of a checkpoint."""
    cursors: tuple[Cursor, ...] = ()
    """Where the block of the last of them begins, so that the rows before it need not be counted again; one for each
    ratio."""
    index_digest: str | None = None
    """The index that ``cursors`` belong to; of another one they are not used."""
    step: int | None = None
    """Updates already made; None: as many as ``rows`` take."""
    origins: tuple[Cursor, ...] = ()
    """Where the indices begin, one for each ratio, if the stage was forced to go on with other rows; else none."""

    @classmethod
    def from_state(cls, state: ReadOnlyJson) -> "Position":
        """What ``Loader.state`` said, from a checkpoint."""
        stored = state.get("cursors", [state["cursor"]] if "cursor" in state else [])  # none: of an earlier version
        cursors, origins = (
            tuple(Cursor(block, row, tuple(consumed)) for block, row, consumed in listed)
            for listed in (stored, state.get("origins", ()))
        )
        digest = state.get("index_digest") if cursors else None
        return cls(state["rows_consumed"], cursors, digest, state.get("step"), origins)


class BatchStats(NamedTuple):
    """What the rows of one batch of this host hold."""

    raw_tokens: int
    """Tokens of text represented: decoder tokens without placeholders, and encoder tokens."""
    decoder_tokens: int
    """Decoder positions in use, placeholders included."""
    encoder_tokens: int
    """Pooled encoder tokens."""
    latents: int
    examples: int
    decoder_fill: float
    """Share of the decoder positions in use."""
    encoder_fill: float
    """Pooled encoder tokens as a share of the encoder positions."""


def batch_stats(batch: Batch) -> BatchStats:
    """Count what a host batch holds."""
    decoder = int(np.count_nonzero(batch.decoder_segments))
    encoder = int(np.count_nonzero(batch.pool_weights))
    latents = int(np.count_nonzero(batch.latent_index >= 0))
    return BatchStats(
        raw_tokens=decoder - latents + encoder,
        decoder_tokens=decoder,
        encoder_tokens=encoder,
        latents=latents,
        examples=int(batch.decoder_segments.max(axis=1, initial=0).sum()),
        decoder_fill=decoder / batch.decoder_segments.size,
        encoder_fill=encoder / batch.pool_weights.size,
    )


class BatchLoader(Protocol):
    """Batches of a stage in order, as training sees them (``loader.Loader`` is one)."""

    @property
    def digest(self) -> str:
        """Digest of all that the order of rows depends on."""

    def __next__(self) -> tuple[Batch, BatchStats]:
        """The next batch (this host's rows) and what it holds; raises ``StopIteration`` after the stage's last."""

    def state(self, rows: int) -> JsonObject:
        """What a checkpoint stores of the loader after ``rows`` rows; see ``Position.from_state``."""

    def describe(self, row: int) -> list[JsonObject]:
        """Where the examples of global ``row`` come from."""

    def close(self) -> None:
        """End the loader's threads and processes."""
