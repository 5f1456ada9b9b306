"""Raw text in Parquet files: our pipeline with the tokenizer inside it, and the usual PyTorch loader beside it."""

import random
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lclm_jax.config import ModelConfig, PackConfig, SpanConfig
from lclm_jax.data.store.columns import Ragged, column_text
from lclm_jax.data.store.shards import PreparedSplit
from lclm_jax.text.boundaries import TokenizedText
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.tokenizer import Tokenizer

ROW_GROUP = 64
_OPEN_GROUPS = 64


def write_parquet(split: PreparedSplit, path: Path) -> int:
    """Write the texts of a prepared split as the column ``text``; returns the bytes of text."""
    texts = [column_text(columns["text"]) for columns in split.read_many(range(len(split)))]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=ROW_GROUP)
    return sum(len(text.encode()) for text in texts)


class RawSplit:
    """Documents of a Parquet file, tokenized when their cuts are first asked for; stands in for prepared shards."""

    def __init__(self, path: Path, tokenizer: Tokenizer):
        self._file = pq.ParquetFile(path)
        self._finder = CutFinder(tokenizer)
        self._found: dict[int, TokenizedText] = {}
        self._group = lru_cache(_OPEN_GROUPS)(lambda group: self._file.read_row_group(group, ["text"])["text"])
        self.digest = str(path)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    @property
    def mean_tokens(self) -> None:
        """Not known before the text is tokenized."""

    def lists(self, name: str, records: np.ndarray) -> Ragged | None:
        """The cuts of ``records``, int64; one tokenizer, so no ``encoder_cuts``."""
        if name != "cuts":
            return None
        found = self._tokenized(records)
        return Ragged.from_sizes(
            np.array([one.cuts.size for one in found]), np.concatenate([one.cuts for one in found]).astype(np.int64)
        )

    def read_many(self, records: Iterable[int], _columns: Collection[str] | None = None) -> list[dict[str, np.ndarray]]:
        """Columns of ``records``; there are none but those of examples."""
        found = self._tokenized(np.fromiter(records, np.int64))
        return [{"decoder_ids": one.ids.astype(np.uint32), "cuts": one.cuts.astype(np.uint32)} for one in found]

    def _tokenized(self, records: np.ndarray) -> list[TokenizedText]:
        wanted = records.tolist()
        missing = [one for one in wanted if one not in self._found]
        groups: dict[int, list[int]] = {}
        for one in missing:
            groups.setdefault(one // ROW_GROUP, []).append(one)
        texts: dict[int, str] = {}
        for group, members in groups.items():
            column = self._group(group)
            texts |= {one: column[one % ROW_GROUP].as_py() for one in members}
        found = self._finder.tokenize([texts[one] for one in missing])
        self._found |= dict(zip(missing, found, strict=True))
        return [self._found[one] for one in wanted]


class PlainBatch(NamedTuple):
    """What the plain loader collates."""

    decoder_tokens: np.ndarray
    encoder_windows: np.ndarray
    raw_tokens: int


def plain_batches(
    path: Path, tokenizer: Tokenizer, model: ModelConfig, pack: PackConfig, spans: SpanConfig, rows: int
) -> Iterator[PlainBatch]:
    """The usual way: Parquet rows, tokenized one by one, alternating spans, greedy packing, Python lists, padding.

    Spans are cut in the ids, without regard to how inference tokenizes them; each window takes an encoder row.
    """
    start, end, placeholder = tokenizer.memory_ids
    draws, raw = random.Random(0), 0  # noqa: S311 - as such loaders do
    row: list[int] = []
    windows: list[list[int]] = []
    batch: list[tuple[list[int], list[list[int]]]] = []
    for text in _texts(path):
        ids, at, compressed = tokenizer.encode(text, plain=True).tolist(), 0, False
        while at < len(ids):
            low, high = (
                (spans.min_tokens, spans.max_tokens) if compressed else (spans.raw_min_tokens, spans.raw_max_tokens)
            )
            piece = ids[at : at + draws.randint(low, high)]
            latents = -(-len(piece) // model.ratio)
            tokens = [start, *[placeholder] * latents, end] if compressed else piece
            if len(row) + len(tokens) > pack.row_length:
                batch.append((row, windows))
                row, windows = [], []
                if len(batch) == rows:
                    yield _collated(batch, model, pack, raw)
                    batch, raw = [], 0
            row = row + tokens[: pack.row_length]
            if compressed:
                windows += [piece[i : i + model.window] for i in range(0, len(piece), model.window)]
            raw += len(piece)
            at, compressed = at + len(piece), not compressed


def _texts(path: Path) -> Iterator[str]:
    for group in pq.ParquetFile(path).iter_batches(ROW_GROUP):
        yield from group.column("text").to_pylist()


def _collated(batch: list, model: ModelConfig, pack: PackConfig, raw: int) -> PlainBatch:
    decoder = np.array([row + [0] * (pack.row_length - len(row)) for row, _ in batch], np.int32)
    windows = [window for _, row_windows in batch for window in row_windows]
    encoder = np.array([window + [0] * (model.window - len(window)) for window in windows], np.int32)
    return PlainBatch(decoder, encoder, raw)
