import dataclasses

import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.inference.reasoning import reason
from lclm_jax.inference.reasoning_policy import ReasoningPolicy, ReasoningRow
from lclm_jax.inference.sampling import Sampling
from lclm_jax.text.tokenizer import Tokenizers

NEVER = ReasoningPolicy(tokens=10**9)
PROMPTS = ["plain words and nothing more", "see <|memory_start|>a few words that are read<|memory_end|> then go on"]


def row_of(generator, policy, prompt=PROMPTS[0]):
    tokenizers = Tokenizers(generator.decoder_tokenizer, generator.encoder_tokenizer)
    return ReasoningRow(generator.example(prompt), tokenizers, generator.model.ratio, policy)


def test_a_policy_cuts_behind_steps_and_leaves_the_answer_raw():
    policy = ReasoningPolicy(tokens=4, step_ends=frozenset({9}), reasoning_ends=frozenset({7}))
    assert policy.cut([1, 9, 2]) == 0  # not complete
    assert policy.cut([1, 2, 9, 3]) == 3
    assert policy.cut([9, 2, 3, 4]) == 4  # the step ended too early
    assert policy.cut([1, 2, 9, 3, 7]) == 0
    with pytest.raises(LclmError, match="tokens=0 of reasoning cannot be compressed"):
        ReasoningPolicy(tokens=0)


@pytest.mark.parametrize("merge", [False, True])
def test_bookkeeping(generator, merge):
    ids = generator.decoder_tokenizer.encode("one and two and three", plain=True)[:5].tolist()
    row = row_of(generator, ReasoningPolicy(tokens=5, merge=merge))
    prompt, latents = len(row.prompt.tokens), -(-5 // generator.model.ratio)
    pieces = []
    for token in [*ids, *ids, 3]:
        row.append(token)
        pieces.append(row.compress())
    first, second = (piece for piece in pieces if piece is not None)
    assert first.kept == prompt and len(first.piece.tokens) == latents + 2
    assert second.kept == prompt + (0 if merge else latents + 2)
    assert [len(span) for span in row.spans] == ([10] if merge else [5, 5])
    assert row.encoded_again == (5 if merge else 0)
    expected = (-(-10 // generator.model.ratio) + 2 if merge else 2 * (latents + 2)) + 1
    assert row.positions == len(row.example().tokens) == prompt + expected
    assert row.positions_saved == 11 - expected and row.effective_ratio == 11 / expected
    assert (row.compressions, row.compressed_tokens) == (2, 10) and row.largest >= row.positions


def test_characters_are_not_cut(generator):
    row = row_of(generator, ReasoningPolicy(tokens=2))
    ids = generator.decoder_tokenizer.encode("é\U0001f600", plain=True).tolist()
    for token in ids:
        row.append(token)
        row.compress()
    decoder = generator.decoder_tokenizer
    assert decoder.decode(np.concatenate([*row.spans, row.tail]).astype(np.int32)) == decoder.decode(ids)


def test_rows_go_on_as_from_prompts_of_the_same_latents(generator):
    examples = [generator.example(prompt) for prompt in PROMPTS]
    sampling = Sampling(max_new_tokens=9, stop_ids=())
    plain = generator.generate_examples(examples, sampling)
    assert [tuple(row.generated) for row in reason(generator, examples, sampling, NEVER)] == [one.ids for one in plain]
    for policy in (ReasoningPolicy(tokens=4), ReasoningPolicy(tokens=4, merge=True)):
        rows = reason(generator, examples, sampling, policy)
        longer = reason(generator, examples, dataclasses.replace(sampling, max_new_tokens=10), policy)
        for row in rows:
            assert row.compressions >= 2
            row.compress()
        fresh = generator.generate_examples([row.example() for row in rows], Sampling(max_new_tokens=1, stop_ids=()))
        for row, one, more in zip(rows, fresh, longer, strict=True):
            assert [*row.generated, *one.ids] == more.generated


def test_a_stopped_row_stays_as_it_is(generator):
    examples = [generator.example(prompt) for prompt in PROMPTS]
    free = reason(generator, examples, Sampling(max_new_tokens=9, stop_ids=()), ReasoningPolicy(tokens=4))
    stop = free[0].generated[2]
    rows = reason(generator, examples, Sampling(max_new_tokens=9, stop_ids=(stop,)), ReasoningPolicy(tokens=4))
    for row, other in zip(rows, free, strict=True):
        end = other.generated.index(stop) + 1 if stop in other.generated else 9
        assert row.generated == other.generated[:end]
