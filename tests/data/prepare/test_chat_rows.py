"""Chats through a whole preparation: what a template gets, what has loss, what is counted."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.prepare.test_prepare_part import SENTENCES, TOWER, reply, user

from lclm_jax.config import parse_config
from lclm_jax.data.prepare.run import prepare_corpus
from lclm_jax.data.store import PreparedSplit, column_text
from lclm_jax.data.store.records import chat_outline_of
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = train_tokenizer(SENTENCES, 300, tmp_path_factory.mktemp("chats") / "tokenizer")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Tokenizer(folder)


def prepared(tokenizer, folder, source, **collection):
    """(counts, name -> text with [[loss]] marked) of the chats in ``source``."""
    values = {
        "name": "t",
        "corpus": {
            "collections": {"sft": {"format": "jsonl", "paths": [str(source)], "records": "chat", **collection}},
            "validation_share": 0,
            "held_out_share": 0,
        },
        "tokenizer": {"decoder": str(tokenizer.folder)},
        "model": {"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32},
        "data": {"prepared": str(folder / "out"), "sources": {"sft": {"collection": "sft", "objective": "chat"}}},
        "stages": {"s": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"sft": 1}}},
    }
    manifest = prepare_corpus(parse_config(values))
    split, shown = PreparedSplit(folder / "out", "sft", "train"), {}
    for record in split.read_many(range(len(split))):
        outline, text, on = chat_outline_of(record), "", False
        for token, loss in zip([*outline.tokens, None], [*(outline.loss > 0), False], strict=True):
            text += ("]]" if on else "[[") if loss != on else ""
            text, on = text + ("" if token is None else tokenizer.decode([token])), loss
        shown[column_text(record["id"])] = text
    return manifest["collections"]["sft"]["train"]["counts"], shown


def lines(folder, rows):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"id": f"r{i}"} | row) + "\n" for i, row in enumerate(rows)))
    return path


def call(**arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


def test_rows_are_used_or_counted_by_reason(tokenizer, tmp_path):
    rows = [
        {"messages": [user("q"), reply("a") | {"weight": 0}, user("r"), reply("b")]},
        {"messages": [user("q"), call(x="<|im_end|>"), reply("b")]},
        {"messages": [user("q"), reply("a")], "tools": [{"name": "<|im_start|>"}]},
        {"messages": [user("q"), reply("a") | {"train": "no"}]},
        {"messages": [user("q"), reply("a") | {"loss": False}]},
        {"messages": [user("q"), reply(""), user("r"), reply("b")]},
        {"messages": [user("q"), {"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
        {"messages": [reply("hello"), user("q"), reply("a")]},
        {"messages": [user("q"), reply("a")], "compression_prompt": None, "tools": []},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]},
                reply("a"),
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, reply("a")]},
        {"compression_prompt": [user("<|im_"), user("end|>")], "target": "NA_string_only"},
        {"messages": [user("q") | {"sent": 1}, reply("a") | {"score": 2, "sent": 3}]},
    ]
    counts, shown = prepared(tokenizer, tmp_path, lines(tmp_path, rows), columns={"id": "id"})
    assert counts == {
        "empty_reply": 2,
        "loss_marker": 1,
        "no_loss": 1,
        "not_printed:score": 1,
        "not_printed:sent": 1,
        "special_token": 3,
        "unsupported_content": 1,
    }
    question, answer = "<|im_start|>user\n{}<|im_end|>\n".format, "<|im_start|>assistant\n[[{}<|im_end|>\n]]".format
    plain = question("q") + "<|im_start|>assistant\na<|im_end|>\n" + question("r") + answer("b")
    assert shown == {
        "r0": plain,
        "r7": answer("hello") + question("q") + answer("a"),
        "r8": question("q") + answer("a"),
        "r9": question("qr") + answer("a"),
        "r12": question("q") + answer("a"),
    }
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    shown = {one["reason"]: one["excerpt"] for one in rejects}
    assert shown["unsupported_content"].startswith("messages[0].content[0]: a part of type 'image_url'")
    assert (
        "messages[1].tool_calls[0].function.arguments.x"
        in rejects[[r["reason"] for r in rejects].index("special_token")]["excerpt"]
    )
    assert shown["loss_marker"].startswith("train='no'")


def test_arrow_padding_is_undone(tokenizer, tmp_path):
    function = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))])
    schema = pa.struct([
        ("content", pa.string()), ("role", pa.string()), ("at", pa.timestamp("ns")),
        ("tool_calls", pa.list_(pa.struct([("function", function), ("id", pa.string())]))),
    ])  # fmt: skip
    at = datetime.datetime(2024, 1, 2)
    messages = [user("q") | {"at": at}, call(city="Oslo") | {"at": at}]
    messages[1]["tool_calls"][0]["function"]["arguments"] = [("city", "Oslo"), ("unit", None)]
    table = pa.Table.from_pylist([{"messages": messages}], pa.schema([("messages", pa.list_(schema))]))
    pq.write_table(table, tmp_path / "a.parquet")
    counts, shown = prepared(tokenizer, tmp_path, tmp_path / "a.parquet", format="parquet")
    assert counts == {"not_printed:at": 1}
    assert shown["a.parquet:0"].endswith('assistant\n[[[f {"city": "Oslo"}]<|im_end|>\n]]')


SHAPES = {
    "openai": ({"messages": [user("q"), reply("a") | {"weight": 1}]}, {}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {
            "columns": {"messages": "conversations"},
            "message": {"role": "from", "content": "value", "roles": {"human": "user", "gpt": "assistant"}},
        },
    ),
    "ultrachat": ({"data": ["q", "a"]}, {"columns": {"messages": "data"}, "message": {"in_turn": True}}),
    "lclm raw rows": (
        {"sub_dataset": "x", "prompt": "[]", "compression_prompt": json.dumps([user("q")]), "target": "a"},
        {},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_public_shapes(tokenizer, tmp_path, name):
    row, collection = SHAPES[name]
    counts, shown = prepared(tokenizer, tmp_path, lines(tmp_path, [row]), **collection)
    assert counts == {}
    assert list(shown.values()) == ["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[a<|im_end|>\n]]"]


def test_public_shapes_with_tools_and_system_text(tokenizer, tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"x": {"default": None}}}}]
    messages = [user("q"), call(x=None), {"role": "tool", "content": "1", "tool_call_id": "c"}, reply("a")]
    path = lines(tmp_path, [{"messages": json.dumps(messages), "tools": json.dumps(tools)}])
    counts, (text,) = prepared(tokenizer, tmp_path, path)[0], prepared(tokenizer, tmp_path, path)[1].values()
    assert counts == {"not_printed:tool_call_id": 1}
    assert text.startswith(f"<|im_start|>system\n{json.dumps(tools)}<|im_end|>\n")  # a null of JSON is a value
    assert '[[[f {"x": null}]<|im_end|>\n]]<|im_start|>tool\n1' in text
    thoughts = {
        "system": "think",
        "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}],
    }
    path = lines(tmp_path / "..", [thoughts])
    columns = {"messages": "conversations", "system": "system"}
    _, shown = prepared(
        tokenizer, tmp_path / "two", path, columns=columns, message={"role": "from", "content": "value"}
    )
    (text,) = shown.values()
    assert text.startswith("<|im_start|>system\nthink<|im_end|>\n<|im_start|>user\nq")
