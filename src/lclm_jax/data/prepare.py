"""Corpus to prepared shards: tokenized once, by every tokenizer, free of the compression ratio."""

import hashlib
import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.config import Config, CorpusConfig, RunPaths
from lclm_jax.config.nearest import suggestion
from lclm_jax.data.chat_set import chats_of
from lclm_jax.data.corpus import SPLITS, Document, Entry, list_corpus, read_entry
from lclm_jax.data.records import Columns, chat_columns, document_columns
from lclm_jax.data.shard_writer import Written, finished_shard, write_shard
from lclm_jax.data.sources import Tokenizers, check_vocabularies
from lclm_jax.data.store import FORMAT, MANIFEST, PreparedError, lengths_path, read_manifest
from lclm_jax.text.cuts import CutFinder, TokenizedText, common_cuts
from lclm_jax.text.example import chat_outline
from lclm_jax.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

COLLECTIONS = ("documents", "chat")
_BATCH_CHARACTERS = 1_000_000
_PROBE_CUTS = 24

Progress = Callable[[int, int], None]
"""Called with (bytes of corpus done, bytes in all)."""


@dataclass(frozen=True)
class Tools:
    """What turns documents into records."""

    corpus: CorpusConfig
    decoder: Tokenizer
    encoder: Tokenizer
    decoder_cuts: CutFinder = field(init=False)
    encoder_cuts: CutFinder | None = field(init=False)

    def __post_init__(self):
        same = self.decoder.digest == self.encoder.digest
        object.__setattr__(self, "decoder_cuts", CutFinder(self.decoder))
        object.__setattr__(self, "encoder_cuts", None if same else CutFinder(self.encoder))

    @property
    def special_strings(self) -> tuple[str, ...]:
        """Text that would become a special token in a chat."""
        return (*self.decoder.special_tokens, *self.encoder.special_tokens)


def prepare_corpus(config: Config, out_dir: str | Path, progress: Progress | None = None) -> dict[str, Any]:
    """Tokenize the corpus of ``config`` into ``out_dir``; returns the manifest.

    Equal settings give equal bytes. Shards that an interrupted call finished are kept; a finished folder is returned
    as it is.

    Args:
        config: corpus, tokenizer folders (a run's own must be trained before) and ``data.shard_bytes``.
        out_dir: folder of the shards and ``manifest.json``.
        progress: called as the corpus is worked through.

    Raises:
        ValueError: missing or empty corpus, unusable tokenizer, a folder prepared with other settings, a full disk.
    """
    root, paths = Path(out_dir), RunPaths(config)
    tools = Tools(config.corpus, Tokenizer(paths.decoder_tokenizer), Tokenizer(paths.encoder_tokenizer))
    # Fail before the work, not after it.
    _ = tools.decoder.memory_ids
    check_vocabularies(config.model, Tokenizers(tools.decoder, tools.encoder))
    _check_collections(config)
    entries = list_corpus(config.corpus)
    settings = _settings(config, tools, entries)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if (done := _finished_manifest(root, key)) is not None:
        return done
    collections = [name for name in COLLECTIONS if name == "documents" or _uses(config, name)]
    plan = _plan(entries, config.data.shard_bytes)
    total, worked = sum(entry.size for entry in entries) * len(collections), 0
    written: dict[str, dict[str, list[Written]]] = {name: {split: [] for split in SPLITS} for name in collections}
    for collection in collections:
        for split, groups in plan.items():
            for number, group in enumerate(groups):
                name = f"{collection}/{split}-{number:05d}-of-{len(groups):05d}.array_record"
                written[collection][split].append(_make_shard(root, name, key, group, tools))
                worked += sum(entry.size for entry in group)
                if progress is not None:
                    progress(worked, total)
    manifest = _manifest(settings, key, written)
    _remove_leftovers(root, manifest)
    _check_use(manifest)
    _write_json(root / MANIFEST, manifest)
    return manifest


