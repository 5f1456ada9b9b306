"""The row index: which examples each packed row of a stage holds, computed from lengths alone.

A folder whose name is the digest of all that the rows depend on::

    index.json               the digest, what it was made from, and the size of a block
    blocks/000/000012.rows   rows of one block: plain columns, memory-mapped
    from-DIGEST/             the same settings, for a stage that was forced to go on with them (``RowIndex.continued``)

A block is a pure function of where it begins (``Cursor``), so it is made when a row of it is first wanted, by whichever
process that is, and kept for all others. Nothing is held in memory but the blocks in use: opening an index, finding a
row and resuming cost the same for any corpus.
"""

import bisect
import contextlib
import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cachetools import LRUCache
from filelock import FileLock

from lclm_jax.config import Config, PackConfig, RowsFor, result_values
from lclm_jax.data.loading.blocks import Block, BlockMaker, read_about, read_block, write_block
from lclm_jax.data.packing.block_sizing import make_mixture, size_blocks
from lclm_jax.data.packing.counter_rng import draw_key
from lclm_jax.data.packing.mixture import Cursor, Exhausted, Mixture, RatioSchedule, mixtures_by_row
from lclm_jax.data.packing.sources import ExampleRef, Source
from lclm_jax.errors import LclmError
from lclm_jax.files import write_bytes, write_text
from lclm_jax.machine import remedy
from lclm_jax.paths import store_errors
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

FORMAT = 4
_OLDER_FORMATS = (3,)
"""Indices that runs began with go on with the block sizes stored in them. 3: sizes from a sample alone.

In both formats, a stage with ratios once had equal parts of the records for each; it goes on with them.
"""
_OPEN_BLOCKS = 4
_IN_FOLDER = 1000
_EMPTY_BLOCKS = 100
_LOOK_SECONDS, _LOOK_SECONDS_REMOTE = 0.1, 1.0
"""Between two looks for a block that another process makes, in a folder and in a bucket."""
_CONTINUED = "from-"


class RowIndexError(LclmError):
    """A row index that cannot be built or read; the message names the source or file and the fix."""


