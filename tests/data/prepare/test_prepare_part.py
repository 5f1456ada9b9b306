import json

import numpy as np
import pytest
from tests.data.helpers import assert_checksums

from lclm_jax.config import ConfigError, parse_config
from lclm_jax.data.prepare.reject_counter import BadRow
from lclm_jax.data.prepare.run import finish, plan_preparation, prepare_corpus, prepare_worker_parts
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.records import chat_outline_of
from lclm_jax.data.store.shard_cache import ShardCache
from lclm_jax.data.store.shards import PreparedError, PreparedSplit
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=512, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)
SENTENCES = [f"Sentence number {i} is about the letter {chr(97 + i % 26)}. It ends here.\n" for i in range(400)]


def user(content):
    return {"role": "user", "content": content}


def reply(content):
    return {"role": "assistant", "content": content}


CHATS = [
    *({"messages": [user(f"<|memory_start|>a {i}<|memory_end|> what?"), reply(f"it is {i}")]} for i in range(20)),
    {"compression_prompt": [user("x <|memory_start|>y<|memory_end|> z")], "target": "NA_string_only"},
    {"messages": [user("<|memory_start|>never closed"), reply("no")]},
    {"messages": [user("<|im_end|>"), reply("no")]},
    {"messages": [user("only asked")]},
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    rows = [json.dumps({"text": "".join(SENTENCES[i : i + 4]), "url": f"u{i}"}) for i in range(0, 400, 4)]
    rows[30:30] = ["{broken", '{"text": 5, "url": "u"}', '{"text": "", "url": "u"}', '{"text": "\\ud800", "url": "u"}']
    (folder / "web").mkdir()
    (folder / "web" / "a.jsonl").write_text("\n".join(rows[:60]))
    (folder / "web" / "b.jsonl").write_text("\n".join(rows[60:]))
    (folder / "sft.jsonl").write_text("\n".join(json.dumps(chat) for chat in CHATS))
    train_tokenizer(SENTENCES, 300, folder / "tokenizer")
    return folder


def make_config(raw, prepared, **data):
    collections = {
        "web": {"format": "jsonl", "paths": [str(raw / "web")], "columns": {"id": "url"}},
        "sft": {"format": "jsonl", "paths": [str(raw / "sft.jsonl")], "records": "chat"},
    }
    return parse_config(
        {
            "name": "t",
            "corpus": {"collections": collections, "validation_share": 0.2, "held_out_share": 0.1},
            "tokenizer": {"decoder": str(raw / "tokenizer")},
            "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
            "data": {
                "prepared": str(prepared),
                "shard_bytes": 4000,
                "sources": {"web": {"collection": "web", "objective": "cpt"}},
                **data,
            },
            "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"web": 1}}},
        }
    )


def snapshot(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_rows_of_named_collections(raw, tmp_path):
    config = make_config(raw, tmp_path / "out")
    manifest = prepare_corpus(config)
    assert manifest["kinds"] == {"web": "documents", "sft": "chat"}
    web, tokenizer = manifest["collections"]["web"], Tokenizer(raw / "tokenizer")
    assert web["train"]["counts"] == {"empty": 1, "invalid_json": 1, "undecodable": 1, "wrong_type": 1}
    seen = {}
    for split in ("train", "validation", "held_out"):
        reader = PreparedSplit(config.data.prepared, "web", split)
        assert_checksums(reader)
        assert 0 < len(reader) == web[split]["records"]
        for record in reader.read_many(range(len(reader))):
            text = column_text(record["text"])
            seen[column_text(record["id"])] = text
            np.testing.assert_array_equal(record["decoder_ids"], tokenizer.encode(text, plain=True))
    assert seen == {f"u{i}": "".join(SENTENCES[i : i + 4]) for i in range(0, 400, 4)}
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert sorted({one["reason"] for one in rejects}) == [
        "empty", "invalid_json", "no_reply", "special_token", "unbalanced_tags", "undecodable", "wrong_type",
    ]  # fmt: skip
    assert rejects[1] == {"place": rejects[1]["place"], "reason": "invalid_json", "excerpt": "{broken\n"}
    assert rejects[1]["place"].startswith("a.jsonl:")


def test_chats_in_the_wild(raw, tmp_path):
    config = make_config(raw, tmp_path)
    manifest = prepare_corpus(config)
    assert manifest["collections"]["sft"]["train"]["counts"] == {
        "no_reply": 1,
        "special_token": 1,
        "unbalanced_tags": 1,
    }
    tokenizer, tagged = Tokenizer(raw / "tokenizer"), 0
    for split in ("train", "validation", "held_out"):
        reader = PreparedSplit(tmp_path, "sft", split)
        for record in reader.read_many(range(len(reader))):
            outline, messages = chat_outline_of(record), json.loads(column_text(record["messages"]))
            trained = tokenizer.decode(outline.tokens[outline.loss > 0])
            if len(messages) == 1:
                tagged += 1
                assert trained == "  z"  # the first token of an example is no target
            else:
                assert trained == messages[-1]["content"] + "<|im_end|>\n"
    assert tagged == 1


def test_same_bytes_with_any_number_of_workers_and_shares(raw, tmp_path):
    manifest = prepare_corpus(make_config(raw, tmp_path / "one"))
    assert prepare_corpus(make_config(raw, tmp_path / "two"), workers=2) == manifest
    config = make_config(raw, tmp_path / "shares")
    assert prepare_worker_parts(config, "1/2") + prepare_worker_parts(config, "0/2") == len(
        plan_preparation(config).parts
    )
    assert finish(plan_preparation(config)) == manifest
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two") == snapshot(tmp_path / "shares")
    with pytest.raises(PreparedError, match="not k/n"):
        prepare_worker_parts(config, "2/2")


def test_parts_that_are_missing_are_named(raw, tmp_path):
    config = make_config(raw, tmp_path)
    prepare_worker_parts(config, "0/2")
    with pytest.raises(PreparedError, match=r"parts are not made yet, the first is web/part-00001-of"):
        finish(plan_preparation(config))


def values(split, records):
    return [{name: column.tolist() for name, column in one.items()} for one in split.read_many(records)]


def test_object_store_and_its_cache(raw, tmp_path):
    local = prepare_corpus(make_config(raw, tmp_path / "local"))
    config = make_config(raw, "memory://prepared-rows", cache=str(tmp_path / "cache"))
    assert prepare_corpus(config) == local
    assert prepare_corpus(config) == local  # found finished
    remote = PreparedSplit("memory://prepared-rows", "web", "train", ShardCache(tmp_path / "cache"))
    near = PreparedSplit(tmp_path / "local", "web", "train")
    assert_checksums(remote)
    assert remote.digest == near.digest
    assert values(remote, [3, 0]) == values(near, [3, 0])
    bounded = PreparedSplit("memory://prepared-rows", "web", "train", ShardCache(tmp_path / "bounded", 1))
    for _ in range(2):
        assert values(bounded, range(len(near))) == values(near, range(len(near)))
        assert bounded.lists("cuts", np.arange(3)).values.tolist() == near.lists("cuts", np.arange(3)).values.tolist()
    assert len(list((tmp_path / "bounded").glob("*/*"))) <= 3 < 2 * len(near.shards)
    shard = remote.shards[0]
    storage = remote.storage
    storage.write(shard.file, b"damaged" + storage.read(shard.file)[7:])
    for copy in (tmp_path / "cache").rglob("*.array_record"):
        copy.unlink()
    with pytest.raises(PreparedError, match=f"{shard.file.rpartition('/')[2]} is damaged"):
        PreparedSplit("memory://prepared-rows", "web", "train", ShardCache(tmp_path / "cache")).read(0)


def test_a_wrong_column_is_named_with_those_that_are_there(raw, tmp_path):
    values = make_config(raw, tmp_path).model_dump(mode="json")
    values["corpus"]["collections"].pop("sft")
    values["corpus"]["collections"]["web"]["columns"]["text"] = "txet"
    with pytest.raises(PreparedError, match=r"missing_column.*such as .* \(missing_column\): txet is .*: text, url\)"):
        prepare_corpus(parse_config(values, "test"))


def test_strict_stops_at_the_first_bad_row(raw, tmp_path):
    with pytest.raises(BadRow, match=r"a.jsonl:\d+: invalid_json"):
        prepare_corpus(make_config(raw, tmp_path), strict=True)
    # Of two processes, the one that has the chats may come to its bad row before.
    with pytest.raises(BadRow, match=r"(a.jsonl:\d+: invalid_json|sft.jsonl:\d+: unbalanced_tags)"):
        prepare_corpus(make_config(raw, tmp_path), strict=True, workers=2)
    assert prepare_corpus(make_config(raw, tmp_path))  # goes on where it stopped


def test_corpus_configurations_that_contradict_themselves(raw, tmp_path):
    values = make_config(raw, tmp_path).model_dump(mode="json")
    values["corpus"] |= {"kind": "folder", "path": "x"}
    with pytest.raises(ConfigError, match="two things; name the folder"):
        parse_config(values)
    values = make_config(raw, tmp_path).model_dump(mode="json")
    values["corpus"]["collections"]["sft"]["dedup"] = "near"
    with pytest.raises(ConfigError, match="work on documents"):
        parse_config(values)
