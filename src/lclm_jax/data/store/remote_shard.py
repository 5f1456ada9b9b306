"""Shards of an object store read in place: a ranged request for each record, and no copy on this machine.

ArrayRecord reads ``gs://`` by itself. Its client asks again where the store is busy or a connection breaks; what gets
through to here (an answer that ends early, retries that are used up) is tried again with a new reader.
"""

import logging
import random
import time
from collections.abc import Sequence

from array_record.python.array_record_module import ArrayRecordReader

from lclm_jax.data.store.storage import PreparedError

logger = logging.getLogger(__name__)

SCHEMES = ("gs://",)
"""Beginnings of the URLs that can be read in place."""

# Records are read in any order, so nothing is read ahead of them; those of a call are asked for side by side.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:16"
_TRIES = 6
_FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long, up to half as much more or less by chance."""
_MISSING = ("NOT_FOUND", "Not Found", "No such object", "404")


class RemoteShard:
    """Random access to one shard at a URL.

    Args:
        url: such as ``gs://bucket/folder/documents/train-00000-of-00002.array_record``.
        records: how many records it has, by the manifest.
    """

    def __init__(self, url: str, records: int):
        self._url, self._records = url, records
        self._reader: ArrayRecordReader | None = None

    def read(self, rows: Sequence[int]) -> Sequence[bytes]:
        """The records ``rows``, in their order.

        Raises:
            PreparedError: there is no such shard, it has another number of records, or the store gives no answer.
        """
        for attempt in range(_TRIES):
            try:
                return self._open().read(rows)
            except RuntimeError as error:
                self._reader = None  # one that failed stays failed
                problem = str(error)
            if any(mark in problem for mark in _MISSING):
                raise PreparedError(f"{self._url} is missing ({problem}); prepare the data again")
            if attempt < _TRIES - 1:
                pause = _FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311 - hosts should not ask together
                logger.warning("%s: %s; asking again in %.1f s", self._url, problem, pause)
                time.sleep(pause)
        raise PreparedError(
            f"{self._url} cannot be read after {_TRIES} tries: {problem}; look at the network, the credentials and the"
            " quota of the bucket, or copy the shards (data.copy_shards=true) and compare their checksums"
        )

    def _open(self) -> ArrayRecordReader:
        if self._reader is None:
            reader = ArrayRecordReader(self._url, _OPTIONS)
            found = reader.num_records()
            if not reader.ok():
                reader.read([0])  # which says what is wrong
            if found != self._records:
                raise PreparedError(
                    f"{self._url} has {found} records, its manifest says {self._records}; prepare the data again"
                )
            self._reader = reader
        return self._reader