class RowIndex:
    """The rows of a stage in their one global order; may be sent to worker processes.

    Args:
        folder: Where blocks are kept.
        digest: SHA-256 of all that the order of rows depends on, not of how many rows are stored.
        maker: Makes the block at a cursor.
        cursors: Where some blocks begin; of the first block, and of those that are stored, it is known anyway.
        origin: Where the first block begins; None: at row 0, with nothing taken of any source.
        patience: Seconds to wait for a block that another process makes, before it is made here as well; 0 for the
            process that makes them.
        shared: The same folder in a bucket, if that is where processes share the blocks; None: they share ``folder``.
    """

    def __init__(
        self,
        folder: str | Path,
        digest: str,
        maker: BlockMaker,
        cursors: Sequence[Cursor] = (),
        origin: Cursor | None = None,
        patience: float = 0.0,
        shared: Path | None = None,
    ):
        self.folder, self.digest, self.maker = Path(folder), digest, maker
        self._patience, self._shared = patience, shared
        self._lock = threading.RLock()
        self._open: LRUCache[int, Block] = LRUCache(_OPEN_BLOCKS)
        self.origin = origin or Cursor(0, 0, (0,) * len(maker.sources))
        self._cursors = {one.block: one for one in (self.origin, *cursors)}
        self._known = sorted({*self._cursors, *self._stored()})

    def __reduce__(self):
        cursors = [self._cursors[max(self._cursors)]]
        return RowIndex, (self.folder, self.digest, self.maker, cursors, self.origin, self._patience, self._shared)

    def continued(self, origin: Cursor) -> "RowIndex":
        """An index of the same settings whose first block begins at ``origin``: for a stage that goes on with them."""
        digest = digest_of({"digest": self.digest, "origin": list(origin)})
        name = f"{_CONTINUED}{digest[:16]}"
        shared = None if self._shared is None else self._shared / name
        return RowIndex(self.folder / name, digest, self.maker, (), origin, self._patience, shared)

    def following(self, patience: float) -> "RowIndex":
        """The same index for a process beside the one that makes its blocks; see ``patience``."""
        cursors = list(self._cursors.values())
        return RowIndex(self.folder, self.digest, self.maker, cursors, self.origin, patience, self._shared)

    @property
    def home(self) -> Path:
        """The folder of the index that begins at row 0, of the same settings."""
        return self.folder.parent if self.folder.name.startswith(_CONTINUED) else self.folder

    def row(self, row: int) -> list[ExampleRef]:
        """The examples of one row, in order.

        Raises:
            IndexError: ``row`` is negative.
            RowIndexError: The stage has no such row: a source whose rule is ``stop`` ended, or all did; or the row is
                before the first of the index.
        """
        return self.block_of(row).row(row)

    def add_cursor(self, cursor: Cursor) -> None:
        """Take note of where a block begins: rows from there on are found without those before it."""
        with self._lock:
            if cursor.block not in self._cursors:
                self._cursors[cursor.block] = cursor
                bisect.insort(self._known, cursor.block)

    def block_of(self, row: int) -> Block:
        """The block that holds ``row``; raises as ``row``."""
        if row < 0:
            raise IndexError(f"row {row} is negative; rows count from 0")
        if row < self.origin.row:
            raise RowIndexError(f"row {row} was made with other settings; those of now begin at row {self.origin.row}")
        with self._lock:
            for block in self._open.values():
                if block.cursor.row <= row < block.after.row:
                    return block
            place = bisect.bisect_right(self._known, row, key=lambda number: self._cursor(number).row) - 1
            block = self.block_at(self._cursor(self._known[place]))
            empty = 0
            while row >= block.after.row:
                block = self.block_at(block.after)
                empty = 0 if len(block) else empty + 1
                if empty == _EMPTY_BLOCKS:
                    raise RowIndexError(
                        f"no example of {empty} blocks from row {block.cursor.row} on fits a row (left out:"
                        f" {dict(block.dropped)}); change span lengths, max_tokens or data.pack"
                    )
            return block

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks that hold the first ``rows`` rows, in turn; those not yet stored are made."""
        row = self.origin.row
        while row < self.origin.row + rows:
            block = self.block_of(row)
            yield block
            row = block.after.row

    def _cursor(self, number: int) -> Cursor:
        """Where the known block ``number`` begins."""
        if number not in self._cursors:
            block, row, consumed = read_about(self.path(number))["cursor"]
            self._cursors[number] = Cursor(block, row, tuple(consumed))
        return self._cursors[number]

    def block_at(self, cursor: Cursor) -> Block:
        """The block at ``cursor``: from memory or from disk, or made and stored; raises as ``row``."""
        block = self._open.get(cursor.block)
        if block is None:
            block = self.stored(cursor) or self._awaited(cursor) or self._make(cursor)
            self._open[cursor.block] = block
            self.add_cursor(block.cursor)
            self.add_cursor(block.after)
        return block

    def stored(self, cursor: Cursor) -> Block | None:
        """The stored block at ``cursor``; None if there is none. Raises ``RowIndexError`` if it is another one's."""
        path = self.path(cursor.block)
        try:
            if not (path.exists() or self._fetch(path)):
                return None
            block = read_block(path)
        except FileNotFoundError:
            return None
        except (OSError, LclmError, ValueError, KeyError) as error:
            logger.warning("rebuilding block %d of the row index: %s", cursor.block, error)
            return None
        if block.cursor != cursor:
            raise RowIndexError(f"{path} begins at {block.cursor} and not at {cursor}; delete {self.folder}")
        return block

    def _fetch(self, path: Path) -> bool:
        """Copy the file of a block from the shared folder, if it is there."""
        if self._shared is None:
            return False
        remote = self._shared / path.relative_to(self.folder)
        try:
            with store_errors(remote):
                content = remote.read_bytes()
        except FileNotFoundError:
            return False
        write_bytes(path, content)
        return True

    def _awaited(self, cursor: Cursor) -> Block | None:
        """The block at ``cursor`` once another process has made it; None if that takes too long."""
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS if self._shared is None else _LOOK_SECONDS_REMOTE)
            if (block := self.stored(cursor)) is not None:
                return block
        if self._patience:
            logger.warning(
                "block %d of the row index was not made by the first process in %.0f s; making it here",
                *(cursor.block, self._patience),
            )
        return None

    def _make(self, cursor: Cursor) -> Block:
        path = self.path(cursor.block)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_name("lock")):
                if (stored := self.stored(cursor)) is not None:  # another process was first
                    return stored
                block = self.add(self.maker(cursor))
        except Exhausted as error:
            raise RowIndexError(
                f"{error} after row {cursor.row}; train fewer steps, or let it repeat"
                " (data.sources.NAME.when_exhausted, data.sources.NAME.epochs)"
            ) from None
        except OSError as error:
            raise RowIndexError(
                f"cannot write the row index {path}: {error.strerror}; {remedy(error.errno)}"
            ) from error
        return block

    def add(self, block: Block) -> Block:
        """Store a block that the maker made, and return it; raises ``RowIndexError`` if the disk refuses."""
        path = self.path(block.cursor.block)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_block(path, block)
            if self._shared is not None:
                write_bytes(self._shared / path.relative_to(self.folder), path.read_bytes())
        except OSError as error:
            raise RowIndexError(
                f"cannot write the row index {path}: {error.strerror}; {remedy(error.errno)}"
            ) from error
        self.add_cursor(block.cursor)
        self.add_cursor(block.after)
        return block

    def path(self, number: int) -> Path:
        """The file that keeps block ``number``."""
        return self.folder / "blocks" / f"{number // _IN_FOLDER:03d}" / f"{number:06d}.rows"

    def _stored(self) -> list[int]:
        return [int(path.stem) for path in self.folder.glob("blocks/*/*.rows")]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes of this machine from making the same block; a file system without locks makes it twice."""
    lock = FileLock(path)
    with contextlib.suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def open_index(
    config: Config,
    stage: str,
    sources: Sequence[Source],
    folder: str | Path,
    ratios: Sequence[Sequence[Source]] = (),
    shared: Path | None = None,
) -> RowIndex:
    """The index of ``stage`` under ``folder``: the stored one if it still holds, else a new one.

    Safe when several processes do it at once. What other settings left under ``folder`` is deleted.

    Args:
        config: The run.
        stage: Name of a stage.
        sources: Its sources, of one ratio.
        folder: Where the index of this ratio is kept.
        ratios: The sources of all ratios of a stage that has several; see ``size_blocks``.
        shared: The same folder in a bucket, if several machines share the index there.

    Raises:
        RowIndexError: A source has no example that fits a row, or the folder cannot be written.
    """
    inputs = index_inputs(config, stage, sources)
    digest, sizing = _stored_index(Path(folder), _digests(inputs))
    if sizing is None and shared is not None:
        digest, sizing = _stored_index(shared, _digests(inputs))
    own = Path(folder) / digest[:16]
    beside = None if shared is None else shared / digest[:16]
    try:
        if sizing is None:
            sizing = size_blocks(config, stage, sources, ratios)
            for place in (own, beside):
                if place is not None:
                    _write_json(place / "index.json", {"digest": digest, "layout": sizing, "inputs": inputs})
        own.mkdir(parents=True, exist_ok=True)
        for other in Path(folder).iterdir():
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise _unwritable(own, error) from error
    except LclmError as error:
        raise RowIndexError(str(error)) from None
    maker = block_maker(config, stage, sources, make_mixture(config, stage, sources, sizing))
    return RowIndex(own, digest, maker, shared=beside)


def block_maker(config: Config, stage: str, sources: Sequence[Source], mixture: Mixture) -> BlockMaker:
    """What makes the blocks of ``stage``."""
    pack: PackConfig = config.pack(stage)
    return BlockMaker(sources, mixture, pack, draw_key("rows", config.seed, stage))


def index_digests(config: Config, stage: str, sources: Sequence[Source]) -> list[str]:
    """The digest of the index of ``sources``; after it those that earlier versions gave to an index of the same."""
    return _digests(index_inputs(config, stage, sources))


def is_stored(folder: Path, digests: Sequence[str]) -> bool:
    """Whether the index of one of ``digests`` is under ``folder``."""
    return _stored_index(folder, digests)[1] is not None


def joint_digest(digests: Sequence[str], schedule: RatioSchedule) -> str:
    """The digest of the indices of all ratios together; of a stage without ``ratios`` that of its one index."""
    if not schedule.listed:
        return digests[0]
    values = [[digest, ratio] for ratio, digest in zip(schedule.ratios, digests, strict=True)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _digests(inputs: JsonObject) -> list[str]:
    equal_parts = {name: value for name, value in inputs.items() if name != "parts"}
    return [digest_of(inputs), *(digest_of(equal_parts | {"format": made_as}) for made_as in (FORMAT, *_OLDER_FORMATS))]


def _stored_index(folder: Path, digests: Sequence[str]) -> tuple[str, JsonObject | None]:
    """The digest of the index to use under ``folder``, and its block sizes; None: it has to be made."""
    for digest in digests:
        if (sizing := _stored_sizing(folder / digest[:16], digest)) is not None:
            return digest, sizing
    return digests[0], None


def _stored_sizing(folder: Path, digest: str) -> JsonObject | None:
    try:
        with store_errors(folder):
            stored = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("rebuilding the row index: %s", error)
        return None
    return stored["layout"] if stored.get("digest") == digest else None


def index_inputs(config: Config, stage: str, sources: Sequence[Source]) -> JsonObject:
    """All that the rows of a stage depend on, except how many are wanted."""
    model, setup = config.planned(config.model), sources[0].setup
    return {
        "format": FORMAT,
        "seed": config.seed,
        "stage": stage,
        "mixture": [[row, dict(sorted(one.items()))] for row, one in mixtures_by_row(config, stage, setup.part)],
        "sources": [source.inputs() for source in sources],
        "model": {name: getattr(model, name) for name in RowsFor.model_fields},
        "pack": result_values(config.pack(stage)),
        "tokenizers": [setup.tokenizers.decoder.digest, setup.tokenizers.encoder.digest],
        "part": list(setup.part),
        **({"parts": sorted(config.stages[stage].ratios)} if setup.part[1] > 1 else {}),
        **({"span_ratios": list(model.span_ratios)} if model.span_ratios else {}),
    }


def digest_of(inputs: JsonObject) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _unwritable(path: Path, error: OSError) -> RowIndexError:
    return RowIndexError(f"cannot write the row index {path}: {error.strerror}; {remedy(error.errno)}")


def _write_json(path: Path, values: JsonObject) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n", shared=True)
