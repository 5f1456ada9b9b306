"""Which cuts of a text begin a sentence, a paragraph or a block of code."""

import re
from collections.abc import Iterator

import numpy as np

SENTENCE, PARAGRAPH, CODE_BLOCK = 1, 2, 4
"""Flags of a cut."""
FLAGS = {"sentence": SENTENCE, "paragraph": PARAGRAPH, "code_block": CODE_BLOCK}

_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*(?=\s)[\r\n]*|[。！？]+[」』”’）]*[\r\n]*")
_PARAGRAPH = re.compile(r"\n(?:[ \t]*\r?\n)+")
_LINE = re.compile(r"\n(?=[^\s)\]}])")


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
