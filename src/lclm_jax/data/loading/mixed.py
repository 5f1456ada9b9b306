"""Batches of a stage with several compression ratios: one loader over one row index per ratio."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lclm_jax.batch import Batch
from lclm_jax.config import Config, StageConfig
from lclm_jax.data.loading.index_summary import first_info, write_info
from lclm_jax.data.loading.loader import BatchMaker, BatchStats, Loader, Position, RecordCache
from lclm_jax.data.loading.ratios import RatioSchedule
from lclm_jax.data.loading.row_index import RowIndex, open_index
from lclm_jax.data.packing.sources import make_sources
from lclm_jax.errors import LclmError
from lclm_jax.text.tokenizer import Tokenizers


@dataclass(frozen=True, eq=False)
class MixedBatchMaker:
    """Batch number -> this host's batch at the ratio of its step; may be sent to worker processes."""

    makers: tuple[BatchMaker, ...]
    """One per ratio, from its first row on."""
    schedule: RatioSchedule
    first_step: int
    batch_rows: int

    @property
    def first_row(self) -> int:
        """Global row that batch 0 begins with; rows of all ratios count together."""
        return self.first_step * self.batch_rows

    def __call__(self, number: int) -> tuple[Batch, BatchStats]:
        """Make batch ``number`` (from 0 at ``first_step``)."""
        which, place = self.schedule.place(self.first_step + number)
        return self.makers[which](place)

    def find(self, row: int) -> tuple[BatchMaker, int]:
        """The maker of global ``row``, and the row's number in its index."""
        which, place = self.schedule.place(row // self.batch_rows)
        return self.makers[which], place * self.batch_rows + row % self.batch_rows


class MixedLoader(Loader):
    """A ``Loader`` whose batches differ in their ratio."""

    maker: MixedBatchMaker  # type: ignore[assignment] # the parts of Loader that ask more of it are replaced here

    def __init__(self, maker: MixedBatchMaker, batches: int, workers: int, prefetch: int, folder: Path):
        super().__init__(maker, batches, workers, prefetch)  # type: ignore[arg-type]
        self._folder = folder

    @property
    def index(self) -> RowIndex:
        """There are several; raises ``LclmError``."""
        raise LclmError(f"a stage with ratios {self.maker.schedule.ratios} has a row index for each, not one")

    @property
    def digest(self) -> str:
        """Digest of all that the order of rows depends on."""
        indices = [[maker.index.digest, n] for maker, n in zip(self.maker.makers, self._ratios, strict=True)]
        return hashlib.sha256(json.dumps(indices).encode()).hexdigest()

    def info(self, stage: StageConfig) -> dict[str, Any]:
        """What the first rows of each ratio hold, taken together."""
        infos = [
            first_info(maker.index, stage.model_copy(update={"steps": steps}))
            for maker, steps in zip(self.maker.makers, self.maker.schedule.steps_before(stage.steps), strict=True)
            if steps
        ]
        together = joined_info(infos)
        write_info(self._folder / "mixed" / "info.json", together)
        return together

    @property
    def indices(self) -> dict[int, RowIndex]:
        """The row index of each ratio."""
        return {ratio: maker.index for ratio, maker in zip(self._ratios, self.maker.makers, strict=True)}

    def state(self, rows: int | None = None) -> dict[str, Any]:
        """As of ``Loader``, with a cursor for each ratio."""
        if rows is None:
            rows = self.maker.first_row + self._done * self.maker.batch_rows
        consumed = self.maker.schedule.steps_before(rows // self.maker.batch_rows)
        cursors = []
        for maker, steps in zip(self.maker.makers, consumed, strict=True):
            cursor = maker.index.block_of(max(steps * self.maker.batch_rows - 1, 0)).cursor
            cursors.append([*cursor[:2], list(cursor.draws)])
        return {"rows_consumed": rows, "index_digest": self.digest, "cursors": cursors}

    @property
    def _ratios(self) -> tuple[int, ...]:
        return self.maker.schedule.ratios


def make_mixed_loader(
    config: Config,
    stage: str,
    tokenizers: Tokenizers,
    start: Position,
    host: tuple[Sequence[int], int],
    split: str,
    folder: Path,
) -> MixedLoader:
    """What ``make_loader`` gives for a stage with ``ratios``."""
    schedule, settings, cache = RatioSchedule(config, stage), config.stages[stage], RecordCache()
    makers = []
    for number, ratio in enumerate(schedule.ratios):
        own = config.model_copy(update={"model": config.model.model_copy(update={"ratio": ratio})})
        sources = make_sources(own, stage, tokenizers, split, (number, len(schedule.ratios)))
        index = open_index(own, stage, sources, folder / f"ratio-{ratio}")
        makers.append(BatchMaker(index, settings.batch_rows, 0, host, cache))
    first = start.rows // settings.batch_rows
    if start.step not in (None, first):
        raise LclmError(
            f"stage {stage} has made {start.step} updates with {start.rows} rows, which is not batch_rows="
            f"{settings.batch_rows} each; a stage with ratios cannot go on with another batch_rows: set it back"
        )
    maker = MixedBatchMaker(tuple(makers), schedule, first, settings.batch_rows)
    batches = max(0, settings.steps - first)
    loader = MixedLoader(maker, batches, config.data.workers, config.data.prefetch, folder)
    if start.cursors and start.index_digest == loader.digest:
        for one, cursor in zip(makers, start.cursors, strict=True):
            one.index.know(cursor)
    return loader


def joined_info(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of several row indices as of one."""
    rows = sum(info["rows"] for info in infos)
    sources: dict[str, dict[str, Any]] = {}
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
