"""How a record is written in few bytes, and read again: the columns of ``records`` under names that tell their coding.

A column ``NAME`` that is coded stands under ``NAME.CODING`` (``codings``). Text that is exactly what its tokens stand
for is left out, and the bytes of its cuts with it: the prepared folder holds the bytes of every token (``Vocabulary``).
Columns without a coding are stored as they are, so records of earlier formats are read by the same code.
"""

from collections.abc import Collection, Mapping

import numpy as np

from lclm_jax.data.store.codings import CODINGS, decode_list
from lclm_jax.data.store.records import CODING_OF, Columns
from lclm_jax.data.store.storage import PreparedError
from lclm_jax.data.store.vocabulary import VOCABULARY, TokenBytes

_FROM_TOKENS = ("text", "cut_bytes")
_DTYPES = {"cut_kinds": np.uint8}


def pack(columns: Mapping[str, np.ndarray], vocabulary: TokenBytes | None) -> Columns:
    """The columns of a record as they are stored.

    Args:
        columns: as ``records.document_columns`` or ``chat_columns`` makes them.
        vocabulary: bytes of the decoder's tokens; None: text is always stored.
    """
    kept = dict(columns)
    if vocabulary is not None and "decoder_ids" in kept and "text" in kept:
        ids = kept["decoder_ids"]
        if np.array_equal(vocabulary.text(ids), kept["text"]):
            stops = np.append(0, np.cumsum(vocabulary.lengths[ids]))
            if np.array_equal(stops[kept["cuts"]], kept["cut_bytes"]):
                del kept["text"], kept["cut_bytes"]
    for name in [name for name in kept if name in CODING_OF]:
        coding = CODING_OF[name]
        kept[f"{name}.{coding}"] = CODINGS[coding][0](kept.pop(name))
    return kept


def unpack(
    stored: Mapping[str, np.ndarray], vocabulary: TokenBytes | None, wanted: Collection[str] | None = None
) -> Columns:
    """The columns that ``pack`` was given; raises ``PreparedError`` on what it cannot have written.

    Args:
        stored: a record's columns.
        vocabulary: as for ``pack``.
        wanted: names of columns; None: all. Others cost nothing.
    """
    columns: Columns = {}
    for name, column in stored.items():
        logical, _, coding = name.partition(".")
        if wanted is not None and logical not in wanted:
            continue
        if coding and coding not in CODINGS:
            raise PreparedError(f"column {name} has a coding that this version does not know; update it")
        columns[logical] = (
            decode_list(coding, column).astype(_DTYPES.get(logical, np.uint32), copy=False) if coding else column
        )
    missing = [name for name in _FROM_TOKENS if name not in columns and (wanted is None or name in wanted)]
    if missing and "decoder_ids.varint" in stored and "text" not in stored:
        columns |= _from_tokens(stored, vocabulary)
    return columns


def _from_tokens(stored: Mapping[str, np.ndarray], vocabulary: TokenBytes | None) -> Columns:
    """Text and the bytes of cuts of a record that left them out."""
    if vocabulary is None:
        raise PreparedError(f"a record's text is what its tokens stand for, but {VOCABULARY} is missing; prepare again")
    ids = decode_list("varint", stored["decoder_ids.varint"])
    stops = np.append(0, np.cumsum(vocabulary.lengths[ids]))
    cuts = decode_list("bits", stored["cuts.bits"])
    return {"text": vocabulary.text(ids), "cut_bytes": stops[cuts].astype(np.uint32)}
