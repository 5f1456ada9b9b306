import numpy as np
import pytest

import tokenizers
from lclm_jax.text import chunked_encoding
from lclm_jax.text.chats import prefix_lengths
from lclm_jax.text.chats.prefix_lengths import PrefixLengths
from lclm_jax.text.example import chat_outline, outline_pieces
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START, split_memory
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TEXTS = [f"Sentence {i} is about the number {i} and é, 東京.\n" for i in range(300)]
CHAT = [
    {"role": "user", "content": f"  Read {MEMORY_START}the number 17{MEMORY_END} and  {MEMORY_START}é{MEMORY_END}\n"},
    {"role": "assistant", "content": " \nSentence 17 is \n"},
    {"role": "user", "content": "about 東京?"},
    {"role": "assistant", "content": "the number"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_tokenizer(TEXTS, 400, tmp_path_factory.mktemp("prefix") / "tokenizer")


def lengths_by_whole(text, stop, decoder):
    pieces = split_memory(text[:stop])
    return sum(2 if one.kind == "span" else len(decoder.encode(one.text)) for one in pieces)


def outside_spans(text):
    """Every place at which a beginning of ``text`` may stop: no tag is cut, no span open."""
    for stop in range(len(text) + 1):
        beginning = text[:stop]
        if beginning.count(MEMORY_START) == beginning.count(MEMORY_END):
            yield stop


def check(text, decoder):
    tokens = outline_pieces(split_memory(text), decoder, decoder).tokens
    lengths = PrefixLengths(text, tokens, decoder)
    for stop in outside_spans(text):
        assert lengths.until(stop) == lengths_by_whole(text, stop, decoder), stop
    return lengths


def test_every_beginning_has_the_tokens_that_it_has_alone(folder):
    decoder = Tokenizer(folder)
    check(decoder.render_chat(CHAT), decoder)


@pytest.mark.parametrize("strip", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}])
def test_whatever_special_tokens_swallow_or_stand_in(folder, strip, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    built = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    built.add_special_tokens([tokenizers.AddedToken("<cut>", **strip), tokenizers.AddedToken("<cut>>", **strip)])
    built.save(str(tmp_path / "tokenizer.json"))
    text = f"a <cut> b<cut>c  <cut>>  d{MEMORY_START}x <cut> y{MEMORY_END} <cut>\n\n e <cut>> f"
    check(text.replace("x <cut> y", "x y"), Tokenizer(tmp_path))
    check(text, Tokenizer(tmp_path))  # in a span it is no decoder token: every beginning is tokenized whole


def test_the_work_grows_with_the_chat_not_with_its_square(folder, monkeypatch):
    decoder, seen = Tokenizer(folder), []

    def counted(tokenizer, text):
        seen.append(len(text))
        return chunked_encoding.long_ids(tokenizer, text)

    monkeypatch.setattr(prefix_lengths, "long_ids", counted)
    chat = CHAT * 40
    outline = chat_outline(chat, decoder, decoder, replies="all")
    assert outline.loss.sum() > 0
    assert sum(seen) < 2 * len(decoder.render_chat(chat))
    assert np.array_equal(outline.loss[-1:], [1])
