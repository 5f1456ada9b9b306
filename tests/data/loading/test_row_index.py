import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lclm_jax.data.loading.index_summary import index_info, read_info, stage_info, summarize
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.prebuild import prebuild
from lclm_jax.data.loading.row_index import RowIndex, RowIndexError, index_inputs, open_index
from lclm_jax.data.packing.sources import make_sources
from lclm_jax.paths import to_path
from lclm_jax.report.histograms import plot_histograms


def rows_of(index, rows):
    return [str(index.row(row)) for row in rows]


def test_an_epoch_holds_every_example_once(run, edited, tmp_path):
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
            draws = block.after.consumed[0]
        # The rest is of the second epoch, which cuts documents at other places.
        missing = [one for one in wanted if not found[one]]
        assert len(missing) <= dropped
        if name != "chat":
            assert sum(found[one] - 1 for one in wanted) < 0.2 * len(wanted)


def test_rows_are_found_from_anywhere(run, small_blocks, tmp_path):
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
    elsewhere.add_cursor(cursor)
    assert rows_of(pickle.loads(pickle.dumps(elsewhere)), [40, 59]) == [rows[40], rows[59]], "from a checkpoint on"
    assert 0 < len(list(elsewhere.folder.glob("blocks/*/*.rows"))) < made
    with pytest.raises(IndexError, match="row -1 is negative"):
        other.row(-1)


def test_index_is_kept_for_equal_settings_and_damage_is_repaired(run, small_blocks, tmp_path):
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


def test_info_counts_rows_epochs_and_what_was_left_out(run, small_blocks, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path)
    info = stage_info(index, config.stages["mixed"])
    assert read_info(tmp_path) == info == index_info(index, 48)
    examples = [ref for row in range(48) for ref in index.row(row)]
    assert info["examples"] == len(examples)
    mine = info["sources"]["repeat"]
    assert mine["examples"] == sum(ref.source == 1 for ref in examples)
    assert 0 < mine["epochs"] < 10
    assert "48 rows" in summarize(info) and "epochs: cpt" in summarize(info)


def test_sources_change_and_end_as_configured(run, edited, small_blocks, tmp_path):
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
            with pytest.raises(RowIndexError, match=r"source chat is exhausted after row \d+; train fewer steps"):
                index_info(index, 320)
        else:
            assert index_info(index, 320)["sources"]["chat"]["epochs"] == 1
            assert all(ref.source != 1 for ref in index.row(319))


def test_every_input_changes_the_digest(run, edited):
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


def test_examples_that_exceed_the_encoder_are_halved(run, edited, tmp_path):
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


def test_histograms_are_made(run, small_blocks, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path / "index")
    plot_histograms(index, 30, tmp_path / "a.png", "demo")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def files_of(index):
    return {file.name: file.read_bytes() for file in sorted(index.folder.glob("blocks/*/*.rows"))}


def test_several_processes_make_the_files_that_one_makes(run, small_blocks, tmp_path):
    values, tokenizers = run
    # The change at step 2 is not foreseen, and chats end.
    ending = values["data"]["sources"]["chat"] | {"when_exhausted": "drop"}
    sources = values["data"]["sources"] | {"chat": ending}
    config = small_blocks(
        values | {"data": values["data"] | {"sources": sources}}, stage={"mixture_changes": {2: {"repeat": 1.0}}}
    )
    one, several = (open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path / n) for n in "ab")
    for _ in one.blocks(60):
        pass
    wanted = len(files_of(one))
    said = []
    assert prebuild(several, 60, 2, lambda done, rows: said.append((done, rows))) == wanted
    assert files_of(several) == files_of(one)
    assert said[-1] == (60, 60) and len(said) == wanted and said == sorted(said)
    files = sorted(several.folder.glob("blocks/*/*.rows"))
    for file in files[2:4]:
        file.unlink()
    again = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path / "b")
    assert prebuild(again, 60, 1, lambda *_: None) == 2
    assert files_of(again) == files_of(one)


def test_one_process_makes_the_blocks_and_the_others_wait_for_them(run, small_blocks, tmp_path, caplog):
    values, tokenizers = run
    config = small_blocks(values)
    sources = make_sources(config, "mixed", tokenizers)
    first = open_index(config, "mixed", sources, tmp_path)
    beside = open_index(config, "mixed", sources, tmp_path)
    beside.maker.__class__ = type("Forbidden", (type(beside.maker),), {"__call__": None})
    other = beside.following(60.0)
    assert pickle.loads(pickle.dumps(first.following(60.0)))._patience == 60.0, "in a worker process too"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: rows_of(other, range(60)))
        rows = rows_of(first, range(60))
        assert waiting.result(60) == rows
    (tmp_path / "none").mkdir()
    lost = RowIndex(tmp_path / "none", first.digest, first.maker).following(0.15)
    with caplog.at_level("WARNING", "lclm_jax"):
        assert rows_of(lost, [0]) == rows[:1]
    assert "block 0 of the row index was not made by the first process in 0 s; making it here" in caplog.text


def test_machines_without_a_common_disk_share_the_index_in_a_bucket(run, small_blocks, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    sources, bucket = make_sources(config, "mixed", tokenizers), to_path("memory://index-in-a-bucket")
    first = open_index(config, "mixed", sources, tmp_path / "a", shared=bucket)
    rows = rows_of(first, range(60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lclm_jax.data.loading.row_index.size_blocks", None)
        other = open_index(config, "mixed", sources, tmp_path / "b", shared=bucket)
    assert other.digest == first.digest
    other.maker.__class__ = type("Forbidden", (type(other.maker),), {"__call__": None})
    assert rows_of(other.following(60.0), range(60)) == rows
    assert files_of(other) == files_of(first)


def test_only_the_process_of_the_first_rows_plans(run, small_blocks, tmp_path):
    values, tokenizers = run
    config = small_blocks(values)
    for part, patience in ((0, 0), (1, 600)):
        loader = make_loader(config, "mixed", tokenizers, host=((part,), 2), index_folder=tmp_path)
        with loader:
            assert [index._patience for index in loader.indices.values()] == [patience]
            next(loader)


def test_a_stage_that_ends_early_cannot_be_made_whole(run, small_blocks, tmp_path):
    values, tokenizers = run
    stopping = values["data"]["sources"]["chat"] | {"when_exhausted": "stop"}
    sources = values["data"]["sources"] | {"chat": stopping}
    config = small_blocks(values | {"data": values["data"] | {"sources": sources}}, stage={"mixture": {"chat": 1.0}})
    index = open_index(config, "mixed", make_sources(config, "mixed", tokenizers), tmp_path)
    with pytest.raises(RowIndexError, match="source chat is exhausted after row"):
        prebuild(index, 10**6, 1, lambda *_: None)
    assert files_of(index)
