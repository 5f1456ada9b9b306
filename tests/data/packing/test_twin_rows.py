import dataclasses

import numpy as np

from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.packing import twin_rows
from lclm_jax.data.packing.twin_rows import TwinMaker, raw_twin
from lclm_jax.text.example import Example
from lclm_jax.text.memory_tags import MemoryIds

MEMORY = MemoryIds(100, 101, 102)


def example(tokens, learned, *spans):
    loss = np.isin(np.arange(len(tokens)), learned).astype(np.float32)
    return Example(np.array(tokens, np.int32), loss, tuple(np.array(span, np.int32) for span in spans))


def test_raw_tokens_stand_where_latents_were():
    one = example([7, 100, 102, 102, 101, 8, 100, 102, 101, 9], [5, 9], [1, 2, 3], [])
    tokens, before = raw_twin(one, one.spans, MEMORY)
    assert tokens.tolist() == [7, 1, 2, 3, 8, 9]
    assert before.tolist() == [-1, -1, -1, -1, 3, -1, -1, -1, 4, -1]
    opening = example([100, 102, 101, 8], [3], [])  # nothing stands before the first token of the text
    assert [array.tolist() for array in raw_twin(opening, opening.spans, MEMORY)] == [[8], [-1] * 4]


def test_twins_of_a_loader_predict_the_same_tokens(run, edited):
    values, tokenizers = run
    config = edited(values, stage={"distill": {"weight": 0.5}, "steps": 1}, data={"prefetch": 0})
    plain = edited(values, stage={"steps": 1}, data={"prefetch": 0})
    (batch, _), (without, _) = (next(make_loader(one, "mixed", tokenizers)) for one in (config, plain))
    assert batch.twin_tokens.shape == (8, 256 + 4 * 128) and without.twin_tokens is None
    for name in without._fields[: without._fields.index("twin_tokens")]:
        np.testing.assert_array_equal(getattr(batch, name), getattr(without, name))  # rows are those without
    learned = batch.loss_weights > 0
    first_of_text = learned & (batch.twin_index < 0)
    assert learned.sum() > 500 and first_of_text.sum() < 20
    row, place = np.nonzero(learned & ~first_of_text)
    twin = batch.twin_index[row, place]
    np.testing.assert_array_equal(batch.twin_tokens[row, twin + 1], batch.targets[row, place])
    np.testing.assert_array_equal(batch.twin_segments[row, twin + 1], batch.decoder_segments[row, place])
    np.testing.assert_array_equal(batch.twin_positions[row, twin + 1], batch.twin_positions[row, twin] + 1)
    raw = batch.pool_weights.sum() + np.isin(batch.decoder_tokens, tokenizers.decoder.memory_ids, invert=True).sum()
    padding = (batch.decoder_segments == 0).sum()
    assert (batch.twin_segments > 0).sum() == raw - padding  # all of the text, and nothing else


def test_examples_that_do_not_fit_have_no_teacher(run):
    _, tokenizers = run
    maker = TwinMaker(tokenizers, 8, 4)
    twins = maker([[example([1, 2], [1]), example([3, 4, 5], [1, 2]), example([6, 7], [1])]])
    assert twins["twin_tokens"].tolist() == [[1, 2, 6, 7]]
    assert twins["twin_segments"].tolist() == [[1, 1, 3, 3]]
    assert twins["twin_index"].tolist() == [[0, -1, -1, -1, -1, 2, -1, -1]]


def test_spans_of_another_tokenizer_are_read_in_the_decoders(run, monkeypatch):
    _, tokenizers = run
    text = "def first(x):"
    monkeypatch.setattr(twin_rows, "shared_tokenization", lambda decoder, encoder: None)
    ids = tokenizers.encoder.encode(text, plain=True)
    maker = dataclasses.replace(TwinMaker(tokenizers, 8, 64))
    start, end, placeholder = tokenizers.decoder.memory_ids
    twins = maker([[example([start, placeholder, end, 5], [3], ids)]])
    used = twins["twin_segments"][0] > 0
    np.testing.assert_array_equal(twins["twin_tokens"][0][used], [*tokenizers.decoder.encode(text, plain=True), 5])
