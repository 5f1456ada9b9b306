"""Documents as numbered segments, and how a message shows them."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lclm_agent.errors import AgentError
from lclm_agent.escape import escape, memory

WORDS = 384
"""About 512 tokens of English."""
_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?])\s+"), re.compile(r"\s+"))
"""Where a text may be cut, best first: paragraphs, lines, sentences, words."""
_LONGEST_WORD = 2000
"""Characters of text without a blank that count as so many words; longer runs are cut."""


class Segment(NamedTuple):
    """A part of a document that is read compressed, and raw on request."""

    id: str
    title: str
    text: str


def number_segments(texts: Iterable[str | tuple[str, str]]) -> tuple[Segment, ...]:
    """Texts, or pairs of title and text, as ``seg_1``, ``seg_2``, ...; blank ones are left out.

    Raises ``AgentError`` if there is none.
    """
    pairs = [("", one) if isinstance(one, str) else one for one in texts]
    kept = [(title, text) for title, text in pairs if text.strip()]
    if not kept:
        raise AgentError("there is no text to read: every document is empty; name one that has some")
    return tuple(Segment(f"seg_{number}", title, text) for number, (title, text) in enumerate(kept, 1))


def cut(text: str, words: int = WORDS) -> list[str]:
    """``text`` in pieces of at most ``words`` words, cut at paragraphs, lines, sentences or words; joined they are it.

    A piece may hold a few words more than its share if a word is very long: text without blanks is cut after
    ``_LONGEST_WORD`` characters.
    """
    if words < 1:
        raise AgentError(f"words={words} must be at least 1")
    return _joined(_cut(text, words, 0), words)


def _size(text: str) -> int:
    return len(text.split())


def _cut(text: str, words: int, level: int) -> list[str]:
    if _size(text) <= words and len(text) <= words * _LONGEST_WORD:
        return [text] if text else []
    if level == len(_ENDS):
        return [text[i : i + _LONGEST_WORD] for i in range(0, len(text), _LONGEST_WORD)]
    bounds = [0, *(found.end() for found in _ENDS[level].finditer(text)), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds) if b > a]
    return [small for piece in _joined(pieces, words) for small in _cut(piece, words, level + 1)]


def _joined(pieces: Sequence[str], words: int) -> list[str]:
    """Neighbours put together as long as they fit."""
    made: list[list[str]] = []
    size = words + 1
    for piece in pieces:
        count = _size(piece)
        if size + count > words:
            made.append([])
            size = 0
        made[-1].append(piece)
        size += count
    return ["".join(one) for one in made]


def label(segment: Segment) -> str:
    """``seg_3`` or ``seg_3 (title)``."""
    return f"{segment.id} ({escape(' '.join(segment.title.split()))})" if segment.title else segment.id


def listing(segments: Sequence[Segment], compressed: bool = True) -> str:
    """Every segment behind its label, a line each: its text between memory tags, or raw."""
    return "".join(f"{label(one)}: {memory(one.text) if compressed else escape(one.text)}\n" for one in segments)


def find(segments: Sequence[Segment], wanted: str) -> Segment | None:
    """The segment of an id as a model writes it: ``seg_3``, ``SEG_3``, ``3``."""
    key = wanted.strip().strip("\"'`").lower()
    key = f"seg_{key}" if key.isdecimal() else key
    return next((one for one in segments if one.id == key), None)
