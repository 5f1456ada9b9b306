"""How fast batches are made: from prepared shards, from raw text, and by the usual PyTorch loader."""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from lclm_jax.batch import Batch
from lclm_jax.bench.raw_text import RawSplit, plain_batches, write_parquet
from lclm_jax.config import Config
from lclm_jax.data.loading.index_summary import index_info
from lclm_jax.data.loading.loader import BatchMaker, Loader, RecordCache, make_loader
from lclm_jax.data.loading.position import BatchStats
from lclm_jax.data.loading.row_index import open_index
from lclm_jax.data.packing.mixture import RatioSchedule
from lclm_jax.data.packing.sources import OBJECTIVES, SourceSetup, make_sources
from lclm_jax.text.tokenizer import Tokenizers

_WARM_UP = 2


class Pace(NamedTuple):
    """The throughput of one way to make batches, over an interval of wall time."""

    way: str
    raw_tokens_per_s: float
    raw_tokens_per_cpu_s: float
    """Per second of CPU time, which other work on the machine disturbs less than wall time."""
    rows_per_s: float
    cpu_share: float
    """CPU time over wall time, of all processes together: 1 is one core."""
    bytes_read_per_s: float
    """As the operating system counts reads, from its cache or not."""
    decoder_fill: float
    encoder_fill: float
    starved_share: float
    """Share of the time that a step of ``step_seconds`` would wait for its batch."""


class _Usage:
    """CPU seconds and bytes read of this process and those it started."""

    def __init__(self) -> None:
        self._before, self._start = self._now(), time.perf_counter()

    def since(self) -> tuple[float, float]:
        """(CPU share, bytes read per second) since construction."""
        wall = time.perf_counter() - self._start
        cpu, read = (after - before for after, before in zip(self._now(), self._before, strict=True))
        return cpu / wall, read / wall

    @staticmethod
    def _now() -> tuple[float, float]:
        me = psutil.Process(os.getpid())
        cpu = read = 0.0
        for process in (me, *me.children(recursive=True)):
            times = process.cpu_times()
            cpu += times.user + times.system
            read += process.io_counters().read_chars if hasattr(process, "io_counters") else 0
        return cpu, read


def starved_share(arrivals: np.ndarray, step_seconds: float) -> float:
    """Share of the time that steps of ``step_seconds`` wait, if batch i is there after ``arrivals[i]`` seconds."""
    busy = waited = 0.0
    end = float(arrivals[0])
    for arrival in arrivals.tolist():
        waited += max(0.0, arrival - end)
        end = max(end, arrival) + step_seconds
        busy += step_seconds
    return waited / (waited + busy)


def bench_data(
    config: Config, stage: str, tokenizers: Tokenizers, seconds: float, step_seconds: float
) -> Iterator[Pace]:
    """Measure ``stage``: prepared shards with 0, 1 and 2 workers, raw text, and the plain loader.

    Records are read anew each time they are needed, as of a corpus that no cache holds. Each way runs for about
    ``seconds``; the index of the rows is made before.
    """
    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, 1, 2):
            yield _prepared(config, stage, tokenizers, Path(folder), (workers, seconds, step_seconds))
        source = next(one for one in make_sources(config, stage, tokenizers) if one.config.objective == "cpt")
        parquet = Path(folder) / "text.parquet"
        write_parquet(source.split, parquet)
        yield _raw(config, stage, tokenizers, parquet, (seconds, step_seconds))
        yield _plain(config, stage, tokenizers, parquet, (seconds, step_seconds))


def _prepared(config: Config, stage: str, tokenizers: Tokenizers, folder: Path, how: tuple[int, float, float]) -> Pace:
    workers, seconds, step_seconds = how
    endless = config.stages[stage].model_copy(update={"steps": 10**6})
    data = config.data.model_copy(update={"workers": workers})
    changed = config.model_copy(update={"stages": {**config.stages, stage: endless}, "data": data})
    with make_loader(changed, stage, tokenizers, index_folder=folder) as first:
        maker, rows = first.maker, config.stages[stage].batch_rows
        index_info(maker.indices[0], 64 * rows)
    cold = replace(maker, first_row=0, cache=RecordCache(1))
    with Loader(cold, 10**6, workers, max(config.data.prefetch, 2 * workers)) as loader:
        for _ in range(_WARM_UP + 2 * workers):
            next(loader)
        return _timed(f"prepared shards, {workers} workers", loader, seconds, step_seconds)


