import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.text.chats.loss_markers import is_trained_on
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


def test_marks_that_contradict_or_are_partial():
    with pytest.raises(LclmError, match="two things"):
        is_trained_on(REPLY | {"weight": 0, "train": True})
    with pytest.raises(LclmError, match="training_detail: a loss on parts"):
        is_trained_on(REPLY | {"training_detail": [{"begin_offset": 0, "end_offset": 3, "train": False}]})


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
