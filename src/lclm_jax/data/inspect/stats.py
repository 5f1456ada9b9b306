"""What a prepared corpus holds: tokens, lengths, languages, equal records, bytes, and how full its rows become."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.packing.row_layout_search import search_row_layouts
from lclm_jax.data.packing.sources import make_sources
from lclm_jax.data.store.records import RAGGED, SCALARS
from lclm_jax.data.store.shards import (
    PreparedSplit,
    generation_keys,
    lengths_name,
    open_split,
    read_manifest,
    shard_cache,
)
from lclm_jax.data.store.storage import Storage
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject

PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
_AT_ONCE = 4096
_TOKENS_OF = {"documents": "decoder_ids", "chat": "tokens"}


class SplitStats(NamedTuple):
    """One split of a collection."""

    collection: str
    split: str
    records: int
    tokens: int
    """Decoder's, without placeholders."""
    encoder_tokens: int
    record_bytes: int
    lengths_bytes: int
    lengths: np.ndarray
    """uint32 [records]: decoder tokens of each."""
    languages: Mapping[str, int]
    """Language -> tokens, where a column says it."""
    left_out: Mapping[str, int]
    """What was left out or noted by preparation, by reason."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk for each decoder token: records and lengths files."""
        return (self.record_bytes + self.lengths_bytes) / self.tokens if self.tokens else 0.0

    def percentiles(self) -> dict[int, float]:
        """Tokens of a record at each of ``PERCENTILES``; empty without records."""
        if not self.lengths.size:
            return {}
        return dict(zip(PERCENTILES, np.percentile(self.lengths, PERCENTILES).tolist(), strict=True))


class Duplicates(NamedTuple):
    """Records of a collection that equal an earlier one, token for token; splits in the order of the manifest."""

    records: int
    tokens: int
    across_splits: int
    """Those whose first appearance is in another split."""


class RowFill(NamedTuple):
    """How full the rows of a stage are at one ratio, by a sample of its records."""

    stage: str
    ratio: int
    decoder: float
    encoder: float
    left_out: float
    """Share of the examples that fit no row."""


class CorpusStats(NamedTuple):
    """All of it."""

    splits: Sequence[SplitStats]
    duplicates: Mapping[str, Duplicates]
    """By collection."""
    sources: Mapping[str, str]
    """Source of the configuration -> its collection."""
    fills: Sequence[RowFill]
    generations: int

    def of(self, collection: str, split: str = "train") -> SplitStats:
        """One split."""
        return next(one for one in self.splits if (one.collection, one.split) == (collection, split))

    def as_json(self) -> JsonObject:
        """Plain values."""
        splits: JsonObject = {}
        for one in self.splits:
            values = one._asdict() | {"bytes_per_token": one.bytes_per_token}
            values |= {"languages": dict(one.languages), "left_out": dict(one.left_out)}
            values["lengths"] = {f"p{name}": value for name, value in one.percentiles().items()}
            if one.records:
                values["lengths"] |= {"mean": one.tokens / one.records, "max": int(one.lengths.max())}
            splits.setdefault(one.collection, {})[one.split] = values
        return {
            "collections": splits,
            "duplicates": {name: one._asdict() for name, one in self.duplicates.items()},
            "sources": {
                name: {"collection": collection, "train_tokens": self.of(collection).tokens}
                for name, collection in self.sources.items()
            },
            "fill": [one._asdict() for one in self.fills],
            "generations": self.generations,
        }


