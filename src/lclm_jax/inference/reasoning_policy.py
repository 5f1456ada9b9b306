"""When reasoning is compressed while it is written, and what a row then consists of: bookkeeping without a model.

A generator of this package and a proxy in front of a server use the same: tokens are reported as they come, the policy
says how many of them become a span, and ``ReasoningRow.example`` is what the decoder has read from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lclm_jax.errors import LclmError
from lclm_jax.text.chunked_encoding import long_ids
from lclm_jax.text.example import Example, latent_count
from lclm_jax.text.shared_tokenization import shared_tokenization
from lclm_jax.text.tokenizer import Tokenizers

_UNFINISHED = "\ufffd"
_LONGEST = 4
"""Bytes of a character, and so tokens, at most."""


@dataclass(frozen=True)
class ReasoningPolicy:
    """Compress reasoning each time so many tokens of it are complete.

    Raises:
        LclmError: ``tokens`` is below 1.
    """

    tokens: int = 512
    """Raw tokens of reasoning after which they are compressed."""
    step_ends: frozenset[int] = frozenset()
    """Tokens that end a step, such as those of a line break: a cut is made behind the last of them if that leaves at
    least half of the tokens before it, else behind all. None: always behind all."""
    reasoning_ends: frozenset[int] = frozenset()
    """Tokens that end the reasoning (``</think>``): what comes from there on stays raw."""
    merge: bool = False
    """Keep all that was compressed in one span, which is read again each time, instead of a span for each part."""

    def __post_init__(self):
        if self.tokens < 1:
            raise LclmError(f"tokens={self.tokens} of reasoning cannot be compressed; give at least 1")

    def cut(self, tail: Sequence[int]) -> int:
        """How many tokens of ``tail`` (those that are raw, the oldest first) are to be compressed now; 0: none."""
        if len(tail) < self.tokens or not self.reasoning_ends.isdisjoint(tail):
            return 0
        ends = [place + 1 for place, token in enumerate(tail) if token in self.step_ends]
        return ends[-1] if ends and 2 * ends[-1] >= len(tail) else len(tail)


@dataclass
class ReasoningRow:
    """One row: its prompt, its compressed reasoning, and the raw tokens behind that."""

    prompt: Example
    tokenizers: Tokenizers
    ratio: int
    policy: ReasoningPolicy
    tail: list[int] = field(default_factory=list)
    """Raw tokens, the oldest first."""
    spans: list[np.ndarray] = field(default_factory=list)
    """Encoder ids of what is compressed."""
    generated: list[int] = field(default_factory=list)
    """All new tokens."""
    compressions: int = 0
    compressed_tokens: int = 0
    """New tokens that are no longer raw."""
    encoder_tokens: int = 0
    """Read by the encoder in all, what was read again included."""
    largest: int = 0
    """Most decoder positions that the row ever had."""

    def append(self, token: int) -> None:
        """Take a new token."""
        self.tail.append(token)
        self.generated.append(token)
        self.largest = max(self.largest, self.positions)

    def compress(self) -> "Compression | None":
        """Do as the policy says now; None: nothing changes.

        A part that would end within a character ends before it.
        """
        cut = self.policy.cut(self.tail)
        decoder, encoder = self.tokenizers
        if not cut:
            return None
        for back in range(min(_LONGEST, cut)):
            if not decoder.decode(self.tail[: cut - back]).endswith(_UNFINISHED):
                cut -= back
                break
        kept = self.positions - len(self.tail)
        shared = shared_tokenization(decoder, encoder)
        text = decoder.decode(self.tail[:cut])
        same = shared is not None and shared.covers(text)
        ids = np.array(self.tail[:cut], np.int32) if same else long_ids(encoder, text)
        if self.policy.merge and self.spans:
            kept -= latent_count(len(self.spans[-1]), self.ratio) + 2
            ids = np.concatenate([self.spans.pop(), ids])
        self.spans.append(ids)
        self.tail = self.tail[cut:]
        self.compressions += 1
        self.compressed_tokens += cut
        self.encoder_tokens += len(ids)
        return Compression(kept, self._piece([ids]))

    @property
    def positions(self) -> int:
        """Decoder positions of the row now."""
        latents = sum(latent_count(len(span), self.ratio) + 2 for span in self.spans)
        return len(self.prompt.tokens) + latents + len(self.tail)

    @property
    def effective_ratio(self) -> float:
        """New tokens to the positions that stand for them now."""
        return len(self.generated) / max(1, self.positions - len(self.prompt.tokens))

    @property
    def positions_saved(self) -> int:
        """By how many positions the row is shorter than it would be."""
        return len(self.prompt.tokens) + len(self.generated) - self.positions

    @property
    def encoded_again(self) -> int:
        """Tokens that the encoder read more than once, each time but the first."""
        return self.encoder_tokens - sum(len(span) for span in self.spans)

    def example(self) -> Example:
        """What the decoder has read: the prompt, then what is compressed, then the raw tokens."""
        piece = self._piece(self.spans)
        tokens = np.concatenate([self.prompt.tokens, piece.tokens])
        return Example(tokens, np.zeros(len(tokens), np.float32), (*self.prompt.spans, *piece.spans))

    def _piece(self, spans: Sequence[np.ndarray]) -> Example:
        """``spans`` with their tags and placeholders, and the raw tokens."""
        memory = self.tokenizers.decoder.memory_ids
        tokens: list[int] = []
        for span in spans:
            tokens += [memory.start, *[memory.placeholder] * latent_count(len(span), self.ratio), memory.end]
        tokens += self.tail
        return Example(np.array(tokens, np.int32), np.zeros(len(tokens), np.float32), tuple(spans))


@dataclass(frozen=True)
class Compression:
    """What a row's cache is to become: its first ``kept`` positions, and ``piece`` behind them."""

    kept: int
    piece: Example
