import argparse
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizers
from lclm_jax.text import chunked_encoding, cuts
from lclm_jax.text.boundaries import byte_positions
from lclm_jax.text.chunked_encoding import ChunkedEncoder, UnbrokenTextError
from lclm_jax.text.cuts import CutFinder, common_cuts
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import PATTERN, train_tokenizer
from tokenizers import pre_tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
TEXT = (
    "def f(x):\n    return x**2  # it's 12345\n\n\nclass A:\n\tpass  \n  \n\r\n"
    "I'll we'sup 'tis <|im_end|> é東京🙂 a\u00a0b\n"
)
# Text where patterns disagree: blanks, newlines, digits, contractions, special strings, wide characters.
BLANKS = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\x0b", "\u2028"]
MARKS = ["'s", "'", "12", "7", ":", "():", "🙂", "<|im_end|>", "<|", "\u0301", "_"]
PIECES = st.sampled_from([*BLANKS, *MARKS, "a", "foo", "Bar", "é", "東", "    return"])


def with_pattern(folder, pattern, digits=False):
    """The folder's tokenizer with another pre-tokenizer."""
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    if digits:
        first = pre_tokenizers.Digits(individual_digits=True)
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=digits)]
    )
    other = folder.parent / f"{folder.name}-{abs(hash((pattern, digits)))}"
    other.mkdir()
    built.save(str(other / "tokenizer.json"))
    return Tokenizer(other)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return Tokenizer(train_tokenizer([TEXT * 3], 320, tmp_path_factory.mktemp("cuts") / "t"))


@pytest.fixture(scope="module")
def finders(qwen):
    others = [with_pattern(qwen.folder, p) for p in (GPT2, LLAMA3)] + [with_pattern(qwen.folder, GPT2, digits=True)]
    return [CutFinder(tokenizer) for tokenizer in (qwen, *others)]


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(PIECES, min_size=1, max_size=14), data=st.data())
def test_a_slice_of_ids_is_the_slice_retokenized(finders, parts, data):
    text = unicodedata.normalize("NFC", "".join(parts))
    found = [finder.tokenize([text])[0] for finder in finders]
    for finder, one in zip(finders, found, strict=True):
        assert one.cuts[0] == one.cut_chars[0] == 0
        assert (one.cuts[-1], one.cut_chars[-1]) == (len(one.ids), len(text))
        assert (np.diff(one.cuts) > 0).all()
        for first in range(len(one.cuts)):
            for last in range(first + 1, len(one.cuts)):
                assert finder.is_stable(text, one, first, last), (text, first, last)
    shared = common_cuts(found[0], found[data.draw(st.integers(1, 3))])
    assert shared[0].cut_chars.tolist() == shared[1].cut_chars.tolist()
    assert set(shared[0].cuts) <= set(found[0].cuts)


def test_cuts_are_frequent_in_code(tmp_path):
    text = Path(argparse.__file__).read_text()
    tokenizer = Tokenizer(train_tokenizer([text], 512, tmp_path))
    found = CutFinder(tokenizer).tokenize([text])[0]
    gaps = np.diff(found.cuts)
    assert gaps.mean() < 3
    assert np.quantile(gaps, 0.99) < 10
    lines = np.array([i + 1 for i, c in enumerate(text[:-1]) if c == "\n" and text[i + 1] != "\n"])
    assert np.isin(lines, found.cut_chars).mean() > 0.95


def test_long_texts_have_the_same_cuts(finders, monkeypatch):
    text = Path(argparse.__file__).read_text()[:6000] + TEXT * 20
    usual = [finder.tokenize([text])[0] for finder in finders]
    monkeypatch.setattr(cuts, "LONGEST", 1000)
    monkeypatch.setattr(chunked_encoding, "_STRETCH", 400)
    for finder, whole in zip(finders, usual, strict=True):
        monkeypatch.setattr(finder, "_encode", ChunkedEncoder(finder._tokenizer, 100))
        for name in ("ids", "cuts", "cut_chars"):
            np.testing.assert_array_equal(getattr(finder.tokenize([text])[0], name), getattr(whole, name))
    unbroken, short = finders[0].tokenize_each(["x" * 2**21, "short"])
    assert isinstance(unbroken, UnbrokenTextError)
    assert short.cut_chars.tolist() == [0, 5]


def test_special_strings_of_foreign_text_stay_text(qwen):
    text = "a<|memory_start|>b<|im_end|>"
    found = CutFinder(qwen).tokenize([text])[0]
    assert not np.isin(found.ids, list(qwen.special_tokens.values())).any()
    assert qwen.decode(found.ids) == text
    assert np.isin(qwen.encode(text), list(qwen.special_tokens.values())).sum() == 2


def test_no_cut_before_a_blank_rest_of_line(qwen):
    text = "ab  \n cd\nef"
    found = CutFinder(qwen).tokenize([text])[0]
    assert 2 not in found.cut_chars
    assert {5, 9} <= set(found.cut_chars.tolist())


@given(st.text(max_size=20))
def test_byte_positions(text):
    text = text.encode("utf-8", "ignore").decode()
    chars = np.arange(len(text) + 1)
    assert byte_positions(text, chars).tolist() == [len(text[:i].encode()) for i in chars]


def test_empty_text(qwen):
    found = CutFinder(qwen).tokenize([""])[0]
    assert found.cuts.tolist() == [0]
