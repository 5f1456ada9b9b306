import json
import pickle
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from tests.data.helpers import unpack_row

from lclm_jax.config import OBJECTIVES
from lclm_jax.data.loading import workers
from lclm_jax.data.loading.blocks import BlockMaker
from lclm_jax.data.loading.index_summary import index_info, read_info
from lclm_jax.data.loading.loader import RecordCache, make_loader
from lclm_jax.data.loading.position import Position, batch_stats
from lclm_jax.data.loading.row_index import RowIndexError
from lclm_jax.data.packing.sources import ExampleRef, make_sources
from lclm_jax.data.store.shards import PreparedSplit
from lclm_jax.errors import LclmError


def batches(config, tokenizers, **options):
    with make_loader(config, "mixed", tokenizers, **options) as loader:
        return [batch for batch, _ in loader]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert np.array_equal(x, y) and type(x) is np.ndarray if x is not None else y is None, name


@pytest.fixture(scope="module")
def reference(run, edited):
    """All batches of the stage, made without threads."""
    values, tokenizers = run
    return batches(edited(values, data={"prefetch": 0}), tokenizers)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_threads_and_workers_do_not_change_the_batches(run, edited, reference, workers, monkeypatch):
    monkeypatch.setattr("lclm_jax.data.loading.loader._SHARED_BYTES", 0 if workers == 2 else 2**20)
    values, tokenizers = run
    assert_equal(batches(edited(values, data={"workers": workers, "prefetch": 2}), tokenizers), reference)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_take_disjoint_parts_of_the_same_batches(run, edited, reference, hosts):
    values, tokenizers = run
    config = edited(values, data={"prefetch": 0})
    parts = [batches(config, tokenizers, host=((host,), hosts)) for host in range(hosts)]
    whole = [
        type(one[0])(*(None if x[0] is None else np.concatenate(x) for x in zip(*one, strict=True)))
        for one in zip(*parts, strict=True)
    ]
    assert_equal(whole, reference)


def test_resume_continues_where_the_rows_ended(run, edited, reference):
    values, tokenizers = run
    config = edited(values, data={"prefetch": 3})
    with make_loader(config, "mixed", tokenizers) as loader:
        first = [next(loader)[0] for _ in range(2)]
        state = loader.state()
        assert len(loader) == 4
    rest = batches(config, tokenizers, start=Position.from_state(state))
    assert_equal(first + rest, reference)
    assert state["rows_consumed"] == 16 and state["index_digest"] == loader.digest == loader.indices[4].digest
    assert len(json.dumps(state)) < 1000


KILLED = """
import json, sys
from lclm_jax.config import parse_config
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
config = parse_config(json.loads(sys.argv[1]))
tokenizer = Tokenizer.from_folder(config.tokenizer.decoder)
loader = make_loader(config, "mixed", Tokenizers(tokenizer, tokenizer), index_folder=sys.argv[2])
for batch, _ in loader:
    print(json.dumps([batch.decoder_tokens.tolist(), loader.state()]), flush=True)
    sys.stdin.readline()
"""


def test_a_killed_process_takes_its_workers_along_and_is_resumed_with_the_same_rows(run, edited, reference, tmp_path):
    values, tokenizers = run
    with_worker = values | {"data": values["data"] | {"workers": 1}}
    command = [sys.executable, "-c", KILLED, json.dumps(with_worker), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        seen = [json.loads(child.stdout.readline())]
        workers = [one for one in psutil.Process(child.pid).children() if "spawn_main" in "".join(one.cmdline())]
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):  # a scheduler's, to all processes of a run
            workers[0].send_signal(number)
        child.stdin.write("go on\n")
        child.stdin.flush()
        seen.append(json.loads(child.stdout.readline()))
        assert not psutil.wait_procs(workers, timeout=0.5)[0]
        child.kill()
    assert len(workers) == 1 and not psutil.wait_procs(workers, timeout=60)[1]
    assert child.returncode == -signal.SIGKILL
    assert [tokens for tokens, _ in seen] == [batch.decoder_tokens.tolist() for batch in reference[:2]]
    assert seen[-1][1]["rows_consumed"] == 16
    rest = batches(edited(values), tokenizers, start=Position.from_state(seen[-1][1]), index_folder=tmp_path)
    assert_equal(rest, reference[2:])


