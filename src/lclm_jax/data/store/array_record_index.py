"""Where the records of an ArrayRecord file lie, from its last bytes: for stores that the library itself cannot read.

Such a file is one of Riegeli (github.com/google/riegeli, ``doc/riegeli_records_file_format.md``): chunks in blocks of
64 KiB, each of which begins with a header. The last block holds the place of a chunk that has an entry for every chunk
of records, in their order. Only that is read here; the library decodes records and compares them with their checksums.
"""

import contextlib
import struct
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from lclm_jax.data.store.storage import PreparedError

BLOCK = 2**16
_BLOCK_HEADER = 24
_CHUNK_HEADER = struct.Struct("<8xQ8xQ8x")
"""Bytes of a chunk, and its type (one byte) with its number of records."""
_MAGIC = 0x71930E704FDAE05E
"""In ArrayRecord's postscript."""
_CODECS = {ord("z"): "zstd", ord("b"): "brotli"}


def index_start(tail: bytes, size: int) -> int:
    """The byte at which the index of a file begins, which the library reads when it opens the file.

    Args:
        tail: Its last bytes, at least ``BLOCK`` of them or all.
        size: All of its bytes.

    Raises:
        PreparedError: It is no such file.
    """
    with _refused():
        fields = _numbers(_records(tail, size - len(tail), (size - 1) // BLOCK * BLOCK)[0])
        if fields[2] != _MAGIC or not 0 < fields[1] < size:
            raise ValueError("its postscript has another mark")
    return fields[1]


def record_offsets(index: bytes, start: int) -> np.ndarray:
    """Where each record begins, int64 [records + 1]; the last one is ``start``, where they end.

    Args:
        index: The bytes of the file from ``start`` on.
        start: ``index_start``.

    Raises:
        PreparedError: The index is damaged, or several records share a chunk.
    """
    with _refused():
        _, *entries = _records(index, start, start)  # the first one tells the options of the writer
        fields = [_numbers(entry) for entry in entries]
        if any(one[3] != 1 for one in fields):
            raise ValueError("its records are in groups")
        return np.array([*(one[1] for one in fields), start], np.int64)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, IndexError, struct.error, OSError) as error:
        raise PreparedError(f"this is no shard, or a damaged one ({error}); prepare the data again") from None


def _records(data: bytes, base: int, at: int) -> list[bytes]:
    """The records of the chunk at ``at`` of a file, of which ``data`` are the bytes from ``base`` on."""
    header, at = _without_block_headers(data, base, at, _CHUNK_HEADER.size)
    size, kind = _CHUNK_HEADER.unpack(header)
    if kind & 0xFF != ord("r"):
        raise ValueError("no chunk of records where its index should be")
    body, _ = _without_block_headers(data, base, at, size)
    length, first = _varint(body, 1)
    sizes, values = (_unpacked(part, body[0]) for part in (body[first : first + length], body[first + length :]))
    records, place, begin = [], 0, 0
    for _ in range(kind >> 8):
        length, place = _varint(sizes, place)
        records.append(values[begin : begin + length])
        begin += length
    return records


def _without_block_headers(data: bytes, base: int, at: int, count: int) -> tuple[bytes, int]:
    """(``count`` bytes of a chunk from ``at`` on, where they end); the headers of blocks between them are left out."""
    parts = []
    while count:
        if at % BLOCK == 0:
            at += _BLOCK_HEADER
        stop = min(at + count, (at // BLOCK + 1) * BLOCK)
        if not 0 <= at - base < stop - base <= len(data):
            raise ValueError("it ends early")
        parts.append(data[at - base : stop - base])
        count, at = count - (stop - at), stop
    return b"".join(parts), at


def _unpacked(part: bytes, codec: int) -> bytes:
    if not codec:
        return part
    size, first = _varint(part, 0)
    return pa.decompress(part[first:], size, _CODECS[codec], asbytes=True)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number at ``at``, where it ends)."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _numbers(message: bytes) -> dict[int, int]:
    """The fields of a protocol buffer that has no others than numbers."""
    fields, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7:
            raise ValueError("an entry of its index has a field that is no number")
        fields[tag >> 3], at = _varint(message, at)
    return fields