def _timed(way: str, loader: Iterator[tuple[Batch, BatchStats]], seconds: float, step_seconds: float) -> Pace:
    usage, start, arrivals, stats, rows = _Usage(), time.perf_counter(), [], [], 0
    for batch, one in loader:
        arrivals.append(time.perf_counter() - start)
        stats.append(one)
        rows += len(batch.decoder_tokens)
        if arrivals[-1] >= seconds:
            break
    share, read = usage.since()
    return Pace(
        way,
        sum(one.raw_tokens for one in stats) / arrivals[-1],
        sum(one.raw_tokens for one in stats) / arrivals[-1] / share,
        rows / arrivals[-1],
        share,
        read,
        float(np.mean([one.decoder_fill for one in stats])),
        float(np.mean([one.encoder_fill for one in stats])),
        starved_share(np.array(arrivals), step_seconds),
    )


def _raw(config: Config, stage: str, tokenizers: Tokenizers, parquet: Path, how: tuple[float, float]) -> Pace:
    """One epoch at most: afterwards everything is tokenized."""
    cpt = next(name for name in config.stages[stage].mixture if config.data.sources[name].objective == "cpt")
    settings = config.data.sources[cpt].model_copy(update={"when_exhausted": "stop", "epochs": 1})
    model = config.model.model_copy(update={"memory_token_ids": tuple(tokenizers.decoder.memory_ids)})
    setup = SourceSetup(model, config.pack(stage), tokenizers, config.seed)
    split = RawSplit(parquet, tokenizers.decoder)
    source = OBJECTIVES["cpt"](cpt, settings, split, setup)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        usage, start = _Usage(), time.perf_counter()
        index = open_index(config, stage, [source], folder)
        rows_of_batch, schedule = config.stages[stage].batch_rows, RatioSchedule(config, stage)
        maker = BatchMaker([index], schedule, rows_of_batch, 0, ((0,), 1), RecordCache())
        rows = len(index.block_of(0))
        whole, rest = divmod(rows, maker.batch_rows)
        batches = [maker(number) for number in range(whole)]
        # What was tokenized for the last few rows counts too.
        single = replace(maker, batch_rows=1, first_row=rows - rest)
        batches += [single(number) for number in range(rest)]
        wall = time.perf_counter() - start
    share, read = usage.since()
    stats, weights = [one for _, one in batches], [len(batch.decoder_tokens) for batch, _ in batches]
    return Pace(
        "raw text, tokenized in the pipeline",
        sum(one.raw_tokens for one in stats) / wall,
        sum(one.raw_tokens for one in stats) / wall / share,
        rows / wall,
        share,
        read,
        float(np.average([one.decoder_fill for one in stats], weights=weights)),
        float(np.average([one.encoder_fill for one in stats], weights=weights)),
        starved_share(np.arange(1, whole + 1) * wall / rows * maker.batch_rows, how[1]),
    )


def _plain(config: Config, stage: str, tokenizers: Tokenizers, parquet: Path, how: tuple[float, float]) -> Pace:
    cpt = next(s for n, s in config.data.sources.items() if s.objective == "cpt" and n in config.stages[stage].mixture)
    seconds, step_seconds = how
    usage, start, arrivals, raw, filled, pooled = _Usage(), time.perf_counter(), [], 0, [], []
    pack, rows = config.pack(stage), config.stages[stage].batch_rows
    for batch in plain_batches(parquet, tokenizers.decoder, config.model, pack, cpt.spans, rows):
        arrivals.append(time.perf_counter() - start)
        raw += batch.raw_tokens
        filled.append(np.count_nonzero(batch.decoder_tokens) / batch.decoder_tokens.size)
        pooled.append(np.count_nonzero(batch.encoder_windows) / max(batch.encoder_windows.size, 1))
        if arrivals[-1] >= seconds:
            break
    share, read = usage.since()
    wall = arrivals[-1]
    fills = (float(np.mean(filled)), float(np.mean(pooled)))
    starved = starved_share(np.array(arrivals), step_seconds)
    pace = (raw / wall, raw / wall / share, len(arrivals) * rows / wall)
    return Pace("plain PyTorch-style loader", *pace, share, read, *fills, starved)
