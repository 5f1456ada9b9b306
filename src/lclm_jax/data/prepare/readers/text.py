"""Plain text and source trees: one file, one document."""

import codecs
from collections.abc import Iterator

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.content import UnusableFileError, open_text
from lclm_jax.data.prepare.readers.files import file_bytes, list_files


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per file."""
    longest = collection.max_document_bytes
    return [
        Entry(file.name, file.size if longest is None else min(file.size, longest), file.path, version=file.version)
        for file in list_files(collection)
    ]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The bytes of the file under the column of the text, up to one more than a document may have."""
    longest = collection.max_document_bytes
    with open_text(entry.path) as (file, _):
        content = file.read((collection.max_row_bytes if longest is None else longest) + 1)
    if longest is None and len(content) > collection.max_row_bytes:
        shown = f"it has over max_row_bytes={collection.max_row_bytes:,}; raise it, or set max_document_bytes to cut it"
        raise UnusableFileError("too_long", shown)
    check_text(content, longest is None or len(content) <= longest)
    yield Row(entry.id, {collection.columns.text: content})


def raw_bytes(entry: Entry) -> Iterator[bytes]:
    """The file."""
    return file_bytes(entry.path)


def check_text(content: bytes, ended: bool) -> None:
    """Raise ``UnusableFileError`` if ``content`` is not UTF-8, or no text; ``ended``: its end cuts no character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(content, ended)
    except UnicodeDecodeError as error:
        shown = repr(content[max(0, error.start - 20) : error.start + 20])
        mend = "if it is Latin-1 or Windows-1252, convert it: iconv -f WINDOWS-1252 -t UTF-8"
        raise UnusableFileError("undecodable", f"{shown} at byte {error.start} is not UTF-8; {mend}") from None
    if 0 in content:
        raise UnusableFileError("undecodable", f"it has a zero byte at {content.index(0)}: UTF-16, or no text")
    if b"\x1b$B" in content or b"\x1b$@" in content:
        raise UnusableFileError("undecodable", "it is ISO-2022-JP; convert it: iconv -f ISO-2022-JP -t UTF-8")
