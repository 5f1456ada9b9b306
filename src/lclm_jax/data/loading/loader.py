"""Batches of a stage in their one global order, made by Grain from the row index.

An element of the Grain pipeline is a whole batch of this host's rows, a pure function of its number: threads, worker
processes and the number of hosts change when it is made, never what it holds, and resuming is starting at another
number. (Rows are not batched by Grain: ``batch`` before a multi-process ``prefetch`` once lost data, Grain issue 1129.)
"""

import contextlib
import gc
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from absl import flags
from cachetools import LRUCache

from lclm_jax.batch import Batch, batch_shapes, check_batch_rows, teacher_shapes
from lclm_jax.config import OBJECTIVES, Config, RunPaths, StageConfig
from lclm_jax.data.loading.generation import at_ratio, stage_generation
from lclm_jax.data.loading.index_summary import merge_info, stage_info, write_info
from lclm_jax.data.loading.position import BatchStats, Position, batch_stats
from lclm_jax.data.loading.row_index import RowIndex, joint_digest, open_index
from lclm_jax.data.loading.teacher_rows import TeacherRows, open_teacher_rows
from lclm_jax.data.loading.workers import check_shared_memory, end_with_parent, owned
from lclm_jax.data.packing.mixture import Cursor, RatioSchedule
from lclm_jax.data.packing.rows import assemble_batch
from lclm_jax.data.packing.sources import ExampleRef, Source, make_sources
from lclm_jax.data.packing.twin_rows import TwinMaker
from lclm_jax.data.store.records import EXAMPLE_COLUMNS, Columns
from lclm_jax.errors import LclmError
from lclm_jax.paths import is_remote
from lclm_jax.text.example import Example
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject

_CACHE_BYTES = 256 * 2**20
_PATIENCE_SECONDS = 600.0
_SHARED_BYTES = 2**20
"""Smaller arrays of worker processes come through a pipe, which is as fast and leaves nothing in shared memory."""


class RecordCache:
    """The most recently used records of all collections, without the columns that examples do not need."""

    def __init__(self, budget_bytes: int = _CACHE_BYTES):
        self._records: LRUCache[tuple[str, int], Columns] = LRUCache(budget_bytes, getsizeof=_size)
        self._lock = threading.Lock()

    def __reduce__(self):
        return RecordCache, (int(self._records.maxsize),)

    def get(self, wanted: Sequence[tuple[Source, int]]) -> list[Columns]:
        """Columns of each (source, record); those that are not in the cache are read with one call per collection."""
        keys = [(source.config.collection, record) for source, record in wanted]
        splits = {source.config.collection: source.split for source, _ in wanted}
        with self._lock:
            found = {key: self._records[key] for key in keys if key in self._records}
        missing: dict[str, list[int]] = {}
        for collection, record in dict.fromkeys(key for key in keys if key not in found):
            missing.setdefault(collection, []).append(record)
        for collection, records in missing.items():
            read = splits[collection].read_many(records, EXAMPLE_COLUMNS)
            for record, columns in zip(records, read, strict=True):
                found[collection, record] = columns
                with self._lock, contextlib.suppress(ValueError):  # a record above the budget is not kept
                    self._records[collection, record] = columns
        return [found[key] for key in keys]


