"""Writes one shard: complete or absent, byte-identical for equal records, with its lengths beside it."""

from collections import Counter
from contextlib import ExitStack

from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save_file

from lclm_jax.data.store.lengths import LengthsBuilder
from lclm_jax.data.store.packed_records import pack
from lclm_jax.data.store.records import Columns, lengths_of
from lclm_jax.data.store.shards import Shard, encode_record, lengths_name
from lclm_jax.data.store.storage import PreparedError, Storage, file_digest
from lclm_jax.data.store.vocabulary import TokenBytes

# One record per compressed group: a random read never unpacks its neighbours.
_OPTIONS = "group_size:1,zstd:3"


class ShardWriter:
    """Writes ``NAME.array_record`` and ``NAME.lengths.safetensors``; use it as a context manager, then ``finish``.

    Args:
        storage: the prepared folder.
        name: name of the shard in it.
        kind: ``documents`` or ``chat``: which columns the records have.
        vocabulary: bytes of the decoder's tokens, by which text is left out; None: text is always stored.
    """

    def __init__(self, storage: Storage, name: str, kind: str, vocabulary: TokenBytes | None = None):
        self._storage, self._name, self._kind, self._vocabulary = storage, name, kind, vocabulary
        self._lengths = LengthsBuilder(kind)
        self._totals: Counter[str] = Counter()
        self._records = 0
        self._making = ExitStack()
        self._path = self._making.enter_context(storage.making(name))
        self._writer = ArrayRecordWriter(str(self._path), _OPTIONS)

    def add(self, columns: Columns) -> None:
        """Write one record."""
        self._writer.write(encode_record(pack(columns, self._vocabulary)))
        self._records += 1
        numbers, lists = lengths_of(self._kind, columns)
        self._lengths.add(numbers, lists)
        self._totals.update(numbers)
        if "span_tokens" in lists:
            self._totals["encoder_tokens"] += int(lists["span_tokens"].sum())

    def finish(self) -> tuple[Shard, dict[str, int]]:
        """Put the shard in place; returns it and its totals.

        Raises:
            PreparedError: the disk refuses.
        """
        try:
            self._writer.close()
            size, digest = self._path.stat().st_size, file_digest(self._path)
            self._making.close()
            with self._storage.making(lengths_name(self._name)) as path:
                save_file(self._lengths.columns(), path)
                lengths_digest = file_digest(path)
        except (OSError, RuntimeError) as error:
            raise PreparedError(
                f"cannot write {self._storage.shown(self._name)}: {error}; free some space or choose another"
                " data.prepared"
            ) from error
        return Shard(self._name, self._records, size, digest, lengths_digest), dict(sorted(self._totals.items()))

    def abandon(self) -> None:
        """Leave nothing but a partial file, as after a kill."""
        self._writer.close()
        self._making.pop_all()
