import json

import numpy as np
import pytest
from click.testing import CliRunner

from lclm_jax.config import dump_config, parse_config
from lclm_jax.data.inspect.validate import validate
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store.columns import text_column
from lclm_jax.data.store.shard_writer import ShardWriter
from lclm_jax.data.store.shards import PreparedSplit, lengths_name
from lclm_jax.data.store.storage import Storage
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
TEXT = 'def f{i}(x):\n    """Return {i} times x. Not more."""\n    product = {i} * x\n    return product\n\n\n'


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "raw").mkdir()
    for i in range(12):
        (tmp_path / "raw" / f"{i}.py").write_text(TEXT.format(i=i) * 4 + "# é 東京\n")
    train_tokenizer([TEXT], 290, tmp_path / "tokenizer")
    source = {"collection": "chat", "objective": "chat"}
    config = parse_config(
        {
            "name": "t",
            "run_dir": str(tmp_path / "run"),
            "corpus": {"kind": "folder", "path": str(tmp_path / "raw"), "held_out_share": 0, "validation_share": 0.2},
            "tokenizer": {"decoder": str(tmp_path / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {"sources": {"chat": source}, "shard_bytes": 1000, "prepared": str(tmp_path / "out")},
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"chat": 1}}},
        }
    )
    prepare_corpus(config)
    return config


def defects(config, sample=1.0):
    tokenizer = Tokenizer(config.tokenizer.decoder)
    return [str(one) for one in validate(Storage(config.data.prepared), Tokenizers(tokenizer, tokenizer), sample)]


def rewrite(config, change, collection="documents"):
    """Write the first training shard again with one record changed and its checksums made good."""
    reader = PreparedSplit(config.data.prepared, collection, "train")
    shard = reader.shards[0]
    records = reader.read_many(range(shard.records))
    change(records[1])
    writer = ShardWriter(reader.storage, shard.file, "documents" if collection == "documents" else "chat")
    for record in records:
        writer.add(record)
    made, _ = writer.finish()
    manifest = json.loads(reader.storage.read("manifest.json"))
    manifest["collections"][collection]["train"]["shards"][0] = made._asdict()
    reader.storage.write("manifest.json", json.dumps(manifest).encode())
    return made.file


def test_a_sound_corpus_has_no_defect(prepared, tmp_path):
    assert defects(prepared) == []
    path = tmp_path / "t.yaml"
    path.write_text(dump_config(prepared))
    from lclm_jax.cli.main import cli

    done = CliRunner().invoke(cli, ["data", "validate", str(path)])
    assert (done.exit_code, done.output.strip()) == (0, f"{tmp_path / 'out'} is sound")
    shard = PreparedSplit(prepared.data.prepared, "documents", "train").shards[0]
    (tmp_path / "out" / shard.file).write_bytes(b"")
    done = CliRunner().invoke(cli, ["data", "validate", str(path)])
    assert done.exit_code == 1
    assert f"{shard.file}: its checksum is" in done.output


def test_damaged_truncated_empty_and_missing_files_are_named(prepared, tmp_path):
    shards = PreparedSplit(prepared.data.prepared, "documents", "train").shards
    paths = [tmp_path / "out" / shard.file for shard in shards[:3]]
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    paths[1].unlink()
    lengths = tmp_path / "out" / lengths_name(shards[2].file)
    lengths.write_bytes(lengths.read_bytes() + b"\0")
    found = defects(prepared)
    assert len(found) == 4  # and the tokens of the split do not add up
    assert found[0].startswith(f"{shards[0].file}: its checksum")
    assert shards[1].file in found[1]
    assert found[2].startswith(f"{lengths_name(shards[2].file)}: its checksum")
    (tmp_path / "out" / "manifest.json").write_text("{")
    assert len(defects(prepared)) == 1


def change_id(record):
    ids = record["decoder_ids"].copy()
    ids[5] = (ids[5] + 1) % 256
    record["decoder_ids"] = ids


def too_large(record):
    record["decoder_ids"] = np.full_like(record["decoder_ids"], 100_000)


def ends_early(record):
    record["cuts"] = np.append(record["cuts"][:-1], record["cuts"][-1] - 1).astype(np.uint32)


def other_text(record):
    record["text"] = text_column("short")


def no_kinds(record):
    record["cut_kinds"] = record["cut_kinds"] * 0


def moved_cut(record):
    cuts = record["cuts"].copy()
    wide = int(np.flatnonzero(np.diff(cuts) > 1)[0])
    cuts[wide + 1 : wide + 2] -= 1
    record["cuts"] = cuts


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (change_id, "gives other decoder ids"),
        (too_large, "id 100000 is outside the vocabulary"),
        (ends_early, "cuts do not ascend"),
        (other_text, "cut_bytes do not ascend from 0 to the end"),
        (no_kinds, "cut_kinds are not those"),
    ],
)
def test_a_record_that_is_wrong_is_named(prepared, change, fault):
    file = rewrite(prepared, change)
    found = defects(prepared)
    assert found[0].startswith(f"{file} record 1: ")
    assert fault in found[0]


def test_lengths_that_differ_from_their_records(prepared):
    reader = PreparedSplit(prepared.data.prepared, "documents", "train")
    before = reader.storage.read(lengths_name(reader.shards[0].file))
    file = rewrite(prepared, moved_cut)
    storage, manifest = reader.storage, json.loads(reader.storage.read("manifest.json"))
    storage.write(lengths_name(file), before)
    manifest["collections"]["documents"]["train"]["shards"][0]["lengths_sha256"] = reader.shards[0].lengths_sha256
    storage.write("manifest.json", json.dumps(manifest).encode())
    assert f"{file} record 1: cuts differ from its lengths file" in defects(prepared)


def test_chats_that_do_not_agree_with_themselves(prepared):
    def lose_a_span(record):
        record["span_ids"] = record["span_ids"][:-1]

    assert rewrite(prepared, lose_a_span, "chat") in defects(prepared)[0]
    assert "spans, their lengths and their gaps do not agree" in defects(prepared)[0]
