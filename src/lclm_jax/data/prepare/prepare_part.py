"""One part of a corpus to its shards: read, filtered, tokenized, checked, written."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Literal

import numpy as np

from lclm_jax.config import CollectionConfig, Config
from lclm_jax.data.demo.function_chats import chats_of
from lclm_jax.data.documents import Document, RawChat
from lclm_jax.data.prepare.corpus import read_chats, read_documents
from lclm_jax.data.prepare.deduplication import dedup_folder, without_duplicates
from lclm_jax.data.prepare.file_versions import sources_of, write_sources
from lclm_jax.data.prepare.filters import part_documents
from lclm_jax.data.prepare.parts import Part, Report
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.prepare.rows.decontamination import Decontamination
from lclm_jax.data.prepare.rows.long_documents import pieces
from lclm_jax.data.prepare.rows.printed_keys import PrintedKeys
from lclm_jax.data.prepare.rows.reasoning import ReasoningPolicy, row_name
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.records import Columns, chat_columns, document_columns, with_language
from lclm_jax.data.store.shard_writer import ShardWriter
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.data.store.vocabulary import TokenBytes, token_bytes
from lclm_jax.text.boundaries import TokenizedText
from lclm_jax.text.chats.chat_template import ChatError
from lclm_jax.text.chats.loss_markers import LossMarkerError
from lclm_jax.text.chats.rendered import render_trained
from lclm_jax.text.chats.replies import EmptyReplyError
from lclm_jax.text.chats.special_strings import SpecialStrings, SpecialTokenError
from lclm_jax.text.chunked_encoding import UnbrokenTextError
from lclm_jax.text.cuts import CutFinder, common_cuts
from lclm_jax.text.example import chat_outline, outline_pieces, rendered_outline
from lclm_jax.text.memory_tags import MemoryTagError, split_memory
from lclm_jax.text.outline import Outline
from lclm_jax.text.run_tokenizers import read_tokenizers
from lclm_jax.text.shared_tokenization import SharedTokenization, shared_tokenization
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers

_NAMES = 2
_BATCH_CHARACTERS = 1_000_000
_PROBE_CUTS = 24
_PROOF_EVERY = 64
_LONG_WITHOUT_CUTS = 200
"""Characters from which on a document without inner cuts is counted."""

_REASONS = {SpecialTokenError: "special_token", EmptyReplyError: "empty_reply"}

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
    shared: SharedTokenization | None = field(init=False)
    """Which texts need to be tokenized only once; None: none may be."""
    decoder_cuts: CutFinder = field(init=False)
    encoder_cuts: CutFinder | None = field(init=False)
    """None: both tokenizers are the same."""

    def __post_init__(self):
        same = self.decoder.digest == self.encoder.digest
        object.__setattr__(self, "shared", shared_tokenization(self.decoder, self.encoder))
        object.__setattr__(self, "decoder_cuts", CutFinder(self.decoder))
        object.__setattr__(self, "encoder_cuts", None if same else CutFinder(self.encoder))

    @classmethod
    def of(
        cls, config: Config, storage: Storage, key: str, tokenizers: Tokenizers | None = None
    ) -> "PreparationContext":
        """With ``tokenizers``, or else those of the run; raises ``LclmError`` if one of them cannot cut documents."""
        context = cls(config, storage, key, *(tokenizers or read_tokenizers(config)))
        if any(one.records == "documents" for one in config.corpus.resolved.values()):
            for cuts in (context.decoder_cuts, context.encoder_cuts):
                if cuts is not None:
                    cuts.check()
        return context

    @cached_property
    def vocabulary(self) -> TokenBytes | None:
        """Bytes of the decoder's tokens, by which records leave out their text."""
        return token_bytes(self.decoder)

    @cached_property
    def special_strings(self) -> SpecialStrings:
        """Text that would become a special token in a chat."""
        return SpecialStrings({*self.decoder.special_tokens, *self.encoder.special_tokens})

    def tokenized_once(self, document: Document) -> bool:
        """Whether the decoder's tokenization of ``document`` is the encoder's too."""
        return self.shared is not None and self.shared.covers(document.text)


