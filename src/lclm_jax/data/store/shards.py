"""Prepared shards: records of typed columns in ArrayRecord files, their lengths beside them, and a manifest on top.

    manifest.json                                        collections, splits, shards, counts, settings
    vocabulary.safetensors                               the bytes of every token: text that is not stored
    rejects.jsonl                                        samples of bad rows
    documents/train-00000-of-00002.array_record          one record per document
    documents/train-00000-of-00002.lengths.safetensors   what packing needs to know of each record
    documents/train-00000-of-00002.json                  what was made of one part of the corpus: a finished part
    documents/part-00000-of-00002.sources.json           the raw files that it was made of: their times and digests

A record is a safetensors dictionary of one-dimensional columns: plain typed data, never a pickle. How its columns are
written is told by ``packed_records``.
"""

import bisect
import hashlib
import json
import logging
import resource
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from cachetools import LRUCache
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.store.columns import Ragged, join
from lclm_jax.data.store.lengths import Lengths
from lclm_jax.data.store.packed_records import unpack
from lclm_jax.data.store.remote_shard import RangedShard, RemoteShard, open_remote_shard
from lclm_jax.data.store.shard_cache import UNBOUNDED, HeldFile, ShardCache
from lclm_jax.data.store.storage import PreparedError, Storage, file_digest
from lclm_jax.data.store.vocabulary import TokenBytes, read_vocabulary
from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, ReadOnlyJson

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"

REJECTS = "rejects.jsonl"

FORMAT = 3

READABLE_FORMATS = (2, 3)
"""2: columns as they are, and text beside its tokens."""

_VERIFIED_BYTES = 2**32

"""Lengths files of splits up to this size are compared with their checksums when they are first opened."""


class Shard(NamedTuple):
    """One shard of the manifest."""

    file: str
    """Path relative to the prepared folder."""
    records: int
    bytes: int
    sha256: str
    lengths_sha256: str


def encode_record(columns: Mapping[str, np.ndarray]) -> bytes:
    """Serialize one-dimensional typed columns; equal columns give equal bytes.

    Raises:
        LclmError: a column is not one-dimensional or holds objects.
    """
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "uif":
            raise LclmError(f"column {name!r} is {column.dtype} {column.shape}; records hold 1-D numeric columns")
    return save({name: np.ascontiguousarray(column) for name, column in columns.items()})


def decode_record(data: bytes) -> dict[str, np.ndarray]:
    """The columns of ``encode_record``; raises ``PreparedError`` if ``data`` is not such a record."""
    try:
        return load(data)
    except SafetensorError as error:
        raise PreparedError(f"a record of {len(data)} bytes cannot be read ({error}); prepare the data again") from None


def lengths_name(shard: str) -> str:
    """Name of the lengths file that belongs to ``shard``."""
    return shard.removesuffix(".array_record") + ".lengths.safetensors"


