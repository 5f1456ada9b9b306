"""Readers of raw files: one small module per format, each with ``list_entries`` and ``read``."""

from collections.abc import Iterator
from types import ModuleType

from lclm_jax.config import CollectionConfig
from lclm_jax.data.demo import python_stdlib, synthetic
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers import arrow, jsonl, parquet, text

_READERS: dict[str, ModuleType] = {
    "arrow": arrow,
    "jsonl": jsonl,
    "parquet": parquet,
    "python_stdlib": python_stdlib,
    "synthetic": synthetic,
    "text": text,
}


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """Everything ``collection`` reads, in the order of names; large files in parts of about ``part_bytes`` if possible.

    Raises:
        LclmError: a path does not exist, or two files have one name.
    """
    return _READERS[collection.format].list_entries(collection, part_bytes)


def read_rows(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The rows of ``entry`` in their order; what cannot be read is a ``Bad``, never an exception."""
    return _READERS[collection.format].read(entry, collection)


__all__ = ["Bad", "Entry", "Row", "list_entries", "read_rows"]