def _size(columns: Columns) -> int:
    return sum(column.nbytes for column in columns.values())


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Batch number -> this host's batch at the ratio of its step; may be sent to worker processes."""

    indices: Sequence[RowIndex]
    """One for each of ``schedule.ratios``, in their order."""
    schedule: RatioSchedule
    batch_rows: int
    """Rows of a batch over all hosts."""
    first_row: int
    """Global row that batch 0 begins with; rows of all ratios count together."""
    host: tuple[Sequence[int], int]
    """(parts of each batch that this host takes, number of parts): parts are equal and consecutive."""
    cache: RecordCache
    twins: TwinMaker | None = None
    """Makes what a teacher reads beside each batch."""
    taught: TeacherRows | None = None
    """Gives what a stored teacher says of each row."""

    def rows(self, number: int) -> list[int]:
        """Global rows of this host in batch ``number``, in order."""
        size = self.batch_rows // self.host[1]
        first = self.first_row + number * self.batch_rows
        return [row for part in self.host[0] for row in range(first + part * size, first + (part + 1) * size)]

    def find(self, row: int) -> tuple[RowIndex, int]:
        """The index that holds global ``row``, and the row's number in it."""
        step, rest = divmod(row, self.batch_rows)
        which, before = self.schedule.place(step)
        return self.indices[which], before * self.batch_rows + rest

    def rows_before(self, row: int) -> list[int]:
        """How many of the global rows before ``row`` each index holds."""
        step, rest = divmod(row, self.batch_rows)
        counts = [steps * self.batch_rows for steps in self.schedule.steps_before(step)]
        if rest:
            counts[self.schedule.place(step)[0]] += rest
        return counts

    def __call__(self, number: int) -> tuple[Batch, BatchStats]:
        """Make batch ``number`` (from 0 at ``first_row``)."""
        return self.batch(self.rows(number))

    def batch(self, rows: Sequence[int]) -> tuple[Batch, BatchStats]:
        """The global ``rows``, which are of one step, as one batch."""
        found = [self.find(row) for row in rows]
        refs = [index.row(row) for index, row in found]
        sources = found[0][0].maker.sources
        setup = sources[0].setup
        pad = setup.tokenizers.encoder.pad_id if setup.model.has_pad_markers else None
        examples = self._examples(sources, refs)
        batch = assemble_batch(examples, setup.model, setup.pack, pad)
        batch = batch._replace(objectives=_objectives(sources, refs, batch.decoder_segments))
        if self.twins is not None:
            batch = batch._replace(**self.twins(examples))
        if self.taught is not None:
            batch = batch._replace(**self.taught(rows))
        return batch, batch_stats(batch)

    def _examples(self, sources: Sequence[Source], refs: Sequence[Sequence[ExampleRef]]) -> list[list[Example]]:
        flat = [ref for row in refs for ref in row]
        records = iter(self.cache.get([(sources[ref.source], ref.record) for ref in flat]))
        return [[sources[ref.source].example(ref, next(records)) for ref in row] for row in refs]


def _objectives(sources: Sequence[Source], refs: Sequence[Sequence[ExampleRef]], segments_BS: np.ndarray) -> np.ndarray:
    """``Batch.objectives`` of rows whose segments 1.. are ``refs``; int8 [B, S]."""
    numbers = [OBJECTIVES.index(source.config.objective) for source in sources]
    by_segment = ([-1, *(numbers[ref.source] for ref in row)] for row in refs)
    return np.stack([np.array(row, np.int8)[segments] for row, segments in zip(by_segment, segments_BS, strict=True)])