def make_part(part: Part, context: PreparationContext, strict: bool = False) -> Report:
    """The report of ``part``: the stored one if the same settings finished it before, else of shards made now.

    Raises:
        BadRow: ``strict``, and a row is bad.
        LclmError: the disk refuses, or the machine does.
    """
    storage, key = context.storage, context.key
    if (done := Report.read(storage, part, key)) is not None:
        return done
    storage.delete(f"{part.stem}.json")
    counter = RejectCounter(strict)
    collection = context.config.corpus.resolved[part.collection]
    sources = sources_of(part, collection)
    make = {"documents": _document_records, "chat": _chat_records, "function_chat": _function_chat_records}
    kind = "documents" if collection.records == "documents" else "chat"
    writers: dict[str, ShardWriter] = {}
    names: list[str] = []
    try:
        records = make[collection.records](part, collection, context, counter)
        for split, columns in records:
            if split not in writers:
                writers[split] = ShardWriter(storage, part.shard(split), kind, context.vocabulary)
            writers[split].add(columns)
            if len(names) < _NAMES and (name := column_text(columns["id"])) not in names:
                names.append(name)
        finished = {split: writers.pop(split).finish() for split in part.splits if split in writers}
    finally:
        for writer in writers.values():
            writer.abandon()
    report = Report(
        key,
        {split: shard for split, (shard, _) in finished.items()},
        {split: totals for split, (_, totals) in finished.items()},
        dict(sorted(counter.counts.items())),
        counter.rejects,
        counter.files,
        names,
    )
    with storage.refusals(part.stem):
        write_sources(storage, part, key, sources)
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
        for piece in pieces(document):
            if piece is not document and piece.id == document.id:
                counter.note("in_pieces")
            batch.append(piece)
            characters += len(piece.text)
            if characters >= _BATCH_CHARACTERS:
                yield from _tokenized(batch, context, counter)
                batch, characters = [], 0
    yield from _tokenized(batch, context, counter)


def _tokenized(batch: Sequence[Document], context: PreparationContext, counter: RejectCounter) -> Iterator[Placed]:
    texts = [document.text for document in batch]
    decoded = context.decoder_cuts.tokenize_each(texts)
    for document, decoder, encoder in zip(batch, decoded, _encoder_tokens(batch, context), strict=True):
        if isinstance(decoder, UnbrokenTextError) or isinstance(encoder, UnbrokenTextError):
            counter.reject("unbroken", document.id, str(decoder if isinstance(decoder, UnbrokenTextError) else encoder))
            continue
        if encoder is not None and context.tokenized_once(document):
            _check_equal(document, decoder, encoder, context)
            encoder = None
        if encoder is not None:
            decoder, encoder = common_cuts(decoder, encoder)
        if (reason := _defect(document, decoder, encoder, context)) is not None:
            counter.note(reason)
            continue
        if len(decoder.cuts) == 2 and len(document.text) >= _LONG_WITHOUT_CUTS:
            counter.note("no_inner_cuts")
        columns = document_columns(document.id, document.text, decoder, encoder)
        yield document.split, with_language(columns, document.language)


def _encoder_tokens(
    batch: Sequence[Document], context: PreparationContext
) -> Iterator[TokenizedText | UnbrokenTextError | None]:
    """The encoder's tokenization of each document; None where it is not needed.

    Of the documents that the decoder's would do for, one in ``_PROOF_EVERY``, drawn by name, is tokenized all the same.
    """
    if context.encoder_cuts is None:
        yield from repeat(None, len(batch))
        return
    wanted = [not context.tokenized_once(one) or _draw(one) % _PROOF_EVERY == 0 for one in batch]
    found = context.encoder_cuts.tokenize_each([one.text for one, own in zip(batch, wanted, strict=True) if own])
    for own in wanted:
        yield next(found) if own else None


