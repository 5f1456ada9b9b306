"""Latents, projected latents, logits and losses of the PyTorch implementation (tests/golden/all), float32.

All samples of a case are packed into one row, so that packing is checked on the way.
"""

import functools

import jax
import numpy as np

from lclm_jax.model import decode, embed, encode, encode_pooled, logits, token_nll


@functools.partial(jax.jit, static_argnums=1)
def run(params, model, batch):
    latents_BLD = encode(params, model, batch)
    x_BSD = embed(params, model, batch, latents_BLD)
    hidden_BSD = decode(params, model, x_BSD, batch.decoder_segments, batch.decoder_positions)
    nll_BS = token_nll(params, model, hidden_BSD, batch.targets)
    return encode_pooled(params, model, batch), latents_BLD, logits(params, model, hidden_BSD), nll_BS


def test_golden_case(golden, mesh):
    pooled, latents, scores, nll = (np.asarray(x)[0] for x in run(golden.params, golden.model, golden.batch))
    at = 0
    for sample in golden.case["samples"]:
        name, length = sample["id"], len(sample["input_ids"])
        here = slice(at, at + length)
        slots = golden.batch.latent_index[0, here]
        for region, (start, stop) in enumerate(sample["memory_positions"]):
            expected = golden.expected[f"{name}/latents/{region}"]
            close(pooled[slots[start:stop]], expected, 1e-4, 1e-4, f"{name} latents {region}")
            expected = golden.expected[f"{name}/projected/{region}"]
            close(latents[slots[start:stop]], expected, 1e-4, 1e-4, f"{name} projected {region}")
        expected = golden.expected[f"{name}/logits"]  # of the last positions; the loss is of all
        close(scores[here][-len(expected) :], expected, 2e-4, 1e-4, f"{name} logits")
        if sample.get("loss") is not None:
            weights = golden.batch.loss_weights[0, here]
            assert weights.sum() == sample["num_loss_tokens"]
            close((nll[here] * weights).sum() / weights.sum(), sample["loss"], 1e-4, 0, f"{name} loss")
        at += length


def close(ours, expected, absolute, relative, what):
    excess = np.abs(ours - expected) - relative * np.abs(expected)
    assert excess.max() <= absolute, f"{what}: off by {np.abs(ours - expected).max():.2e}"
