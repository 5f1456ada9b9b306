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
from lclm_jax.data.prepare.readers.files import File, list_files, open_file, wanted_columns

_BATCH_ROWS = 256
_EXCERPT = 200


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per file; per run of row groups of about ``part_bytes`` where a Parquet file is larger than two."""
    files = list_files(collection)
    if collection.format == "arrow":
        return [Entry(file.name, file.size, file.path) for file in files]
    return [entry for file in files for entry in _divide(file, part_bytes)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """A row is named by its number in the file."""
    number = 0
    is_arrow = collection.format == "arrow"
    try:
        with open_file(entry.path) as file:
            batches = _arrow_batches(file) if is_arrow else _parquet_batches(file, entry, wanted_columns(collection))
            for first, batch in batches:
                columns = [name for name in wanted_columns(collection) if name in batch.schema.names]
                yield from _rows(batch.select(columns), entry.id, first)
                number = first + batch.num_rows
    except (OSError, pa.ArrowException) as error:
        yield Bad(f"{entry.id}:{number}" if is_arrow else entry.id, "unreadable", str(error)[:_EXCERPT])


def _arrow_batches(file: BinaryIO) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, batch) of a file or stream of Arrow."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    number = 0
    if is_file:
        reader = pa.ipc.open_file(file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        yield number, batch
        number += batch.num_rows


def _parquet_batches(file: BinaryIO, entry: Entry, wanted: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, batch) of the row groups of ``entry``; other columns are not read."""
    table = pq.ParquetFile(file)
    groups = range(entry.start, table.num_row_groups if entry.stop is None else entry.stop)
    number = sum(table.metadata.row_group(group).num_rows for group in range(entry.start))
    columns = [name for name in wanted if name in table.schema_arrow.names]
    for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
        yield number, batch
        number += batch.num_rows


def _rows(batch: pa.RecordBatch, name: str, first: int) -> Iterator[Row | Bad]:
    """The rows of ``batch``, named by their number from ``first``; text that is not UTF-8 spoils its own row alone."""
    try:
        for number, values in enumerate(python_rows(batch), first):
            yield Row(f"{name}:{number}", values)
    except (ValueError, OverflowError):
        for offset in range(batch.num_rows):
            place = f"{name}:{first + offset}"
            try:
                yield Row(place, python_rows(batch.slice(offset, 1))[0])
            except UnicodeDecodeError as error:
                yield Bad(place, "undecodable", str(error)[:_EXCERPT])
            except (ValueError, OverflowError) as error:  # a map with a key twice, a date beyond Python's
                yield Bad(place, "wrong_type", str(error)[:_EXCERPT])


def _divide(file: File, part_bytes: int) -> Iterator[Entry]:
    parts = file.size // part_bytes
    if parts < 2:
        yield Entry(file.name, file.size, file.path)
        return
    try:
        with open_file(file.path) as opened:
            groups = pq.ParquetFile(opened).num_row_groups
    except (OSError, pa.ArrowException):
        groups = 1  # reading it will count it as unreadable
    count = max(1, min(parts, groups))
    bounds = [groups * i // count for i in range(count + 1)]
    for start, stop in pairwise(bounds):
        yield Entry(file.name, file.size // count, file.path, start, stop)
