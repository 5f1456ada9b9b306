"""Readers of raw files. A new one is a module with ``list_entries`` and ``read``, and a line here."""

import errno
from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.content import UnusableFileError
from lclm_jax.data.store.storage import driver_error_types
from lclm_jax.errors import LclmError

READERS = {
    "arrow": "lclm_jax.data.prepare.readers.tables",
    "jsonl": "lclm_jax.data.prepare.readers.jsonl",
    "parquet": "lclm_jax.data.prepare.readers.tables",
    "python_stdlib": "lclm_jax.data.demo.python_stdlib",
    "recall": "lclm_jax.data.demo.recall",
    "variable_tracking": "lclm_jax.data.demo.variable_tracking",
    "variable_tracking_compressed": "lclm_jax.data.demo.variable_tracking",
    "variable_tracking_lookups": "lclm_jax.data.demo.variable_tracking",
    "variable_tracking_compressed_lookups": "lclm_jax.data.demo.variable_tracking",
    "synthetic": "lclm_jax.data.demo.synthetic",
    "text": "lclm_jax.data.prepare.readers.text",
}
"""Format -> module of its reader, imported when it is first used."""

_EXCERPT = 300
_NOT_OF_THE_FILE = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
}
"""What may be gone in a moment: the rows of a file are not lost for it."""
_FIXES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (fs.file-max)",
    errno.ENOMEM: "use fewer --workers",
    errno.ENOSPC: "free some space",
}


class Reader(Protocol):
    """What a reader's module holds."""

    def list_entries(self, collection: CollectionConfig, part_bytes: int) -> list[Entry]:
        """Everything ``collection`` reads, in the order of names; large files in parts of about ``part_bytes``."""

    def read(self, entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
        """The rows of ``entry`` in their order.

        Raises:
            UnusableFileError: the file is not what it should be; any other exception is one of foreign code about it.
        """

    def raw_bytes(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of the file that the rows of ``entry`` depend on; raises ``OSError``."""


def reader_of(collection: CollectionConfig) -> Reader:
    """The reader of the format of ``collection``."""
    return cast(Reader, import_module(READERS[collection.format]))


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """Everything ``collection`` reads, in the order of names; large files in parts of about ``part_bytes`` if possible.

    Raises:
        LclmError: a path names nothing.
    """
    return reader_of(collection).list_entries(collection, part_bytes)


def read_rows(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The rows of ``entry`` in their order; what cannot be read is a ``Bad``, what was read before it is kept.

    Raises:
        LclmError: the machine or the network refuses, for which the file cannot be blamed.
    """
    reader, number = reader_of(collection), 0
    try:
        for row in reader.read(entry, collection):
            yield row
            number += 1
    except LclmError:
        raise
    except driver_error_types() as error:
        raise LclmError(f"cannot read {entry.path}: {error}; look at the credentials and the address") from error
    except UnusableFileError as error:
        yield Bad(entry.id, error.reason, error.fault, whole=True)
    except UnicodeDecodeError as error:
        yield Bad(entry.id, "undecodable", f"{error} after {number:,} rows", whole=True)
    # Decompressors, Arrow and drivers of stores have no common base for what they raise about damaged bytes.
    except Exception as error:
        number_of_error = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        if number_of_error in _NOT_OF_THE_FILE:
            fix = _FIXES.get(number_of_error, "see that what holds the file answers")
            raise LclmError(f"cannot read {entry.id}: {error or 'out of memory'}; {fix}, and prepare again") from error
        shown = str(error) if isinstance(error, OSError) and str(error) else f"{type(error).__name__}: {error}"
        yield Bad(entry.id, "unreadable", f"{shown[:_EXCERPT]} (after {number:,} rows)", whole=True)


def raw_bytes(entry: Entry, collection: CollectionConfig) -> Iterator[bytes]:
    """The bytes of the file that the rows of ``entry`` depend on; ``collection`` reads files. Raises ``OSError``."""
    return reader_of(collection).raw_bytes(entry)


__all__ = ["Bad", "Entry", "Row", "list_entries", "raw_bytes", "read_rows"]
