"""Tables: Parquet files, and Hugging Face datasets on disk (``save_to_disk`` and the cache), as Arrow streams or files.

Large Parquet files are cut into parts of whole row groups; an Arrow stream is read from its beginning.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.arrow_values import python_rows
from lclm_jax.data.prepare.readers.content import HEAD, UnusableFileError, compression_of, refuse_other_format
from lclm_jax.data.prepare.readers.files import File, file_bytes, list_files, open_file, wanted_columns

_BATCH_ROWS = 256
_EXCERPT = 200


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per file; per run of row groups of about ``part_bytes`` where a Parquet file is larger than two."""
    files = list_files(collection)
    if collection.format == "arrow":
        return [Entry(file.name, file.size, file.path, version=file.version) for file in files]
    return [entry for file in files for entry in _divide(file, part_bytes)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """A row is named by its number in the file."""
    wanted = wanted_columns(collection)
    with open_file(entry.path) as file:
        head = file.read(HEAD)
        file.seek(0)
        refuse_other_format(head, collection.format)
        if (kind := compression_of(head)) is not None:
            raise UnusableFileError("unreadable", f"it is compressed as a whole ({kind}); decompress it")
        batches = _arrow_batches(file) if collection.format == "arrow" else _parquet_batches(file, entry, wanted)
        for first, batch, names in batches:
            columns = [name for name in wanted if name in batch.schema.names]
            yield from _rows(batch.select(columns), entry.id, first, names)


def raw_bytes(entry: Entry) -> Iterator[bytes]:
    """The file; of a part of a Parquet file the schema and the pages of its row groups."""
    if entry.stop is None and not entry.start:
        yield from file_bytes(entry.path)
        return
    with open_file(entry.path) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
        except pa.ArrowException as error:
            raise OSError(str(error)) from None
    yield str(metadata.schema.to_arrow_schema()).encode()
    for group in range(entry.start, metadata.num_row_groups if entry.stop is None else entry.stop):
        for column in map(metadata.row_group(group).column, range(metadata.num_columns)):
            start = column.dictionary_page_offset or column.data_page_offset
            yield from file_bytes(entry.path, start, start + column.total_compressed_size)


_Batches = Iterator[tuple[int, pa.RecordBatch, tuple[str, ...]]]
"""(number of the first row, batch, names of all columns of the file)."""


def _arrow_batches(file: BinaryIO) -> _Batches:
    """The batches of a file or stream of Arrow."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    number = 0
    if is_file:
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        try:
            batch.validate(full=True)  # what damaged offsets point at would be read, or end the process
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):  # checked last, and row by row where rows are made
                raise
        yield number, batch, tuple(batch.schema.names)
        number += batch.num_rows


def _parquet_batches(file: BinaryIO, entry: Entry, wanted: list[str]) -> _Batches:
    """The batches of the row groups of ``entry``; columns that are not wanted are not read."""
    table = pq.ParquetFile(file)
    groups = range(entry.start, table.num_row_groups if entry.stop is None else entry.stop)
    number = sum(table.metadata.row_group(group).num_rows for group in range(entry.start))
    names = tuple(table.schema_arrow.names)
    columns = [name for name in wanted if name in names]
    for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
        yield number, batch, names
        number += batch.num_rows


def _rows(batch: pa.RecordBatch, name: str, first: int, names: tuple[str, ...]) -> Iterator[Row | Bad]:
    """The rows of ``batch``, named by their number from ``first``; what cannot be converted spoils its row alone."""
    try:
        rows = python_rows(batch)
    except (ValueError, OverflowError, pa.ArrowException):  # such as text that is not UTF-8, a date outside Python's
        rows = None
    for offset in range(batch.num_rows):
        try:
            values = python_rows(batch.slice(offset, 1))[0] if rows is None else rows[offset]
        except (ValueError, OverflowError, pa.ArrowException) as error:
            reason = "undecodable" if isinstance(error, UnicodeDecodeError) else "wrong_type"
            yield Bad(f"{name}:{first + offset}", reason, str(error)[:_EXCERPT])
        else:
            yield Row(f"{name}:{first + offset}", values, names)


def _divide(file: File, part_bytes: int) -> Iterator[Entry]:
    parts = file.size // part_bytes
    if parts < 2:
        yield Entry(file.name, file.size, file.path, version=file.version)
        return
    try:
        with open_file(file.path) as opened:
            groups = pq.ParquetFile(opened).num_row_groups
    except Exception:  # noqa: BLE001 - of Arrow and of stores' drivers; reading it gives the reason
        groups = 1
    count = max(1, min(parts, groups))
    bounds = [groups * i // count for i in range(count + 1)]
    for start, stop in pairwise(bounds):
        yield Entry(file.name, file.size // count, file.path, start, stop, file.version)
