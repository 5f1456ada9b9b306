"""Rows of raw text beside packed rows: what a teacher reads in the place of latents (distillation).

A twin has the examples of its row in the same order, each as a segment of its own: the raw tokens of every span stand
where its tags and placeholders were. It is packed by no rule of its own: the row decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lclm_jax.text.chunked_encoding import long_ids
from lclm_jax.text.example import Example
from lclm_jax.text.memory_tags import MemoryIds
from lclm_jax.text.shared_tokenization import shared_tokenization
from lclm_jax.text.tokenizer import Tokenizers


@dataclass(frozen=True)
class TwinMaker:
    """Makes the twins of packed rows; may be sent to worker processes."""

    tokenizers: Tokenizers
    row_length: int
    """Decoder positions of a packed row."""
    twin_length: int
    """Decoder positions of its twin."""

    def __call__(self, examples_by_row: Sequence[Sequence[Example]]) -> dict[str, np.ndarray]:
        """The arrays of ``Batch`` that begin with ``twin_``, of these rows."""
        rows = [self._row(examples) for examples in examples_by_row]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        row = {name: np.zeros(self.twin_length, np.int32) for name in ("tokens", "segments", "positions")}
        index, taken, used = np.full(self.row_length, -1, np.int32), 0, 0
        memory = self.tokenizers.decoder.memory_ids
        for number, example in enumerate(examples, 1):
            tokens, before = raw_twin(example, [decoder_ids(span, self.tokenizers) for span in example.spans], memory)
            if used + tokens.size <= self.twin_length:
                place = slice(used, used + tokens.size)
                row["tokens"][place], row["segments"][place] = tokens, number
                row["positions"][place] = np.arange(tokens.size)
                index[taken : taken + before.size] = np.where(before >= 0, before + used, -1)
                used += tokens.size
            taken += before.size
        return {f"twin_{name}": array for name, array in row.items()} | {"twin_index": index}


def decoder_ids(span: np.ndarray, tokenizers: Tokenizers) -> np.ndarray:
    """The text of a span, which has the encoder's ids, in the decoder's."""
    decoder, encoder = tokenizers
    shared = shared_tokenization(decoder, encoder)
    if shared is not None and (not shared.differing or shared.covers(encoder.decode(span))):
        return span
    return long_ids(decoder, encoder.decode(span))


def raw_twin(example: Example, spans: Sequence[np.ndarray], memory: MemoryIds) -> tuple[np.ndarray, np.ndarray]:
    """(raw tokens of ``example``, of each of its positions the one in them that predicts the same token).

    Args:
        example: with tags and placeholders.
        spans: decoder ids of each of its spans.
        memory: ids of the tags and of the placeholder.

    Returns:
        int32 [raw tokens] and int32 [tokens]; -1 where the next token carries no loss, or is the first of the text.

    Example:
        Of ``7 <start> M <end> 8 9`` with loss on 8 and 9 and the span ``5 6``, the text is ``7 5 6 8 9``, and the
        places are ``-1 -1 -1 2 3 -1``: what the end tag predicts, 6 predicts.
    """
    ids = np.asarray(example.tokens)
    inside, tags = ids == memory.placeholder, np.isin(ids, (memory.start, memory.end))
    firsts = np.flatnonzero(inside & ~np.append(False, inside[:-1]))
    sizes = np.where(inside | tags, 0, 1)
    sizes[firsts] = [len(span) for span in spans]
    stops = np.cumsum(sizes)
    starts, tokens = stops - sizes, np.empty(int(stops[-1]) if stops.size else 0, np.int32)
    raw = ~(inside | tags)
    tokens[starts[raw]] = ids[raw]
    for first, span in zip(firsts.tolist(), spans, strict=True):
        tokens[starts[first] : stops[first]] = span
    before = np.full(ids.size, -1, np.int32)
    learned = np.flatnonzero((example.loss[1:] > 0) & raw[1:])
    before[learned] = starts[learned + 1] - 1
    return tokens, before
