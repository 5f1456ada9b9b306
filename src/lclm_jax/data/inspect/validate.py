"""Checks of a prepared corpus from end to end: every file by its checksum, every record by its contents."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.lengths import Lengths
from lclm_jax.data.store.records import RAGGED, SCALARS, lengths_of
from lclm_jax.data.store.shards import PreparedSplit, Shard, lengths_name, read_manifest
from lclm_jax.data.store.storage import PreparedError, Storage
from lclm_jax.errors import LclmError
from lclm_jax.text.blank_boundaries import blank_boundaries
from lclm_jax.text.boundaries import boundary_kinds, byte_positions
from lclm_jax.text.cuts import slice_between_cuts
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.types import ReadOnlyJson

_BATCH = 64
_SLICES = 4


@dataclass(frozen=True)
class Defect:
    """What is wrong, and where."""

    place: str
    """Manifest, shard, or shard and record."""
    fault: str

    def __str__(self) -> str:
        return f"{self.place}: {self.fault}"


def validate(storage: Storage, tokenizers: Tokenizers, sample: float = 0.02) -> Iterator[Defect]:
    """Every defect of the prepared folder; none for a sound one.

    Checked are the manifest, the checksum of every file, the lengths beside every record, ids within the vocabulary,
    cuts and offsets that ascend and end where the text does; and on a ``sample`` of the records that tokenizing the
    text, and slices of it between cuts, gives the ids.

    Args:
        storage: the prepared folder.
        tokenizers: those it was prepared with.
        sample: share of the records that are tokenized again; of every shard at least one.
    """
    try:
        manifest = read_manifest(storage)
    except PreparedError as error:
        yield Defect("manifest.json", str(error))
        return
    for role, tokenizer in tokenizers._asdict().items():
        if manifest["settings"]["tokenizers"][role]["sha256"] != tokenizer.digest:
            yield Defect("manifest.json", f"it was prepared with another {role} tokenizer than {tokenizer.folder}")
            return
    for collection, splits in manifest["collections"].items():
        for split, entry in splits.items():
            yield from _split(storage, tokenizers, (collection, split), entry, manifest["kinds"][collection], sample)


def _split(
    storage: Storage,
    tokenizers: Tokenizers,
    name: tuple[str, str],
    entry: ReadOnlyJson,
    kind: str,
    sample: float,
) -> Iterator[Defect]:
    reader = PreparedSplit(storage.root, *name, storage.cache)
    if entry["records"] != len(reader):
        yield Defect("manifest.json", f"{'/'.join(name)} has {entry['records']} records, its shards {len(reader)}")
    first, tokens = 0, 0
    for shard in reader.shards:
        try:
            defects = list(_files(storage, shard))
            if not defects:
                held = storage.hold(lengths_name(shard.file), shard.lengths_sha256)
                lengths = Lengths(held.path)
                tokens += int(lengths.numbers("decoder_tokens").sum())
                checker = _Checker(shard, kind, lengths, tokenizers)
                defects = list(_records(checker, reader, first, sample))
            yield from defects
        except (LclmError, ValueError) as error:
            yield Defect(shard.file, str(error))
        first += shard.records
    if tokens != entry["decoder_tokens"]:
        yield Defect("manifest.json", f"{'/'.join(name)} has {entry['decoder_tokens']} tokens, its shards {tokens}")


def _files(storage: Storage, shard: Shard) -> Iterator[Defect]:
    for name, expected in ((shard.file, shard.sha256), (lengths_name(shard.file), shard.lengths_sha256)):
        if (actual := storage.digest(name, expected)) != expected:
            yield Defect(name, f"its checksum is {actual[:12]}.. instead of {expected[:12]}..")


def _records(checker: "_Checker", reader: PreparedSplit, first: int, sample: float) -> Iterator[Defect]:
    count = checker.shard.records
    if any(len(checker.lengths.numbers(name)) != count for name in SCALARS[checker.kind]):
        yield Defect(lengths_name(checker.shard.file), f"it does not have the lengths of {count} records")
        return
    every = max(1, min(count, round(1 / sample))) if sample else count + 1
    for start in range(0, count, _BATCH):
        stop = min(start + _BATCH, count)
        for number, record in enumerate(reader.read_many(range(first + start, first + stop)), start):
            for fault in checker.faults(number, record, tokenize=number % every == 0):
                yield Defect(f"{checker.shard.file} record {number}", fault)


class _Checker:
    """Checks of the records of one shard."""

    def __init__(self, shard: Shard, kind: str, lengths: Lengths, tokenizers: Tokenizers):
        self.shard, self.kind, self.lengths, self._tokenizers = shard, kind, lengths, tokenizers

    def faults(self, number: int, record: Mapping[str, np.ndarray], tokenize: bool) -> Iterator[str]:
        """What is wrong with the record ``number``."""
        try:
            yield from self._lengths(number, record)
            check = self._document if self.kind == "documents" else self._chat
            yield from check(number, record, tokenize)
        except (KeyError, IndexError, UnicodeDecodeError, json.JSONDecodeError) as error:
            yield f"it cannot be read ({error!r})"

    def _lengths(self, number: int, record: Mapping[str, np.ndarray]) -> Iterator[str]:
        numbers, lists = lengths_of(self.kind, dict(record))
        for name, value in numbers.items():
            stored = int(self.lengths.numbers(name)[number])
            if stored != value:
                yield f"{name} is {value}, its lengths file says {stored}"
        for name in RAGGED[self.kind]:
            if name in lists:
                found = self.lengths.lists(name, np.array([number]))
                if found is None or not np.array_equal(found.values, lists[name]):
                    yield f"{name} differ from its lengths file"

    def _document(self, number: int, record: Mapping[str, np.ndarray], tokenize: bool) -> Iterator[str]:
        text = column_text(record["text"])
        roles = [("decoder", record["decoder_ids"], record["cuts"])]
        if "encoder_ids" in record:
            roles.append(("encoder", record["encoder_ids"], record["encoder_cuts"]))
        offsets = record["cut_bytes"].astype(np.int64)
        if not _ascends(offsets, len(record["text"])):
            yield "cut_bytes do not ascend from 0 to the end of the text"
            return
        starts = np.searchsorted(_character_bytes(text), offsets)
        if not np.array_equal(record["cut_kinds"], boundary_kinds(text, starts)):
            yield "cut_kinds are not those of its text"
        for role, ids, cuts in roles:
            tokenizer: Tokenizer = getattr(self._tokenizers, role)
            if ids.size and int(ids.max()) >= tokenizer.vocab_size:
                yield f"{role} id {int(ids.max())} is outside the vocabulary of {tokenizer.vocab_size}"
            elif not _ascends(cuts.astype(np.int64), len(ids)) or len(cuts) != len(offsets):
                yield f"{role} cuts do not ascend from 0 to the number of tokens"
            elif tokenize:
                yield from _tokenized_again(role, tokenizer, record["text"], (ids, cuts, offsets), number)

    def _chat(self, number: int, record: Mapping[str, np.ndarray], tokenize: bool) -> Iterator[str]:
        decoder, encoder = self._tokenizers
        json.loads(column_text(record["messages"]))
        tokens, gaps, loss = record["tokens"], record["gaps"].astype(np.int64), record["loss"]
        if tokens.size and int(tokens.max()) >= decoder.vocab_size:
            yield f"id {int(tokens.max())} is outside the vocabulary of {decoder.vocab_size}"
        if record["span_ids"].size and int(record["span_ids"].max()) >= encoder.vocab_size:
            yield f"encoder id {int(record['span_ids'].max())} is outside the vocabulary of {encoder.vocab_size}"
        if len(loss) != len(tokens) or not loss.any():
            yield "it has no loss weight for each token, or none above zero"
        if int(record["span_tokens"].sum()) != len(record["span_ids"]) or len(gaps) != len(record["span_tokens"]):
            yield "its spans, their lengths and their gaps do not agree"
        elif (gaps >= len(tokens)).any() or (tokens[gaps] != decoder.memory_ids.end).any():
            yield "a gap does not stand before the end tag of its span"


def _tokenized_again(
    role: str, tokenizer: Tokenizer, text: np.ndarray, columns: tuple[np.ndarray, ...], number: int
) -> Iterator[str]:
    """The whole text, and a few slices between cuts."""
    ids, cuts, offsets = columns
    content, last = text.tobytes(), len(cuts) - 1
    blanks = blank_boundaries(tokenizer)
    slices = {(0, last)} | {(last * i // 7, last * (i + 2) // 7) for i in range(number % 3, number % 3 + _SLICES)}
    for first, stop in sorted(slices):
        piece = content[offsets[first] : offsets[stop]].decode()
        piece = slice_between_cuts(piece, first, blanks is not None and blanks.adds_blank)
        if not np.array_equal(tokenizer.encode(piece, plain=True), ids[cuts[first] : cuts[stop]]):
            yield f"the text between cuts {first} and {stop} gives other {role} ids"
            return


def _ascends(places: np.ndarray, end: int) -> bool:
    return places.size > 1 and places[0] == 0 and places[-1] == end and bool((np.diff(places) > 0).all())


def _character_bytes(text: str) -> np.ndarray:
    """Byte position of every character, and of the end."""
    return byte_positions(text, np.arange(len(text) + 1)).astype(np.int64)
