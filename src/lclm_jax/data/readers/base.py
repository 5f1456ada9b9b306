"""What all readers share: where rows are (entries), and what is read (rows, or why not)."""

from typing import Any, NamedTuple

from lclm_jax.config import CollectionConfig


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


class Row(NamedTuple):
    """One row: its place, which names it, and its values by column."""

    place: str
    values: dict[str, Any]


class Bad(NamedTuple):
    """A row, or the rest of a file, that cannot be read."""

    place: str
    reason: str
    excerpt: str


def wanted_columns(collection: CollectionConfig) -> list[str]:
    """Columns that ``collection`` may read; rows need not have all."""
    names = collection.columns
    if collection.records == "documents":
        wanted = [names.text]
    else:
        wanted = [names.messages, names.tools, names.prompt, names.target]
        wanted += [names.context, names.question, names.answer]
    return wanted + ([names.id] if names.id else [])