def _check_collections(config: Config) -> None:
    for name, source in config.data.sources.items():
        if source.collection not in COLLECTIONS:
            raise ValueError(
                f"data.sources.{name}.collection={source.collection!r} is not one that is prepared;"
                f" {suggestion(source.collection, COLLECTIONS)}"
            )


def _uses(config: Config, collection: str) -> bool:
    return any(source.collection == collection for source in config.data.sources.values())


def _settings(config: Config, tools: Tools, entries: Sequence[Entry]) -> dict[str, Any]:
    listing = hashlib.sha256("".join(f"{entry.id}\0{entry.size}\n" for entry in entries).encode()).hexdigest()
    return {
        "format": FORMAT,
        "corpus": config.corpus.model_dump(mode="json", exclude={"path"}),
        "files": {"entries": len(entries), "sha256": listing},
        "python": platform.python_version() if config.corpus.kind == "python_stdlib" else None,
        "chat": _uses(config, "chat"),
        "shard_bytes": config.data.shard_bytes,
        "tokenizers": {
            name: {"sha256": tokenizer.digest, "vocab_size": tokenizer.vocab_size}
            for name, tokenizer in (("decoder", tools.decoder), ("encoder", tools.encoder))
        },
    }


def _finished_manifest(root: Path, key: str) -> dict[str, Any] | None:
    try:
        manifest = read_manifest(root)
    except PreparedError:
        return None  # absent, damaged or of another format: made anew
    if manifest["key"] != key:
        raise PreparedError(
            f"{root} was prepared from another corpus or with other settings; delete it or set data.prepared to a new"
            " folder"
        )
    return manifest if _whole(root, manifest) else None


def _whole(root: Path, manifest: dict[str, Any]) -> bool:
    """Whether every shard of ``manifest`` is there; one of another size is deleted, so that it is made again."""
    whole = True
    for splits in manifest["collections"].values():
        for shard in (shard for split in splits.values() for shard in split["shards"]):
            path = root / shard["file"]
            there = path.is_file() and path.stat().st_size == shard["bytes"]
            if not (there and lengths_path(path).is_file()):
                logger.warning("%s is missing or cut: making it again", path)
                path.unlink(missing_ok=True)
                whole = False
    return whole


def _plan(entries: Sequence[Entry], shard_bytes: int) -> dict[str, list[list[Entry]]]:
    """Entries of each split by shard: known before the work, so shards have their final names from the start."""
    plan: dict[str, list[list[Entry]]] = {split: [[]] for split in SPLITS}
    sizes: Counter[str] = Counter()
    for entry in entries:
        groups = plan[entry.split]
        if groups[-1] and sizes[entry.split] + entry.size > shard_bytes:
            groups.append([])
            sizes[entry.split] = 0
        groups[-1].append(entry)
        sizes[entry.split] += entry.size
    return plan


def _make_shard(root: Path, name: str, key: str, group: Sequence[Entry], tools: Tools) -> Written:
    if (done := finished_shard(root, name, key)) is not None:
        return done
    counts: Counter[str] = Counter()
    make = _chat_records if name.startswith("chat/") else _document_records
    return write_shard(root, name, key, make(group, tools, counts), counts)


def _documents(group: Sequence[Entry], tools: Tools, counts: Counter[str]) -> Iterator[Document]:
    for entry in group:
        if (document := read_entry(entry, tools.corpus, counts)) is not None:
            yield document


def _document_records(group: Sequence[Entry], tools: Tools, counts: Counter[str]) -> Iterator[Columns]:
    batch: list[Document] = []
    characters = 0
    for document in _documents(group, tools, counts):
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield from _tokenized(batch, tools, counts)
            batch, characters = [], 0
    yield from _tokenized(batch, tools, counts)