def test_rows_hold_whole_examples_and_stats_count_them(run, edited, reference):
    values, tokenizers = run
    with make_loader(edited(values), "mixed", tokenizers) as loader:
        batch, stats = next(loader)
        index = loader.indices[4]
        refs = [index.row(row) for row in range(8)]
        info = index_info(index, 48)
        objectives = [source.config.objective for source in index.maker.sources]
    for row, segments, found in zip(refs, batch.decoder_segments, batch.objectives, strict=True):
        first = np.unique(segments, return_index=True)[1][int(segments.min() == 0) :]
        assert [OBJECTIVES[number] for number in found[first]] == [objectives[ref.source] for ref in row]
        assert (found[segments == 0] == -1).all()
    assert len({*batch.objectives.ravel().tolist()}) > 2
    assert stats == batch_stats(batch)
    assert stats.examples == sum(map(len, refs))
    assert 0.93 < info["decoder_fill"] <= 1
    assert stats.raw_tokens > stats.decoder_tokens
    examples = 0
    for i in range(8):
        row = {name: x[i] for name, x in batch._asdict().items() if x is not None}
        for example in unpack_row(row, 4):
            assert example.loss.any()
            examples += 1
    assert examples == stats.examples


def test_a_record_gives_the_same_examples_in_any_company(run, edited):
    values, tokenizers = run
    for source in make_sources(edited(values), "mixed", tokenizers):
        whole, part = source.plan(1, np.arange(len(source))), source.plan(1, np.array([3, 1]))
        mine = np.concatenate([np.flatnonzero(whole.record == record) for record in (3, 1)])
        assert part.record.tolist() == whole.record[mine].tolist()
        for name in ("variant", "tokens", "raw_tokens"):
            assert getattr(part, name).tolist() == getattr(whole, name)[mine].tolist()
        assert part.bounds.values.tolist() == whole.bounds.take(mine).values.tolist()


