"""Cut points: where a token sequence may be sliced so that the slice is what re-tokenizing the text slice gives.

Then spans and raw segments are made by slicing prepared ids, never by tokenizing again.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lclm_jax.text.boundaries import TokenizedText
from lclm_jax.text.chunked_encoding import ChunkedEncoder, Encoded
from lclm_jax.text.tokenizer import Tokenizer

_SPACES = np.zeros(0x3001, bool)
_SPACES[[*range(9, 14), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]] = True
_SPACES[[0x2028, 0x2029, 0x202F, 0x205F, 0x3000]] = True
_MEMO_LIMIT = 200_000


class CutFinder:
    r"""Tokenizes foreign text (special-token strings are plain characters) and finds its cut points.

    A cut lies between two pre-tokens, where byte-level and word-level tokenizers start afresh. Their patterns never
    look behind, so a slice may begin at any such place. They look one character ahead (``\s+(?!\S)``), so the end of
    a slice is safe after a character that is not white space; after a newline it is checked by tokenizing the text
    since the last safe place alone (few distinct ones, remembered); after other white space there is no cut. Nor is
    there one before a blank rest of line: it would merge with the newline that ends a chat prompt.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._backend = tokenizer.backend(plain=True)
        self._encode = ChunkedEncoder(tokenizer)
        self._memo: dict[str, bytes] = {}

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize ``texts`` on all cores; they should be in Unicode's form C, which tokenizers normalize to."""
        candidates = [_Candidates(text, one) for text, one in zip(texts, self._encode(texts), strict=True)]
        alone = self._alone(set().union(*(one.pieces for one in candidates)))
        return [one.found(alone) for one in candidates]

    def is_stable(self, text: str, found: TokenizedText, first: int, last: int) -> bool:
        """Whether re-tokenizing ``text`` from cut ``first`` to cut ``last`` gives the slice of its ids."""
        piece = text[found.cut_chars[first] : found.cut_chars[last]]
        ids = self._backend.encode(piece, add_special_tokens=False).ids
        return np.array_equal(ids, found.ids[found.cuts[first] : found.cuts[last]])

    def _alone(self, wanted: set[str]) -> Mapping[str, bytes]:
        """Ids (int32, as bytes) of each piece of text tokenized by itself; new ones in one call."""
        if len(self._memo) + len(wanted) > _MEMO_LIMIT:
            self._memo.clear()
        new = [piece for piece in wanted if piece not in self._memo]
        encodings = self._backend.encode_batch(new, add_special_tokens=False) if new else []
        self._memo |= {piece: np.array(one.ids, np.int32).tobytes() for piece, one in zip(new, encodings, strict=True)}
        return self._memo


class _Candidates:
    """Places of one text that may be cuts: some surely, others if a piece of text tokenizes alone as it does here."""

    def __init__(self, text: str, encoded: Encoded):
        self._ids, self._starts, self._length = encoded.ids, encoded.starts, len(text)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        places = 1 + np.flatnonzero(encoded.opens[1:] & (encoded.starts[1:] == encoded.ends[:-1]))
        self._places = places = places[~_blank_rest(codes)[self._starts[places]]]
        left = codes[self._starts[places] - 1]
        self._solid = ~_is_space(left)
        self._lines = np.flatnonzero(_is_newline(left))
        # The last safe place, itself included.
        first = np.maximum.accumulate(np.where(self._solid, places, 0))[self._lines]
        self._since_safe = first, places[self._lines]
        self.pieces = [text[start:stop] for start, stop in self._pairs(self._starts)]
        """The text from the last safe place to each place after a newline."""

    def found(self, alone: Mapping[str, bytes]) -> TokenizedText:
        """The cuts, with what each of ``pieces`` is by itself."""
        if not len(self._ids):
            return TokenizedText(self._ids, np.zeros(1, np.int32), np.zeros(1, np.int32))
        ids, size = self._ids.tobytes(), self._ids.itemsize
        here = [ids[size * first : size * last] for first, last in self._pairs(np.arange(len(self._ids)))]
        kept = self._solid.copy()
        kept[self._lines] = [alone[piece] == part for piece, part in zip(self.pieces, here, strict=True)]
        places = self._places[kept]
        cuts = np.concatenate(([0], places, [len(self._ids)])).astype(np.int32)
        chars = np.concatenate(([0], self._starts[places], [self._length])).astype(np.int32)
        return TokenizedText(self._ids, cuts, chars)

    def _pairs(self, of_token: np.ndarray) -> Iterator[tuple[int, int]]:
        first, last = self._since_safe
        return zip(of_token[first].tolist(), of_token[last].tolist(), strict=True)


def common_cuts(first: TokenizedText, second: TokenizedText) -> tuple[TokenizedText, TokenizedText]:
    """Keep the cuts that both tokenizations of one text have, so that index k means the same place in each."""
    _, left, right = np.intersect1d(first.cut_chars, second.cut_chars, return_indices=True)
    return (
        TokenizedText(first.ids, first.cuts[left], first.cut_chars[left]),
        TokenizedText(second.ids, second.cuts[right], second.cut_chars[right]),
    )


def _is_space(codes: np.ndarray) -> np.ndarray:
    return _SPACES[np.minimum(codes, len(_SPACES) - 1)] & (codes < len(_SPACES))


def _is_newline(codes: np.ndarray) -> np.ndarray:
    return (codes == 10) | (codes == 13)


def _blank_rest(codes: np.ndarray) -> np.ndarray:
    """Where only white space comes before the next newline (that newline included), bool [chars]."""
    newline = _is_newline(codes)
    stops = np.where(newline | ~_is_space(codes), np.arange(len(codes)), len(codes))
    following = np.minimum.accumulate(stops[::-1])[::-1]  # next newline or visible character
    return np.append(newline, False)[following]
