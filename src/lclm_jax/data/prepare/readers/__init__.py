"""Readers of raw files. A new one is a module with ``list_entries`` and ``read``, and a line here."""

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row

READERS = {
    "arrow": "lclm_jax.data.prepare.readers.tables",
    "jsonl": "lclm_jax.data.prepare.readers.jsonl",
    "parquet": "lclm_jax.data.prepare.readers.tables",
    "python_stdlib": "lclm_jax.data.demo.python_stdlib",
    "synthetic": "lclm_jax.data.demo.synthetic",
    "text": "lclm_jax.data.prepare.readers.text",
}
"""Format -> module of its reader, imported when it is first used."""


class Reader(Protocol):
    """What a reader's module holds."""

    def list_entries(self, collection: CollectionConfig, part_bytes: int) -> list[Entry]:
        """Everything ``collection`` reads, in the order of names; large files in parts of about ``part_bytes``."""

    def read(self, entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
        """The rows of ``entry`` in their order; what cannot be read is a ``Bad``, never an exception."""


def reader_of(collection: CollectionConfig) -> Reader:
    """The reader of the format of ``collection``."""
    return cast(Reader, import_module(READERS[collection.format]))


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """Everything ``collection`` reads, in the order of names; large files in parts of about ``part_bytes`` if possible.

    Raises:
        LclmError: a path does not exist, or two files have one name.
    """
    return reader_of(collection).list_entries(collection, part_bytes)


def read_rows(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The rows of ``entry`` in their order; what cannot be read is a ``Bad``, never an exception."""
    return reader_of(collection).read(entry, collection)


__all__ = ["Bad", "Entry", "Row", "list_entries", "read_rows"]
