"""The two kinds of prepared record: a document with both tokenizations and its cuts, and a tokenized chat."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from lclm_jax.data.store.columns import text_column
from lclm_jax.text.boundaries import TokenizedText, boundary_kinds, byte_positions
from lclm_jax.text.outline import Outline

Columns = dict[str, np.ndarray]

SCALARS = {"documents": ("decoder_tokens", "encoder_tokens"), "chat": ("decoder_tokens",)}
"""Kind of record -> numbers per record in its lengths files."""
RAGGED = {"documents": ("cuts", "cut_kinds", "encoder_cuts"), "chat": ("span_tokens",)}
"""Kind -> lists per record in its lengths files (encoder_cuts only where the tokenizers differ)."""

CODING_OF = {
    **dict.fromkeys(("decoder_ids", "encoder_ids", "tokens", "span_ids", "span_tokens", "gaps"), "varint"),
    **dict.fromkeys(("cuts", "encoder_cuts"), "bits"),
    "cut_bytes": "deltas",
    "cut_kinds": "flags",
}
"""Column -> how it is stored, in records and lengths files; others are stored as they are."""

EXAMPLE_COLUMNS = (
    *("decoder_ids", "cuts", "encoder_ids", "encoder_cuts"),
    *("tokens", "loss", "gaps", "span_ids", "span_tokens"),
)
"""The columns that training examples are made of, of both kinds of record."""


def document_columns(name: str, text: str, decoder: TokenizedText, encoder: TokenizedText | None) -> Columns:
    """A document's record; ``encoder`` is None where both tokenizers are the same.

    Columns: ``id`` and ``text`` (UTF-8), ``decoder_ids`` uint32, ``cuts`` uint32 (decoder token indices), ``cut_bytes``
    uint32 (the same places in ``text``), ``cut_kinds`` uint8 (``boundary_kinds``), and, if the tokenizers differ,
    ``encoder_ids`` and ``encoder_cuts`` uint32.
    """
    columns = {
        "id": text_column(name),
        "text": text_column(text),
        "decoder_ids": decoder.ids.astype(np.uint32),
        "cuts": decoder.cuts.astype(np.uint32),
        "cut_bytes": byte_positions(text, decoder.cut_chars),
        "cut_kinds": boundary_kinds(text, decoder.cut_chars),
    }
    if encoder is not None:
        columns["encoder_ids"] = encoder.ids.astype(np.uint32)
        columns["encoder_cuts"] = encoder.cuts.astype(np.uint32)
    return columns


def chat_columns(name: str, messages: Sequence[Mapping[str, str]], outline: Outline) -> Columns:
    """A chat's record, free of the compression ratio.

    Columns: ``id`` and ``messages`` (UTF-8, JSON), ``tokens`` uint32 and ``loss`` float32 (without placeholders),
    ``gaps`` uint32 (where each span's placeholders go), ``span_ids`` uint32 (end to end), ``span_tokens`` uint32.
    """
    return {
        "id": text_column(name),
        "messages": text_column(json.dumps(list(messages), ensure_ascii=False)),
        "tokens": outline.tokens.astype(np.uint32),
        "loss": outline.loss,
        "gaps": outline.gaps.astype(np.uint32),
        "span_ids": np.concatenate([np.zeros(0, np.uint32), *outline.spans]).astype(np.uint32),
        "span_tokens": np.array([len(span) for span in outline.spans], np.uint32),
    }


def with_language(columns: Columns, language: str) -> Columns:
    """``columns`` with the column ``language`` (UTF-8) if it is known."""
    return columns | {"language": text_column(language)} if language else columns


def chat_outline_of(record: Mapping[str, np.ndarray]) -> Outline:
    """The outline that ``chat_columns`` stored."""
    ends = np.cumsum(record["span_tokens"].astype(np.int64))
    spans = np.split(record["span_ids"].astype(np.int32), ends[:-1]) if len(ends) else []
    return Outline(
        record["tokens"].astype(np.int32), record["loss"].copy(), record["gaps"].astype(np.int32), tuple(spans)
    )


def lengths_of(kind: str, columns: Columns) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """What a lengths file keeps of a record: (numbers, lists), by the names of ``SCALARS`` and ``RAGGED``."""
    if kind == "chat":
        return {"decoder_tokens": len(columns["tokens"])}, {"span_tokens": columns["span_tokens"]}
    ids = columns["decoder_ids"]
    scalars = {"decoder_tokens": len(ids), "encoder_tokens": len(columns.get("encoder_ids", ids))}
    return scalars, {name: columns[name] for name in RAGGED["documents"] if name in columns}
