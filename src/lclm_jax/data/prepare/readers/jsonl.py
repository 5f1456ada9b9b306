"""JSON lines: plain (read in parts by byte range), .gz and .zst (read whole)."""

import gzip
import io
import json
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.files import list_files, open_file, wanted_columns

_EXCERPT = 200


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry for a compressed file, one for every ``part_bytes`` of a plain one."""
    entries = []
    for file in list_files(collection):
        starts = range(0, max(file.size, 1), part_bytes) if _compression(file.path) is None else range(1)
        stops = [*starts[1:], None]
        sizes = [(stop or file.size) - start for start, stop in zip(starts, stops, strict=True)]
        entries += [
            Entry(file.name, *rest) for rest in zip(sizes, [file.path] * len(starts), starts, stops, strict=True)
        ]
    return entries


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """A row is named by the byte at which its line begins (in a compressed file: of its content)."""
    columns = wanted_columns(collection)
    try:
        with open_file(entry.path) as file:
            yield from _rows(_lines(file, entry), entry.id, columns)
    except (OSError, EOFError, pa.ArrowException) as error:
        yield Bad(entry.id, "unreadable", str(error)[:_EXCERPT])


def _lines(file: BinaryIO, entry: Entry) -> Iterator[tuple[int, bytes]]:
    """(where it begins, the line) of every line that begins in the entry's part."""
    kind, position = _compression(entry.path), entry.start
    if kind == "gzip":
        file = cast(BinaryIO, gzip.GzipFile(fileobj=file))
    elif kind == "zstd":
        file = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    elif position:
        file.seek(position - 1)
        position += len(file.readline()) - 1  # the line that the part before began
    while entry.stop is None or position < entry.stop:
        line = file.readline()
        if not line:
            return
        yield position, line
        position += len(line)


def _rows(lines: Iterator[tuple[int, bytes]], name: str, columns: list[str]) -> Iterator[Row | Bad]:
    for position, line in lines:
        if not line.strip():
            continue
        place = f"{name}:{position}"
        try:
            values = json.loads(line)
        except UnicodeDecodeError:
            yield Bad(place, "undecodable", repr(line[:_EXCERPT]))
            continue
        except (ValueError, RecursionError):
            yield Bad(place, "invalid_json", line[:_EXCERPT].decode("utf-8", "replace"))
            continue
        if isinstance(values, dict):
            yield Row(place, {column: values[column] for column in columns if column in values})
        else:
            yield Bad(place, "wrong_type", line[:_EXCERPT].decode("utf-8", "replace"))


def _compression(path: str) -> str | None:
    return {"gz": "gzip", "zst": "zstd"}.get(path.rpartition(".")[2])
