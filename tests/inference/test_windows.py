"""Bounded encoding gives the latents of a packed row, whatever the number of windows at once."""

import jax
import numpy as np
import pytest

from lclm_jax.batch import batch_shapes
from lclm_jax.data.packing.rows import assemble_batch
from lclm_jax.errors import LclmError
from lclm_jax.inference import windows
from lclm_jax.inference.sampling import Sampling
from lclm_jax.inference.windows import SpanEncoder, pack_for, prompt_batch
from lclm_jax.model.lclm import embed, encode
from lclm_jax.parallel import use_mesh
from lclm_jax.text.example import Example

PROMPT = (
    "<|memory_start|>a few words that are read by the encoder, and then a few more words<|memory_end|> and"
    " <|memory_start|>b<|memory_end|> or <|memory_start|>more words to train on<|memory_end|>?"
)
MODELS = {
    "mean": {},
    "bidirectional, pooled before the last layer": {"mask": "bidirectional", "overlap": 3, "pool_before_last": 1},
    "eos": {"pooling": "eos", "overlap": 6},
    "concat": {"pooling": "concat"},
    "slots": {"pooling": "slots", "overlap": 6},
    "attention": {"pooling": "attention", "adapter": {"type": "mlp_attn", "num_layers": 1}},
}


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings_are_those_of_a_packed_row(make_generator, kind):
    generator = make_generator(batch_windows=3, **MODELS[kind])
    example = generator.example(PROMPT)
    (found,) = generator.embeddings([example])
    model, pack = generator.model, pack_for([[example]], generator.model)
    batch = assemble_batch([[example]], model, pack, generator.encoder_tokenizer.pad_id)
    both = jax.jit(lambda params, batch: embed(params, model, batch, encode(params, model, batch)))
    with use_mesh(generator.mesh):
        want = both(generator.params, batch)
    np.testing.assert_allclose(found, want[0, : len(example.tokens)], atol=2e-5, rtol=2e-5)


def test_no_more_windows_than_asked_for_are_encoded_at_once(make_generator, monkeypatch):
    generator, seen = make_generator(batch_windows=4), []
    inner = windows._pool_windows

    def spy(params, batch, *, model):
        seen.append((batch.encoder_tokens.shape[0], int((batch.encoder_segments.max(axis=(1, 2)) > 0).sum())))
        return inner(params, batch, model=model)

    monkeypatch.setattr(windows, "_pool_windows", spy)
    counted = []
    long = generator.example("<|memory_start|>" + "other things " * 12 + "<|memory_end|>")
    short = generator.example("<|memory_start|>ab<|memory_end|>")
    list(generator.embeddings([long, short], counted.append))
    assert len(seen) > 2
    assert max(rows for rows, _ in seen) <= 4
    assert [real for _, real in seen] == counted
    assert sum(counted) == -(-len(long.spans[0]) // 8) + 1


def test_answers_do_not_depend_on_the_windows_at_once(make_generator, generator):
    sampling = Sampling(max_new_tokens=6, stop_ids=())
    assert make_generator(batch_windows=1).generate([PROMPT], sampling) == generator.generate([PROMPT], sampling)


def test_an_empty_span_has_a_vector_of_zeros(generator):
    empty, word = np.zeros(0, np.int32), np.array([5], np.int32)
    first, second = generator.encoder.pooled([empty, word])
    assert first.shape == second.shape == (1, 16)
    assert not first.any()
    assert second.any()
    assert generator.encoder.pooled([]) == []


def test_prompts_of_another_ratio_are_refused(generator):
    example = generator.example("<|memory_start|>a few words<|memory_end|>")
    wrong = Example(example.tokens[example.tokens != generator.model.memory_token_ids[2]], example.loss, example.spans)
    with pytest.raises(LclmError, match="placeholders"):
        list(generator.embeddings([wrong]))
    with pytest.raises(LclmError, match="batch_windows=0"):
        SpanEncoder(generator.params, generator.model, generator.mesh, 0, batch_windows=0)


def test_arrays_of_a_prompt_have_the_contracts_types(generator):
    example = generator.example(PROMPT)
    batch, values = prompt_batch([example], [generator.encoder.pooled(example.spans)], generator.model)
    shapes = batch_shapes(generator.model, pack_for([[example]], generator.model), 1)
    for name, array in batch._asdict().items():
        assert array is None or array.dtype == shapes[name][1]
    assert values.dtype == np.float32
