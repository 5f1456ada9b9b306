"""Documents that are longer than a record should be: stored as several, so that none of them fills the memory.

A record is read as a whole for every example that is made of it, and tokenizing holds some fifteen bytes for each of
its characters.
"""

from collections.abc import Iterator

from lclm_jax.data.documents import Document

LONGEST_RECORD = 4_000_000
"""Characters of a document that are stored as one record: about a million tokens."""

_BREAKS = ("\n\n", "\n", " ")
"""Where a document may be parted, the best first."""


def pieces(document: Document, longest: int = LONGEST_RECORD) -> Iterator[Document]:
    """``document`` in pieces of at most ``longest`` characters, which end to end are its text.

    A piece ends with a paragraph where one ends in its last half, else with a line, else before a blank. Text without
    any of them stays in one piece. The second piece of a document ``ID`` is named ``ID#2``; all are of its split.
    """
    text, start, number = document.text, 0, 1
    while len(text) - start > longest and (stop := _break(text, start + longest // 2, start + longest)):
        yield _piece(document, start, stop, number)
        start, number = stop, number + 1
    yield document if number == 1 else _piece(document, start, len(text), number)


def _break(text: str, first: int, last: int) -> int:
    """A place after ``first`` and up to ``last`` to part ``text`` at; 0: there is none."""
    for mark in _BREAKS:
        if (at := text.rfind(mark, first, last)) >= 0:
            return at if mark == " " else at + len(mark)
    return 0


def _piece(document: Document, start: int, stop: int, number: int) -> Document:
    name = document.id if number == 1 else f"{document.id}#{number}"
    return document._replace(id=name, text=document.text[start:stop])
