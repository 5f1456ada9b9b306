"""The cut points of a tokenized text: as tokens, characters and bytes, and which begin a sentence or paragraph."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SENTENCE, PARAGRAPH, CODE_BLOCK = 1, 2, 4
"""Flags of a cut."""
FLAGS = {"sentence": SENTENCE, "paragraph": PARAGRAPH, "code_block": CODE_BLOCK}

_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)[\r\n]*|[。！？]+[」』”’）]*[\r\n]*")
_PARAGRAPH = re.compile(r"\n(?:[ \t]*\r?\n)+")
_BLOCK = 2**20

_LINE = re.compile(r"\n(?=[^\s)\]}])")


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedText:
    """Ids of a text by one tokenizer, and its cut points."""

    ids: np.ndarray
    """int32 [tokens]."""
    cuts: np.ndarray
    """int32 [cuts]: token indices, ascending, from 0 to the number of tokens."""
    cut_chars: np.ndarray
    """int32 [cuts]: the same places as character positions in the text."""


def byte_positions(text: str, chars: np.ndarray) -> np.ndarray:
    """UTF-8 byte position of each character position in ``chars`` (ascending), uint32."""
    if text.isascii():
        return chars.astype(np.uint32)
    found, at = np.zeros(len(chars), np.uint32), 0
    for start in range(0, len(text), _BLOCK):
        block = text[start : start + _BLOCK]
        codes = np.frombuffer(block.encode("utf-32-le"), np.uint32)
        widths = 1 + (codes >= 0x80).astype(np.uint32) + (codes >= 0x800) + (codes >= 0x10000)
        ends = np.concatenate(([at], at + np.cumsum(widths)))
        first = np.searchsorted(chars, start, side="left")
        last = np.searchsorted(chars, start + len(block), side="right")
        found[first:last] = ends[chars[first:last] - start]
        at = int(ends[-1])
    return found


def boundary_kinds(text: str, cut_chars: np.ndarray) -> np.ndarray:
    """Flags of each cut (character positions, ascending), uint8 [cuts].

    A sentence begins after its predecessor's last mark (and the newlines after it), a paragraph after a blank line, a
    block of code at a line that is not indented after one that is blank or indented. A paragraph begins a sentence too.
    """
    kinds = np.zeros(len(cut_chars), np.uint8)
    found = {
        SENTENCE: (match.end() for match in _SENTENCE.finditer(text)),
        PARAGRAPH | SENTENCE: (match.end() for match in _PARAGRAPH.finditer(text)),
        CODE_BLOCK: _blocks(text),
    }
    for flags, positions in found.items():
        starts = np.fromiter(positions, np.int64)
        kinds[np.isin(cut_chars, starts, assume_unique=False)] |= flags
    return kinds


def _blocks(text: str) -> Iterator[int]:
    for match in _LINE.finditer(text):
        newline = match.start()
        line = text.rfind("\n", 0, newline) + 1
        if line == newline or text[line] in " \t\r":
            yield newline + 1
