"""Look-ups: every name stands in the segment whose number follows it, and only the numbers have loss."""

import json
import re

import pytest
from click.testing import CliRunner

from lclm_jax.agent.lookups import Lookups
from lclm_jax.cli.data import data
from lclm_jax.errors import LclmError
from lclm_jax.text.example import chat_outline
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("ask", ["number", "name"])
@pytest.mark.parametrize("repeats", [0, 6])
def test_an_answer_is_that_of_the_segment_and_has_the_only_loss(ask, plain, repeats, tmp_path):
    tokenizer = Tokenizer(train_tokenizer(["Where is each? The code of mavu"], 270, tmp_path))
    sizes = set()
    for row in Lookups(40, ask=ask, plain=plain, repeats=repeats, seed=1).draw():
        shown, reply = (message["content"] for message in row["messages"])
        pattern = r" (\d) (\w+)" if plain else r"seg_(\d): <\|memory_start\|>(.*?)<"
        segments = dict(re.findall(pattern, shown))
        sizes.add(len(segments))
        answers = re.findall(r" ([a-z]+)(\d)" if ask == "number" else r" (\d) ([a-z]+)", reply)
        assert len(answers) == (repeats or len(segments))
        numbers = []
        for given, answer in answers:
            name, number = (given, answer) if ask == "number" else (answer, given)
            assert [one for one, text in segments.items() if name in text.split()] == [number]
            numbers.append(number)
        assert repeats or sorted(numbers) == sorted(segments)
        outline = chat_outline(row["messages"], tokenizer, tokenizer, replies="all")
        assert len(outline.spans) == (0 if plain else len(segments))
        trained = tokenizer.decode(outline.tokens[outline.loss > 0]).replace("<|im_end|>", "").strip()
        assert trained.split() == (["".join(a for _, a in answers)] if ask == "number" else [a for _, a in answers])
    assert sizes == {2, 4, 8}


@pytest.mark.parametrize("plain", [False, True])
def test_a_question_is_answered_by_its_name_and_number(plain):
    for row in Lookups(20, ask="question", plain=plain, repeats=5).draw():
        said = [message["content"] for message in row["messages"]]
        segments = re.findall(r" (\d) (\w+)" if plain else r"seg_(\d): <\|memory_start\|>(.*?)<", said[0])
        assert len(said) == 10
        for question, answer in zip(said[::2], said[1::2], strict=True):
            name = re.search(r"What is the code of (\w+)\?$", question)[1]
            assert [f" {name}{number}" for number, text in segments if name in text.split()] == [answer]


def test_codes_follow_their_names_and_have_the_only_loss(tmp_path):
    tokenizer = Tokenizer(train_tokenizer(["What is the code of mavu"], 270, tmp_path))
    for row in Lookups(10, ask="code", plain=True, repeats=6).draw():
        shown, reply = (message["content"] for message in row["messages"])
        known = dict(re.findall(r" ([a-z]+) (\w{6})(?= )", shown.removesuffix("What is the code of each?")))
        said = re.findall(r" (\w+) (\w{6})", reply)
        assert len(said) == 6 and all(known[name] == code for name, code in said)
        outline = chat_outline(row["messages"], tokenizer, tokenizer, replies="all")
        trained = tokenizer.decode(outline.tokens[outline.loss > 0]).replace("<|im_end|>", "")
        assert trained.split() == [code for _, code in said]


def test_rows_are_those_of_the_seed_and_names_are_enough():
    first, again, other = (list(Lookups(5, seed=seed).draw()) for seed in (0, 0, 1))
    assert first == again and [row["messages"] for row in first] != [row["messages"] for row in other]
    assert all("seg_1: " in row["messages"][0]["content"] for row in Lookups(5, segments=1).draw())
    with pytest.raises(LclmError, match="1000 segments: there are names for 1 to 128"):
        list(Lookups(20, segments=1000).draw())


def test_the_command_writes_rows_and_texts(tmp_path):
    out, texts = tmp_path / "rows.jsonl", tmp_path / "texts.jsonl"
    done = CliRunner().invoke(data, ["lookups", str(out), "--rows", "3", "--plain", "--texts", str(texts)])
    assert done.exit_code == 0 and "3 rows" in done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    said = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    assert said == ["\n".join(message["content"] for message in row["messages"]) for row in rows]
