import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.text.chats.loss_markers import is_trained_on, untrained_parts
from lclm_jax.text.example import chat_outline
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
def test_the_marks_of_the_field(key):
    for value in (1, 1.0, True, None):
        assert is_trained_on(REPLY | {key: value})
    for value in (0, 0.0, False):
        assert not is_trained_on(REPLY | {key: value})
        is_trained_on(USER | {key: value})
    for value in (0.5, "no", "1", [], 2):
        with pytest.raises(LclmError, match=f"{key}="):
            is_trained_on(REPLY | {key: value})
    with pytest.raises(LclmError, match="on a message of role 'user'"):
        is_trained_on(USER | {key: 1})


def test_marks_that_contradict():
    with pytest.raises(LclmError, match="two things"):
        is_trained_on(REPLY | {"weight": 0, "train": True})


def test_loss_token_by_token(tmp_path):
    tokenizer = Tokenizer(train_tokenizer(["one two three four five\n" * 9], 300, tmp_path))
    contents = ["one", "two two", "three", "four", "five five"]

    def outline(marks):
        messages = [USER | {"content": "one"}]
        for content, mark in zip(contents, marks, strict=True):
            messages += [REPLY | {"content": content} | mark, USER | {"content": "two"}]
        return chat_outline(messages[:-1], tokenizer, tokenizer, replies="all")

    plain, marked = outline([{}] * 5), outline([{"weight": 0}, {}, {"train": False}, {"loss": True}, {"training": 0}])
    np.testing.assert_array_equal(plain.tokens, marked.tokens)  # no template sees the marks
    expected, at = np.zeros(len(plain.tokens), np.float32), 0
    head, turn = tokenizer.encode("<|im_start|>assistant\n"), tokenizer.encode("<|im_start|>user\ntwo<|im_end|>\n")
    at = len(tokenizer.encode("<|im_start|>user\none<|im_end|>\n"))
    for content, trained in zip(contents, (0, 1, 0, 1, 0), strict=True):
        at += len(head)
        reply = len(tokenizer.encode(f"{content}<|im_end|>\n"))
        expected[at : at + reply] = trained
        at += reply + len(turn)
    np.testing.assert_array_equal(marked.loss, expected)
    assert not outline([{"weight": 0}] * 5).loss.any()


def part(begin, end, train=False):
    return {"begin_offset": begin, "end_offset": end, "train": train}


def test_parts_of_a_reply():
    reply = REPLY | {"content": "one two three"}
    assert untrained_parts(reply) == []
    detail = [part(0, 2), part(4, 6, True), part(8, 12)]
    for key in ("train_detail", "training_detail"):
        assert untrained_parts(reply | {key: detail}) == [(0, 3), (8, 13)]


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ({"train_detail": [part(0, 13)]}, "characters 0 to 13 of a content of 13"),
        ({"train_detail": [part(-1, 2)]}, "characters -1 to 2"),
        ({"train_detail": [part(4, 6), part(0, 2)]}, r"train_detail\[1\]: characters 0 to 2"),
        ({"train_detail": [part(0, 4), part(4, 6)]}, "without overlap"),
        ({"train_detail": [part(0, 2, 1)]}, "train: true or false"),
        ({"train_detail": [part("0", 2)]}, "a part is"),
        ({"train_detail": "all"}, "a part is"),
        ({"train_detail": [part(0, 2)], "training_detail": [part(0, 2)]}, "keep one of them"),
    ],
)
def test_parts_that_cannot_be_meant(marks, words):
    with pytest.raises(LclmError, match=words):
        untrained_parts(REPLY | {"content": "one two three"} | marks)


def test_loss_on_parts_token_by_token(tmp_path):
    tokenizer = Tokenizer(train_tokenizer(["one two three four five\n" * 9], 300, tmp_path))
    detail = {"train_detail": [part(0, 2), part(4, 6, True), part(7, 12)]}

    def outline(marks):
        messages = [USER, REPLY | {"content": "one two three"} | marks, USER, REPLY | {"content": "four"}]
        return chat_outline(messages, tokenizer, tokenizer, replies="all")

    plain, marked = outline({}), outline(detail)
    np.testing.assert_array_equal(plain.tokens, marked.tokens)
    pieces = ["<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "one", " two", " three", "<|im_end|>\n"]
    counts = [len(tokenizer.encode(piece)) for piece in pieces]
    expected = plain.loss.copy()
    expected[counts[0] : sum(counts[:2])] = 0
    expected[sum(counts[:3]) : sum(counts[:4])] = 0
    np.testing.assert_array_equal(marked.loss, expected)
    assert marked.loss.sum() < plain.loss.sum()
    with pytest.raises(LclmError, match="train_detail on a message of role 'user'"):
        chat_outline([USER | detail, REPLY], tokenizer, tokenizer)
    with pytest.raises(LclmError, match="prints 2 times"):
        calls = [{"type": "function", "function": {"name": "one two three", "arguments": "{}"}}]
        tools = [{"type": "function", "function": {"name": "one two three"}}]
        with_tools = Tokenizer(train_tokenizer(["one two three\n" * 9], 300, tmp_path / "tools", tools=True))
        reply = REPLY | {"content": "one two three", "tool_calls": calls} | detail
        chat_outline([USER, reply], with_tools, with_tools, tools=tools)