class Loader(Iterator[tuple[Batch, BatchStats]]):
    """Iterator over the rest of a stage's batches; close it (or use ``with``) to end its threads and processes."""

    def __init__(self, maker: BatchMaker, batches: int, workers: int, prefetch: int):
        self.maker, self._batches, self._done = maker, batches, 0
        # One thread keeps ahead of the device; more would contend for the interpreter lock.
        ahead = grain.ReadOptions(num_threads=int(prefetch > 0), prefetch_buffer_size=prefetch)
        data: grain.IterDataset = grain.MapDataset.range(batches).map(maker).to_iter_dataset(ahead)
        if workers:
            # Grain's workers ask absl for their flags, which a program without absl.app never parses.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.experimental.DatasetOptions(min_shm_size=_SHARED_BYTES)
            data = grain.experimental.WithOptionsIterDataset(data, options)
            buffered = max(1, prefetch // workers)
            data = data.mp_prefetch(
                grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffered), end_with_parent
            )
        self._iterator, self._apart = iter(data), workers > 0

    def __next__(self) -> tuple[Batch, BatchStats]:
        # Grain's own StopIteration would keep its last batch alive.
        if (entry := next(self._iterator, None)) is None:
            raise StopIteration
        self._done += 1
        batch = owned(Batch(*entry[0])) if self._apart else Batch(*entry[0])
        return batch, BatchStats(*entry[1])

    def __len__(self) -> int:
        """Batches left."""
        return self._batches - self._done

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def indices(self) -> dict[int, RowIndex]:
        """The row index of each ratio."""
        return dict(zip(self.maker.schedule.ratios, self.maker.indices, strict=True))

    @property
    def digest(self) -> str:
        """Digest of all that the order of rows depends on."""
        return _digest(self.maker.indices, self.maker.schedule)

    def info(self, stage: StageConfig) -> JsonObject:
        """What the first rows of the stage hold, those of all ratios together; see ``stage_info``."""
        schedule = self.maker.schedule
        if not schedule.listed:
            return stage_info(self.maker.indices[0], stage)
        infos = [
            stage_info(index, stage.model_copy(update={"steps": steps}))
            for index, steps in zip(self.maker.indices, schedule.steps_before(stage.steps), strict=True)
            if steps
        ]
        together = merge_info(infos)
        write_info(self.maker.indices[0].home.parents[1] / "mixed" / "info.json", together)
        return together

    def describe(self, row: int) -> list[JsonObject]:
        """Where the examples of global ``row`` come from: source, record, variant and bounds of each."""
        index, own = self.maker.find(row)
        return [
            {**ref._asdict(), "source": index.maker.sources[ref.source].name, "bounds": np.asarray(ref.bounds).tolist()}
            for ref in index.row(own)
        ]

    def row(self, row: int) -> tuple[int, Batch, BatchStats]:
        """(N, batch of one row, what it holds) of global ``row``, whether or not it is still to come."""
        index, _ = self.maker.find(row)
        return index.maker.sources[0].setup.model.ratio, *self.maker.batch([row])

    def state(self, rows: int | None = None) -> JsonObject:
        """What a checkpoint stores: rows consumed by all hosts together, the index's digest, where its block begins.

        Plain values, less than a kilobyte for any corpus. ``rows``: how many were consumed; None: all that the iterator
        gave. Raises ``RowIndexError`` if the index cannot be read.
        """
        if rows is None:
            rows = self.maker.first_row + self._done * self.maker.batch_rows
        cursors = []
        for index, count in zip(self.maker.indices, self.maker.rows_before(rows), strict=True):
            cursors.append(_plain(index.block_of(max(count - 1, index.origin.row)).cursor))
        of_blocks: JsonObject = {"cursors": cursors} if self.maker.schedule.listed else {"cursor": cursors[0]}
        if any(index.origin.row for index in self.maker.indices):
            of_blocks["origins"] = [_plain(index.origin) for index in self.maker.indices]
        return {"rows_consumed": rows, "index_digest": self.digest, **of_blocks}

    def close(self) -> None:
        """End the pipeline's threads and processes."""
        self._iterator.close()
        self._iterator = iter(())
        if self._apart:  # Grain's last batch, which is shared memory, hangs in the traceback of its StopIteration
            gc.collect()


