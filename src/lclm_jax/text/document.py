"""Examples made of prepared ids by slicing at cut points; nothing is tokenized here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lclm_jax.text.example import Example, expand, make_outline
from lclm_jax.text.memory_tags import MemoryIds
from lclm_jax.text.prompts import RepetitionPrompt


class Segment(NamedTuple):
    """A stretch of a document between two of its cuts (their indices), compressed or raw."""

    compressed: bool
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class DocumentTokens:
    """Both tokenizations of a document; cut k is the same place of the text in each."""

    decoder_ids: np.ndarray
    """Integers [decoder tokens]; empty where only lengths are needed."""
    decoder_cuts: np.ndarray
    """Integers [cuts]: token indices, from 0 to the number of decoder tokens."""
    encoder_ids: np.ndarray
    """Integers [encoder tokens]: the decoder's where the tokenizers are the same."""
    encoder_cuts: np.ndarray
    """Integers [cuts]."""

    @classmethod
    def from_record(cls, record: Mapping[str, np.ndarray]) -> "DocumentTokens":
        """The columns of a prepared document; without encoder columns both tokenizations are the same."""
        ids, cuts = record["decoder_ids"], record["cuts"]
        return cls(ids, cuts, record.get("encoder_ids", ids), record.get("encoder_cuts", cuts))

    def decoder_slice(self, segment: Segment) -> np.ndarray:
        """Decoder ids of a stretch, int32."""
        return self.decoder_ids[self.decoder_cuts[segment.start] : self.decoder_cuts[segment.stop]].astype(np.int32)

    def encoder_slice(self, segment: Segment) -> np.ndarray:
        """Encoder ids of a stretch, int32."""
        return self.encoder_ids[self.encoder_cuts[segment.start] : self.encoder_cuts[segment.stop]].astype(np.int32)


def cpt_example_from_ids(
    document: DocumentTokens, segments: Sequence[Segment], memory: MemoryIds, ratio: int
) -> Example:
    """Continual pre-training over alternating ``segments``: loss on raw tokens only."""
    tags = np.array([memory.start, memory.end], np.int32)
    tokens, gaps, spans, length = [], [], [], 0
    for segment in segments:
        if segment.compressed:
            spans.append(document.encoder_slice(segment))
            gaps.append(length + 1)
            tokens.append(tags)
        else:
            tokens.append(document.decoder_slice(segment))
        length += len(tokens[-1])
    weights = [
        np.full(len(ids), not segment.compressed, np.float32) for ids, segment in zip(tokens, segments, strict=True)
    ]
    return expand(make_outline(tokens, weights, gaps, spans), ratio, memory.placeholder)


def reconstruction_example_from_ids(
    prompt: RepetitionPrompt,
    document: DocumentTokens,
    segment: Segment,
    memory: MemoryIds,
    ratio: int,
    quote: Segment | None = None,
) -> Example:
    """Reconstruction: ``prompt`` around the compressed ``segment``, answered by its decoder ids; loss on the answer.

    With a ``quote`` (a part of the segment; for a prompt that quotes) the answer is what follows it in the segment.
    """
    question = np.concatenate([prompt.head, prompt.tail])
    answered = segment
    if quote is not None and prompt.after_quote is not None:
        question = np.concatenate([question, document.decoder_slice(quote), prompt.after_quote])
        answered = Segment(False, quote.stop, segment.stop)
    reply = np.concatenate([document.decoder_slice(answered), prompt.closing])
    weights = [np.zeros(len(question), np.float32), np.ones(len(reply), np.float32)]
    outline = make_outline([question, reply], weights, [len(prompt.head)], [document.encoder_slice(segment)])
    return expand(outline, ratio, memory.placeholder)
