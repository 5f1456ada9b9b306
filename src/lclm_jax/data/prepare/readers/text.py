"""Plain text and source trees: one file, one document."""

from collections.abc import Iterator

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.files import list_files, open_file


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per file."""
    longest = collection.max_document_bytes
    return [
        Entry(file.name, file.size if longest is None else min(file.size, longest), file.path)
        for file in list_files(collection)
    ]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The bytes of the file under the column of the text, up to one more than a document may have."""
    longest = collection.max_document_bytes
    try:
        with open_file(entry.path) as file:
            content = file.read() if longest is None else file.read(longest + 1)
    except OSError as error:
        yield Bad(entry.id, "unreadable", str(error))
        return
    yield Row(entry.id, {collection.columns.text: content})
