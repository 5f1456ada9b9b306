"""Raw collections read as documents and chats, each with the split that a hash gives it."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence

from lclm_jax.config import CollectionConfig, Config, CorpusConfig, RunPaths
from lclm_jax.data.documents import Chat, Document, Entry, Row
from lclm_jax.data.prepare.readers import list_entries, read_rows
from lclm_jax.data.prepare.readers.local_files import same_file
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.prepare.row_validation import chat_of, document_of
from lclm_jax.data.prepare.rows.selection import RowSelection
from lclm_jax.errors import LclmError
from lclm_jax.text.memory_tags import split_memory

SPLITS = ("train", "validation", "held_out")

"""train: training and tokenizer training; validation: to tune on; held_out: only the final evaluation reads it."""


def split_of(name: str, config: CorpusConfig) -> str:
    """The split by the SHA-256 of a name (or text) alone: it never depends on other documents."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if share < config.held_out_share:
        return "held_out"
    return "validation" if share < config.held_out_share + config.validation_share else "train"


def list_collection(collection: CollectionConfig, part_bytes: int, outputs: Sequence[str] = ()) -> list[Entry]:
    """Every entry of ``collection`` in the order of names; with ``max_bytes``, a sample by hash that fits in it.

    ``outputs``: folders that this run writes (``output_folders``). What is in them is no corpus, unless a path of the
    collection names something inside them.

    Raises:
        LclmError: a path is missing, or there is no file to read.
    """
    entries = list_entries(collection, part_bytes)
    named = [_folder(path) for path in collection.paths]
    inside = tuple(one for one in outputs if not any(path.startswith(one) for path in named))
    if inside and collection.paths:
        entries = [one for one in entries if not _place(one.path).startswith(inside)]
    if collection.max_bytes is not None:
        entries = _sample(entries, collection.max_bytes)
    if not entries:
        raise LclmError(
            f"a collection is empty (format={collection.format}, paths={list(collection.paths)}, endings"
            f" {list(collection.endings)}, max_bytes={collection.max_bytes}); name files that exist"
        )
    return entries


def output_folders(config: Config) -> tuple[str, ...]:
    """Folders that the run of ``config`` writes into, for ``list_collection``."""
    paths = RunPaths(config)
    return tuple(_folder(str(folder)) for folder in (paths.prepared, paths.root, paths.root / "stages"))


def _folder(path: str) -> str:
    """One text for all ways to write a folder, with a slash at its end; a URL as it is."""
    return path.rstrip("/") + "/" if "://" in path else os.path.join(os.path.realpath(path), "")


def _place(path: str) -> str:
    return path if "://" in path else same_file(path)


def read_documents(
    entries: Iterable[Entry], collection: CollectionConfig, config: CorpusConfig, counter: RejectCounter
) -> Iterator[Document]:
    """The documents of ``entries``.

    A document's split is a hash of its name where it is a file or has an id, else of its text, so that equal rows
    never stand in two splits.
    """
    named = collection.by_file or collection.columns.id is not None
    for row in _rows(entries, collection, counter):
        if (raw := document_of(row, collection, counter)) is not None:
            yield Document(raw.id, raw.text, split_of(raw.id if named else raw.text, config), raw.language)


def read_chats(
    entries: Iterable[Entry], collection: CollectionConfig, config: CorpusConfig, counter: RejectCounter
) -> Iterator[Chat]:
    """The chats of ``entries``; their splits as in ``read_documents``."""
    for row in _rows(entries, collection, counter):
        if (chat := chat_of(row, collection, counter)) is not None:
            name = chat.id if collection.columns.id else json.dumps(chat.messages, ensure_ascii=False)
            yield Chat(chat, split_of(name, config))


def _rows(entries: Iterable[Entry], collection: CollectionConfig, counter: RejectCounter) -> Iterator[Row]:
    """The rows that can be read; what cannot is counted, files that give nothing by name."""
    selection = RowSelection(collection, counter)
    for entry in entries:
        found = False
        for row in read_rows(entry, collection):
            found = True
            if isinstance(row, Row):
                if selection.takes(row):
                    yield row
            elif row.whole:
                counter.reject_file(row.reason, row.place, row.excerpt)
            else:
                counter.reject(row.reason, row.place, row.excerpt)
        if not found and entry.path and not entry.start and entry.stop is None:
            counter.note_file("no_rows", entry.id, "it has no rows")


def read_corpus(
    config: CorpusConfig,
    splits: Iterable[str] = SPLITS,
    counter: RejectCounter | None = None,
    max_bytes: int = 2**62,
    outputs: Sequence[str] = (),
) -> Iterator[Document]:
    """Documents of ``splits`` of all collections of documents; what cannot be used goes to ``counter``.

    ``max_bytes`` bounds the text (in characters): each collection gives a like share of the beginnings of its files.
    ``outputs``: as in ``list_collection``.

    Raises:
        LclmError: as ``list_collection``.
    """
    wanted, counter = set(splits), counter or RejectCounter()
    collections = [one for one in config.resolved.values() if one.records == "documents"]
    for collection in collections:
        for entry, left in _budgets(collection, max_bytes // len(collections), outputs):
            for document in read_documents([entry], collection, config, counter):
                if document.split in wanted:
                    yield document
                left -= len(document.text)
                if left <= 0:
                    break


def read_tokenizer_texts(
    config: CorpusConfig, counter: RejectCounter, max_bytes: int, outputs: Sequence[str] = ()
) -> Iterator[str]:
    """What a tokenizer is trained on: documents of the training split, or if a corpus is all chats, their messages.

    Arguments and errors as in ``read_corpus``.
    """
    collections = config.resolved.values()
    if any(one.records == "documents" for one in collections):
        yield from (document.text for document in read_corpus(config, ("train",), counter, max_bytes, outputs))
        return
    for collection in collections:
        for entry, left in _budgets(collection, max_bytes // len(collections), outputs):
            for chat in read_chats([entry], collection, config, counter):
                said = [text for one in chat.raw.messages if isinstance(text := one.get("content"), str)]
                if chat.split == "train":
                    yield from (piece.text for text in said for piece in split_memory(text))
                left -= sum(map(len, said))
                if left <= 0:
                    break


def _budgets(collection: CollectionConfig, share: int, outputs: Sequence[str]) -> Iterator[tuple[Entry, float]]:
    """Each entry, and how much of it is read: all, or a like part if all entries exceed ``share`` bytes."""
    entries = list_collection(collection, 2**62, outputs)
    whole = sum(entry.size for entry in entries) <= share
    for entry in entries:
        yield entry, math.inf if whole else share // len(entries)


def _sample(entries: Sequence[Entry], budget: int) -> list[Entry]:
    """As many entries as fit, taken in the order of their hashes: a fair sample that stays the same."""
    kept = set()
    for entry in sorted(entries, key=_rank):
        if entry.size > budget:
            break
        budget -= entry.size
        kept.add((entry.id, entry.start))
    return [entry for entry in entries if (entry.id, entry.start) in kept]


def _rank(entry: Entry) -> bytes:
    name = entry.id if not entry.start else f"{entry.id}:{entry.start}"
    return hashlib.sha256(b"sample:" + name.encode()).digest()
