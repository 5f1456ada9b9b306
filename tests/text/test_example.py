from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.errors import LclmError
from lclm_jax.text.cuts import CutFinder
from lclm_jax.text.example import (
    DocumentTokens,
    Segment,
    chat_example,
    chat_outline,
    cpt_example,
    cpt_example_from_ids,
    expand,
    latent_count,
    placeholder_ranges,
    prompt_example,
)
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START
from lclm_jax.text.outline import Outline
from lclm_jax.text.prompts import REPETITION_REQUESTS, reconstruction_example_from_ids, repetition_prompts
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TEXT = "def area(width, height):\n    # it's flat\n    return width * height\n\n\nprint(area(2, 34))\n" * 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    sizes = {"decoder": 300, "encoder": 280}
    return tuple(Tokenizer(train_tokenizer([TEXT], size, folder / name)) for name, size in sizes.items())


def memory(text):
    return f"{MEMORY_START}{text}{MEMORY_END}"


def same(left, right):
    np.testing.assert_array_equal(left.tokens, right.tokens)
    np.testing.assert_array_equal(left.loss, right.loss)
    assert [span.tolist() for span in left.spans] == [span.tolist() for span in right.spans]


@given(st.lists(st.integers(1, 40), max_size=4), st.integers(1, 16))
def test_expand_gives_ceil_placeholders_without_loss(lengths, ratio):
    tokens = np.array([1, *[token for _ in lengths for token in (7, 8, 2)]], np.int32)
    gaps = np.array([2 + 3 * i for i in range(len(lengths))], np.int32)
    spans = tuple(np.zeros(n, np.int32) for n in lengths)
    example = expand(Outline(tokens, np.ones(len(tokens), np.float32), gaps, spans), ratio, 9)
    counts = [-(-n // ratio) for n in lengths]
    assert [stop - start for start, stop in placeholder_ranges(example.tokens, 9)] == counts
    assert all(example.tokens[start - 1] == 7 for start, _ in placeholder_ranges(example.tokens, 9))
    assert not example.loss[example.tokens == 9].any()
    np.testing.assert_array_equal(example.tokens[example.tokens != 9], tokens)
    assert example.tokens.dtype == np.int32
    assert example.loss.dtype == np.float32
    assert latent_count(0, ratio) == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_sliced_examples_are_the_tokenized_ones(pair, data):
    decoder, _ = pair
    found = CutFinder(decoder).tokenize([TEXT])[0]
    # One tokenizer for both here; test_prepare covers the cuts that two share.
    document = DocumentTokens.from_record({"decoder_ids": found.ids.astype(np.uint32), "cuts": found.cuts})
    places = data.draw(st.lists(st.integers(0, len(found.cuts) - 1), min_size=2, max_size=6, unique=True).map(sorted))
    compressed = data.draw(st.booleans())
    segments = [Segment(compressed ^ bool(i % 2), a, b) for i, (a, b) in enumerate(pairwise(places))]
    pieces = [(s, TEXT[found.cut_chars[s.start] : found.cut_chars[s.stop]]) for s in segments]
    text = "".join(memory(piece) if segment.compressed else piece for segment, piece in pieces)
    same(cpt_example_from_ids(document, segments, decoder.memory_ids, 4), cpt_example(text, decoder, decoder, 4))
    variant = data.draw(st.integers(0, len(REPETITION_REQUESTS) - 1))
    question = REPETITION_REQUESTS[variant].replace("{memory}", memory(pieces[0][1]))
    told = chat_example([{"role": "user", "content": question}], decoder, decoder, 4, target=pieces[0][1])
    prompt = repetition_prompts(decoder)[variant]
    made = reconstruction_example_from_ids(prompt, document, segments[0], decoder.memory_ids, 4)
    same(made, told)
    spans = len(made.spans[0])
    assert len(made.tokens) == prompt.overhead + latent_count(spans, 4) + spans


def test_cpt_loss_is_on_raw_tokens_the_first_after_a_span_included(pair):
    decoder, encoder = pair
    example = cpt_example(f"{memory('area')} width {memory('return')}print", decoder, encoder, 4)
    tags = np.isin(example.tokens, decoder.memory_ids)
    np.testing.assert_array_equal(example.loss > 0, ~tags)
    assert cpt_example("width", decoder, encoder, 4).loss[0] == 0


def test_chat_loss_on_the_last_reply_or_on_all(pair):
    decoder, encoder = pair
    chat = [
        {"role": "user", "content": f"q {memory(TEXT[:40])}"},
        {"role": "assistant", "content": "width"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": f"height {memory('flat')} end"},
    ]
    last = chat_example(chat, decoder, encoder, 8)
    every = chat_example(chat, decoder, encoder, 8, replies="all")
    assert decoder.decode(last.tokens[last.loss > 0]) == "height  end<|im_end|>\n"
    assert decoder.decode(every.tokens[every.loss > 0]) == "width<|im_end|>\nheight  end<|im_end|>\n"
    same(last, chat_example(chat[:-1], decoder, encoder, 8, target=chat[-1]["content"]))
    prompt = prompt_example(chat[:-1], decoder, encoder, 8)
    np.testing.assert_array_equal(prompt.tokens, last.tokens[: len(prompt.tokens)])
    assert last.spans[0].tolist() == encoder.encode(TEXT[:40]).tolist()


def test_chats_that_cannot_be_trained_on(pair, tmp_path):
    decoder, encoder = pair
    with pytest.raises(LclmError, match=r"ends with the assistant's reply, not with 'user'; add it"):
        chat_outline([{"role": "user", "content": "x"}], decoder, encoder)
    with pytest.raises(LclmError, match="not with None"):
        chat_outline([], decoder, encoder)
    for path in decoder.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ add_generation_prompt }}{{ messages[0].content }}")
    odd = Tokenizer(tmp_path)
    with pytest.raises(LclmError, match="use a template whose prompt is a prefix"):
        chat_outline([{"role": "user", "content": "x"}], odd, encoder, target="y")
    with pytest.raises(LclmError, match="use another template"):
        repetition_prompts(odd)


def test_empty_span_is_refused(pair):
    decoder, encoder = pair
    text = f"a {memory('')} b"
    for make in (cpt_example, prompt_example):
        with pytest.raises(LclmError, match="is empty"):
            make(text, decoder, encoder, 4)
