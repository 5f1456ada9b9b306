import jax
import numpy as np
import pytest

from lclm_jax.bench.flops import prompt_flops, step_flops
from lclm_jax.config import StageConfig

SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])


def stage(**rates):
    return StageConfig(lr=rates, steps=1, mixture={"a": 1})


def needed(model, **rates):
    return step_flops(model, stage(**rates), SEGMENTS, SEGMENTS)


def test_a_backward_pass_costs_one_forward_pass_for_inputs_and_one_for_weights(make_model):
    model = make_model()
    whole = needed(model, adapter=1.0, encoder=1.0, decoder=1.0)
    c, positions, pairs = model.decoder, 6, 10 + 3
    kernels = c.num_layers * c.hidden_size * (2 * (c.num_heads + c.num_kv_heads) * c.head_dim + 3 * c.mlp_size)
    head, attention = c.vocab_size * c.hidden_size, 4 * pairs * c.num_heads * c.head_dim * c.num_layers
    without = needed(model, adapter=1.0, encoder=1.0)
    assert whole - without == pytest.approx(2 * positions * (kernels + head))
    e = model.encoder
    encoder = e.num_layers * e.hidden_size * (2 * (e.num_heads + e.num_kv_heads) * e.head_dim + 3 * e.mlp_size)
    windows = 4 * pairs * e.num_heads * e.head_dim * e.num_layers
    adapter = c.hidden_size * (e.hidden_size + c.hidden_size)
    latents = positions / model.ratio
    assert whole == pytest.approx(
        3 * (2 * positions * (kernels + head + encoder) + attention + windows + 2 * latents * adapter)
    )


def test_bidirectional_windows_see_more(make_model):
    causal, both = (needed(make_model(mask=mask), adapter=1.0) for mask in ("causal", "bidirectional"))
    e = make_model().encoder
    assert both - causal == 4 * (16 + 4 - 13) * e.num_heads * e.head_dim * e.num_layers


def test_a_prompt_is_read_once_and_its_last_position_has_a_head(make_model):
    model = make_model()
    c, e, full = model.decoder, model.encoder, model.window
    text, span = 5, full + model.ratio  # a full window and one of a single latent
    latents = span // model.ratio
    kernels = [
        t.num_layers * t.hidden_size * (2 * (t.num_heads + t.num_kv_heads) * t.head_dim + 3 * t.mlp_size)
        for t in (e, c)
    ]
    adapter = c.hidden_size * (e.hidden_size + c.hidden_size)
    products = span * kernels[0] + latents * adapter + (text + latents) * kernels[1] + c.vocab_size * c.hidden_size
    windows = sum(size * (size + 1) / 2 for size in (full, model.ratio))
    pairs = (text + latents) * (text + latents + 1) / 2
    attention = [4 * t.num_layers * t.num_heads * t.head_dim for t in (e, c)]
    expected = 2 * products + windows * attention[0] + pairs * attention[1]
    assert prompt_flops(model, text, span) == pytest.approx(expected)
    alone = 2 * (text * kernels[1] + c.vocab_size * c.hidden_size) + text * (text + 1) / 2 * attention[1]
    assert prompt_flops(model, text) == pytest.approx(alone)


def test_products_agree_with_what_the_compiler_counts(make_model):
    """One layer's products, counted by XLA: the formula counts the same matrices."""
    c = make_model().decoder
    x = jax.ShapeDtypeStruct((6, c.hidden_size), np.float32)
    w = jax.ShapeDtypeStruct((c.hidden_size, c.mlp_size), np.float32)
    analysis = jax.jit(lambda x, w: x @ w).lower(x, w).compile().cost_analysis()
    assert analysis["flops"] == 2 * 6 * c.hidden_size * c.mlp_size
