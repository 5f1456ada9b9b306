"""One part of a corpus to its shards: read, filtered, tokenized, checked, written."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lclm_jax.config import CollectionConfig, Config, RunPaths
from lclm_jax.data.demo.function_chats import chats_of
from lclm_jax.data.documents import Document, RawChat
from lclm_jax.data.prepare.corpus import read_chats, read_documents
from lclm_jax.data.prepare.deduplication import dedup_folder, without_duplicates
from lclm_jax.data.prepare.filters import part_documents
from lclm_jax.data.prepare.parts import Part, Report
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.store.records import Columns, chat_columns, document_columns
from lclm_jax.data.store.shard_writer import ShardWriter
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.errors import LclmError
from lclm_jax.text.boundaries import TokenizedText
from lclm_jax.text.cuts import CutFinder, common_cuts
from lclm_jax.text.example import Outline, chat_outline, outline_pieces
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START, MemoryTagError, split_memory
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers

_BATCH_CHARACTERS = 1_000_000
_PROBE_CUTS = 24

Placed = tuple[str, Columns]
"""(split, record)."""


@dataclass(frozen=True)
class PreparationContext:
    """What turns raw rows into records."""

    config: Config
    storage: Storage
    """The prepared folder."""
    key: str
    """Hash of the settings."""
    decoder: Tokenizer
    encoder: Tokenizer
    decoder_cuts: CutFinder = field(init=False)
    encoder_cuts: CutFinder | None = field(init=False)

    def __post_init__(self):
        same = self.decoder.digest == self.encoder.digest
        object.__setattr__(self, "decoder_cuts", CutFinder(self.decoder))
        object.__setattr__(self, "encoder_cuts", None if same else CutFinder(self.encoder))

    @classmethod
    def of(cls, config: Config, storage: Storage, key: str) -> "PreparationContext":
        """With the tokenizers of the run."""
        return cls(config, storage, key, *run_tokenizers(config))

    @cached_property
    def special_strings(self) -> tuple[str, ...]:
        """Text that would become a special token in a chat; memory tags are wanted there."""
        named = {*self.decoder.special_tokens, *self.encoder.special_tokens}
        return tuple(sorted(named - {MEMORY_START, MEMORY_END}))


def run_tokenizers(config: Config) -> Tokenizers:
    """The tokenizers of the run, read from their folders."""
    paths = RunPaths(config)
    return Tokenizers(Tokenizer(paths.decoder_tokenizer), Tokenizer(paths.encoder_tokenizer))


def make_part(part: Part, context: PreparationContext, strict: bool = False) -> Report:
    """The report of ``part``: the stored one if the same settings finished it before, else of shards made now.

    Raises:
        BadRow: ``strict``, and a row is bad.
        PreparedError: the disk refuses.
    """
    storage, key = context.storage, context.key
    if (done := Report.read(storage, part, key)) is not None:
        return done
    storage.delete(f"{part.stem}.json")
    counter = RejectCounter(strict)
    collection = context.config.corpus.resolved[part.collection]
    make = {"documents": _document_records, "chat": _chat_records, "function_chat": _function_chat_records}
    kind = "documents" if collection.records == "documents" else "chat"
    writers: dict[str, ShardWriter] = {}
    try:
        for split, columns in make[collection.records](part, collection, context, counter):
            if split not in writers:
                writers[split] = ShardWriter(storage, part.shard(split), kind)
            writers[split].add(columns)
        finished = {split: writers.pop(split).finish() for split in part.splits if split in writers}
    except (OSError, RuntimeError) as error:
        raise PreparedError(
            f"cannot write {storage.shown(part.stem)}: {error}; free some space or choose another data.prepared"
        ) from error
    finally:
        for writer in writers.values():
            writer.abandon()
    report = Report(
        key,
        {split: shard for split, (shard, _) in finished.items()},
        {split: totals for split, (_, totals) in finished.items()},
        dict(sorted(counter.counts.items())),
        counter.rejects,
    )
    report.write(storage, part)
    return report


def _document_records(
    part: Part, collection: CollectionConfig, context: PreparationContext, counter: RejectCounter
) -> Iterator[Placed]:
    documents = part_documents(part, collection, context.config, counter)
    if collection.dedup:
        folder = dedup_folder(context.storage, context.key, part.collection)
        documents = without_duplicates(documents, part, collection.dedup, folder, counter)
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield from _tokenized(batch, context, counter)
            batch, characters = [], 0
    yield from _tokenized(batch, context, counter)


def _tokenized(batch: Sequence[Document], context: PreparationContext, counter: RejectCounter) -> Iterator[Placed]:
    texts = [document.text for document in batch]
    decoded = context.decoder_cuts.tokenize(texts)
    encoded = [None] * len(batch) if context.encoder_cuts is None else context.encoder_cuts.tokenize(texts)
    for document, decoder, encoder in zip(batch, decoded, encoded, strict=True):
        if encoder is not None:
            decoder, encoder = common_cuts(decoder, encoder)
        if (reason := _defect(document, decoder, encoder, context)) is not None:
            counter.note(reason)
        else:
            yield document.split, document_columns(document.id, document.text, decoder, encoder)


def _defect(
    document: Document, decoder: TokenizedText, encoder: TokenizedText | None, context: PreparationContext
) -> str | None:
    """Why a tokenized document cannot be used, or None."""
    if len(decoder.ids) < 2:
        return "too_short"
    both = [(decoder, context.decoder_cuts, context.decoder)]
    if encoder is not None and context.encoder_cuts is not None:
        both.append((encoder, context.encoder_cuts, context.encoder))
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


def _function_chat_records(
    part: Part, collection: CollectionConfig, context: PreparationContext, counter: RejectCounter
) -> Iterator[Placed]:
    # Files that cannot be used are counted with the documents; here only what concerns chats.
    for document in read_documents(part.entries, collection, context.config.corpus, RejectCounter()):
        if any(special in document.text for special in (*context.special_strings, MEMORY_START, MEMORY_END)):
            counter.note("special_token")  # in a chat its text would become the token
            continue
        for number, messages in enumerate(chats_of(document, counter.counts)):
            outline = chat_outline(messages, context.decoder, context.encoder, replies="all")
            yield document.split, chat_columns(f"{document.id}:{number}", messages, outline)


def _chat_records(
    part: Part, collection: CollectionConfig, context: PreparationContext, counter: RejectCounter
) -> Iterator[Placed]:
    for chat in read_chats(part.entries, collection, context.config.corpus, counter):
        outline = _chat_outline(chat.raw, context, counter)
        if outline is not None:
            yield chat.split, chat_columns(chat.raw.id, chat.raw.messages, outline)


def _chat_outline(chat: RawChat, context: PreparationContext, counter: RejectCounter) -> Outline | None:
    """The outline of a raw chat, or None if it is rejected (``special_token``, ``unbalanced_tags``, ``template``)."""
    shown = repr(chat.messages)
    if any(special in message["content"] for message in chat.messages for special in context.special_strings):
        counter.reject("special_token", chat.id, shown)
        return None
    try:
        if chat.tagged is not None:
            return outline_pieces(split_memory(chat.tagged), context.decoder, context.encoder, raw_loss=1.0)
        return chat_outline(chat.messages, context.decoder, context.encoder, replies="all", tools=chat.tools)
    except MemoryTagError as error:
        counter.reject("unbalanced_tags", chat.id, str(error))
    except LclmError as error:
        counter.reject("template", chat.id, str(error))
    return None
