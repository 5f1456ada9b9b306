"""Writes one shard: complete or absent, byte-identical for equal records, with its lengths beside it."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save_file

from lclm_jax.data.records import RAGGED, SCALARS, Columns, lengths_of
from lclm_jax.data.store import (
    PreparedError,
    Shard,
    encode_record,
    file_digest,
    lengths_path,
    pack_lengths,
    read_lengths,
)

# One record per compressed group: a random read never unpacks its neighbours.
_OPTIONS = "group_size:1,zstd:3"


class Written(NamedTuple):
    """A finished shard, its totals, and what was left out or noted while it was made, by reason."""

    shard: Shard
    totals: dict[str, int]
    counts: Counter[str]


def write_shard(root: Path, name: str, key: str, records: Iterable[Columns], counts: Counter[str]) -> Written:
    """Write ``records`` as ``root/name`` (``COLLECTION/SPLIT-00000-of-00001.array_record``).

    ``key`` names the settings, so that an interrupted preparation knows its own shards. ``counts`` is read after the
    last record.

    Raises:
        PreparedError: the disk refuses.
    """
    path, collection = root / name, name.split("/")[0]
    partial, partial_lengths = (file.with_name(file.name + ".partial") for file in (path, lengths_path(path)))
    scalars: dict[str, list[int]] = {name: [] for name in SCALARS[collection]}
    ragged: dict[str, list[np.ndarray]] = {name: [] for name in RAGGED[collection]}
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(partial), _OPTIONS)
        try:
            for columns in records:
                writer.write(encode_record(columns))
                written += 1
                numbers, lists = lengths_of(collection, columns)
                for column, number in numbers.items():
                    scalars.setdefault(column, []).append(number)
                for column, values in lists.items():
                    ragged.setdefault(column, []).append(values)
        finally:
            writer.close()
        # A shard without records has every list, empty; else only those that its records have.
        ragged = {name: lists for name, lists in ragged.items() if lists or not written}
        about = {"key": key, "records": written, "counts": dict(sorted(counts.items()))}
        # One entry: safetensors writes several in no fixed order.
        save_file(pack_lengths(scalars, ragged), partial_lengths, {"about": json.dumps(about)})
        os.replace(partial, path)
        os.replace(partial_lengths, lengths_path(path))  # last: a shard with lengths is whole
    except (OSError, RuntimeError) as error:
        raise PreparedError(f"cannot write {path}: {error}; free some space or choose another data.prepared") from error
    return _summary(root, name, *read_lengths(lengths_path(path)))


def finished_shard(root: Path, name: str, key: str) -> Written | None:
    """The shard ``name`` if an earlier preparation with the same ``key`` finished it."""
    lengths = lengths_path(root / name)
    if not (lengths.is_file() and (root / name).is_file()):
        return None
    try:
        columns, metadata = read_lengths(lengths)
    except PreparedError:
        return None  # damaged: made again
    made_by = json.loads(metadata.get("about", "{}")).get("key")
    return _summary(root, name, columns, metadata) if made_by == key else None


def _summary(root: Path, name: str, columns: dict[str, np.ndarray], metadata: dict[str, str]) -> Written:
    path, about = root / name, json.loads(metadata["about"])
    totals = {column: int(values.sum()) for column, values in columns.items() if "/" not in column}
    if "span_tokens/values" in columns:
        totals["encoder_tokens"] = int(columns["span_tokens/values"].sum())
    shard = Shard(
        file=name,
        records=about["records"],
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        lengths_sha256=file_digest(lengths_path(path)),
    )
    return Written(shard, totals, Counter(about["counts"]))
