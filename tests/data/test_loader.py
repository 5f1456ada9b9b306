import json
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from lclm_jax.config import OBJECTIVES, parse_config
from lclm_jax.data.histograms import plot_histograms
from lclm_jax.data.index import IndexFailure, index_inputs, open_index
from lclm_jax.data.index_info import first_info, index_info, read_info, summarize
from lclm_jax.data.loader import Position, RecordCache, batch_stats, make_loader
from lclm_jax.data.prepare import prepare_corpus
from lclm_jax.data.rows import unpack_row
from lclm_jax.data.sources import ExampleRef, Tokenizers, make_sources
from lclm_jax.data.store import PreparedSplit
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

FILES = ("bisect.py", "heapq.py", "textwrap.py", "shlex.py", "stat.py", "keyword.py", "fnmatch.py", "colorsys.py")
BACKBONE = dict(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8, vocab_size=512)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A prepared run over a few files of the standard library: (config values, tokenizers)."""
    root = tmp_path_factory.mktemp("run")
    (root / "corpus").mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for name in FILES:
        shutil.copy(library / name, root / "corpus" / name)
    texts = [(root / "corpus" / name).read_text() for name in FILES]
    train_tokenizer(texts, 512, root / "tokenizer")
    spans = {"min_tokens": 8, "max_tokens": 32, "raw_min_tokens": 8, "raw_max_tokens": 32}
    values = {
        "name": "test",
        "run_dir": str(root),
        "corpus": {"kind": "folder", "path": str(root / "corpus"), "validation_share": 0, "held_out_share": 0},
        "tokenizer": {"decoder": str(root / "tokenizer")},
        "model": {"encoder": BACKBONE, "decoder": BACKBONE, "ratio": 4, "window": 32},
        "data": {
            "sources": {
                "cpt": {"collection": "documents", "objective": "cpt", "max_tokens": 120, "spans": spans},
                "repeat": {"collection": "documents", "objective": "reconstruction", "spans": spans},
                "chat": {"collection": "chat", "objective": "chat"},
            },
            "pack": {"row_length": 256, "encoder_rows": 4, "encoder_row_length": 128},
        },
        "stages": {
            "mixed": {
                "lr": {"adapter": 1e-3},
                "steps": 6,
                "batch_rows": 8,
                "mixture": {"cpt": 0.4, "repeat": 0.5, "chat": 0.1},
            }
        },
    }
    config = parse_config(values)
    prepare_corpus(config, root / "data")
    tokenizer = Tokenizer.from_folder(root / "tokenizer")
    return values, Tokenizers(tokenizer, tokenizer)


def edited(values, **changes):
    """A configuration with changed keys of its stage, ``data`` or ``model``."""
    stage = values["stages"]["mixed"] | changes.pop("stage", {})
    data = values["data"] | changes.pop("data", {})
    model = values["model"] | changes.pop("model", {})
    return parse_config(values | {"stages": {"mixed": stage}, "data": data, "model": model} | changes)


def batches(config, tokenizers, **options):
    with make_loader(config, "mixed", tokenizers, **options) as loader:
        return [batch for batch, _ in loader]


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for name, x, y in zip(a._fields, a, b, strict=True):
            assert np.array_equal(x, y) and type(x) is np.ndarray if x is not None else y is None, name


@pytest.fixture(scope="module")
def reference(run):
    """All batches of the stage, made without threads."""
    values, tokenizers = run
    return batches(edited(values, data={"prefetch": 0}), tokenizers)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_threads_and_workers_do_not_change_the_batches(run, reference, workers, monkeypatch):
    monkeypatch.setattr("lclm_jax.data.loader._SHARED_BYTES", 0 if workers == 2 else 2**20)
    values, tokenizers = run
    assert_equal(batches(edited(values, data={"workers": workers, "prefetch": 2}), tokenizers), reference)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_take_disjoint_parts_of_the_same_batches(run, reference, hosts):
    values, tokenizers = run
    config = edited(values, data={"prefetch": 0})
    parts = [batches(config, tokenizers, host=((host,), hosts)) for host in range(hosts)]
    whole = [
        type(one[0])(*(None if x[0] is None else np.concatenate(x) for x in zip(*one, strict=True)))
        for one in zip(*parts, strict=True)
    ]
    assert_equal(whole, reference)


def test_resume_continues_where_the_rows_ended(run, reference):
    values, tokenizers = run
    config = edited(values, data={"prefetch": 3})
    with make_loader(config, "mixed", tokenizers) as loader:
        first = [next(loader)[0] for _ in range(2)]
        state = loader.state()
        assert len(loader) == 4
    rest = batches(config, tokenizers, start=Position.from_state(state))
    assert_equal(first + rest, reference)
    assert state["rows_consumed"] == 16 and state["index_digest"] == loader.index.digest
    assert len(json.dumps(state)) < 1000


KILLED = """
import json, sys
from lclm_jax.config import parse_config
from lclm_jax.data.loader import make_loader
from lclm_jax.data.sources import Tokenizers
from lclm_jax.text.tokenizer import Tokenizer
config = parse_config(json.loads(sys.argv[1]))
tokenizer = Tokenizer.from_folder(config.tokenizer.decoder)
loader = make_loader(config, "mixed", Tokenizers(tokenizer, tokenizer), index_folder=sys.argv[2])
for batch, _ in loader:
    print(json.dumps([batch.decoder_tokens.tolist(), loader.state()]), flush=True)
    sys.stdin.readline()
