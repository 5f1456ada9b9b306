"""Cut points: where a token sequence may be sliced so that the slice is what re-tokenizing the text slice gives.

Then spans and raw segments are made by slicing prepared ids, never by tokenizing again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np

from lclm_jax.errors import LclmError
from lclm_jax.text.boundaries import TokenizedText
from lclm_jax.text.chunked_encoding import LONGEST, ChunkedEncoder, Encoded, UnbrokenTextError
from lclm_jax.text.tokenizer import Tokenizer

_SPACES = np.zeros(0x3001, bool)
_SPACES[[*range(9, 14), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]] = True
_SPACES[[0x2028, 0x2029, 0x202F, 0x205F, 0x3000]] = True
_MEMO_LIMIT = 200_000
_PROSE = "It rained all day; the river rose. Nobody went out.\nAt 7 they lit the lamps.\n"


class CutFinder:
    r"""Tokenizes foreign text (special-token strings are plain characters) and finds its cut points.

    A cut lies between two pre-tokens, where byte-level and word-level tokenizers start afresh. Their patterns never
    look behind, so a slice may begin at any such place. They look one character ahead (``\s+(?!\S)``), so the end of
    a slice is safe after a character that is not white space; after a newline it is checked by tokenizing the text
    since the last safe place alone (few distinct ones, remembered); after other white space there is no cut. Nor is
    there one before a blank rest of line: it would merge with the newline that ends a chat prompt.

    Tokenizers without pre-tokens are cut before blanks, where their vocabulary lets no merge reach over
    (``text.blank_boundaries``).
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._backend = tokenizer, tokenizer.backend(plain=True)
        self._encode = ChunkedEncoder(tokenizer)
        self._memo: dict[str, bytes] = {}

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize ``texts`` on all cores; they should be in Unicode's form C, which tokenizers normalize to.

        A long text is taken in stretches of about a million characters, which bounds the memory that it needs.

        Raises:
            UnbrokenTextError: A long text has no place for them; ``tokenize_each`` leaves that text out instead.
        """
        found = list(self.tokenize_each(texts))
        for one in found:
            if isinstance(one, UnbrokenTextError):
                raise one
        return cast(list[TokenizedText], found)

    def tokenize_each(self, texts: Sequence[str]) -> Iterator[TokenizedText | UnbrokenTextError]:
        """As ``tokenize``, with the error in the place of a text that cannot be tokenized."""
        short = [text for text in texts if len(text) <= LONGEST]
        found = iter(self._cut(short, self._encode(short)))
        for text in texts:
            if len(text) <= LONGEST:
                yield next(found)
                continue
            try:
                parts = [(i, self._cut([text[i:j]], [one])[0]) for i, j, one in self._encode.stretches(text)]
            except UnbrokenTextError as error:
                yield error
            else:
                yield _in_a_row(parts)

    def check(self) -> None:
        """Raise ``LclmError`` if no text that this tokenizer reads could be cut."""
        if len(self.tokenize([_PROSE])[0].cuts) <= 2:
            raise LclmError(
                f"tokenizer {self._tokenizer.folder} finds no place inside a text where it may be cut, so no span could"
                " be compressed: it makes no pre-tokens and may merge over blanks; use a tokenizer whose pre_tokenizer"
                " splits text into words"
            )

    def is_stable(self, text: str, found: TokenizedText, first: int, last: int) -> bool:
        """Whether re-tokenizing ``text`` from cut ``first`` to cut ``last`` gives the slice of its ids."""
        piece = slice_between_cuts(text[found.cut_chars[first] : found.cut_chars[last]], first, self._adds_blank)
        ids = self._backend.encode(piece, add_special_tokens=False).ids
        return np.array_equal(ids, found.ids[found.cuts[first] : found.cuts[last]])

    @property
    def _adds_blank(self) -> bool:
        return self._encode.blanks is not None and self._encode.blanks.adds_blank

    def _cut(self, texts: Sequence[str], encoded: Sequence[Encoded]) -> list[TokenizedText]:
        at_blanks = self._encode.blanks is not None
        candidates = [_Candidates(text, one, at_blanks) for text, one in zip(texts, encoded, strict=True)]
        alone = self._alone(set().union(*(one.pieces for one in candidates)))
        return [one.found(alone) for one in candidates]

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

    def __init__(self, text: str, encoded: Encoded, at_blanks: bool):
        self._ids, self._starts, self._length = encoded.ids, encoded.starts, len(text)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        places = 1 + np.flatnonzero(encoded.opens[1:] & (encoded.starts[1:] == encoded.ends[:-1]))
        places = places[~_blank_rest(codes)[self._starts[places]]]
        at_blank = at_blanks & (codes[self._starts[places]] == ord(" "))
        # One blank alone may be no text at all.
        kept = ~at_blank | (self._starts[places] < self._length - 1)
        self._places, at_blank = places[kept], at_blank[kept]
        places = self._places
        left = codes[self._starts[places] - 1]
        self._solid = ~_is_space(left) | at_blank
        self._lines = np.flatnonzero(_is_newline(left) & ~self._solid)
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


def slice_between_cuts(piece: str, first: int, adds_blank: bool) -> str:
    """What to tokenize for the text ``piece`` from cut ``first`` on.

    A tokenizer that puts a blank before every text (``adds_blank``) puts there the one that stands at the cut.
    """
    return piece[1:] if adds_blank and first else piece


def _in_a_row(parts: Sequence[tuple[int, TokenizedText]]) -> TokenizedText:
    """Stretches of one text, (their first character, tokens): each ends at a cut, where the next begins."""
    tokens = np.cumsum([0, *(len(part.ids) for _, part in parts[:-1])])
    cuts = [part.cuts[i > 0 :] + at for i, (at, (_, part)) in enumerate(zip(tokens, parts, strict=True))]
    chars = [part.cut_chars[i > 0 :] + at for i, (at, part) in enumerate(parts)]
    ids = np.concatenate([part.ids for _, part in parts])
    return TokenizedText(ids, np.concatenate(cuts).astype(np.int32), np.concatenate(chars).astype(np.int32))


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
