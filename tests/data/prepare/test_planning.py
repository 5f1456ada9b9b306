"""A corpus that grows after it was prepared."""

import json
import shutil

import numpy as np
import pytest

from lclm_jax.config import parse_config
from lclm_jax.data.inspect.validate import validate
from lclm_jax.data.prepare.file_versions import changed_since
from lclm_jax.data.prepare.planning import plan_preparation
from lclm_jax.data.prepare.run import finish, make_parts, prepare_corpus, prepare_worker_parts
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.shards import PreparedError, PreparedSplit, read_manifest
from lclm_jax.data.store.storage import Storage
from lclm_jax.text.run_tokenizers import load_tokenizers


def line(i):
    return f"The line {i} speaks of {chr(97 + i % 26)}. It ends here!\n"


@pytest.fixture
def grow(run, tmp_path):
    """A configuration over files and rows of its own, and what adds to them."""
    values, _ = run

    class Corpus:
        raw = tmp_path / "raw"
        prepared = tmp_path / "prepared"

        def __init__(self):
            (self.raw / "docs").mkdir(parents=True)
            (self.raw / "rows").mkdir()
            self.add(range(6))

        def add(self, numbers):
            for i in numbers:
                (self.raw / "docs" / f"{i:02d}.txt").write_text("".join(line(40 * i + k) for k in range(40)))
                rows = [{"text": "".join(line(999 * i + 9 * k + j) for j in range(9))} for k in range(4)]
                (self.raw / "rows" / f"{i:02d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

        def config(self, prepared=None, collections=("docs", "rows"), **changes):
            known = {
                "docs": {"format": "text", "paths": [str(self.raw / "docs")], "suffixes": [".txt"]},
                "rows": {"format": "jsonl", "paths": [str(self.raw / "rows")]},
                "more": {"format": "text", "paths": [str(self.raw / "docs")], "suffixes": [".txt"]},
            }
            own = {name: known[name] | changes.get(name, {}) for name in collections}
            corpus = {"collections": own, "validation_share": 0.1, "held_out_share": 0.2}
            data = values["data"] | {"prepared": str(prepared or self.prepared), "shard_bytes": 3000}
            data["sources"] = {"s": {"collection": "docs", "objective": "cpt"}}
            stages = {"s": values["stages"]["mixed"] | {"mixture": {"s": 1}}}
            return parse_config(values | {"corpus": corpus, "data": data, "stages": stages})

    return Corpus()


def texts(folder, collection, split="train", generation=None):
    reader = PreparedSplit(folder, collection, split, generation=generation)
    return [column_text(record["text"]) for record in reader.read_many(range(len(reader)))]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_added_files_become_shards_of_their_own(grow, tmp_path):
    first = prepare_corpus(grow.config())
    before = contents(grow.prepared)
    small = {split: texts(grow.prepared, "docs", split) for split in ("train", "validation", "held_out")}
    assert plan_preparation(grow.config()).earlier == ()
    grow.add([6, 7, 20])
    grown = prepare_corpus(grow.config(), workers=2)
    after = contents(grow.prepared)
    assert {name: after[name] for name in before if name.name != "manifest.json"} == {
        name: content for name, content in before.items() if name.name != "manifest.json"
    }, "nothing that was made is touched"
    assert grown["generations"][0]["key"] == grown["key"] == first["key"]
    whole = prepare_corpus(grow.config(tmp_path / "whole"))
    for collection in ("docs", "rows"):
        for split in ("train", "validation", "held_out"):
            everything = texts(grow.prepared, collection, split)
            assert sorted(everything) == sorted(texts(tmp_path / "whole", collection, split))
            counted = [m["collections"][collection][split] for m in (grown, whole)]
            assert counted[0]["decoder_tokens"] == counted[1]["decoder_tokens"]
            old = PreparedSplit(grow.prepared, collection, split, generation=0)
            assert len(old) == first["collections"][collection][split]["records"]
            tokens = first["collections"][collection][split]["decoder_tokens"]
            assert old.mean_tokens == (tokens / len(old) if len(old) else None)
    assert {split: texts(grow.prepared, "docs", split, 0) for split in small} == small
    assert (
        PreparedSplit(grow.prepared, "rows", "train", generation=0).digest
        != PreparedSplit(grow.prepared, "rows", "train").digest
    )
    tokenizers = load_tokenizers(grow.config())
    assert list(validate(Storage(grow.prepared), tokenizers)) == []
    assert changed_since(grow.config(), Storage(grow.prepared)) == []
    assert prepare_corpus(grow.config()) == grown
    grow.add([8])
    assert len(prepare_corpus(grow.config())["generations"]) == 3, "and again"


def test_growth_that_is_interrupted_goes_on_and_damage_is_mended(grow, tmp_path):
    prepare_corpus(grow.config())
    grow.add([6, 7])
    plan = plan_preparation(grow.config())
    assert len(plan.earlier) == 1 and {entry.id[:2] for part in plan.parts for entry in part.entries} == {"06", "07"}
    make_parts(plan, plan.parts[:1])
    assert "generations" not in read_manifest(grow.prepared), "a run that starts now reads what is whole"
    kept = {path: path.stat().st_mtime_ns for path in grow.prepared.rglob("*.array_record")}
    (grow.raw / "docs" / "07.txt").write_text("another text. " * 200)  # of a part that no run reads yet
    for share in ("0/2", "1/2"):
        prepare_worker_parts(grow.config(), share)
    grown = finish(plan_preparation(grow.config()))
    assert sum(path.stat().st_mtime_ns == time for path, time in kept.items()) >= len(kept) - 1
    assert prepare_corpus(grow.config()) == grown
    grow.add([9])
    shard = grow.prepared / grown["collections"]["docs"]["train"]["shards"][0]["file"]
    sound = shard.read_bytes()
    shard.write_bytes(sound[:100])
    prepare_corpus(grow.config())
    assert shard.read_bytes() == sound, "what an earlier generation lost is made again"


def test_a_collection_may_be_added(grow):
    prepare_corpus(grow.config(collections=("docs",)))
    grown = prepare_corpus(grow.config())
    assert set(grown["collections"]) == {"docs", "rows"}
    assert grown["collections"]["rows"]["train"]["records"] > 10
    with pytest.raises(PreparedError, match=r"is damaged where it lists rows/train"):
        PreparedSplit(grow.prepared, "rows", "train", generation=0)


def test_what_is_no_growth_is_refused_by_name(grow, tmp_path):
    prepare_corpus(grow.config())
    grow.add([6])
    before = contents(grow.prepared)
    with pytest.raises(PreparedError, match=r"settings that differ: shares"):
        values = grow.config().model_dump(mode="json")
        values["corpus"]["held_out_share"] = 0.3
        prepare_corpus(parse_config(values))
    (grow.raw / "rows" / "03.jsonl").rename(tmp_path / "aside")
    with pytest.raises(PreparedError, match=r"only added files.*rows: 03.jsonl is no longer there"):
        prepare_corpus(grow.config())
    shutil.move(tmp_path / "aside", grow.raw / "rows" / "03.jsonl")
    with (grow.raw / "rows" / "03.jsonl").open("a") as file:
        file.write('{"text": "one more row of a file that was there"}\n')
    with pytest.raises(PreparedError, match=r"rows: 03.jsonl has changed since it was prepared"):
        prepare_corpus(grow.config())
    assert contents(grow.prepared) == before


def test_a_changed_file_of_equal_size_is_refused_when_others_are_added(grow):
    prepare_corpus(grow.config())
    grow.add([6])
    path = grow.raw / "docs" / "02.txt"
    path.write_text(path.read_text().replace("speaks", "SPEAKS"))
    with pytest.raises(PreparedError, match=r"02.txt: changed since .* was prepared"):
        prepare_corpus(grow.config())


def test_duplicates_are_looked_for_among_all_files_at_once(grow, monkeypatch):
    config = grow.config(rows={"dedup": "exact"})
    monkeypatch.setattr("lclm_jax.data.prepare.run.dedup_stages", lambda *_: [])
    monkeypatch.setattr("lclm_jax.data.prepare.prepare_part.without_duplicates", lambda documents, *_: documents)
    prepare_corpus(config)
    grow.add([6])
    with pytest.raises(PreparedError, match=r"rows: 06.jsonl is new, and dedup compares all files with each other"):
        prepare_corpus(config)


def test_lengths_of_a_generation_are_those_of_its_records(grow):
    prepare_corpus(grow.config())
    old = PreparedSplit(grow.prepared, "docs", "train").column("decoder_tokens")
    grow.add([6, 7, 8])
    prepare_corpus(grow.config())
    reader = PreparedSplit(grow.prepared, "docs", "train", generation=0)
    np.testing.assert_array_equal(reader.column("decoder_tokens"), old)
    with pytest.raises(IndexError):
        reader.read(len(old))
