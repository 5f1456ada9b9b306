"""Parquet: large files in parts of whole row groups; only the wanted columns are read."""

from collections.abc import Iterator
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.files import File, list_files, open_file, wanted_columns
from lclm_jax.data.prepare.readers.tables import batch_rows

_BATCH_ROWS = 256


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per file; per run of row groups of about ``part_bytes`` where a file is larger than two of them."""
    return [entry for file in list_files(collection) for entry in _divide(file, part_bytes)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """A row is named by its number in the file."""
    try:
        with open_file(entry.path) as file:
            table = pq.ParquetFile(file)
            groups = range(entry.start, table.num_row_groups if entry.stop is None else entry.stop)
            number = sum(table.metadata.row_group(group).num_rows for group in range(entry.start))
            columns = [name for name in wanted_columns(collection) if name in table.schema_arrow.names]
            for batch in table.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns):
                yield from batch_rows(batch, entry.id, number)
                number += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        yield Bad(entry.id, "unreadable", str(error)[:200])


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
