import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.test_cuts import PIECES

import tokenizers
from lclm_jax.errors import LclmError
from lclm_jax.text.blank_boundaries import blank_boundaries
from lclm_jax.text.chunked_encoding import ChunkedEncoder
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.tokenizer import Tokenizer
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

PROSE = "the cat sat on the mat. the dog ate  it\nand  slept: 12 times, (or more)!\n" * 20


def saved(folder, changes, across=()):
    """A BPE with byte fallback as of Llama 2, with other parts of its ``tokenizer.json``."""
    built = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    built.train_from_iterator([PROSE], trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False))
    values = json.loads(built.to_str())
    values["added_tokens"] = values["added_tokens"][:3]
    values["pre_tokenizer"] = None
    for left, right in across:  # merges over a blank, as of Gemma 3
        values["model"]["vocab"] |= {left + right: len(values["model"]["vocab"])}
        values["model"]["merges"].append([left, right])
    built = tokenizers.Tokenizer.from_str(json.dumps(values | changes))
    built.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "\n\n", "▁▁▁")])
    folder.mkdir()
    built.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def by_kind(tmp_path_factory):
    root = tmp_path_factory.mktemp("blanks")
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    as_json = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    gemma = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {
        "llama 2": saved(root / "prepend", {"normalizer": json.loads(prepend.__getstate__())}),
        "mistral": saved(root / "metaspace", {"normalizer": None, "pre_tokenizer": as_json}),
        "gemma": saved(root / "gemma", {"normalizer": replace, "pre_tokenizer": gemma}, [(".", "▁")]),
    }


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.one_of(PIECES, st.sampled_from(["<think>", " the", ". ", " <think> "])), max_size=14))
def test_slices_between_cuts_are_what_their_text_gives(by_kind, parts):
    text = "".join(parts)
    for kind, tokenizer in by_kind.items():
        finder = CutFinder(tokenizer)
        found = finder.tokenize([text])[0]
        assert found.ids.tolist() == tokenizer.encode(text, plain=True).tolist()
        for first in range(len(found.cuts)):
            for last in range(first + 1, len(found.cuts)):
                assert finder.is_stable(text, found, first, last), (kind, text, first, last)


def test_words_are_apart(by_kind):
    for tokenizer in by_kind.values():
        found = CutFinder(tokenizer).tokenize(["the cat sat  on\nthe mat"])[0]
        assert found.cut_chars.tolist() == [0, 3, 7, 11, 19, 23]


@pytest.mark.parametrize("chunk", [3, 8])
def test_chunks_give_what_the_whole_text_gives(by_kind, chunk):
    text = PROSE[:300] + " é東 <think> x"
    for tokenizer in by_kind.values():
        whole = ChunkedEncoder(tokenizer, 10_000)([text])[0]
        for one in (ChunkedEncoder(tokenizer, chunk)([text])[0], _joined(ChunkedEncoder(tokenizer, chunk), text)):
            for expected, column in zip(whole, one, strict=True):
                np.testing.assert_array_equal(column, expected)


def _joined(encoder, text):
    parts = list(encoder.stretches(text))
    assert [start for start, _, _ in parts[1:]] == [end for _, end, _ in parts[:-1]]
    columns = [(one.ids, one.starts + start, one.ends + start, one.opens) for start, _, one in parts]
    return [np.concatenate(column) for column in zip(*columns, strict=True)]


def test_vocabularies_that_merge_over_blanks_are_refused(tmp_path):
    built = tokenizers.Tokenizer(models.BPE({"a": 0, " ": 1, "b": 2, "a ": 3}, [("a", " ")]))
    built.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert blank_boundaries(tokenizer) is None
    with pytest.raises(LclmError, match="finds no place inside a text where it may be cut"):
        CutFinder(tokenizer).check()