def _tokenized(batch: Sequence[Document], tools: Tools, counts: Counter[str]) -> Iterator[Columns]:
    texts = [document.text for document in batch]
    decoded = tools.decoder_cuts.tokenize(texts)
    encoded = [None] * len(batch) if tools.encoder_cuts is None else tools.encoder_cuts.tokenize(texts)
    for document, decoder, encoder in zip(batch, decoded, encoded, strict=True):
        if encoder is not None:
            decoder, encoder = common_cuts(decoder, encoder)
        if (reason := _defect(document, decoder, encoder, tools)) is not None:
            counts[reason] += 1
        else:
            yield document_columns(document.id, document.text, decoder, encoder)


def _defect(document: Document, decoder: TokenizedText, encoder: TokenizedText | None, tools: Tools) -> str | None:
    """Why a tokenized document cannot be used, or None."""
    if len(decoder.ids) < 2:
        return "too_short"
    both = [(decoder, tools.decoder_cuts, tools.decoder)]
    if encoder is not None and tools.encoder_cuts is not None:
        both.append((encoder, tools.encoder_cuts, tools.encoder))
    # One slice of every document is tokenized again: a tokenizer that cuts do not suit is found here, not in training.
    draw = int.from_bytes(hashlib.sha256(document.id.encode()).digest()[:8], "big")
    first = draw % (len(decoder.cuts) - 1)
    last = min(first + 1 + draw // 2**20 % _PROBE_CUTS, len(decoder.cuts) - 1)
    for found, finder, tokenizer in both:
        if np.isin(found.ids, list(tokenizer.special_tokens.values())).any():
            return "special_token"
        if not finder.is_stable(document.text, found, first, last):
            return "unstable_cuts"
    return None


def _chat_records(group: Sequence[Entry], tools: Tools, counts: Counter[str]) -> Iterator[Columns]:
    # Files that cannot be used are counted with the documents; here only what concerns chats.
    for document in _documents(group, tools, Counter()):
        if any(special in document.text for special in tools.special_strings):
            counts["special_token"] += 1  # in a chat its text would become the token
            continue
        for number, messages in enumerate(chats_of(document, counts)):
            outline = chat_outline(messages, tools.decoder, tools.encoder, replies="all")
            yield chat_columns(f"{document.id}:{number}", messages, outline)


def _manifest(settings: dict[str, Any], key: str, written: dict[str, dict[str, list[Written]]]) -> dict[str, Any]:
    collections: dict[str, Any] = {}
    for collection, splits in written.items():
        collections[collection] = {}
        for split, shards in splits.items():
            totals: Counter[str] = Counter()
            counts: Counter[str] = Counter()
            for one in shards:
                totals.update(one.totals)
                counts.update(one.counts)
            collections[collection][split] = {
                "records": sum(one.shard.records for one in shards),
                **dict(sorted(totals.items())),
                "counts": dict(sorted(counts.items())),
                "shards": [one.shard._asdict() for one in shards],
            }
    return {"format": FORMAT, "key": key, "settings": settings, "collections": collections}


def _check_use(manifest: dict[str, Any]) -> None:
    train = manifest["collections"]["documents"]["train"]
    if not train["records"]:
        raise PreparedError(
            f"no document of the training split can be used (left out: {train['counts']}); check the corpus, its"
            " shares of splits and the tokenizers"
        )


def _remove_leftovers(root: Path, manifest: dict[str, Any]) -> None:
    """Delete shards that an interrupted preparation with other settings left under other names."""
    for collection in COLLECTIONS:
        splits = manifest["collections"].get(collection, {})
        files = [root / shard["file"] for split in splits.values() for shard in split["shards"]]
        kept = {*files, *(lengths_path(file) for file in files)}
        for pattern in ("*-of-*.array_record*", "*-of-*.lengths.safetensors*"):
            for path in (root / collection).glob(pattern):
                if path not in kept:
                    logger.info("deleting %s, left by an interrupted preparation", path)
                    path.unlink()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise PreparedError(f"cannot write {path}: {error.strerror}; free some space and prepare again") from error
