"""What the rows of a stage hold: examples, fill of both budgets, epochs of each source, and what was left out."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lclm_jax.config import StageConfig
from lclm_jax.data.loading.row_index import RowIndex, RowIndexError
from lclm_jax.files import write_text
from lclm_jax.types import JsonObject, ReadOnlyJson

_FIRST_POSITIONS = 2**26
"""Decoder positions of the rows that are counted when a stage begins."""


def index_info(index: RowIndex, rows: int) -> JsonObject:
    """Statistics of the first ``rows`` rows of a stage; blocks not yet stored are made.

    Args:
        index: The stage's.
        rows: How many rows; above zero.

    Returns:
        Plain values: ``rows``, ``examples``, ``decoder_fill``, ``encoder_fill``, ``raw_tokens``, and by source
        ``examples``, ``decoder_positions``, ``raw_tokens``, ``epochs`` (passes over its records that the blocks of
        these rows made) and ``dropped`` (examples of these blocks that are in no row, by reason).
    """
    sources, pack = index.maker.sources, index.maker.sources[0].setup.pack
    totals = np.zeros((len(sources), 4), np.int64)
    dropped: list[Counter[str]] = [Counter() for _ in sources]
    consumed = (0,) * len(sources)
    for block in index.blocks(rows):
        last = min(len(block), index.origin.row + rows - block.cursor.row)
        totals += _totals(block.columns, int(block.columns["rows"][last]), len(sources))
        for source, counts in zip(sources, dropped, strict=True):
            counts.update(block.dropped[source.name])
        consumed = block.after.consumed
    examples, positions, encoder, raw = totals.sum(axis=0).tolist()
    return {
        "rows": rows,
        "examples": examples,
        "decoder_fill": positions / (rows * pack.row_length),
        "encoder_fill": encoder / (rows * pack.encoder_rows * pack.encoder_row_length),
        "raw_tokens": raw,
        "sources": {
            source.name: {
                "examples": int(mine[0]),
                "decoder_positions": int(mine[1]),
                "raw_tokens": int(mine[3]),
                "epochs": round(consumed[i] / len(source), 3),
                "dropped": dict(sorted(dropped[i].items())),
            }
            for i, (source, mine) in enumerate(zip(sources, totals, strict=True))
        },
    }


def stage_info(index: RowIndex, stage: StageConfig) -> JsonObject:
    """``index_info`` of the rows of a stage, of a long one only the first; kept beside the index for the report."""
    path = index.folder / "info.json"
    wanted = min(
        stage.steps * stage.batch_rows, max(1, _FIRST_POSITIONS // index.maker.sources[0].setup.pack.row_length)
    )
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["rows"] == wanted:
            return stored
    info = index_info(index, wanted)
    write_info(path, info)
    return info


def merge_info(infos: Sequence[ReadOnlyJson]) -> JsonObject:
    """Statistics of several row indices as of one."""
    rows = sum(info["rows"] for info in infos)
    sources: dict[str, JsonObject] = {}
    for info in infos:
        for name, one in info["sources"].items():
            known = sources.setdefault(name, {key: type(value)() for key, value in one.items()})
            for key, value in one.items():
                known[key] = dict(Counter(known[key]) + Counter(value)) if key == "dropped" else known[key] + value
    return {
        "rows": rows,
        "examples": sum(info["examples"] for info in infos),
        "decoder_fill": sum(info["decoder_fill"] * info["rows"] for info in infos) / rows,
        "encoder_fill": sum(info["encoder_fill"] * info["rows"] for info in infos) / rows,
        "raw_tokens": sum(info["raw_tokens"] for info in infos),
        "sources": sources,
    }


def write_info(path: Path, info: ReadOnlyJson) -> None:
    """Store ``info`` at ``path``, whole or not at all."""
    write_text(path, json.dumps(info, indent=2) + "\n", shared=True)


def read_info(folder: Path) -> JsonObject:
    """What ``stage_info`` stored of the index under ``folder``; raises ``RowIndexError`` if there is none."""
    for path in [*folder.glob("*/from-*/info.json"), *folder.glob("*/info.json")]:
        return json.loads(path.read_text(encoding="utf-8"))
    raise RowIndexError(f"{folder} holds no row index; train the stage first")


def summarize(info: ReadOnlyJson) -> str:
    """One line of ``index_info``: rows, examples, fill, epochs, and what was left out by source and reason."""
    left_out = [
        f"{name} {reason} {count:,}"
        for name, source in info["sources"].items()
        for reason, count in source["dropped"].items()
    ]
    epochs = [f"{name} {source['epochs']:.2f}" for name, source in info["sources"].items()]
    return (
        f"{info['rows']:,} rows of {info['examples']:,} examples, fill: decoder {info['decoder_fill']:.3f}, encoder"
        f" {info['encoder_fill']:.3f}; epochs: {', '.join(epochs)}; left out: {', '.join(left_out) or 'none'}"
    )


def _totals(columns: Mapping[str, np.ndarray], last: int, sources: int) -> np.ndarray:
    """Examples, decoder positions, encoder tokens and raw tokens of the first ``last`` examples, by source; int64."""
    source = columns["source"][:last]
    sums = [np.bincount(source, minlength=sources)]
    for name in ("tokens", "encoder_tokens", "raw_tokens"):
        sums.append(np.bincount(source, columns[name][:last].astype(np.float64), sources))
    return np.stack(sums, axis=1).astype(np.int64)
