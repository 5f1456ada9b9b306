"""Record batches of Arrow to rows."""

from collections.abc import Iterator

import pyarrow as pa

from lclm_jax.data.documents import Bad, Row


def batch_rows(batch: pa.RecordBatch, name: str, first: int) -> Iterator[Row | Bad]:
    """The rows of ``batch``, named by their number from ``first``; text that is not UTF-8 spoils its own row alone."""
    try:
        for number, values in enumerate(batch.to_pylist(), first):
            yield Row(f"{name}:{number}", values)
    except UnicodeDecodeError:
        for offset in range(batch.num_rows):
            try:
                yield Row(f"{name}:{first + offset}", batch.slice(offset, 1).to_pylist()[0])
            except UnicodeDecodeError as error:
                yield Bad(f"{name}:{first + offset}", "undecodable", str(error)[:200])
