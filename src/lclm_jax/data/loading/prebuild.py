"""All blocks of a row index made before training, by several processes.

A block depends on where the one before it ends. Which records it takes is foreseen from the mixture, so blocks are made
ahead of their turn; one that was foreseen wrongly, because shares change or a source ends, is made again. The files are
those that training would make.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor

from lclm_jax.data.loading.blocks import Block, BlockMaker
from lclm_jax.data.loading.row_index import RowIndex
from lclm_jax.data.packing.mixture import Cursor, Exhausted

_EMPTY = 100
"""Blocks in turn without a row that are taken for an accident."""
_AHEAD = 2
"""Blocks in work or waiting, for each process."""


def prebuild(index: RowIndex, rows: int, workers: int, progress: Callable[[int, int], None]) -> int:
    """Make the blocks that hold rows 0 to ``rows`` - 1; those that are stored already are kept.

    Args:
        index: The stage's.
        rows: How many rows; above zero.
        workers: Processes.
        progress: Called with (rows that have blocks, ``rows``).

    Returns:
        How many blocks were made.

    Raises:
        RowIndexError: As of ``RowIndex.row``; the rows before the one that is missing are made.
    """
    cursor, made, empty = Cursor(0, 0, (0,) * len(index.maker.sources)), 0, 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(index.maker,)) as pool:
        ahead: deque[tuple[Cursor, Future[Block]]] = deque()
        try:
            while cursor.row < rows:
                block = index.stored(cursor)
                if block is None:
                    block = _next_block(index, cursor, ahead, pool, workers * _AHEAD)
                    made += 1
                empty = 0 if len(block) else empty + 1
                if empty > _EMPTY:
                    index.block_of(cursor.row)  # which refuses if no block has a row any more
                cursor = block.after
                while ahead and ahead[0][0].block < cursor.block:
                    ahead.popleft()[1].cancel()
                progress(min(cursor.row, rows), rows)
        finally:
            for _, future in ahead:
                future.cancel()
    return made


def _next_block(
    index: RowIndex,
    cursor: Cursor,
    ahead: deque[tuple[Cursor, Future[Block]]],
    pool: ProcessPoolExecutor,
    most: int,
) -> Block:
    """The block at ``cursor``, stored; keeps ``most`` blocks ahead of it in the making."""
    while len(ahead) < most:
        foreseen = _after(index.maker, ahead[-1][0]) if ahead else cursor
        if foreseen is None:
            break
        ahead.append((foreseen, pool.submit(_make, foreseen)))
    after = _after(index.maker, cursor)
    if after is not None and ahead and ahead[0][0].block == cursor.block and ahead[0][0].consumed == cursor.consumed:
        block = ahead.popleft()[1].result()
        if block.after.consumed == after.consumed:
            after = after._replace(row=cursor.row + len(block))
            return index.add(Block(cursor, after, block.columns, block.dropped))
    for _, future in ahead:
        future.cancel()
    ahead.clear()
    return index.block_at(cursor)


def _after(maker: BlockMaker, cursor: Cursor) -> Cursor | None:
    """Where the next block begins if the shares stay as they are; None if the stage ends before."""
    try:
        return Cursor(cursor.block + 1, cursor.row, tuple(places.stop for places in maker.mixture.taken(cursor)))
    except Exhausted:
        return None


_worker: list[BlockMaker] = []


def _start_worker(maker: BlockMaker) -> None:
    _worker[:] = [maker]


def _make(cursor: Cursor) -> Block:
    return _worker[0](cursor)
