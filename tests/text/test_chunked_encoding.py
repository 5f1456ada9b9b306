import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.test_cuts import GPT2, LLAMA3, PIECES, TEXT, with_pattern

import tokenizers
from lclm_jax.text import chunked_encoding
from lclm_jax.text.chunked_encoding import ChunkedEncoder, UnbrokenTextError, known_pre_tokens, long_ids
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer
from tokenizers import decoders, models, pre_tokenizers


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    qwen = Tokenizer(train_tokenizer([TEXT * 3], 320, tmp_path_factory.mktemp("chunks") / "t"))
    return [qwen, *(with_pattern(qwen.folder, pattern) for pattern in (GPT2, LLAMA3))]


@pytest.fixture(scope="module")
def one_pre_token(tmp_path_factory):
    """A tokenizer that may merge across white space, so that no chunk ends where a pre-token does."""
    built = tokenizers.Tokenizer(models.BPE({"a": 0, " ": 1, "b": 2, "a ": 3}, [("a", " ")]))
    built.pre_tokenizer, built.decoder = pre_tokenizers.Split("|", "removed"), decoders.Fuse()
    folder = tmp_path_factory.mktemp("whole")
    built.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def by_the_library(tokenizer, text):
    one = tokenizer.backend(plain=True).encode(text, add_special_tokens=False)
    words = one.word_ids
    opens = [i == 0 or word is None or word != words[i - 1] for i, word in enumerate(words)]
    offsets = np.array(one.offsets, np.int32).reshape(-1, 2)
    return one.ids, offsets[:, 0].tolist(), offsets[:, 1].tolist(), opens


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.lists(PIECES, max_size=20), min_size=1, max_size=3), chunk=st.integers(1, 6))
def test_chunks_give_what_the_whole_text_gives(byte_level, texts, chunk):
    normal = [unicodedata.normalize("NFC", "".join(parts)) for parts in texts]
    for tokenizer in byte_level:
        for text, found in zip(normal, ChunkedEncoder(tokenizer, chunk)(normal), strict=True):
            assert tuple(column.tolist() for column in found) == by_the_library(tokenizer, text), text


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=60) | st.lists(PIECES, max_size=20).map("".join))
def test_ascii_text_by_its_pre_tokens_is_what_the_library_gives(byte_level, text):
    for tokenizer in byte_level:
        known = known_pre_tokens(tokenizer)
        assert known is not None
        found = known(text)
        assert (found is None) == (not text.isascii())
        if found is not None:
            assert tuple(column.tolist() for column in found) == by_the_library(tokenizer, text), text
            assert [column.dtype for column in found] == [np.int32, np.int32, np.int32, bool]


def changed(tokenizer, folder, change):
    """A copy of ``tokenizer`` whose tokenizer.json ``change`` was applied to."""
    settings = json.loads((tokenizer.folder / "tokenizer.json").read_text())
    change(settings)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    return Tokenizer(folder)


