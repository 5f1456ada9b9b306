import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Row
from lclm_jax.data.prepare import row_validation
from lclm_jax.data.prepare.reject_counter import BadRow, RejectCounter
from lclm_jax.data.prepare.row_validation import chat_of, document_of

DOCUMENTS = CollectionConfig(format="jsonl", paths=("x",), max_document_bytes=20)
CHAT = CollectionConfig(format="jsonl", paths=("x",), records="chat")
USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def chat(**values):
    counter = RejectCounter()
    made = chat_of(Row("p", values), CHAT, counter)
    return made if made is not None else dict(counter.counts)


def test_raw_rows_in_the_wild():
    assert chat(messages=[USER, REPLY]).messages == [USER, REPLY]
    tools = [{"name": "f"}]
    assert chat(messages=json.dumps([USER, REPLY | {"x": None}]), tools=json.dumps(tools)).tools == tools
    assert chat(messages=[USER, REPLY | {"x": None}]).messages == [USER, REPLY]
    assert chat(compression_prompt=[USER], target="yo", messages=None).messages == [USER, REPLY]
    tagged = chat(compression_prompt=[USER], target="NA_string_only")
    assert tagged.tagged == "hi"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    assert chat(messages=[USER, call]).messages[1] == call | {"content": ""}


def test_questions_about_passages_put_each_in_tags():
    made = chat(context=["one", "two", " "], question="which?", answer="one")
    assert made.messages[0]["content"] == (
        "<|memory_start|>one<|memory_end|>\n<|memory_start|>two<|memory_end|>\n\nwhich?"
    )
    assert made.messages[1]["content"] == "one"
    assert chat(context="c", question="q", answer="a").messages[0]["content"].count("memory_start") == 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"other": 1}, "missing_column"),
        ({"messages": "[{"}, "invalid_json"),
        ({"messages": 3}, "wrong_type"),
        ({"messages": ["x"]}, "wrong_type"),
        ({"messages": [{"role": "user", "content": 3}]}, "wrong_type"),
        ({"messages": [REPLY, USER]}, "no_reply"),
        ({"messages": []}, "no_reply"),
        ({"messages": [USER, REPLY], "tools": 7}, "wrong_type"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, "undecodable"),
        ({"compression_prompt": [USER]}, "missing_column"),
        ({"compression_prompt": [USER], "target": ""}, "empty"),
        ({"compression_prompt": [REPLY], "target": "NA_string_only"}, "empty"),
        ({"context": [], "question": "q", "answer": "a"}, "empty"),
        ({"context": [1], "question": "q", "answer": "a"}, "wrong_type"),
        ({"context": "c", "question": "q"}, "missing_column"),
    ],
)
def test_bad_chats_are_counted_by_reason(values, reason):
    assert chat(**values) == {reason: 1}


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "missing_column"), (3, "wrong_type"), (b"\xff", "undecodable"), ("\ud800", "undecodable"), (" ", "empty")],
)
def test_bad_documents_are_counted_sampled_and_fatal_only_if_strict(value, reason):
    counter = RejectCounter()
    for i in range(5):
        assert document_of(Row(f"p{i}", {"text": value}), DOCUMENTS, counter) is None
    assert counter.counts == {reason: 5}
    assert [one["place"] for one in counter.rejects] == ["p0", "p1", "p2"]
    json.dumps(counter.rejects, ensure_ascii=False).encode()
    with pytest.raises(BadRow, match=f"p: {reason} .*without --strict"):
        document_of(Row("p", {"text": value}), DOCUMENTS, RejectCounter(strict=True))


@given(st.text(max_size=30))
def test_documents_are_clean_and_short_enough(text):
    counter = RejectCounter()
    made = document_of(Row("p", {"text": text}), DOCUMENTS, counter)
    assert (made is None) == bool(counter.rejects)
    if made is not None:
        assert made.text.strip()
        assert made.text.split("\n")[0].strip()


def test_a_long_text_is_normalized_by_stretches(monkeypatch):
    monkeypatch.setattr(row_validation, "_STRETCH", 3)
    text = "e\u0301\n\u0301\u0323e\n\nab\u0301cdefg\u0308\n" * 3 + "a\u030a"
    assert row_validation._form_c(text) == unicodedata.normalize("NFC", text)