def read_manifest(root: str | Path | Storage) -> JsonObject:
    """The manifest of a prepared folder; raises ``PreparedError`` if there is none of this format."""
    storage = root if isinstance(root, Storage) else Storage(root)
    try:
        manifest = json.loads(storage.read(MANIFEST))
    except (OSError, ValueError) as error:
        raise PreparedError(
            f"{storage.shown(MANIFEST)} cannot be read ({error}); run `lclm data prepare` first"
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found not in READABLE_FORMATS:
        known = " and ".join(map(str, READABLE_FORMATS))
        raise PreparedError(
            f"{storage.shown(MANIFEST)} has format {found}; this version reads {known}: prepare the data again"
        )
    return manifest


def generation_keys(manifest: ReadOnlyJson) -> list[str]:
    """The key of every generation, of what was prepared at once; more than one where files were added later."""
    return [one["key"] for one in manifest.get("generations", ())] or [manifest.get("key", "")]


def holds_collections(manifest: ReadOnlyJson, generation: int, collections: Iterable[str]) -> bool:
    """Whether ``generation``, counted from 0, had all of ``collections``."""
    stored = manifest["generations"][generation] if "generations" in manifest else manifest
    return set(collections) <= stored["collections"].keys()


class PreparedSplit:
    """Random access to one split of one collection: ``len``, ``read``, ``read_many``, lengths without reading records.

    Files are opened when first needed, so the object can be sent to worker processes. Shards of a remote folder are
    read in place unless ``cache.always``, which copies them to ``cache``; lengths files are always copied.

    Args:
        root: prepared folder, a local path or an fsspec URL.
        collection: a collection of its manifest.
        split: ``train``, ``validation`` or ``held_out``.
        cache: where copies of remote shards are kept.
        generation: records are those that were there when files had been added so many times; None: all.

    Raises:
        PreparedError: there is no such split, or a shard does not have the size that the manifest says.
    """

    def __init__(
        self,
        root: str | Path,
        collection: str,
        split: str,
        cache: ShardCache = UNBOUNDED,
        generation: int | None = None,
    ):
        self.root, self.collection, self.split = root, collection, split
        self.storage = Storage(root, cache)
        manifest = read_manifest(self.storage)
        collections, latest = manifest["collections"], len(generation_keys(manifest)) - 1
        self.generation = latest if generation is None else generation
        if collection not in collections or split not in collections[collection]:
            known = ", ".join(f"{name}/{part}" for name, parts in collections.items() for part in parts)
            raise PreparedError(f"{root} holds no {collection}/{split}; prepared: {known or 'nothing'}")
        try:
            entry = collections[collection][split]
            listed = entry["shards"]
            if self.generation < latest:
                entry = manifest["generations"][self.generation]["collections"][collection][split]
                listed = listed[: entry["shards"]]
            self.shards = tuple(Shard(**shard) for shard in listed)
            self._tokens = int(entry["decoder_tokens"])
        except (KeyError, TypeError) as error:
            shown = self.storage.shown(MANIFEST)
            raise PreparedError(
                f"{shown} is damaged where it lists {collection}/{split} ({error}); prepare the data again"
            ) from None
        self._starts = [0, *np.cumsum([shard.records for shard in self.shards], dtype=np.int64).tolist()]
        most = _most_open(self.storage)
        self._lock = threading.Lock()
        self._readers: LRUCache[int, RemoteShard | RangedShard | tuple[ArrayRecordReader, HeldFile]] = LRUCache(most)
        self._lengths: LRUCache[int, tuple[Lengths, HeldFile]] = LRUCache(most)
        self._verified: set[int] = set()

    def __reduce__(self):
        return PreparedSplit, (self.root, self.collection, self.split, self.storage.cache, self.generation)

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the checksums of all shards: equal digests mean equal records in equal order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    @property
    def mean_tokens(self) -> float | None:
        """Tokens of a record by the decoder's tokenizer (without placeholders), on average; None if there are none."""
        return self._tokens / len(self) if len(self) else None

    @cached_property
    def vocabulary(self) -> TokenBytes | None:
        """The bytes of the decoder's tokens; None if every record has its text beside them."""
        return read_vocabulary(self.storage)

    def read(self, index: int, columns: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Columns of record ``index``; raises ``IndexError`` outside, ``PreparedError`` on a damaged shard."""
        return self.read_many([index], columns)[0]

    def read_many(self, indices: Iterable[int], columns: Collection[str] | None = None) -> list[dict[str, np.ndarray]]:
        """Records in the order of ``indices``, one read per shard.

        ``columns``: those wanted; None: all. Text that is not stored is put together from its tokens if it is wanted.
        """
        places = [self._place(index) for index in indices]
        wanted: dict[int, list[int]] = {}
        for shard, row in places:
            wanted.setdefault(shard, []).append(row)
        found = {shard: iter(self._records(shard, rows)) for shard, rows in wanted.items()}
        with_text = columns is None or "text" in columns or "cut_bytes" in columns
        vocabulary = self.vocabulary if with_text else None
        return [unpack(decode_record(next(found[shard])), vocabulary, columns) for shard, _ in places]

    def column(self, name: str) -> np.ndarray:
        """One number per record from the lengths files (``decoder_tokens``, ...), uint32 [records]."""
        return np.concatenate(
            [np.zeros(0, np.uint32), *(self._shard_lengths(i).numbers(name) for i in range(len(self.shards)))]
        )

    def numbers(self, name: str, records: np.ndarray) -> np.ndarray:
        """One number for each of ``records`` from the lengths files (``decoder_tokens``, ...), int64."""
        found = np.empty(len(records), np.int64)
        for shard, places, rows in self._by_shard(records):
            found[places] = self._shard_lengths(shard).numbers(name)[rows]
        return found

    def lists(self, name: str, records: np.ndarray) -> Ragged | None:
        """The lists of ``records`` from the lengths files (``cuts``, ...), int64; None if there are none such.

        ``encoder_cuts`` of a record whose two tokenizations are the same are its ``cuts``; None: of all ``records``.
        """
        touched = list(self._by_shard(records))
        parts = [self._shard_lengths(shard).lists(name, rows) for shard, _, rows in touched]
        if not any(part is not None for part in parts):
            return join([]) if not touched and self._has_lists(name) else None
        if name == "encoder_cuts":
            parts = [
                self._shard_lengths(shard).lists("cuts", rows) if part is None else part
                for part, (shard, _, rows) in zip(parts, touched, strict=True)
            ]
        order = np.concatenate([places for _, places, _ in touched])
        return join([part for part in parts if part is not None]).take(np.argsort(order, kind="stable"))

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {self.collection}/{self.split} is outside [0, {len(self)})")
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, int(index) - self._starts[shard]

    def _records(self, shard: int, rows: list[int]) -> Sequence[bytes]:
        reader = self._reader(shard)
        if isinstance(reader, RemoteShard | RangedShard):
            return reader.read(rows)
        try:
            return reader[0].read(rows)
        except RuntimeError as error:
            name = self.storage.shown(self.shards[shard].file)
            raise PreparedError(f"shard {name} is damaged ({error}); delete it and prepare the data again") from None

    def _reader(self, shard: int) -> RemoteShard | RangedShard | tuple[ArrayRecordReader, HeldFile]:
        with self._lock:
            if (opened := self._readers.get(shard)) is not None:
                return opened
        opened = self._open(self.shards[shard])
        with self._lock:
            self._readers[shard] = opened
        return opened

    def _open(self, shard: Shard) -> RemoteShard | RangedShard | tuple[ArrayRecordReader, HeldFile]:
        if self.storage.remote and not self.storage.cache.always:
            return open_remote_shard(self.storage, shard.file, shard.records, shard.bytes)
        held = self.storage.hold(shard.file, shard.sha256)
        self._check_size(held.path, shard)
        return ArrayRecordReader(str(held.path)), held

    @staticmethod
    def _check_size(path: Path, shard: Shard) -> None:
        """A truncated file is found for the price of a look at its size."""
        if not path.is_file():
            raise PreparedError(f"shard {path} is missing; prepare the data again")
        if (size := path.stat().st_size) != shard.bytes:
            raise PreparedError(
                f"shard {path} is damaged: {size} bytes instead of {shard.bytes}; delete it and prepare the data again"
            )

    def _by_shard(self, records: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(shard, places in ``records``, rows of the shard) of every shard that ``records`` touches."""
        records = np.asarray(records, np.int64)
        if records.size and not 0 <= records.min() <= records.max() < len(self):
            raise IndexError(f"a record of {self.collection}/{self.split} is outside [0, {len(self)})")
        shards = np.searchsorted(self._starts, records, side="right") - 1
        order = np.argsort(shards, kind="stable")
        touched, first = np.unique(shards[order], return_index=True)
        for shard, places in zip(touched.tolist(), np.split(order, first)[1:], strict=True):
            yield shard, places, records[places] - self._starts[shard]

    def _has_lists(self, name: str) -> bool:
        return bool(self.shards) and self._shard_lengths(0).lists(name, np.zeros(0, np.int64)) is not None

    def _shard_lengths(self, shard: int) -> Lengths:
        with self._lock:
            if (opened := self._lengths.get(shard)) is not None:
                return opened[0]
        opened = self._open_lengths(shard)
        with self._lock:
            self._lengths[shard] = opened
        return opened[0]

    def _open_lengths(self, shard: int) -> tuple[Lengths, HeldFile]:
        one = self.shards[shard]
        held = self.storage.hold(lengths_name(one.file), one.lengths_sha256)
        # Unlike the records, this format has no checksums of its own, and a wrong length would go unnoticed. Of a
        # large corpus, whole files are not read for a few lengths: `lclm data validate` does it once.
        small = sum(other.bytes for other in self.shards) <= _VERIFIED_BYTES
        if small and shard not in self._verified:
            if file_digest(held.path) != one.lengths_sha256:
                raise PreparedError(
                    f"{held.path} is damaged (its checksum differs); delete it and prepare the data again"
                )
            self._verified.add(shard)
        return Lengths(held.path), held


def shard_cache(config: Config) -> ShardCache:
    """Where a run keeps copies of remote shards."""
    folder = config.data.cache
    always = config.data.copy_shards
    if always is None:
        always = config.data.cache_bytes is not None
    return ShardCache(None if folder is None else Path(folder), config.data.cache_bytes, always)


def open_split(config: Config, collection: str, split: str, generation: int | None = None) -> PreparedSplit:
    """A split of the run's prepared data, all or that of a ``generation``; raises as ``PreparedSplit``."""
    found = PreparedSplit(RunPaths(config).prepared, collection, split, shard_cache(config), generation)
    needed, most = sum(shard.bytes for shard in found.shards), config.data.cache_bytes
    if found.storage.remote and most is not None and needed > most:
        logger.warning(
            "data.cache_bytes=%d is less than the %d bytes of %s/%s: rows take records from all shards, so they"
            " will be fetched again and again; raise it",
            *(most, needed, collection, split),
        )
    return found


def _most_open(storage: Storage) -> int:
    """How many shards of a split a process keeps open, and how many lengths files.

    A corpus may have more of them than a process may open. An open copy cannot give way in a cache that has a bound.
    """
    if storage.remote and storage.cache.most_bytes is not None:
        return 1
    return min(4096, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16))
