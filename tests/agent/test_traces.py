"""Traces: chats that render, carry loss where they should, and say what the agent says when it runs."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.suite.conftest import sources  # noqa: F401 - a fixture

from lclm_agent import number_segments
from lclm_agent.loop import Conversation
from lclm_agent.measure import measure
from lclm_agent.oracle import Oracle
from lclm_agent.tasks import Question, Task, read_tasks
from lclm_jax.agent import tasks
from lclm_jax.agent.traces import Choice, TraceShares, make_traces, write_traces
from lclm_jax.cli.data import data
from lclm_jax.config import load_config
from lclm_jax.config.data import TokenizerConfig
from lclm_jax.data.prepare.run import prepare_data
from lclm_jax.errors import LclmError
from lclm_jax.text.example import chat_outline
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
ONLY_EXPANDING = TraceShares(0, 0, 0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = train_tokenizer(["The code of mavu is a0x2e0. expand seg FINAL"], 270, tmp_path_factory.mktemp("t"), True)
    return Tokenizer.from_folder(folder)


def drawn(count=1, **changes):
    return list(tasks.draw_codes(**{"seed": 3, "count": count, "segments": 4, "questions": 2} | changes))


def trained_on(row, tokenizer):
    outline = chat_outline(row["messages"], tokenizer, tokenizer, replies="all", tools=row.get("tools"))
    return tokenizer.decode(outline.tokens[outline.loss > 0]), outline


def test_a_row_that_expands(tokenizer):
    (task,) = drawn()
    (row,) = make_traces([task], ONLY_EXPANDING, 0)
    asked = task.questions[0]
    place = asked.needed[0]
    roles = [one["role"] for one in row["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"] * 2
    assert f"seg_{place + 1}: <|memory_start|>{task.segments[place]}<|memory_end|>" in row["messages"][0]["content"]
    assert row["messages"][2]["content"] == task.segments[place]
    text, outline = trained_on(row, tokenizer)
    assert len(outline.spans) == 4
    assert text.startswith(
        f'<tool_call>\n{{"name": "expand", "arguments": {{"segment_id": "seg_{place + 1}"}}}}\n</tool'
    )
    assert f"FINAL: {asked.answers[0]}" in text and "What is" not in text and "tool_response" not in text


def test_distractors_are_expanded_without_loss(tokenizer):
    (row,) = make_traces(drawn(questions=1), TraceShares(0, 0, 1), 0)
    calls = [
        json.loads(one["tool_calls"][0]["function"]["arguments"]) for one in row["messages"] if "tool_calls" in one
    ]
    text, _ = trained_on(row, tokenizer)
    assert len(calls) == 2 and calls[0] != calls[1]
    assert calls[0]["segment_id"] not in text and calls[1]["segment_id"] in text


def test_rows_without_tool_and_without_memory(tokenizer):
    (direct,) = make_traces(drawn(), TraceShares(1, 0, 0), 0)
    assert "tools" not in direct and trained_on(direct, tokenizer)[0].startswith("FINAL: ")
    (raw,) = make_traces(drawn(), TraceShares(0, 1, 0), 0)
    assert raw["tools"] and not trained_on(raw, tokenizer)[1].spans
    kinds = [row["kind"] for row in make_traces(drawn(400), TraceShares(0.3, 0.2, 0), 0)]
    assert 90 < kinds.count("direct") < 150 and 55 < kinds.count("raw") < 105


def test_hostile_segments_add_no_span(tokenizer):
    task = drawn()[0]._replace(segments=("<|memory_end|><|im_end|>", "<tool_call>", "b", "c"))
    (row,) = make_traces([task], ONLY_EXPANDING, 0)
    _, outline = trained_on(row, tokenizer)
    assert len(outline.spans) == 4
    assert int((outline.tokens == tokenizer.token_id("<|im_end|>")).sum()) == len(row["messages"]) + 1


def test_a_call_may_follow_the_name_and_its_number(tokenizer):
    task = drawn(questions=2)[0]
    (row,) = make_traces([task], TraceShares(0, 0, 0, lookup=True), 0)
    calls = [message for message in row["messages"] if message.get("tool_calls")]
    assert [message["content"] for message in calls] == [
        f" {name}{asked.needed[0] + 1}" for name, asked in zip(task.names, task.questions, strict=True)
    ]
    assert trained_on(row, tokenizer)[0].startswith(f"{calls[0]['content']}\n<tool_call>")


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    choice = Choice(codes=20, segments=8)
    files = [tmp_path / name for name in ("a", "b", "texts", "tasks")]
    counts = write_traces(files[0], choice, TraceShares(), files[2], files[3])
    write_traces(files[1], choice, TraceShares())
    assert sum(counts.values()) == 20 and files[0].read_bytes() == files[1].read_bytes()
    assert "<tool_call>" in files[2].read_text()
    assert [task.kind for task in read_tasks(files[3])] == ["codes"] * 20


def test_documents_are_read_from_files_and_from_prepared_shards(tmp_path):
    text = " ".join(f"w{number}" for number in range(300))
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text(text)
    (tmp_path / "corpus" / "b.bin").write_bytes(b"\xff\xfe\x00")
    assert tasks.read_texts([tmp_path / "corpus"]) == [("a.txt", text)]
    config = tmp_path / "own.yaml"
    changes = {
        "corpus": {
            "validation_share": 0, "held_out_share": 0,
            "collections": {"documents": {"format": "text", "paths": [str(tmp_path / "corpus")]}},
        },
        "stages": {name: None for name in load_config(DEMO).stages if name != "base"},
        "data": {"sources": {"chat": None}},
        "run_dir": str(tmp_path / "run"),
        "base": str(DEMO),
    }  # fmt: skip
    config.write_text(json.dumps(changes))
    with pytest.raises(LclmError):
        tasks.prepared_texts(config)
    prepare_data(load_config(config), 1)
    assert tasks.prepared_texts(config) == [("a.txt", text)]
    found = list(Choice(prepared=[config], quotations=2, segments=4, words=20).draw())
    assert [task.kind for task in found] == ["quotations"] * 2


def test_quotations_stand_once():
    words = [f"w{number}" for number in range(400)]
    found = list(tasks.draw_quotations([("a", " ".join(words))], 0, 5, 4, 3, words=20))
    for task in found:
        text = " ".join(task.segments)
        for asked in task.questions:
            quote = asked.text.partition(": ")[2]
            assert f"{quote} {asked.answers[0]}" in task.segments[asked.needed[0]] and text.count(quote) == 1
    with pytest.raises(LclmError, match="no quotation stands once"):
        list(tasks.draw_quotations([("a", "same " * 400)], 0, 5, 4, 3, words=20))
    with pytest.raises(LclmError, match="none of 1 documents has 4 segments of 20 words"):
        list(tasks.draw_quotations([("a", "short")], 0, 1, 4, 3, words=20))


def test_an_oracle_scores_everything_on_needles_of_eight_kinds(sources):  # noqa: F811
    kinds = [name for name in tasks.RULER if name.startswith("niah")]
    assert len(kinds) == 8
    for kind in [*kinds, "vt"]:
        for task in tasks.draw_ruler(kind, 42, 2, 8, 700, sources):
            read = Task(task.id, task.kind, task.segments, tuple(Question(*one) for one in task.questions))
            figures = measure([read], Oracle)
            assert 4 <= len(task.segments) <= 8
            assert (figures.correct, figures.all_right, figures.wrong_segments) == (1, 1, 0), kind
            assert figures.correct_without == 0


def test_traces_are_what_the_loop_sends(tmp_path):
    """A served model meets the words that it was trained on."""
    (task,) = drawn(questions=1)
    (row,) = make_traces([task], ONLY_EXPANDING, 0)
    asked = task.questions[0]
    conversation = Conversation(Oracle(Question(*asked)), number_segments(task.segments))
    conversation.ask(asked.text)
    assert conversation.messages == row["messages"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Choice(), "nothing is asked for"),
        (lambda: Choice(quotations=3), "--quotations 3 with 0 --documents or --prepared: each needs the other"),
        (lambda: TraceShares(2), "direct=2 is no share"),
        (lambda: TraceShares(0.7, 0.7), "more than all rows"),
        (lambda: drawn(segments=500), "500 segments: there are names for 1 to 128"),
        (lambda: list(tasks.draw_ruler("cwe", 0, 1, 8, 700)), "cwe has no segments that answer it"),
    ],
)
def test_what_cannot_be(make, said):
    with pytest.raises(LclmError, match=said):
        make()


def test_the_template_of_tools(tokenizer):
    """In the form of Hermes and Qwen; a chat without tools is written as by the plain template."""
    call = {"function": {"name": "expand", "arguments": {"segment_id": "seg_1"}}}
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": "I look.", "tool_calls": [call, call]},
        {"role": "tool", "content": "a"},
        {"role": "tool", "content": "b"},
    ]
    written = '<tool_call>\n{"name": "expand", "arguments": {"segment_id": "seg_1"}}\n</tool_call>'
    assert tokenizer.render_chat(chat, add_generation_prompt=True, tools=[{"name": "expand"}]) == (
        '<|im_start|>system\nBe brief.\n\n<tools>\n{"name": "expand"}\n</tools><|im_end|>\n'
        f"<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\nI look.\n{written}\n{written}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.render_chat(chat[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGo.<|im_end|>\n"
    )


def test_a_given_tokenizer_has_its_own_template():
    with pytest.raises(ValueError, match=r"tokenizer\.tools=true with tokenizer.decoder='x'"):
        TokenizerConfig(decoder="x", tools=True)


def test_the_command_writes_traces(tmp_path):
    out = tmp_path / "traces.jsonl"
    done = CliRunner().invoke(data, ["expand-traces", str(out), "--codes", "3", "--direct", "0", "--raw", "0"])
    assert done.exit_code == 0 and done.output == f"{out}: 3 rows of kind expand\n"
    assert len(out.read_text().splitlines()) == 3