"""


def test_a_killed_process_takes_its_workers_along_and_is_resumed_with_the_same_rows(run, reference, tmp_path):
    values, tokenizers = run
    with_worker = values | {"data": values["data"] | {"workers": 1}}
    command = [sys.executable, "-c", KILLED, json.dumps(with_worker), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        seen = [json.loads(child.stdout.readline())]
        child.stdin.write("go on\n")
        child.stdin.flush()
        seen.append(json.loads(child.stdout.readline()))
        workers = [one for one in psutil.Process(child.pid).children() if "spawn_main" in "".join(one.cmdline())]
        child.kill()
    assert len(workers) == 1 and not psutil.wait_procs(workers, timeout=60)[1]
    assert child.returncode == -signal.SIGKILL
    assert [tokens for tokens, _ in seen] == [batch.decoder_tokens.tolist() for batch in reference[:2]]
    assert seen[-1][1]["rows_consumed"] == 16
    rest = batches(edited(values), tokenizers, start=Position.from_state(seen[-1][1]), index_folder=tmp_path)
    assert_equal(rest, reference[2:])


def test_rows_hold_whole_examples_and_stats_count_them(run, reference):
    values, tokenizers = run
    with make_loader(edited(values), "mixed", tokenizers) as loader:
        batch, stats = next(loader)
        refs = [loader.index.row(row) for row in range(8)]
        info = index_info(loader.index, 48)
        objectives = [source.config.objective for source in loader.maker.sources]
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


def test_an_epoch_holds_every_example_once(run, tmp_path):
    values, tokenizers = run
    for name in ("cpt", "repeat", "chat"):
        config = edited(values, stage={"mixture": {name: 1.0}})
        sources = make_sources(config, "mixed", tokenizers)
        plan = sources[0].plan(0, np.arange(len(sources[0])))
        index = open_index(config, "mixed", sources, tmp_path / name)
        wanted = [
            (int(plan.record[i]), int(plan.variant[i]), tuple(plan.bounds.list(i))) for i in range(plan.record.size)
        ]
        assert len(set(wanted)) == len(wanted)
        found, dropped, draws, row = Counter(), 0, 0, 0
        while draws < len(sources[0]):  # blocks until the first epoch is through
            block = index.block_of(row)
            for _ in range(len(block)):
                found.update((ref.record, ref.variant, tuple(ref.bounds)) for ref in index.row(row))
                row += 1
            dropped += sum(block.dropped[name].values())
            draws = block.after.draws[0]
        # The rest is of the second epoch, which cuts documents at other places.
        missing = [one for one in wanted if not found[one]]
        assert len(missing) <= dropped
        if name != "chat":
            assert sum(found[one] - 1 for one in wanted) < 0.2 * len(wanted)


def test_a_record_gives_the_same_examples_in_any_company(run):
    values, tokenizers = run
    for source in make_sources(edited(values), "mixed", tokenizers):
        whole, part = source.plan(1, np.arange(len(source))), source.plan(1, np.array([3, 1]))
        mine = np.concatenate([np.flatnonzero(whole.record == record) for record in (3, 1)])
        assert part.record.tolist() == whole.record[mine].tolist()
        for name in ("variant", "tokens", "raw_tokens"):
            assert getattr(part, name).tolist() == getattr(whole, name)[mine].tolist()
        assert part.bounds.values.tolist() == whole.bounds.take(mine).values.tolist()


def test_planned_lengths_are_those_of_the_examples(run):
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


def test_epochs_cut_at_other_places(run):
    values, tokenizers = run
    for source in make_sources(edited(values), "mixed", tokenizers)[:2]:
        first, again, second = (source.plan(epoch, np.arange(len(source))) for epoch in (0, 0, 1))
        assert np.array_equal(first.bounds.values, again.bounds.values)
        assert not np.array_equal(first.bounds.values[:40], second.bounds.values[:40])


def small_blocks(values, **changes):
    """A configuration whose index has many blocks."""
    pack = values["data"]["pack"] | {"block_examples": 40}
    return edited(values, data={"pack": pack}, **changes)


def rows_of(index, rows):
    return [str(index.row(row)) for row in rows]


def test_rows_are_found_from_anywhere(run, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    sources = make_sources(config, "mixed", tokenizers)
    index = open_index(config, "mixed", sources, tmp_path / "a")
    rows = rows_of(index, range(60))
    files = sorted(index.folder.glob("blocks/*/*.rows"))
    assert len(files) > 2
    other = open_index(config, "mixed", sources, tmp_path / "b")
    assert rows_of(other, [59, 0, 31]) == [rows[59], rows[0], rows[31]], "not stored: made from the first block on"
    assert [file.read_bytes() for file in sorted(other.folder.glob("blocks/*/*.rows"))] == [
        f.read_bytes() for f in files
    ]
    made = len(files)
    index.maker.__class__ = type("Counting", (type(index.maker),), {"__call__": None})
    assert rows_of(open_index(config, "mixed", sources, tmp_path / "a"), [59, 0]) == [rows[59], rows[0]], "stored"
    cursor = other.block_of(40).cursor
    elsewhere = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path / "c")
    elsewhere.know(cursor)
    assert rows_of(pickle.loads(pickle.dumps(elsewhere)), [40, 59]) == [rows[40], rows[59]], "from a checkpoint on"
    assert 0 < len(list(elsewhere.folder.glob("blocks/*/*.rows"))) < made
    with pytest.raises(IndexError, match="row -1 is negative"):
        other.row(-1)


def test_index_is_kept_for_equal_settings_and_damage_is_repaired(run, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    sources = make_sources(config, "mixed", tokenizers)
    index = open_index(config, "mixed", sources, tmp_path)
    rows = rows_of(index, range(20))
    longer = open_index(small_blocks(values, stage={"steps": 9}), "mixed", sources, tmp_path)
    assert (longer.digest, longer.folder) == (index.digest, index.folder)
    block = next(index.folder.glob("blocks/*/000001.rows"))
    block.write_bytes(block.read_bytes()[:-100])
    (index.folder / "index.json").write_text("{")
    again = open_index(config, "mixed", sources, tmp_path)
    assert rows_of(again, range(20)) == rows
    other = small_blocks(values, seed=1)
    changed = open_index(other, "mixed", make_sources(other, "mixed", tokenizers), tmp_path)
    assert changed.digest != index.digest
    assert list(tmp_path.iterdir()) == [changed.folder], "what no settings need is deleted"


def test_info_counts_rows_epochs_and_what_was_left_out(run, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path)
    info = first_info(index, config.stages["mixed"])
    assert read_info(tmp_path) == info == index_info(index, 48)
    examples = [ref for row in range(48) for ref in index.row(row)]
    assert info["examples"] == len(examples)
    mine = info["sources"]["repeat"]
    assert mine["examples"] == sum(ref.source == 1 for ref in examples)
    assert 0 < mine["epochs"] < 10
    assert "48 rows" in summarize(info) and "epochs: cpt" in summarize(info)


def test_sources_change_and_end_as_configured(run, tmp_path):
    values, tokenizers = run
    config = small_blocks(values, stage={"mixture": {"cpt": 1.0}, "mixture_changes": {2: {"repeat": 1.0}}})
    index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path / "a")
    kinds = [{ref.source for ref in index.row(row)} for row in range(48)]
    change = kinds.index({1})
    assert kinds == [{0}] * change + [{1}] * (48 - change)
    assert 16 <= change < 16 + len(index.block_of(15))
    sources = values["data"]["sources"]
    for rule, fails in (("drop", False), ("stop", True)):
        changed = {**sources, "chat": sources["chat"] | {"when_exhausted": rule}}
        data = {"sources": changed, "pack": values["data"]["pack"] | {"block_examples": 40}}
        config = edited(values, data=data, stage={"steps": 40, "mixture": {"cpt": 0.5, "chat": 0.5}})
        index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path / rule)
        if fails:
            with pytest.raises(IndexFailure, match=r"source chat is exhausted after row \d+; train fewer steps"):
                index_info(index, 320)
        else:
            assert index_info(index, 320)["sources"]["chat"]["epochs"] == 1
            assert all(ref.source != 1 for ref in index.row(319))


def test_every_input_changes_the_digest(run):
    values, tokenizers = run
    base = edited(values)
    base_inputs = index_inputs(base, "mixed", make_sources(base, "mixed", tokenizers))
    sources = values["data"]["sources"]
    changes = [
        {"seed": 1},
        {"model": {"ratio": 8}},
        {"model": {"overlap": 1}},
        {"stage": {"mixture": {"cpt": 0.5, "repeat": 0.5, "chat": 0.1}}},
        {"stage": {"mixture_changes": {3: {"cpt": 0.5}}}},
        {"data": {"sources": sources | {"cpt": sources["cpt"] | {"when_exhausted": "drop", "epochs": 2}}}},
        {"stage": {"pack": {"row_length": 250, "encoder_rows": 4, "encoder_row_length": 128}}},
        {"data": {"sources": sources | {"cpt": sources["cpt"] | {"max_tokens": 100}}}},
    ]
    for change in changes:
        config = edited(values, **change)
        assert index_inputs(config, "mixed", make_sources(config, "mixed", tokenizers)) != base_inputs


def test_what_cannot_be_loaded_is_an_error_with_a_fix(run, tmp_path):
    values, tokenizers = run
    with pytest.raises(ValueError, match=r"batch_rows=8 .* not a multiple of the 3 parts"):
        make_loader(edited(values), "mixed", tokenizers, host=((0,), 3))
    pack = {"row_length": 8, "encoder_rows": 4, "encoder_row_length": 128}
    with pytest.raises(IndexFailure, match="source repeat: none of its examples fits a row of 8"):
        short = edited(values, stage={"pack": pack, "mixture": {"repeat": 1.0}})
        make_loader(short, "mixed", tokenizers, index_folder=tmp_path / "index")
    wrong = {"cpt": values["data"]["sources"]["cpt"] | {"collection": "chat"}}
    with pytest.raises(ValueError, match="cuts documents, which collection 'chat' does not hold"):
        bad = edited(values, data={"sources": values["data"]["sources"] | wrong})
        make_loader(bad, "mixed", tokenizers, index_folder=tmp_path / "index")


def test_examples_that_exceed_the_encoder_are_halved(run, tmp_path):
    values, tokenizers = run
    pack = {"row_length": 256, "encoder_rows": 1, "encoder_row_length": 44}
    spans = {"min_tokens": 20, "max_tokens": 30, "raw_min_tokens": 8, "raw_max_tokens": 12}
    source = values["data"]["sources"]["cpt"] | {"spans": spans}
    config = edited(
        values,
        data={"sources": values["data"]["sources"] | {"cpt": source}},
        stage={"pack": pack, "mixture": {"cpt": 1}},
    )
    index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path)
    assert index_info(index, 20)["sources"]["cpt"]["dropped"] == {}


def test_the_record_cache_keeps_to_its_budget(run):
    values, tokenizers = run
    config = edited(values)
    source = make_sources(config, "mixed", tokenizers)[0]
    cache = RecordCache(1)
    wanted = [(source, i % len(source.split)) for i in range(12)]
    for columns, (_, record) in zip(cache.get(wanted), wanted, strict=True):
        assert "text" not in columns
        assert np.array_equal(columns["cuts"], source.split.read(record)["cuts"])
    assert isinstance(source.split, PreparedSplit)
    assert len(cache._records) == 1


def test_histograms_are_made(run, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path / "index")
    plot_histograms(index, 30, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
