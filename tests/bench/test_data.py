import json
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lclm_jax.bench.data import starved_share
from lclm_jax.bench.raw_text import RawSplit, plain_batches
from lclm_jax.bench.simulated.corpus import SimulatedSplit, simulated_sources
from lclm_jax.config import parse_config
from lclm_jax.data.loading.loader import BatchMaker, Loader, RecordCache
from lclm_jax.data.loading.position import Position
from lclm_jax.data.loading.row_index import open_index
from lclm_jax.data.packing.mixture import Cursor, RatioSchedule
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8, vocab_size=512)
SPANS = {"min_tokens": 16, "max_tokens": 256, "raw_min_tokens": 16, "raw_max_tokens": 256}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    texts = [(Path(sysconfig.get_path("stdlib")) / name).read_text() for name in ("heapq.py", "textwrap.py")]
    train_tokenizer(texts, 512, root / "tokenizer")
    tokenizer = Tokenizer.from_folder(root / "tokenizer")
    values = {
        "name": "bench",
        "run_dir": str(root),
        "tokenizer": {"decoder": str(root / "tokenizer")},
        "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 16, "window": 64},
        "data": {
            "sources": {"cpt": {"collection": "documents", "objective": "cpt", "spans": SPANS}},
            "pack": {"row_length": 1024, "encoder_rows": 8, "encoder_row_length": 128, "block_examples": 64},
        },
        "stages": {"only": {"lr": {"adapter": 1e-3}, "steps": 9, "batch_rows": 4, "mixture": {"cpt": 1.0}}},
    }
    return parse_config(values), Tokenizers(tokenizer, tokenizer), texts


def test_waiting_is_what_batches_come_late():
    assert starved_share(np.array([1.0, 1.1, 1.2, 1.3]), 1.0) == 0
    assert starved_share(np.array([1.0, 3.0, 5.0]), 1.0) == pytest.approx(2 / 5)


def test_simulated_documents_depend_on_their_number_alone():
    split = SimulatedSplit(350e9)
    assert 50e6 < len(split) < 500e6
    assert split.numbers("decoder_tokens", np.arange(50_000)).mean() * len(split) == pytest.approx(350e9, rel=0.05)
    last = np.array([len(split) - 1, 5])
    cuts = split.lists("cuts", last)
    for i, columns in enumerate(split.read_many(last)):
        assert columns["cuts"].tolist() == cuts.list(i).tolist()
        assert columns["cuts"][-1] == columns["decoder_ids"].size == split.numbers("decoder_tokens", last)[i]


def test_an_index_of_350_billion_tokens_is_entered_anywhere(run, tmp_path):
    config, tokenizers, _ = run
    sources = simulated_sources(config, "only", tokenizers, 350e9)
    index = open_index(config, "only", sources, tmp_path / "a")
    block = 10**6
    cursor = Cursor(block, 50_000_000, index.maker.mixture.consumed_before(block))
    index.add_cursor(cursor)
    rows = [str(index.row(row)) for row in (50_000_003, 50_000_090, 2)]
    batches = BatchMaker([index], RatioSchedule(config, "only"), 4, 50_000_000, ((0,), 1), RecordCache())
    with Loader(batches, 100, 0, 0) as loader:
        taken = [next(loader)[0] for _ in range(3)]
        state = loader.state()
        fourth = next(loader)[0]
    assert len(json.dumps(state)) < 1000
    fresh = open_index(config, "only", sources, tmp_path / "b")
    position = Position.from_state(state)
    fresh.add_cursor(*position.cursors)
    assert [str(fresh.row(row)) for row in (50_000_003, 50_000_090, 2)] == rows
    halves = [replace(batches, indices=[fresh], first_row=position.rows, host=((part,), 2))(0)[0] for part in (0, 1)]
    again = [np.concatenate(both) for both in zip(*halves, strict=True) if both[0] is not None]
    for left, right in zip((x for x in fourth if x is not None), again, strict=True):
        assert np.array_equal(left, right), "two hosts go on where one stopped"
    assert len(taken) == 3


def test_raw_text_gives_the_rows_of_prepared_text(run, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    config, tokenizers, texts = run
    pq.write_table(pa.table({"text": texts}), tmp_path / "text.parquet")
    split = RawSplit(tmp_path / "text.parquet", tokenizers.decoder)
    columns = split.read_many([1, 0])
    assert [len(split), *(one["decoder_ids"].tolist() for one in columns)] == [
        2, *(tokenizers.decoder.encode(text, plain=True).tolist() for text in reversed(texts))
    ]  # fmt: skip
    assert split.lists("cuts", np.array([1])).values.tolist() == columns[0]["cuts"].tolist()
    pack, spans = config.pack("only"), config.data.sources["cpt"].spans
    batch = next(plain_batches(tmp_path / "text.parquet", tokenizers.decoder, config.model, pack, spans, 2))
    assert batch.decoder_tokens.shape == (2, 1024) and batch.encoder_windows.shape[1] == 64
