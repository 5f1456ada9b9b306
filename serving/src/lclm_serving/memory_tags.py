"""Memory tags: text cut into raw pieces and spans that are compressed."""

import re
from typing import NamedTuple

from lclm_serving.errors import LclmError

START, END, PLACEHOLDER = "<|memory_start|>", "<|memory_end|>", "<|memory|>"
_TAG = re.compile("|".join(re.escape(tag) for tag in (START, END, PLACEHOLDER)))


class Piece(NamedTuple):
    """Part of a text; a span comes without its tags."""

    span: bool
    text: str


def split_memory(text: str) -> list[Piece]:
    """Cut ``text`` at its memory tags; empty raw pieces are left out.

    Raises:
        LclmError: on an unbalanced, nested or empty span, or a placeholder in the text.
    """
    pieces: list[Piece] = []
    opened: int | None = None
    done = 0
    for tag in _TAG.finditer(text):
        name, at = tag.group(), tag.start()
        if name == PLACEHOLDER:
            raise LclmError(
                f"{PLACEHOLDER} at character {at}: placeholders are filled in, never written; put the text itself"
                f" between {START} and {END}"
            )
        if name == START:
            if opened is not None:
                raise LclmError(f"{START} at character {at} is inside the span opened at {opened}; spans do not nest")
            opened = at
            if at > done:
                pieces.append(Piece(False, text[done:at]))
        else:
            if opened is None:
                raise LclmError(f"{END} at character {at} closes no span; put {START} before it")
            if at == done:
                raise LclmError(f"the span at character {opened} is empty; put text in it or delete its tags")
            pieces.append(Piece(True, text[done:at]))
            opened = None
        done = tag.end()
    if opened is not None:
        raise LclmError(f"{START} at character {opened} is never closed; put {END} after its text")
    if done < len(text):
        pieces.append(Piece(False, text[done:]))
    return pieces
