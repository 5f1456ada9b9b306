"""Ratios of spans at inference: means of means, given and chosen ratios, the head's file and its budgets."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from lclm_jax.errors import LclmError
from lclm_jax.inference.embeddings import Reading, encode_prompts
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.span_ratios import (
    FILE,
    RatioHead,
    merge_vectors,
    parse_ratios,
    same_ratios,
    span_states,
    with_ratios,
)
from lclm_jax.text.example import Example

SPAN = "<|memory_start|>{}<|memory_end|>"
PROMPT = "see " + SPAN.format("a few words to read " * 4) + " and " + SPAN.format("abc") + "?"


@pytest.fixture
def head(generator):
    """A head that tells spans apart by their first state: 8 above, 4 below."""
    kernel = np.zeros((generator.model.encoder.hidden_size, 1), np.float32)
    kernel[0] = 50.0
    thresholds, budgets = np.array([2.0, 0.5, -1.0], np.float32), np.array([0.25, 0.2, 0.125], np.float32)
    return RatioHead((4, 8), kernel, np.zeros(1, np.float32), thresholds, budgets)


def test_a_mean_of_means_is_the_mean_over_all_tokens(rng):
    hidden = rng.normal(size=(23, 3)).astype(np.float32)
    fine = np.stack([hidden[k : k + 2].mean(axis=0) for k in range(0, 23, 2)])
    for ratio in (2, 4, 8, 32):
        whole = np.stack([hidden[k : k + ratio].mean(axis=0) for k in range(0, 23, ratio)])
        np.testing.assert_allclose(merge_vectors(fine, 23, (2, ratio)), whole, atol=1e-6)
    assert merge_vectors(np.zeros((1, 3), np.float32), 0, (2, 8)).shape == (1, 3)


def test_placeholders_follow_the_ratios(generator):
    start, end, placeholder = generator.model.memory_token_ids
    inside = [start, placeholder, placeholder, placeholder, end]
    spans = (np.arange(9), np.arange(10))
    example = Example(np.array([1, *inside, *inside, 2]), np.array([1.0, *[0.0] * 10, 1.0]), spans)
    found = with_ratios(example, [8, 4], generator.model)
    assert found.tokens.tolist() == [1, start, placeholder, placeholder, end, *inside, 2]
    assert found.loss.tolist() == [1.0, *[0.0] * 9, 1.0]
    assert found.ratios.tolist() == [8, 4]
    with pytest.raises(LclmError, match="1 ratios for 2 memory spans"):
        with_ratios(example, [8], generator.model)
    with pytest.raises(LclmError, match="ratio 6 is no multiple of the model's 4 that divides its window of 8"):
        with_ratios(example, [8, 6], generator.model)


def test_a_given_ratio_answers_as_a_model_of_that_ratio(generator, make_generator, monkeypatch):
    (whole,) = generator.embeddings([generator.example(PROMPT)])
    other = make_generator(ratio=8)
    (expected,) = other.embeddings([other.example(PROMPT)])
    monkeypatch.setattr(generator, "ratios", same_ratios([8]))
    (found,) = generator.embeddings([generator.example(PROMPT)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    new = Sampling(max_new_tokens=4)
    assert generator.generate([PROMPT, "plain"], new)[0].ids == other.generate([PROMPT, "plain"], new)[0].ids
    monkeypatch.setattr(generator, "ratios", same_ratios([8, 4]))
    (mixed,) = generator.embeddings([generator.example(PROMPT)])
    after = len(expected) - len(other.example(" and " + SPAN.format("abc") + "?").tokens)
    np.testing.assert_allclose(mixed[:after], expected[:after], atol=1e-5)
    np.testing.assert_allclose(mixed[after:], whole[len(whole) - len(mixed) + after :], atol=1e-5)
    with pytest.raises(LclmError, match="2 ratios for 1 memory spans"):
        generator.generate([SPAN.format("abc")], new)


def test_a_head_chooses_under_a_budget(head, tmp_path, generator):
    states = np.zeros((2, generator.model.encoder.hidden_size), np.float32)
    states[:, 0] = (1.0, -1.0)
    assert head.choose(states, head.threshold(0.25)).tolist() == [4, 4]
    assert head.choose(states, head.threshold(0.22)).tolist() == [8, 4]
    assert head.choose(states, head.threshold(0.125)).tolist() == [8, 8]
    with pytest.raises(LclmError, match=r"budget 0.1 is below 0.1250 latents per token"):
        head.threshold(0.1)
    head.save(tmp_path)
    again = RatioHead.load(tmp_path, generator.model)
    assert again.ratios == (4, 8)
    assert np.array_equal(again.kernel_EK, head.kernel_EK) and np.array_equal(again.budgets, head.budgets)
    wider = generator.model.model_copy(update={"ratio": 2})
    with pytest.raises(LclmError, match="was fitted for another model"):
        RatioHead.load(tmp_path, wider)
    (tmp_path / FILE).write_bytes(b"no head")
    with pytest.raises(LclmError, match="is no ratio head"):
        RatioHead.load(tmp_path, generator.model)


def test_words_for_ratios_are_checked(generator, tmp_path, make_generator):
    model = generator.model
    assert parse_ratios(None, None, tmp_path, model) is None
    assert parse_ratios("8,4", None, tmp_path, model)([None, None]) == [8, 4]
    for text, budget, words in (
        ("auto", None, "goes with the ratio auto"),
        ("8", 0.1, "goes with the ratio auto"),
        ("auto", 0.1, "has no ratio_head.safetensors; fit one"),
        ("many", None, "neither auto nor whole numbers"),
        ("3", None, "ratio 3 is no multiple"),
    ):
        with pytest.raises(LclmError, match=words):
            parse_ratios(text, budget, tmp_path, model)
    concat = model.model_copy(update={"pooling": "concat"})
    with pytest.raises(LclmError, match="with mean pooling alone, and this model's is concat"):
        parse_ratios("8", None, tmp_path, concat)


def test_prompts_are_encoded_at_chosen_ratios(exported, generator, head, tmp_path, monkeypatch):
    lines = [{"prompt": PROMPT}, {"prompt": "plain words"}, {"prompt": SPAN.format("or read the words")}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    examples = [generator.example(line["prompt"]) for line in lines]
    states = np.concatenate([span_states(spans) for spans in generator.pooled(examples) if spans])
    telling = int(np.argmax((states > 0).any(axis=0) & (states <= 0).any(axis=0)))  # a state that tells them apart
    head.kernel_EK[:] = np.roll(head.kernel_EK, telling, axis=0)
    head.save(exported)
    try:
        out = tmp_path / "out.safetensors"
        records = encode_prompts(exported, prompts, out, reading=Reading(2, ratio="auto", budget=0.22))
        assert encode_prompts(exported, prompts, out, reading=Reading(ratio="auto", budget=0.22)) == records
    finally:
        (exported / FILE).unlink()
    monkeypatch.setattr(generator, "ratios", head.chooser(0.22))
    tensors = load_file(out)
    for record, example in zip(records, examples, strict=True):
        (want,) = generator.embeddings([example])
        np.testing.assert_allclose(tensors[record["id"]], want, atol=1e-5)
        assert record["latents"] == sum(-(-len(s) // n) for s, n in zip(example.spans, record["ratios"], strict=True))
    chosen = [ratio for record in records for ratio in record["ratios"]]
    assert chosen == np.where(states[:, telling] > 0, 8, 4).tolist() and {*chosen} == {4, 8}
