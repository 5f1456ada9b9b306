"""Writes one shard: complete or absent, byte-identical for equal records, with its lengths beside it."""

from collections import Counter
from contextlib import suppress

from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save_file

from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.lengths import LengthsBuilder
from lclm_jax.data.store.packed_records import pack
from lclm_jax.data.store.records import Columns, lengths_of
from lclm_jax.data.store.shards import Shard, encode_record, lengths_name
from lclm_jax.data.store.storage import Storage, file_digest
from lclm_jax.data.store.vocabulary import TokenBytes
from lclm_jax.errors import LclmError

LANGUAGE = "language:"
"""Totals that begin so are the decoder's tokens of a language."""

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
        self._making = storage.making(name)
        self._path = self._making.__enter__()
        with storage.refusals(name):
            self._writer = ArrayRecordWriter(str(self._path), _OPTIONS)

    def add(self, columns: Columns) -> None:
        """Write one record; raises ``PreparedError`` if the disk refuses."""
        record = encode_record(pack(columns, self._vocabulary))
        with self._storage.refusals(self._name):
            self._writer.write(record)
        self._records += 1
        numbers, lists = lengths_of(self._kind, columns)
        self._lengths.add(numbers, lists)
        self._totals.update(numbers)
        if "language" in columns:
            self._totals[f"{LANGUAGE}{column_text(columns['language'])}"] += numbers["decoder_tokens"]
        if "span_tokens" in lists:
            self._totals["encoder_tokens"] += int(lists["span_tokens"].sum())

    def finish(self) -> tuple[Shard, dict[str, int]]:
        """Put the shard in place; returns it and its totals.

        Raises:
            PreparedError: the disk refuses.
        """
        try:
            with self._storage.refusals(self._name):
                self._writer.close()
                size, digest = self._path.stat().st_size, file_digest(self._path)
                self._making.__exit__(None, None, None)
                with self._storage.making(lengths_name(self._name)) as path:
                    save_file(self._lengths.columns(), path)
                    lengths_digest = file_digest(path)
        except LclmError:
            self.abandon()
            raise
        return Shard(self._name, self._records, size, digest, lengths_digest), dict(sorted(self._totals.items()))

    def abandon(self) -> None:
        """Leave nothing, as nothing will be finished; what that meets does not hide why."""
        with suppress(OSError, RuntimeError):
            self._writer.close()
        with suppress(_Abandoned, OSError):
            self._making.__exit__(_Abandoned, _Abandoned(), None)


class _Abandoned(Exception):
    """Ends the making of a shard that is not finished."""
