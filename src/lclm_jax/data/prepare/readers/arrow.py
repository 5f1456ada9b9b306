"""Hugging Face datasets on disk (``save_to_disk`` and the cache): Arrow streams or files, read with pyarrow alone."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.data.prepare.readers.files import list_files, open_file, wanted_columns
from lclm_jax.data.prepare.readers.tables import batch_rows


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per file: a stream is read from its beginning."""
    return [Entry(file.name, file.size, file.path) for file in list_files(collection)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """A row is named by its number in the file."""
    number = 0
    try:
        with open_file(entry.path) as file:
            for batch in _batches(file):
                columns = [name for name in wanted_columns(collection) if name in batch.schema.names]
                yield from batch_rows(batch.select(columns), entry.id, number)
                number += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        yield Bad(f"{entry.id}:{number}", "unreadable", str(error)[:200])


def _batches(file: Any) -> Iterator[pa.RecordBatch]:
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)
