"""What readers yield and preparation consumes: entries, rows, documents and chats."""

from typing import NamedTuple

from lclm_jax.types import JsonObject

Messages = list[JsonObject]


class RawText(NamedTuple):
    """A document before its split is known."""

    id: str
    text: str
    language: str = ""
    """As its column says; empty: not known."""


class RawChat(NamedTuple):
    """A chat to train on; ``tagged``: a text with memory tags instead."""

    id: str
    messages: Messages
    tools: list[JsonObject] | None = None
    tagged: str | None = None
    language: str = ""
    """As of ``RawText``."""


class Document(NamedTuple):
    """One text of the corpus, in Unicode's form C, without blank lines before it."""

    id: str
    text: str
    split: str
    language: str = ""
    """As of ``RawText``."""


class Chat(NamedTuple):
    """One chat of the corpus."""

    raw: RawChat
    split: str


class Entry(NamedTuple):
    """A file, or a part of one, before it is read."""

    id: str
    """Name relative to the collection's folder, with forward slashes."""
    size: int
    """Bytes that will be read, about."""
    path: str
    """Local path or fsspec URL; empty: a topic of Python's manual."""
    start: int = 0
    """First byte (JSONL) or row group (Parquet) of the part."""
    stop: int | None = None
    """Where the part ends; None: with the file."""
    version: str = ""
    """Of the whole file when it was listed: see ``readers.files.File``."""


class Row(NamedTuple):
    """One row: its place, which names it, and its values by column."""

    place: str
    values: JsonObject
    columns: tuple[str, ...] = ()
    """Names of all its columns; ``values`` has those that are wanted."""


class Bad(NamedTuple):
    """A row, or the rest of a file, that cannot be read."""

    place: str
    reason: str
    excerpt: str
    whole: bool = False
    """Whether it is about the file and not about one row; ``place`` is the file's name then."""
