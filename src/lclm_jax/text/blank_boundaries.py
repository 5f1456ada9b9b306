"""Boundaries at blanks, for tokenizers that cut a text into no pre-tokens (Llama 2, Mistral 7B, Gemma).

Their models write a blank as ``▁``. Where no entry of the vocabulary reaches from the character before a blank over it,
no merge does: every token ends there, and the ids of either side are those that it has alone. Most vocabularies have no
such entry; of the few of others (Gemma 3 has one, ``>▁</``) the places are left out where their text stands.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

import tokenizers
from lclm_jax.text.tokenizer import Tokenizer

_FEW = 64
_PROBE = "One two, three: four"


class BlankBoundaries(NamedTuple):
    """What tells the boundaries in the ids of one tokenizer."""

    begins: np.ndarray
    """bool [vocabulary]: whether a token begins with a blank."""
    ends: np.ndarray
    """bool [vocabulary]: whether it ends with one, or is an added token, after which a text starts afresh."""
    added: np.ndarray
    """bool [vocabulary]: whether it is an added token."""
    across: tuple[str, ...]
    """Texts of the entries that reach over a blank."""
    adds_blank: bool
    """Whether a blank is put before every text, even before one that begins with a blank."""
    adds_none: bool
    """Whether no blank is ever put before a text."""

    def opens(self, text: str, ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Whether a text may be cut before each token: one that begins with a blank after another character.

        ``ids`` and ``starts`` (characters) are those of the tokens of ``text``.
        """
        found = np.zeros(len(ids), bool)
        found[:1] = True
        found[1:] = self.begins[ids[1:]] & ~self.ends[ids[:-1]]
        found[:-1] &= ~self.added[ids[1:]]  # its blank would go to the text before the added token
        inside = [place for entry in self.across for place in _places_inside(text, entry)]
        return found & ~np.isin(starts, inside) if inside else found


@lru_cache(maxsize=8)
def blank_boundaries(tokenizer: Tokenizer) -> BlankBoundaries | None:
    """The boundaries of ``tokenizer``; None if it makes pre-tokens, or may merge over a blank."""
    backend = tokenizer.backend(plain=True)
    probe = backend.encode(_PROBE, add_special_tokens=False)
    vocabulary = backend.get_vocab(with_added_tokens=False)
    added = backend.get_added_tokens_decoder()
    mark = "▁" if any("▁" in token for token in probe.tokens) else " "
    if len(set(probe.word_ids)) > 1 or mark not in vocabulary:
        return None
    own = {token: index for token, index in vocabulary.items() if index not in added}
    inner = re.compile(f"[^{mark}]{mark}")
    across = tuple(sorted(token.replace(mark, " ") for token in own if inner.search(token)))
    if len(across) > _FEW or any(re.search(r"[^\W_] (?:[^\W_]|$)", text) for text in across):
        return None
    size = tokenizer.vocab_size
    begins, ends, is_added = (np.zeros(size, bool) for _ in range(3))
    for token, index in own.items():
        begins[index], ends[index] = token.startswith(mark), token.endswith(mark)
    is_added[list(added)] = True
    adds_none = not backend.encode("a", add_special_tokens=False).tokens[0].startswith(mark)
    return BlankBoundaries(begins, ends | is_added, is_added, across, _adds_blank(backend, mark), adds_none)


def _places_inside(text: str, entry: str) -> Iterator[int]:
    """The blanks after another character in every occurrence of ``entry``."""
    inner = [found.start() + 1 for found in re.finditer(r"[^ ](?= )", entry)]
    at = text.find(entry)
    while at >= 0:
        yield from (at + place for place in inner)
        at = text.find(entry, at + 1)


def _adds_blank(backend: tokenizers.Tokenizer, mark: str) -> bool:
    return backend.normalizer is not None and backend.normalizer.normalize_str(" a") == f"{mark}{mark}a"