def corpus_stats(config: Config, tokenizers: Tokenizers) -> CorpusStats:
    """Measure the prepared corpus of ``config``.

    All lengths files are read, and of the records those whose lengths and cuts are those of another.

    Raises:
        PreparedError: nothing is prepared, or a file is damaged.
    """
    storage = Storage(RunPaths(config).prepared, shard_cache(config))
    manifest, splits, duplicates = read_manifest(storage), [], {}
    for collection, entries in manifest["collections"].items():
        opened = [open_split(config, collection, split) for split in entries]
        for split, reader in zip(entries, opened, strict=True):
            entry = entries[split]
            lengths_bytes = sum(storage.size(lengths_name(shard.file)) or 0 for shard in reader.shards)
            splits.append(
                SplitStats(
                    *(collection, split, len(reader), entry["decoder_tokens"], entry["encoder_tokens"]),
                    record_bytes=sum(shard.bytes for shard in reader.shards),
                    lengths_bytes=lengths_bytes,
                    lengths=reader.column("decoder_tokens"),
                    languages=entry.get("languages", {}),
                    left_out=entry["counts"],
                )
            )
        duplicates[collection] = find_duplicates(opened, manifest["kinds"][collection])
    sources = {name: source.collection for name, source in config.data.sources.items()}
    prepared = {name: collection for name, collection in sources.items() if collection in manifest["collections"]}
    fills = list(_fills(config, tokenizers))
    return CorpusStats(splits, duplicates, prepared, fills, len(generation_keys(manifest)))


def find_duplicates(splits: Sequence[PreparedSplit], kind: str) -> Duplicates:
    """Records that equal an earlier one of ``splits``, of one ``kind``, by a hash of their tokens.

    Equal records have equal lengths files' entries, so only records whose entries are those of another are read.
    """
    hashes = [_hash_of_lengths(split, kind) for split in splits]
    together = np.concatenate([np.zeros(0, np.uint64), *hashes])
    _, which, counts = np.unique(together, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[which] > 1)
    starts = np.cumsum([0, *(len(one) for one in hashes)])
    seen: dict[bytes, int] = {}
    records = tokens = across = 0
    for number, split in enumerate(splits):
        own = candidates[(candidates >= starts[number]) & (candidates < starts[number + 1])] - starts[number]
        for digest, size in _digests(split, own, _TOKENS_OF[kind]):
            if digest not in seen:
                seen[digest] = number
                continue
            records, tokens, across = records + 1, tokens + size, across + (seen[digest] != number)
    return Duplicates(records, tokens, across)


def _hash_of_lengths(split: PreparedSplit, kind: str) -> np.ndarray:
    """A hash of what the lengths files say of each record, uint64 [records]."""
    found = np.zeros(len(split), np.uint64)
    for start in range(0, len(split), _AT_ONCE):
        records = np.arange(start, min(start + _AT_ONCE, len(split)))
        parts = [split.numbers(name, records)[:, None] for name in SCALARS[kind]]
        columns = [np.ascontiguousarray(np.concatenate(parts, axis=1))]
        lists = [one for name in RAGGED[kind] if (one := split.lists(name, records)) is not None]
        for place in range(records.size):
            digest = hashlib.blake2b(columns[0][place].tobytes(), digest_size=8)
            for one in lists:
                digest.update(one.list(place).tobytes())
            found[start + place] = int.from_bytes(digest.digest(), "little")
    return found


def _digests(split: PreparedSplit, records: np.ndarray, column: str) -> Iterator[tuple[bytes, int]]:
    """(hash of the tokens, how many they are) of each of ``records``."""
    wanted = [column, "gaps", "span_ids", "span_tokens", "loss"]
    for start in range(0, records.size, _AT_ONCE):
        for columns in split.read_many(records[start : start + _AT_ONCE].tolist(), wanted):
            digest = hashlib.sha256()
            for name in wanted:
                if name in columns:
                    digest.update(f"{name} {columns[name].size}\0".encode() + columns[name].tobytes())
            yield digest.digest(), int(columns[column].size)


def _fills(config: Config, tokenizers: Tokenizers) -> Iterator[RowFill]:
    """Of the stages whose sources are prepared."""
    for stage, settings in config.stages.items():
        for ratio in sorted(set(settings.ratios or (config.model.ratio,))):
            own = config.model_copy(update={"model": config.model.model_copy(update={"ratio": ratio})})
            make = partial(make_sources, stage=stage, tokenizers=tokenizers)
            found = next(search_row_layouts(own, stage, make))
            yield RowFill(stage, ratio, found.decoder, found.encoder, found.left_out)
