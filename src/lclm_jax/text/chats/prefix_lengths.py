"""Tokens of the beginnings of a chat, without tokenizing each of them from its first character."""

import re
from bisect import bisect_right

import numpy as np

from lclm_jax.text.chunked_encoding import long_ids
from lclm_jax.text.memory_tags import split_memory
from lclm_jax.text.tokenizer import Tokenizer


class PrefixLengths:
    """How many decoder tokens a beginning of ``text`` has, tokenized by itself.

    Tokenizers cut a text at special tokens before anything else, so a beginning has the tokens of the whole text up to
    its last special token, and only what follows is tokenized again: the work grows with the chat, not with its square.

    Args:
        text: A whole chat as its template prints it, with memory tags.
        tokens: Its decoder ids without placeholders, int32 ``[tokens]``.
        decoder: The decoder's tokenizer.
    """

    def __init__(self, text: str, tokens: np.ndarray, decoder: Tokenizer):
        self._text, self._decoder = text, decoder
        known = set(decoder.special_ids.tolist()) - set(decoder.memory_ids)
        ids = {name: index for name, index in decoder.special_tokens.items() if index in known}
        found = _occurrences(text, list(ids))
        at = np.flatnonzero(np.isin(tokens, list(ids.values())))
        if [ids[name] for _, name in found] != tokens[at].tolist():
            # Some are no tokens where they stand: in a span, inside a word. Every beginning is tokenized whole.
            found, at = [], at[:0]
        self._starts = [0, *(start for start, _ in found)]
        self._stops = [0, *(start + len(name) for start, name in found)]
        self._before = [0, *map(int, at)]

    def until(self, stop: int) -> int:
        """Tokens of the first ``stop`` characters."""
        last = bisect_right(self._stops, stop) - 1
        pieces = split_memory(self._text[self._starts[last] : stop])
        sizes = (2 if one.kind == "span" else len(long_ids(self._decoder, one.text)) for one in pieces)
        return self._before[last] + sum(sizes)


def _occurrences(text: str, names: list[str]) -> list[tuple[int, str]]:
    """Where ``names`` stand, the longest of those that begin at one place."""
    if not names:
        return []
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return [(found.start(), found.group()) for found in re.finditer(pattern, text)]