def test_planned_lengths_are_those_of_the_examples(run, edited):
    values, tokenizers = run
    for overlap, pooling in ((0, "mean"), (6, "eos")):
        config = edited(values, model={"overlap": overlap, "pooling": pooling})
        for source in make_sources(config, "mixed", tokenizers):
            plan = source.plan(1, np.arange(len(source)))
            for i in range(0, plan.record.size, 7):
                ref = ExampleRef(0, int(plan.record[i]), int(plan.variant[i]), plan.bounds.list(i))
                example = source.example(ref, source.split.read(ref.record))
                assert len(example.tokens) == plan.tokens[i]
                assert [len(span) for span in example.spans] == plan.spans.list(i).tolist()
                latents = sum(-(-len(span) // 4) for span in example.spans)
                raw = len(example.tokens) - latents + sum(map(len, example.spans))
                assert raw == plan.raw_tokens[i]


def test_epochs_cut_at_other_places(run, edited):
    values, tokenizers = run
    for source in make_sources(edited(values), "mixed", tokenizers)[:2]:
        first, again, second = (source.plan(epoch, np.arange(len(source))) for epoch in (0, 0, 1))
        assert np.array_equal(first.bounds.values, again.bounds.values)
        assert not np.array_equal(first.bounds.values[:40], second.bounds.values[:40])


def test_what_cannot_be_loaded_is_an_error_with_a_fix(run, edited, tmp_path):
    values, tokenizers = run
    with pytest.raises(LclmError, match=r"batch_rows=8 .* not a multiple of the 3 parts"):
        make_loader(edited(values), "mixed", tokenizers, host=((0,), 3))
    pack = {"row_length": 8, "encoder_rows": 4, "encoder_row_length": 128}
    with pytest.raises(RowIndexError, match="source repeat: none of its examples fits a row of 8"):
        short = edited(values, stage={"pack": pack, "mixture": {"repeat": 1.0}})
        make_loader(short, "mixed", tokenizers, index_folder=tmp_path / "index")
    wrong = {"cpt": values["data"]["sources"]["cpt"] | {"collection": "chat"}}
    with pytest.raises(LclmError, match="cuts documents, which collection 'chat' does not hold"):
        bad = edited(values, data={"sources": values["data"]["sources"] | wrong})
        make_loader(bad, "mixed", tokenizers, index_folder=tmp_path / "index")


def test_the_record_cache_keeps_to_its_budget(run, edited):
    values, tokenizers = run
    config = edited(values)
    source = make_sources(config, "mixed", tokenizers)[0]
    cache = RecordCache(20_000)
    wanted = [(source, i % len(source.split)) for i in range(12)]
    for columns, (_, record) in zip(cache.get(wanted), wanted, strict=True):
        assert "text" not in columns
        assert np.array_equal(columns["cuts"], source.split.read(record)["cuts"])
    assert isinstance(source.split, PreparedSplit)
    assert 0 < len(cache._records) < len({record for _, record in wanted})
    assert cache._records.currsize <= 20_000
    assert len(RecordCache(1).get(wanted)) == 12


def test_other_rows_go_on_without_those_before_being_made(run, small_blocks, tmp_path, monkeypatch):
    values, tokenizers = run
    old = small_blocks(values, stage={"steps": 30})
    new = small_blocks(values, stage={"steps": 30, "mixture": {"cpt": 1.0}})
    with make_loader(old, "mixed", tokenizers, index_folder=tmp_path / "old") as loader:
        state = loader.state(20 * 8) | {"step": 20}
    made, make = [], BlockMaker.__call__

    def counted(maker, cursor):
        made.append(cursor.block)
        return make(maker, cursor)

    monkeypatch.setattr(BlockMaker, "__call__", counted)
    forced = {"start": Position.from_state(state)}
    with make_loader(new, "mixed", tokenizers, index_folder=tmp_path / "new", **forced) as loader:
        first = [next(loader)[0] for _ in range(3)]
        kept = loader.state() | {"step": 23}
        assert min(made) > 5 and len(made) < 10
        assert kept["index_digest"] == loader.digest and kept["rows_consumed"] == 23 * 8
        assert loader.info(new.stages["mixed"])["rows"] == 240
        with pytest.raises(RowIndexError, match=r"row 0 was made with other settings; those of now begin at row \d+"):
            loader.row(0)
    assert read_info(tmp_path / "new")["rows"] == 240
    rest = batches(new, tokenizers, start=Position.from_state(kept), index_folder=tmp_path / "again")
    assert_equal(first + rest, batches(new, tokenizers, index_folder=tmp_path / "third", **forced))
    assert len(first + rest) == 10
    with make_loader(new, "mixed", tokenizers, start=Position.from_state(kept), index_folder=tmp_path / "b") as loader:
        assert loader.digest == kept["index_digest"]
        sent = pickle.loads(pickle.dumps(loader.indices[4]))
        assert [one.record for one in sent.row(200)] == [one.record for one in loader.indices[4].row(200)]


@pytest.mark.parametrize(("free", "words"), [(10**6, "3 data workers hand on batches of 2.0 MB"), (10**7, None)])
def test_too_little_shared_memory_is_said_before_a_worker_dies(monkeypatch, caplog, free, words):
    monkeypatch.setattr(workers, "shared_memory_free", lambda: free)
    if words:
        with pytest.raises(LclmError, match=words):
            workers.check_shared_memory(3, 2, 2 * 10**6)
    else:
        workers.check_shared_memory(3, 2, 2 * 10**6)
        assert "10.0 MB free" in caplog.text and "a worker that finds it full is killed" in caplog.text
    caplog.clear()
    monkeypatch.setattr(workers, "shared_memory_free", lambda: 10**9)
    workers.check_shared_memory(3, 2, 2 * 10**6)
    assert not caplog.text
