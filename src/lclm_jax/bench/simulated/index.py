"""The row index of a corpus of the size that models are trained on: opened, searched and resumed from.

The documents are simulated (see ``corpus``), everything else is the real thing. Of the blocks, a few are made and
counted; the others are files with the header of a block alone, whose rows are drawn from those counts, as making them
all would take hours. The rows that are looked up lie in the blocks that were made, whose files are deleted again: so a
search goes through the folder of a complete index and ends with a block that has to be planned and packed.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from lclm_jax.bench.simulated.corpus import simulated_sources
from lclm_jax.config import Config, dump_config, load_config
from lclm_jax.data.loading.blocks import Block, write_block
from lclm_jax.data.loading.loader import BatchMaker, Loader, RecordCache
from lclm_jax.data.loading.row_index import RowIndex, open_index
from lclm_jax.data.packing.counter_rng import draw_key, uniform
from lclm_jax.data.packing.mixture import Cursor, RatioSchedule
from lclm_jax.text.run_tokenizers import load_tokenizers
from lclm_jax.types import JsonObject

_MADE = 5


def bench_index(config: Config, stage: str, tokens: float) -> JsonObject:
    """Figures of an index of ``tokens`` tokens: sizes, and seconds and memory of a fresh process that uses it."""
    sources = simulated_sources(config, stage, load_tokenizers(config), tokens)
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(config, stage, sources, folder)
        mixture = index.maker.mixture
        shortest = min(range(len(sources)), key=lambda i: len(sources[i]) / max(mixture.consumed_before(1000)[i], 1))
        blocks = round(1000 * len(sources[shortest]) / mixture.consumed_before(1000)[shortest])
        places = np.unique((uniform(draw_key("places", tokens), np.arange(_MADE)) * (blocks - 1)).astype(int))
        start = time.perf_counter()
        made = {int(b): index.maker(Cursor(int(b), 0, mixture.consumed_before(int(b)))) for b in places}
        seconds = (time.perf_counter() - start) / len(made)
        cursors = _cursors(index, blocks, made)
        _write_headers(index, cursors, set(made))
        rows = [cursors[b].row + len(block) // 2 for b, block in made.items()]
        questions = {"folder": folder, "stage": stage, "tokens": tokens, "rows": rows, "resume": rows[-1] - 7}
        questions |= {"cursor": cursors[max(made)], "digest": index.digest}
        Path(folder, "config.yaml").write_text(dump_config(config), encoding="utf-8")
        Path(folder, "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        command = [sys.executable, "-m", "lclm_jax.bench.simulated.index", folder]
        answers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    of_block = list(made.values())
    return {
        "records": len(sources[0]),
        "blocks": blocks,
        "rows": cursors[-1].row,
        "examples": round(blocks * float(np.mean([one.columns["record"].size for one in of_block]))),
        "index_gigabytes": blocks * float(np.mean([_bytes(one) for one in of_block])) / 1e9,
        "decoder_fill": float(np.mean([_fill(one, "tokens", config.pack(stage).row_length) for one in of_block])),
        "seconds_per_block": seconds,
        "core_hours_for_all_blocks": seconds * blocks / 3600,
        **answers,
    }


def _cursors(index: RowIndex, blocks: int, made: dict[int, Block]) -> list[Cursor]:
    """Where every block begins; blocks that were not made have the rows of one that was."""
    counts = np.array([len(block) for block in made.values()])
    rows = counts[(uniform(draw_key("rows"), np.arange(blocks)) * counts.size).astype(int)]
    rows[list(made)] = counts
    firsts = np.append(0, np.cumsum(rows)).tolist()
    return [Cursor(b, firsts[b], index.maker.mixture.consumed_before(b)) for b in range(blocks + 1)]


def _write_headers(index: RowIndex, cursors: list[Cursor], without: set[int]) -> None:
    none = {"rows": np.zeros(1, np.int64)}
    for before, after in pairwise(cursors):
        if before.block not in without:
            path = index.path(before.block)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_block(path, Block(before, after, none, {}))


def _bytes(block: Block) -> int:
    return sum(column.nbytes for column in block.columns.values())


def _fill(block: Block, column: str, room: int) -> float:
    return float(block.columns[column].sum()) / (len(block) * room)


def answer(folder: Path) -> dict[str, float]:
    """Open the index under ``folder``, find rows and resume from a checkpoint; seconds of each, and gigabytes held."""
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    config, stage = load_config(folder / "config.yaml"), questions["stage"]
    tokenizers = load_tokenizers(config)
    idle, begin = _gigabytes(), time.perf_counter()
    sources = simulated_sources(config, stage, tokenizers, questions["tokens"])
    index = open_index(config, stage, sources, folder)
    opened = time.perf_counter()
    sought = []
    for row in questions["rows"]:
        start = time.perf_counter()
        index.row(row)
        sought.append(time.perf_counter() - start)
    # As on another machine: no block is known but the checkpoint's.
    block, row, draws = questions["cursor"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as elsewhere:
        fresh = open_index(config, stage, sources, elsewhere)
        fresh.add_cursor(Cursor(block, row, tuple(draws)))
        rows = config.stages[stage].batch_rows
        schedule = RatioSchedule(config, stage)
        maker = BatchMaker([fresh], schedule, rows, questions["resume"], ((0,), 1), RecordCache())
        with Loader(maker, 10**6, 0, 0) as loader:
            next(loader)
            state = len(json.dumps(loader.state()))
    return {
        "open_seconds": opened - begin,
        "seek_seconds_longest": max(sought),
        "resume_seconds_with_first_batch": time.perf_counter() - start,
        "state_bytes": state,
        "gigabytes_at_most": _gigabytes(),
        "gigabytes_before": idle,
    }


def _gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(Path(sys.argv[1]))))
