"""Memory tags: their names, and text cut into raw pieces and memory spans."""

import re
from typing import Literal, NamedTuple

from lclm_jax.errors import LclmError

MEMORY_START = "<|memory_start|>"
MEMORY_END = "<|memory_end|>"
MEMORY = "<|memory|>"
MEMORY_TOKENS = (MEMORY_START, MEMORY_END, MEMORY)
"""The order used everywhere: start tag, end tag, placeholder (one per latent)."""

_TAG = re.compile("|".join(re.escape(token) for token in MEMORY_TOKENS))


class MemoryTagError(LclmError):
    """Memory tags that do not pair up; the message names the tag, its place and the fix."""


class MemoryIds(NamedTuple):
    """Decoder ids of the three memory tokens."""

    start: int
    end: int
    placeholder: int


class Piece(NamedTuple):
    """Part of a text: ``raw`` is read as it is, ``span`` (without its tags) is compressed."""

    kind: Literal["raw", "span"]
    text: str


def split_memory(text: str) -> list[Piece]:
    """Cut ``text`` at its memory tags.

    ``"a<|memory_start|>b<|memory_end|>c"`` gives raw ``a``, span ``b``, raw ``c``; empty raw pieces are left out.

    Raises:
        MemoryTagError: on an unbalanced, nested or empty span, or a placeholder in the text.
    """
    pieces: list[Piece] = []
    opened: int | None = None
    done = 0
    for tag in _TAG.finditer(text):
        name, at = tag.group(), tag.start()
        if name == MEMORY:
            raise MemoryTagError(
                f"{MEMORY} at character {at}: placeholders are filled in, never written; put the text itself between"
                f" {MEMORY_START} and {MEMORY_END}"
            )
        if name == MEMORY_START:
            if opened is not None:
                raise MemoryTagError(
                    f"{MEMORY_START} at character {at} is inside the span opened at {opened}; spans do not nest:"
                    f" close the first with {MEMORY_END}"
                )
            opened = at
            if at > done:
                pieces.append(Piece("raw", text[done:at]))
        else:
            if opened is None:
                raise MemoryTagError(f"{MEMORY_END} at character {at} closes no span; put {MEMORY_START} before it")
            if at == done:
                raise MemoryTagError(f"the span at character {opened} is empty; put text in it or delete its tags")
            pieces.append(Piece("span", text[done:at]))
            opened = None
        done = tag.end()
    if opened is not None:
        raise MemoryTagError(f"{MEMORY_START} at character {opened} is never closed; put {MEMORY_END} after its text")
    if done < len(text):
        pieces.append(Piece("raw", text[done:]))
    return pieces