def _check_equal(
    document: Document, decoder: TokenizedText, encoder: TokenizedText, context: PreparationContext
) -> None:
    """Raise ``PreparedError`` if the tokenizers differ on a text on which their settings say they agree."""
    if not np.array_equal(encoder.ids, decoder.ids) or not np.array_equal(encoder.cuts, decoder.cuts):
        raise PreparedError(
            f"the tokenizers {context.decoder.folder} and {context.encoder.folder} give other ids for the text of"
            f" {document.id}, although their models are the same; report it with both tokenizer.json"
        )


def _draw(document: Document) -> int:
    """A number from 0 to 2**64 - 1 that a document's name decides."""
    return int.from_bytes(hashlib.sha256(document.id.encode()).digest()[:8], "big")


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
    draw = _draw(document)
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
    documents = read_documents(part.entries, collection, context.config.corpus, RejectCounter())
    for document in Decontamination(context.config.corpus, counter).clean(documents):
        if context.special_strings.in_text(document.text):
            counter.note("special_token")  # in a chat its text would become the token
            continue
        for number, messages in enumerate(chats_of(document, counter.counts)):
            outline = chat_outline(messages, context.decoder, context.encoder, replies="all")
            yield document.split, chat_columns(f"{document.id}:{number}", messages, outline)


def _chat_records(
    part: Part, collection: CollectionConfig, context: PreparationContext, counter: RejectCounter
) -> Iterator[Placed]:
    printed, policy = PrintedKeys(context.decoder), None
    if collection.compress_reasoning is not None:
        policy = ReasoningPolicy(collection.compress_reasoning, context.decoder, counter)
    benchmarks = Decontamination(context.config.corpus, counter)
    for chat in read_chats(part.entries, collection, context.config.corpus, counter):
        if not benchmarks.keeps_chat(chat.raw):
            continue
        outline = _chat_outline(chat.raw, collection, policy, context, counter)
        if outline is not None:
            printed.look(chat.raw)
            columns = chat_columns(chat.raw.id, chat.raw.messages, outline)
            yield chat.split, with_language(columns, chat.raw.language)
    counter.counts.update(printed.unprinted())


def _chat_outline(
    chat: RawChat,
    collection: CollectionConfig,
    policy: ReasoningPolicy | None,
    context: PreparationContext,
    counter: RejectCounter,
) -> Outline | None:
    """The outline of a raw chat, or None if it is rejected.

    Reasons: ``special_token``, ``unbalanced_tags``, ``loss_marker``, ``no_loss``, ``empty_reply``, ``unbroken``,
    ``template``.
    """
    decoder, encoder, strings = context.decoder, context.encoder, context.special_strings
    try:
        if chat.tagged is not None:
            if (found := strings.forbidden(chat.tagged)) is not None:
                raise SpecialTokenError(f"{found!r} in the text; remove it from the row")
            return outline_pieces(split_memory(chat.tagged), decoder, encoder, raw_loss=1.0)
        messages = chat.messages if policy is None else policy.untagged(chat.messages)
        replies: Literal["last", "all"] = "all" if collection.train_on == "replies" else "last"
        rendered = render_trained(messages, decoder, replies, chat.tools, strings)
        if policy is not None:
            rendered = policy.compress(rendered, row_name(chat, messages, collection.columns.id is not None))
        outline = rendered_outline(rendered, decoder, encoder, strings)
        if outline.loss.any():
            return outline
        counter.reject("no_loss", chat.id, "every reply is marked as not to be trained on")
    except ChatError as error:
        reason = next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), "template")
        counter.reject(reason, chat.id, str(error))
    except UnbrokenTextError as error:
        counter.reject("unbroken", chat.id, str(error))
    except MemoryTagError as error:
        counter.reject("unbalanced_tags", chat.id, str(error))
    except LossMarkerError as error:
        counter.reject("loss_marker", chat.id, str(error))
    return None
