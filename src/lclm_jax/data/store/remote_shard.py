"""Shards of an object store read in place: a ranged request for each record, and no copy on this machine.

ArrayRecord reads ``gs://`` by itself. Its client asks again where the store is busy or a connection breaks; what gets
through to here (an answer that ends early, retries that are used up) is tried again with a new reader. From other
stores (``s3://``) the bytes come through fsspec: they are put where they belong in a sparse file, and ArrayRecord reads
that.
"""

import logging
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from lclm_jax.data.store.array_record_index import BLOCK, index_start, record_offsets
from lclm_jax.data.store.storage import PreparedError, Storage

logger = logging.getLogger(__name__)

_OWN_SCHEMES = ("gs://",)
"""Beginnings of the URLs that ArrayRecord reads by itself."""

# Records are read in any order, so nothing is read ahead of them; those of a call are asked for side by side.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:16"
_LOCAL_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_TRIES = 6
_FIRST_PAUSE = 0.5
"""Seconds before the second try; each further pause is twice as long, up to half as much more or less by chance."""
_MISSING = ("NOT_FOUND", "Not Found", "No such object", "404")
_TAIL = 4 * BLOCK
"""Bytes that are read of the end of a shard at first: of most shards the whole index."""

Result = TypeVar("Result")


def open_remote_shard(storage: Storage, name: str, records: int, size: int) -> "RemoteShard | RangedShard":
    """The shard ``name`` of a remote folder; ``records`` and ``size`` (bytes) are those of its manifest."""
    if storage.root.startswith(_OWN_SCHEMES):
        return RemoteShard(storage.shown(name), records)
    return RangedShard(storage, name, records, size)


def _tried_again(url: str, action: Callable[[], Result]) -> Result:
    """What ``action`` returns, which is called again after a while if it raises ``OSError`` or ``RuntimeError``.

    Raises:
        PreparedError: there is no ``url``, or the store gives no answer.
    """
    problem = ""
    for attempt in range(_TRIES):
        try:
            return action()
        except FileNotFoundError as error:
            _refuse_missing(url, str(error))
        except (OSError, RuntimeError) as error:
            problem = str(error)
        if any(mark in problem for mark in _MISSING):
            _refuse_missing(url, problem)
        if attempt < _TRIES - 1:
            pause = _FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311 - hosts should not ask together
            logger.warning("%s: %s; asking again in %.1f s", url, problem, pause)
            time.sleep(pause)
    raise PreparedError(
        f"{url} cannot be read after {_TRIES} tries: {problem}; look at the network, the credentials and the"
        " quota of the bucket, or copy the shards (data.copy_shards=true) and compare their checksums"
    )


def _refuse_missing(url: str, problem: str) -> NoReturn:
    raise PreparedError(f"{url} is missing ({problem}); prepare the data again") from None


def _check_count(url: str, found: int, records: int) -> None:
    if found != records:
        raise PreparedError(f"{url} has {found} records, its manifest says {records}; prepare the data again")


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
        return _tried_again(self._url, lambda: self._read(rows))

    def _read(self, rows: Sequence[int]) -> Sequence[bytes]:
        try:
            return self._open().read(rows)
        except RuntimeError:
            self._reader = None  # one that failed stays failed
            raise

    def _open(self) -> ArrayRecordReader:
        if self._reader is None:
            reader = ArrayRecordReader(self._url, _OPTIONS)
            found = reader.num_records()
            if not reader.ok():
                reader.read([0])  # which says what is wrong
            _check_count(self._url, found, self._records)
            self._reader = reader
        return self._reader


class RangedShard:
    """Random access to one shard of a store that fsspec reads.

    Args:
        storage: the prepared folder.
        name: of the shard in it.
        records: how many records it has, by the manifest.
        size: its bytes, by the manifest.
    """

    def __init__(self, storage: Storage, name: str, records: int, size: int):
        self._storage, self._name, self._records, self._size = storage, name, records, size
        self._url, self._lock = storage.shown(name), threading.Lock()
        self._offsets: np.ndarray | None = None
        self._index = b""

    def read(self, rows: Sequence[int]) -> Sequence[bytes]:
        """The records ``rows``, in their order; raises as ``RemoteShard.read``."""
        with self._lock:
            if self._offsets is None:
                self._offsets = _tried_again(self._url, self._read_index)
            offsets = self._offsets
        return _tried_again(self._url, lambda: self._read(rows, offsets))

    def _read(self, rows: Sequence[int], offsets: np.ndarray) -> Sequence[bytes]:
        wanted = sorted(set(rows))
        ranges = [(int(offsets[row]), int(offsets[row + 1])) for row in wanted]
        found = self._storage.read_ranges(self._name, ranges)
        with tempfile.NamedTemporaryFile(prefix="lclm-shard-") as file:  # sparse: it takes the space of what is in it
            os.ftruncate(file.fileno(), self._size)
            for (start, _), content in zip(ranges, found, strict=True):
                os.pwrite(file.fileno(), content, start)
            os.pwrite(file.fileno(), self._index, int(offsets[-1]))
            return ArrayRecordReader(file.name, _LOCAL_OPTIONS).read(list(rows))

    def _read_index(self) -> np.ndarray:
        first = max(0, self._size - _TAIL)
        (tail,) = self._storage.read_ranges(self._name, [(first, self._size)])
        start = index_start(tail, self._size)
        if start < first:
            (missing,) = self._storage.read_ranges(self._name, [(start, first)])
            tail, first = missing + tail, start
        self._index = tail[start - first :]
        offsets = record_offsets(self._index, start)
        _check_count(self._url, len(offsets) - 1, self._records)
        return offsets