def make_loader(
    config: Config,
    stage: str,
    tokenizers: Tokenizers,
    start: Position = Position(),  # noqa: B008 - immutable
    host: tuple[Sequence[int], int] = ((0,), 1),
    split: str = "train",
    index_folder: str | Path | None = None,
) -> Loader:
    """Batches of ``stage`` from ``start`` on; its row index is made as rows are wanted.

    Args:
        config: The run.
        stage: Name of a stage.
        tokenizers: The run's tokenizers.
        start: Where to resume: ``Position.from_state`` of a checkpoint; by default the first row.
        host: (parts of each batch that this host takes, number of parts): ``parallel.row_parts``.
        split: Split of the prepared collections.
        index_folder: Where the index is kept; default: ``index`` in the stage's folder on this machine.

    Raises:
        LclmError: ``batch_rows`` is not a multiple of the parts, or a source cannot be used.
    """
    rows, parts = config.stages[stage].batch_rows, host[1]
    check_batch_rows(stage, rows, 1, parts)
    schedule, step = RatioSchedule(config, stage), start.rows // rows
    if schedule.listed and start.step not in (None, step):
        raise LclmError(
            f"stage {stage} has made {start.step} updates with {start.rows} rows, which is not batch_rows={rows} each;"
            " a stage with ratios cannot be resumed with another batch_rows: restore the old value"
        )
    configs = [at_ratio(config, ratio) for ratio in schedule.ratios]
    generation = stage_generation(config, stage, tokenizers, start.index_digest)
    sources = [
        make_sources(own, stage, tokenizers, split, (number, len(configs)), generation)
        for number, own in enumerate(configs)
    ]
    indices = _open_indices(configs, stage, sources, schedule, index_folder)
    if 0 not in host[0]:  # the processes of the first part of each batch make the blocks: all need them at once
        indices = [index.following(_PATIENCE_SECONDS) for index in indices]
    indices = _continued(indices, schedule, start)
    first_row = step * rows if schedule.listed else start.rows
    teacher = (_twins(config, stage, tokenizers), _taught(config, stage, _digest(indices, schedule)))
    maker = BatchMaker(tuple(indices), schedule, rows, first_row, host, RecordCache(), *teacher)
    # After a forced change of batch_rows, the number of updates no longer follows from the number of rows.
    batches = max(0, config.stages[stage].steps - (step if start.step is None else start.step))
    if config.data.workers:
        buffered = max(1, config.data.prefetch // config.data.workers)
        check_shared_memory(config.data.workers, buffered, shared_bytes(config, stage, rows // parts * len(host[0])))
    loader = Loader(maker, batches, config.data.workers, config.data.prefetch)
    if start.cursors and start.index_digest == loader.digest:
        for index, cursor in zip(indices, start.cursors, strict=True):
            index.add_cursor(cursor)
    return loader


def _open_indices(
    configs: Sequence[Config],
    stage: str,
    sources: Sequence[Sequence[Source]],
    schedule: RatioSchedule,
    index_folder: str | Path | None,
) -> list[RowIndex]:
    """The row index of each ratio, whose configurations and sources are given."""
    paths = RunPaths(configs[0])
    folder = Path(index_folder or paths.local_stage(stage) / "index")
    shared = paths.stage(stage) / "index" if index_folder is None and is_remote(configs[0].run_dir) else None
    indices = []
    for ratio, own, one in zip(schedule.ratios, configs, sources, strict=True):
        name = f"ratio-{ratio}" if schedule.listed else ""
        beside = None if shared is None else shared / name
        indices.append(open_index(own, stage, one, folder / name, sources if len(sources) > 1 else (), beside))
    return indices


def _twins(config: Config, stage: str, tokenizers: Tokenizers) -> TwinMaker | None:
    twin_length = config.twin_length(stage)
    return None if twin_length is None else TwinMaker(tokenizers, config.pack(stage).row_length, twin_length)


def _taught(config: Config, stage: str, digest: str) -> TeacherRows | None:
    distill = config.stages[stage].distill
    if distill is None or distill.offline is None or distill.top_k is None:
        return None
    return open_teacher_rows(distill.offline, digest, distill.top_k, config.pack(stage).row_length)


def _continued(indices: list[RowIndex], schedule: RatioSchedule, start: Position) -> list[RowIndex]:
    """``indices``, or where a stage was or is forced to go on with other rows, such as begin where it went on.

    Without it, all blocks before would be made to find the place, in vain, as nothing of them was trained on.
    """
    if start.origins and len(start.origins) == len(indices):
        known = [index.continued(origin) for index, origin in zip(indices, start.origins, strict=True)]
        if _digest(known, schedule) == start.index_digest:
            return known
    if start.index_digest in (None, _digest(indices, schedule)) or len(start.cursors) != len(indices):
        return indices
    if not any(cursor.row for cursor in start.cursors):  # there is nothing to count
        return indices
    length = indices[0].maker.sources[0].setup.pack.row_length
    places = [
        index.maker.mixture.cursor_near(cursor.row, length)
        for index, cursor in zip(indices, start.cursors, strict=True)
    ]
    return [index.continued(place) for index, place in zip(indices, places, strict=True)]


def shared_bytes(config: Config, stage: str, rows: int) -> int:
    """Bytes of a batch of ``rows`` rows that its worker hands on through shared memory."""
    model = config.model.model_copy(update={"ratio": min(config.stages[stage].ratios or (config.model.ratio,))})
    shapes = batch_shapes(model, config.pack(stage), rows) | teacher_shapes(rows, *config.teacher_sizes(stage))
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values()]
    return sum(size for size in sizes if size >= _SHARED_BYTES)


def _digest(indices: Sequence[RowIndex], schedule: RatioSchedule) -> str:
    return joint_digest([index.digest for index in indices], schedule)


def _plain(cursor: Cursor) -> list[int | list[int]]:
    return [cursor.block, cursor.row, list(cursor.consumed)]
