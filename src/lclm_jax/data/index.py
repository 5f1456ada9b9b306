"""The row index: which examples each packed row of a stage holds, computed from lengths alone before training starts.

A folder of memory-mapped arrays and a JSON sidecar::

    rows.npy      int64 [rows + 1]: row r holds examples [rows[r], rows[r + 1])
    examples.npy  source, record, variant of each example, and where its bounds begin
    bounds.npy    int32: cut indices between which the segments of the examples lie
    index.json    digest of what the index depends on, checksums, and what it holds

A longer index begins with the rows of a shorter one, so training on only appends rows.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax.config import Config, ModelConfig
from lclm_jax.data.draws import draw_key, permutation
from lclm_jax.data.mixture import MixtureOrder
from lclm_jax.data.packing import ExampleWindows, RowPacker
from lclm_jax.data.ragged import Ragged, join
from lclm_jax.data.sources import EpochPlan, ExampleRef, Source

logger = logging.getLogger(__name__)

FORMAT = 1
EXAMPLE = np.dtype([("source", "<u2"), ("variant", "<u2"), ("record", "<u4"), ("bounds", "<i8")])


class IndexFailure(ValueError):
    """A row index that cannot be built or read; the message names the source or file and the fix."""


class RowIndex:
    """A stored index, memory-mapped; may be sent to worker processes."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.info: dict[str, Any] = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            self._rows, self._examples, self._bounds = (
                np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("rows", "examples", "bounds")
            )
        except (OSError, ValueError, EOFError) as error:
            raise IndexFailure(f"row index {self.folder} cannot be read ({error}); delete the folder") from None

    def __reduce__(self):
        return RowIndex, (self.folder,)

    def __len__(self) -> int:
        return self._rows.size - 1

    @property
    def digest(self) -> str:
        """SHA-256 of all that the order of rows depends on, not of how many rows are stored."""
        return self.info["digest"]

    def row(self, row: int) -> list[ExampleRef]:
        """The examples of one row, in order; raises ``IndexError`` beyond the index."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside the index of {len(self)} rows at {self.folder}")
        first, last = int(self._rows[row]), int(self._rows[row + 1])
        starts = self._examples["bounds"][first : last + 1].tolist()
        return [
            ExampleRef(int(one["source"]), int(one["record"]), int(one["variant"]), self._bounds[start:stop])
            for one, start, stop in zip(self._examples[first:last], starts[:-1], starts[1:], strict=True)
        ]


def open_index(config: Config, stage: str, sources: Sequence[Source], folder: str | Path) -> RowIndex:
    """The index of ``stage`` in ``folder``: the stored one if it still holds, else a new one.

    Safe when several processes do it at once: each writes beside the folder and one is moved into place.

    Raises:
        IndexFailure: A source has no example that fits a row, or the folder cannot be written.
    """
    folder, rows = Path(folder), config.stages[stage].steps * config.stages[stage].batch_rows
    inputs = index_inputs(config, stage, sources)
    if (stored := _stored(folder, inputs, rows)) is not None:
        return stored
    built = build_index(config, stage, sources, rows)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        _write(partial, built, inputs)
        if (stored := _stored(folder, inputs, rows)) is not None:  # another process was first, with the same rows
            return stored
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        if (stored := _stored(folder, inputs, rows)) is not None:
            return stored
        raise IndexFailure(f"cannot write the row index {folder}: {error.strerror}; free some space") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return RowIndex(folder)


def _stored(folder: Path, inputs: dict[str, Any], rows: int) -> RowIndex | None:
    """The index in ``folder`` if it was made from ``inputs`` and holds enough rows; a damaged one counts as none."""
    if not (folder / "index.json").is_file():
        return None
    try:
        stored = RowIndex(folder)
    except IndexFailure as failure:
        logger.warning("building the row index again: %s", failure)
        return None
    return stored if stored.digest == digest_of(inputs) and len(stored) >= rows else None


def index_inputs(config: Config, stage: str, sources: Sequence[Source]) -> dict[str, Any]:
    """All that the rows of a stage depend on, except how many are wanted."""
    model, tokenizers = config.model, sources[0].setup.tokenizers
    return {
        "format": FORMAT,
        "seed": config.seed,
        "stage": stage,
        "mixture": [config.stages[stage].mixture[source.name] for source in sources],
        "sources": [source.inputs() for source in sources],
        "model": {name: getattr(model, name) for name in ("ratio", "window", "overlap", "pooling", "mask")},
        "pack": config.pack(stage).model_dump(mode="json"),
        "tokenizers": [tokenizers.decoder.digest, tokenizers.encoder.digest],
    }


def summarize(info: Mapping[str, Any]) -> str:
    """One line of ``RowIndex.info``: rows, examples, fill, and what was left out by source and reason."""
    left_out = [
        f"{name} {reason} {count:,}"
        for name, source in info["sources"].items()
        for reason, count in source["dropped"].items()
    ]
    return (
        f"{info['rows']:,} rows of {info['examples']:,} examples, fill: decoder {info['decoder_fill']:.2f}, encoder"
        f" {info['encoder_fill']:.2f}; left out: {', '.join(left_out) or 'none'}"
    )


def digest_of(inputs: dict[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class _Planned:
    """One planned epoch of one source: what can be in a row, in its drawing order."""

    def __init__(self, source: int, plan: EpochPlan, model: ModelConfig, packer: RowPacker, key: int):
        self.source, self.plan = source, plan
        self.windows = ExampleWindows(plan.spans, model)
        usable, self.rejected = packer.sort_out(plan.tokens, self.windows)
        self.mean_positions = float(plan.tokens[usable].mean()) if usable.size else 0.0
        self.tokens: list[int] = plan.tokens.tolist()
        self.order: list[int] = usable[permutation(key, usable.size)].tolist()


class IndexBuilder:
    """Draws the examples of a mixture and packs them; ``build_index`` drives it."""

    def __init__(self, config: Config, stage: str, sources: Sequence[Source]):
        self._config, self._stage, self._sources = config, stage, sources
        self._pack, self._model = config.pack(stage), sources[0].setup.model
        self._packer = RowPacker(self._model.ratio, self._pack)
        self._epochs: dict[tuple[int, int], int] = {}
        self._planned: list[_Planned] = []
        self.dropped: dict[str, Counter[str]] = {source.name: Counter() for source in sources}
        shares = config.stages[stage].mixture
        # Weights are shares of decoder positions; the order below counts examples.
        weights = [shares[s.name] / self._mean_positions(i) for i, s in enumerate(sources)]
        self._mixture = MixtureOrder(weights, lambda s, e: len(self._epoch(s, e).order), (config.seed, stage))

    def build(self, rows: int) -> dict[str, Any]:
        """Arrays and statistics of the first ``rows`` rows."""
        planned: list[int] = []
        entries: list[int] = []
        closed: list[list[int]] = []
        before = np.zeros(len(self._sources), np.int64)
        block = 0
        while len(closed) < rows:
            sources, draws = self._mixture.block_after(block, before)
            before += np.bincount(sources, minlength=before.size)
            block += 1
            for source, draw in zip(sources.tolist(), draws.tolist(), strict=True):
                epoch, place = self._mixture.locate(source, draw)
                current = self._epoch(source, epoch)
                entry = current.order[place]
                planned.append(self._epochs[source, epoch])
                entries.append(entry)
                row = self._packer.add(len(entries) - 1, current.tokens[entry], current.windows.of(entry))
                if row is not None:
                    closed.append(row)
        return self._gather(closed[:rows], np.array(planned), np.array(entries))

    def _epoch(self, source: int, epoch: int) -> _Planned:
        number = self._epochs.get((source, epoch))
        if number is None:
            plan, name = self._sources[source].plan(epoch), self._sources[source].name
            key = draw_key(self._config.seed, self._stage, name, epoch, "order")
            number = self._epochs[source, epoch] = len(self._planned)
            self._planned.append(_Planned(source, plan, self._model, self._packer, key))
            self.dropped[name].update(plan.dropped)
            self.dropped[name].update(self._planned[number].rejected)
        return self._planned[number]

    def _mean_positions(self, source: int) -> float:
        current, name = self._epoch(source, 0), self._sources[source].name
        if not current.order:
            raise IndexFailure(
                f"source {name}: none of its {current.plan.tokens.size} examples fits a row of {self._pack.row_length}"
                f" positions and {self._pack.encoder_rows} encoder rows (left out: {dict(self.dropped[name])}); change"
                " its span lengths or max_tokens, or data.pack"
            )
        return current.mean_positions

    def _gather(self, closed: list[list[int]], planned: np.ndarray, entries: np.ndarray) -> dict[str, Any]:
        ids = np.array([i for row in closed for i in row], np.int64)
        planned, entries = planned[ids], entries[ids]
        examples = np.zeros(ids.size + 1, EXAMPLE)
        tokens, raw, encoder = (np.zeros(ids.size, np.int64) for _ in range(3))
        parts, places = [], []
        for number, current in enumerate(self._planned):
            where = np.flatnonzero(planned == number)
            chosen, plan = entries[where], current.plan
            examples["source"][where] = current.source
            examples["variant"][where], examples["record"][where] = plan.variant[chosen], plan.record[chosen]
            tokens[where], raw[where] = plan.tokens[chosen], plan.raw_tokens[chosen]
            encoder[where] = plan.spans.sums()[chosen]
            parts.append(plan.bounds.take(chosen))
            places.append(where)
        bounds: Ragged = join(parts).take(np.argsort(np.concatenate(places), kind="stable"))
        examples["bounds"] = bounds.offsets
        room = len(closed) * self._pack.encoder_rows * self._pack.encoder_row_length
        of_source = [examples["source"][:-1] == i for i in range(len(self._sources))]
        return {
            "rows": np.append(0, np.cumsum([len(row) for row in closed])).astype(np.int64),
            "examples": examples,
            "bounds": bounds.values.astype(np.int32),
            "info": {
                "rows": len(closed),
                "examples": int(ids.size),
                "decoder_fill": float(tokens.sum() / (len(closed) * self._pack.row_length)),
                "encoder_fill": float(encoder.sum() / room),
                "raw_tokens": int(raw.sum()),
                "sources": {
                    source.name: {
                        "examples": int(mine.sum()),
                        "decoder_positions": int(tokens[mine].sum()),
                        "raw_tokens": int(raw[mine].sum()),
                        "epochs_begun": max(epoch for s, epoch in self._epochs if s == i) + 1,
                        "dropped": {reason: n for reason, n in sorted(self.dropped[source.name].items()) if n},
                    }
                    for i, (source, mine) in enumerate(zip(self._sources, of_source, strict=True))
                },
            },
        }


def build_index(config: Config, stage: str, sources: Sequence[Source], rows: int) -> dict[str, Any]:
    """Arrays ``rows``, ``examples``, ``bounds`` and statistics ``info`` of the first ``rows`` rows of ``stage``."""
    return IndexBuilder(config, stage, sources).build(rows)


def _write(folder: Path, built: dict[str, Any], inputs: dict[str, Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checksums = {}
    for name in ("rows", "examples", "bounds"):
        path = folder / f"{name}.npy"
        np.save(path, built[name], allow_pickle=False)
        with path.open("rb") as file:
            checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    info = {"digest": digest_of(inputs), "sha256": checksums, **built["info"], "inputs": inputs}
    (folder / "index.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