def test_what_is_no_ascii_and_what_cannot_be_imitated_goes_to_the_library(byte_level, tmp_path, monkeypatch):
    def pattern(regex):
        return lambda settings: settings["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=regex)

    for number, regex in enumerate(
        [r"\w+|\W+", r"[a-z&&[^b]]+|.", r"[\S]+|\s+", r"[^ab]+", r"(a|b)+|[^ab]", r"^a|.", r"(?<n>a)|[^a]", r"[[a]]+|."]
    ):
        other = changed(byte_level[0], tmp_path / str(number), pattern(regex))
        assert known_pre_tokens(other) is None
        text = "abab ab, the width"
        assert tuple(column.tolist() for column in ChunkedEncoder(other)([text])[0]) == by_the_library(other, text)
    other = changed(byte_level[0], tmp_path / "dropout", lambda settings: settings["model"].update(dropout=0.1))
    assert known_pre_tokens(other) is None, "its ids are drawn"

    def add(settings):
        token = {"id": 320, "content": "<call>", "single_word": False, "lstrip": False, "rstrip": False}
        settings["added_tokens"].append(token | {"normalized": False, "special": False})

    added = changed(byte_level[0], tmp_path / "added", add)
    assert known_pre_tokens(added)("a <call> of") is None
    assert added.token_id("<call>") in ChunkedEncoder(added)(["a <call> of"])[0].ids

    known = chunked_encoding.KnownPreTokens(*known_pre_tokens(byte_level[0]).parts)
    monkeypatch.setattr(chunked_encoding, "_MOST_KNOWN", 3)
    for text in ("one two three four", "five six", "one two", "x" * 300 + " one"):
        whole = ChunkedEncoder(byte_level[0])([text])[0]
        found = known(text)
        assert found is None or [a.tolist() for a in found] == [b.tolist() for b in whole], "what it knows is bounded"
    assert known("x" * 300) is None


def test_text_in_another_form_is_normalized(byte_level):
    text = "cafe\u0301 noir, cafe\u0301"
    found = ChunkedEncoder(byte_level[0], 3)([text])[0]
    assert found.ids.tolist() == byte_level[0].encode(text).tolist()
    assert tuple(column.tolist() for column in found) == by_the_library(byte_level[0], text)


def test_where_pre_tokens_do_not_end_the_text_stays_whole(one_pre_token):
    found = ChunkedEncoder(one_pre_token, 1)(["a b", "ab", ""])
    assert [one.ids.tolist() for one in found] == [[3, 2], [0, 2], []]
    assert found[0].ends.tolist() == [2, 3]


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(PIECES, max_size=40), chunk=st.integers(1, 6))
def test_stretches_together_give_what_the_whole_text_gives(byte_level, parts, chunk):
    text = unicodedata.normalize("NFC", "".join(parts))
    for tokenizer in byte_level:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunked_encoding, "_STRETCH", 4 * chunk)
            made = list(ChunkedEncoder(tokenizer, chunk).stretches(text))
        assert [start for start, _, _ in made] == [0, *(end for _, end, _ in made[:-1])][: len(made)]
        joined = [(one.ids, one.starts + start, one.ends + start, one.opens) for start, _, one in made]
        columns = [np.concatenate(column).tolist() for column in zip(*joined, strict=True)] or [[]] * 4
        assert tuple(columns) == by_the_library(tokenizer, text), text


def test_long_texts_are_bounded_or_refused(byte_level, monkeypatch):
    monkeypatch.setattr(chunked_encoding, "LONGEST", 9000)
    with pytest.raises(UnbrokenTextError, match=r"10,001 characters without a place .* at most 9,000; break the text"):
        list(ChunkedEncoder(byte_level[0]).stretches("a" * 10_001))
    whole, seen, encode = list(ChunkedEncoder(byte_level[0]).stretches("word,+" * 5000)), [], ChunkedEncoder._encode
    monkeypatch.setattr(ChunkedEncoder, "_encode", lambda self, texts: (seen.append(texts), encode(self, texts))[1])
    assert len(whole) == 1
    monkeypatch.setattr(chunked_encoding, "_AT_ONCE", 2)
    list(ChunkedEncoder(byte_level[0]).stretches("word,+" * 5000))
    assert max(len(texts) for texts in seen[:4]) == 2  # of the library's tokens few are held at a time


def test_long_prompts_have_their_ids(byte_level, monkeypatch):
    text = "<|im_start|>user\n" + "some words, <|memory|> it's 123\n" * 200 + "<|im_end|>"
    for tokenizer in byte_level:
        expected = tokenizer.encode(text).tolist()
        with monkeypatch.context() as patch:
            patch.setattr(chunked_encoding, "LONGEST", 5000)
            assert long_ids(tokenizer, text).tolist() == expected


def test_long_texts_are_given_in_chunks(byte_level, monkeypatch):
    encoder, seen = ChunkedEncoder(byte_level[0], 100), []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda texts: (seen.extend(texts), encode(texts))[1])
    encoder(["some wörds of a line\n" * 50])
    assert max(map(len, seen)) < 125
    seen.clear()
    encoder(["some words of a line\n" * 50])
    assert not seen, "of ASCII text the ids are known"
