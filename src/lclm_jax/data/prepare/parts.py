"""The work of a preparation, cut into parts that are known before it begins and made apart from each other."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from lclm_jax.config import CollectionConfig, Config, result_values
from lclm_jax.data.documents import Entry
from lclm_jax.data.prepare.corpus import SPLITS, list_collection, output_folders, split_of
from lclm_jax.data.prepare.rows.decontamination import benchmark_bytes
from lclm_jax.data.store.shards import FORMAT, Shard, lengths_name
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.text.shared_tokenization import shared_tokenization
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject

Listing = dict[str, list[Entry]]
"""Collection -> its entries."""


class Part(NamedTuple):
    """Some entries of a collection that become at most one shard of each of ``splits``."""

    collection: str
    stem: str
    """Name of its report without the ending, such as ``documents/train-00000-of-00002``."""
    splits: tuple[str, ...]
    entries: tuple[Entry, ...]
    rank: int
    """Its number among the parts of its collection."""

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(entry.size for entry in self.entries)

    def shard(self, split: str) -> str:
        """Name of the shard of ``split``."""
        folder, _, rest = self.stem.partition("/")
        return f"{folder}/{split}-{rest.partition('-')[2]}.array_record"


@dataclass(frozen=True)
class Report:
    """What became of a part: stored beside its shards when it is finished."""

    key: str
    """Hash of the settings that made it."""
    shards: dict[str, Shard]
    """Split -> shard; a split without records has none."""
    totals: dict[str, dict[str, int]]
    """Split -> tokens by tokenizer."""
    counts: dict[str, int]
    """What was left out or noted, by reason."""
    rejects: list[JsonObject]
    files: list[JsonObject] = field(default_factory=list)
    """Files that cannot be used, or not to their end."""
    names: list[str] = field(default_factory=list)
    """The first two names of records that differ."""

    def write(self, storage: Storage, part: Part) -> None:
        """Store it: from now on the part is finished."""
        values = asdict(self) | {"shards": {split: shard._asdict() for split, shard in self.shards.items()}}
        storage.write(f"{part.stem}.json", json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n")

    @classmethod
    def read(cls, storage: Storage, part: Part, key: str) -> "Report | None":
        """The report of a part that settings ``key`` finished and whose shards are there; else None."""
        try:
            values = json.loads(storage.read(f"{part.stem}.json"))
            if values["key"] != key:
                return None
            shards = {split: Shard(**shard) for split, shard in values["shards"].items()}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None  # absent or damaged: made again
        except OSError as error:
            raise PreparedError(f"cannot read {storage.shown(part.stem)}.json: {error}; try again") from None
        whole = all(
            storage.size(shard.file) == shard.bytes and storage.exists(lengths_name(shard.file))
            for shard in shards.values()
        )
        return cls(**(values | {"shards": shards})) if whole else None


def list_corpus(config: Config) -> Listing:
    """The entries of every collection that is prepared; raises ``LclmError`` if files are missing."""
    return {
        name: list_collection(collection, config.data.shard_bytes, output_folders(config))
        for name, collection in config.corpus.resolved.items()
        if collection.records != "function_chat" or _uses(config, name)
    }


def plan_parts(config: Config, listed: Mapping[str, Sequence[Entry]], generation: int = 0) -> list[Part]:
    """All parts of the entries that are ``listed``, in a fixed order; of none for a collection without entries.

    Where a file is one document its name decides the split, so every split has parts of its own; rows are told apart
    as they are read, and a part has a shard in each split. Parts of a later ``generation``, of files that were added to
    a corpus, have names of their own.
    """
    parts: list[Part] = []
    added = f"added{generation}-" if generation else ""
    for name, entries in listed.items():
        collection = config.corpus.resolved[name]
        if collection.by_file:
            by_split: dict[str, list[Entry]] = {split: [] for split in SPLITS}
            for entry in entries:
                by_split[split_of(entry.id, config.corpus)].append(entry)
            groups = {split: _groups(own, config.data.shard_bytes) for split, own in by_split.items()}
            own = [part for split in SPLITS for part in _numbered(name, f"{split}-{added}", (split,), groups[split])]
        else:
            own = _numbered(name, f"part-{added}", SPLITS, _groups(entries, config.data.shard_bytes))
        parts += [part._replace(rank=rank) for rank, part in enumerate(own)]
    return parts


def preparation_settings(config: Config, parts: Sequence[Part], tokenizers: dict[str, Tokenizer]) -> JsonObject:
    """All that the prepared shards depend on, as plain values, but not where the files are."""
    listing = hashlib.sha256()
    for part in parts:
        for entry in part.entries:
            listing.update(f"{part.collection}\0{entry.id}\0{entry.start}\0{entry.size}\n".encode())
    collections = {part.collection: config.corpus.resolved[part.collection] for part in parts}
    shared = shared_tokenization(tokenizers["decoder"], tokenizers["encoder"])
    benchmarks = config.corpus.decontaminate
    left_out = {} if benchmarks is None else {"decontaminate": hashlib.sha256(benchmark_bytes(benchmarks)).hexdigest()}
    python = any(collection.format == "python_stdlib" for collection in collections.values())
    return {
        "format": FORMAT,
        "collections": {name: result_values(one) for name, one in collections.items()},
        "shares": [config.corpus.validation_share, config.corpus.held_out_share],
        "files": {"entries": sum(len(part.entries) for part in parts), "sha256": listing.hexdigest()},
        "python": platform.python_version() if python else None,
        "shard_bytes": config.data.shard_bytes,
        "tokenizers": {
            name: {"sha256": tokenizer.digest, "vocab_size": tokenizer.vocab_size}
            for name, tokenizer in tokenizers.items()
        },
        "chat_templates": _chat_templates(config, collections.values(), tokenizers["decoder"]),
        "tokenized_once": None if shared is None else {"unless_text_has": list(shared.differing)},
        **left_out,
    }


_LATER = ("chat_templates", "tokenized_once")
"""Settings that format 2 did not record."""


def _chat_templates(config: Config, collections: Iterable[CollectionConfig], decoder: Tokenizer) -> str | None:
    """SHA-256 of the templates that chats are printed by, and of the chosen name; None where there are no chats."""
    if all(one.records == "documents" for one in collections):
        return None
    chosen = [config.tokenizer.chat_template, dict(decoder.chat_templates.sources)]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def settings_key(settings: JsonObject, made_as: int = FORMAT) -> str:
    """SHA-256 of the settings, as shards of the format ``made_as`` recorded them."""
    if made_as < FORMAT:
        settings = {name: value for name, value in settings.items() if name not in _LATER} | {"format": made_as}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def parts_of_worker(parts: Sequence[Part], share: str) -> list[Part]:
    """The parts of worker k of n, ``share`` being "k/n" with k from 0; raises ``PreparedError`` on anything else."""
    number, _, count = share.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise PreparedError(f"share {share!r} is not k/n with 0 <= k < n; write for example 0/16")
    return list(parts[int(number) :: int(count)])


def _uses(config: Config, collection: str) -> bool:
    return any(source.collection == collection for source in config.data.sources.values())


def _numbered(name: str, label: str, splits: tuple[str, ...], groups: list[list[Entry]]) -> list[Part]:
    return [
        Part(name, f"{name}/{label}{number:05d}-of-{len(groups):05d}", splits, tuple(group), number)
        for number, group in enumerate(groups)
    ]


def _groups(entries: Sequence[Entry], part_bytes: int) -> list[list[Entry]]:
    """Consecutive entries of about ``part_bytes`` together; none for no entries."""
    groups: list[list[Entry]] = []
    left = 0
    for entry in entries:
        if not groups or entry.size > left:
            groups.append([])
            left = part_bytes
        groups[-1].append(entry)
        left -= entry.size
    return groups
