"""What is in a raw file, by its first bytes and not by its name: compression, a table, an archive, another encoding."""

import bz2
import codecs
import gzip
import io
import lzma
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa

from lclm_jax.data.prepare.readers.files import open_file, read_head

HEAD = 4096
"""Bytes that are looked at."""
_COMPRESSIONS = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "zstd"),
    (re.compile(rb"\x04\x22\x4d\x18"), "lz4"),
)
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A frame of zstd or lz4 without content, as parallel compressors put in front."""
_OTHERS = (
    (b"PAR1", "parquet", "a Parquet file; set format: parquet"),
    (b"PARE", "", "an encrypted Parquet file; decrypt it"),
    (b"ARROW1", "arrow", "an Arrow file; set format: arrow"),
    (b"FEA1", "", "a Feather file of version 1; write it again as Parquet or Arrow"),
    (b"ORC", "", "an ORC file; write it again as Parquet"),
    (b"Obj\x01", "", "an Avro file; write it again as Parquet"),
    (b"\x89HDF", "", "an HDF5 file; write it again as Parquet"),
    (b"SQLite format 3", "", "an SQLite database; write its rows as JSON lines"),
    (b"PK\x03\x04", "", "a ZIP archive; unpack it"),
    (b"PK\x05\x06", "", "an empty ZIP archive"),
    (b"7z\xbc\xaf\x27\x1c", "", "a 7z archive; unpack it"),
    (b"Rar!", "", "a RAR archive; unpack it"),
    (b"%PDF-", "", "a PDF file; extract its text"),
    (b"version https://git-lfs", "", "a pointer of Git LFS and not the file itself; run git lfs pull"),
    (b"version https://hawser", "", "a pointer of Git LFS and not the file itself; run git lfs pull"),
)
_TAR = slice(257, 262)
_ENCODINGS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x84\x31\x95\x33", "GB18030"),
    (b"+/v8", "UTF-7"),
    (b"+/v9", "UTF-7"),
)


class UnusableFileError(Exception):
    """A file that cannot be used as a whole: the reason it is counted under, what is wrong and how to mend it."""

    def __init__(self, reason: str, fault: str):
        super().__init__(reason, fault)
        self.reason, self.fault = reason, fault


def compression_of(head: bytes) -> str | None:
    """How a file that begins with ``head`` is compressed; None: not at all."""
    if _SKIPPABLE.match(head):
        after = head[8 + int.from_bytes(head[4:8], "little") :]
        return next((kind for magic, kind in _COMPRESSIONS[3:] if magic.match(after)), "zstd")
    return next((kind for magic, kind in _COMPRESSIONS if magic.match(head)), None)


def refuse_other_format(head: bytes, wanted: str) -> None:
    """Raise ``UnusableFileError`` if ``head`` begins a file of a format other than ``wanted``."""
    for magic, kind, shown in _OTHERS:
        if head.startswith(magic) and kind != wanted and (not is_text(head) or shown.endswith("lfs pull")):
            raise UnusableFileError("unreadable", f"it is {shown}")
    if head[_TAR] == b"ustar":
        raise UnusableFileError("unreadable", "it is a tar archive; unpack it")


def is_text(head: bytes) -> bool:
    """Whether ``head`` (which may end within a character) is UTF-8 without zero bytes."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def refuse_other_encoding(head: bytes) -> None:
    """Raise ``UnusableFileError`` if the text that begins with ``head`` is not UTF-8 by its first bytes.

    JSON and text begin with ASCII characters, so zero bytes among the first four betray UTF-16 and UTF-32 that have no
    byte order mark (RFC 4627, section 3).
    """
    found = next((name for magic, name in _ENCODINGS if head.startswith(magic)), None)
    if found is None and 0 in head[:4]:
        if not head.strip(b"\0"):
            raise UnusableFileError("undecodable", "it begins with zero bytes: it is damaged, or no text")
        found = ("UTF-16" if head[:4].count(0) < 3 else "UTF-32") + ("BE" if head[0] == 0 else "LE")
    if found is not None:
        raise UnusableFileError("undecodable", f"it is {found}; convert it: iconv -f {found} -t UTF-8")


@contextmanager
def open_text(path: str) -> Iterator[tuple[BinaryIO, bytes]]:
    """(content, its first bytes) of a file of text, in whatever way it is compressed.

    Raises:
        UnusableFileError: it is no text, or in another encoding than UTF-8.
    """
    with open_file(path) as raw:
        head = raw.read(HEAD)
        raw.seek(0)
        kind, file = compression_of(head), raw
        if kind is not None:
            file = _decompressed(raw, kind)
            head = cast(io.BufferedReader, file).peek(HEAD)[:HEAD]
            if compression_of(head) is not None:
                raise UnusableFileError("unreadable", "it is compressed twice; decompress it once")
        refuse_other_format(head, "text")
        refuse_other_encoding(head)
        yield file, head


def is_divisible(path: str) -> bool:
    """Whether a large file can be read from any line on: it is not compressed, nor one array."""
    try:
        head = read_head(path, HEAD)
    except OSError:
        return False  # reading it gives the reason
    try:
        refuse_other_format(head, "text")
        refuse_other_encoding(head)
    except UnusableFileError:
        return False  # as a whole, once
    return compression_of(head) is None and not is_array(head)


_ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*(\{|\]?\s*\Z)")


def is_array(head: bytes) -> bool:
    """Whether ``head`` begins one JSON array of objects, and not JSON lines that are lists each."""
    if _ARRAY.match(head) is None:
        return False
    line, newline, rest = head.lstrip(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    return not (newline and line.rstrip().endswith(b"]") and rest.strip())


def _decompressed(raw: BinaryIO, kind: str) -> BinaryIO:
    if kind == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if kind == "bzip2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if kind == "xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), kind)))
