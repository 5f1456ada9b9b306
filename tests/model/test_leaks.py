"""What each decoder position can depend on, by gradients: exactly zero where it must not, non-zero where it must.

Every token of the row is unique, so the gradient of an embedding row is the gradient of one position.
"""

import jax
import numpy as np
import pytest

from lclm_jax.model import forward, init_params


def unique(example, decoder_ids, encoder_ids):
    """``example`` with every text token and every encoder token taken from the iterators."""
    memory = {61, 62, 63}
    tokens = [token if token in memory else next(decoder_ids) for token in example["tokens"]]
    spans = [[window | {"ids": [next(encoder_ids) for _ in window["ids"]]} for window in s] for s in example["spans"]]
    return example | {"tokens": tokens, "spans": spans}


def expected(model, examples, S, decoder_vocab, encoder_vocab):
    """[S, V] bools for the decoder's and for the encoder's tokens."""
    decoder, encoder = np.zeros((S, decoder_vocab), bool), np.zeros((S, encoder_vocab), bool)
    at = 0
    for example in examples:
        end = at + len(example["tokens"])
        for offset, token in enumerate(example["tokens"]):
            if token not in model.memory_token_ids:
                decoder[at + offset : end, token] = True
        for (start, _), windows in zip(example["places"], example["spans"], strict=True):
            span_start = window_start = at + start
            for window in windows:
                for k, token in enumerate(window["ids"]):
                    first = window_start + k // model.ratio  # causal: its own group and the later ones
                    if model.mask == "bidirectional" or model.pooling == "eos":
                        first = window_start
                    if model.adapter.type != "mlp":
                        first = span_start
                    if k < window["length"]:
                        encoder[first:end, token] = True
                    else:  # marker k - length is what latent k - length reads; it is causal too
                        encoder[window_start + k - window["length"] : end, token] = True
                window_start += -(-window["length"] // model.ratio)
        at = end
    return decoder, encoder


CASES = {
    "causal": dict(),
    "bidirectional-chunked": dict(mask="bidirectional", attention="chunked", remat="full"),
    "attn_mlp": dict(adapter={"type": "attn_mlp", "num_layers": 1}),
    "mlp_attn": dict(adapter={"type": "mlp_attn", "num_layers": 1}, mask="bidirectional"),
    "eos": dict(pooling="eos"),
}


@pytest.mark.parametrize(
    "case",
    # Two of them have an adapter that attends over a span; one is enough by default.
    [pytest.param(case, marks=pytest.mark.slow) if case == "attn_mlp" else case for case in CASES],
)
def test_gradients_reach_exactly_what_they_may(case, make_model, make_backbone, batches, rng, mesh):
    changes = CASES[case]
    model = make_model(encoder=make_backbone(vocab_size=96), **changes)
    decoder_ids, encoder_ids = iter(range(61)), iter(range(96))
    examples = [batches.example(model, rng, spans) for spans in ([11, 5], [9])]
    examples = [unique(example, decoder_ids, encoder_ids) for example in examples]
    batch = batches.build(model, [examples])
    params = init_params(model, jax.random.key(1))
    S = batch.decoder_tokens.shape[1]
    direction = jax.random.normal(jax.random.key(2), (model.decoder.hidden_size,))

    def outputs(decoder_table, encoder_table):
        tables = {"decoder": decoder_table, "encoder": encoder_table}
        changed = params | {part: params[part] | {"embed": {"table": table}} for part, table in tables.items()}
        return (forward(changed, model, batch)[0] * direction[None, :]).sum(-1)

    tables = (params[part]["embed"]["table"] for part in ("decoder", "encoder"))
    jacobians = jax.jit(jax.jacrev(outputs, (0, 1)))(*tables)
    may = expected(model, examples, S, model.decoder.vocab_size, model.encoder.vocab_size)
    for jacobian, allowed, tower in zip(jacobians, may, ("decoder", "encoder"), strict=True):
        reached = np.abs(jacobian).max(-1) != 0
        assert not (reached & ~allowed).any(), f"{tower}: leaks at (position, token) {np.argwhere(reached & ~allowed)}"
        assert not (allowed & ~reached).any(), f"{tower}: cut off at {np.argwhere(allowed & ~reached)}"
