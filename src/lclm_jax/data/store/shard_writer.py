"""Writes one shard: complete or absent, byte-identical for equal records, with its lengths beside it."""

from collections import Counter
from contextlib import ExitStack

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save_file

from lclm_jax.data.store.records import SCALARS, Columns, lengths_of
from lclm_jax.data.store.shards import Shard, encode_record, lengths_name, pack_lengths
from lclm_jax.data.store.storage import PreparedError, Storage, file_digest

# One record per compressed group: a random read never unpacks its neighbours.
_OPTIONS = "group_size:1,zstd:3"


class ShardWriter:
    """Writes ``NAME.array_record`` and ``NAME.lengths.safetensors``; use it as a context manager, then ``finish``.

    Args:
        storage: the prepared folder.
        name: name of the shard in it.
        kind: ``documents`` or ``chat``: which columns the records have.
    """

    def __init__(self, storage: Storage, name: str, kind: str):
        self._storage, self._name, self._kind = storage, name, kind
        self._scalars: dict[str, list[int]] = {name: [] for name in SCALARS[kind]}
        self._ragged: dict[str, list[np.ndarray]] = {}
        self._records = 0
        self._making = ExitStack()
        self._path = self._making.enter_context(storage.making(name))
        self._writer = ArrayRecordWriter(str(self._path), _OPTIONS)

    def add(self, columns: Columns) -> None:
        """Write one record."""
        self._writer.write(encode_record(columns))
        self._records += 1
        numbers, lists = lengths_of(self._kind, columns)
        for column, number in numbers.items():
            self._scalars[column].append(number)
        for column, values in lists.items():
            self._ragged.setdefault(column, []).append(values)

    def finish(self) -> tuple[Shard, dict[str, int]]:
        """Put the shard in place; returns it and its totals.

        Raises:
            PreparedError: the disk refuses.
        """
        try:
            self._writer.close()
            size, digest = self._path.stat().st_size, file_digest(self._path)
            self._making.close()
            columns = pack_lengths(self._scalars, self._ragged)
            with self._storage.making(lengths_name(self._name)) as path:
                save_file(columns, path)
                lengths_digest = file_digest(path)
        except (OSError, RuntimeError) as error:
            raise PreparedError(
                f"cannot write {self._storage.shown(self._name)}: {error}; free some space or choose another"
                " data.prepared"
            ) from error
        return Shard(self._name, self._records, size, digest, lengths_digest), _totals(columns)

    def abandon(self) -> None:
        """Leave nothing but a partial file, as after a kill."""
        self._writer.close()
        self._making.pop_all()


def _totals(columns: Columns) -> dict[str, int]:
    totals = Counter({name: int(values.sum()) for name, values in columns.items() if "/" not in name})
    if "span_tokens/values" in columns:
        totals["encoder_tokens"] = int(columns["span_tokens/values"].sum())
    return dict(sorted(totals.items()))
