"""Decoding with a key/value cache equals one full forward pass."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.model import KVCache, decode, decode_cached, init_cache, init_params

step = functools.partial(jax.jit, static_argnums=1)(decode_cached)


def test_ragged_prompts_then_tokens_one_by_one(make_model, make_backbone, rng, mesh):
    model = make_model(decoder=make_backbone(num_layers=3), scan_layers=True)
    params = init_params(model, jax.random.key(0))
    lengths, prompts, total = np.array([5, 3]), 5, 9
    x_BSD = jnp.asarray(rng.normal(size=(2, total, 16)), jnp.float32)
    positions_BS = jnp.broadcast_to(jnp.arange(total)[None], (2, total))
    expected = decode(params, model, x_BSD, jnp.ones((2, total), jnp.int32), positions_BS)

    cache = init_cache(model, rows=2, length=12)
    prompt = (x_BSD[:, :prompts], positions_BS[:, :prompts])
    hidden_BSD, cache = step(params, model, *prompt, cache, jnp.asarray(lengths))
    assert cache.length_B.tolist() == [5, 3]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(hidden_BSD[row, :length], expected[row, :length], atol=1e-5)
    for _ in range(4):
        at_B1 = cache.length_B[:, None]
        hidden_BSD, cache = step(params, model, jnp.take_along_axis(x_BSD, at_B1[..., None], 1), at_B1, cache)
        for row in range(2):
            np.testing.assert_allclose(hidden_BSD[row, 0], expected[row, at_B1[row, 0]], atol=1e-5)


def test_a_cache_has_the_compute_dtype_or_on_a_cpu_the_bits_of_bfloat16(make_model, mesh):
    for dtype, stored in (("float32", jnp.float32), ("bfloat16", jnp.uint16)):
        cache = init_cache(make_model(compute_dtype=dtype), rows=3, length=7)
        assert cache.k.shape == (2, 3, 7, 2, 8) and cache.k.dtype == stored and cache.length_B.shape == (3,)


def test_bits_of_bfloat16_give_what_bfloat16_gives_and_are_written_in_place(make_model, make_backbone, rng, mesh):
    model = make_model(decoder=make_backbone(num_layers=2), compute_dtype="bfloat16")
    params, bits = init_params(model, jax.random.key(0)), init_cache(model, rows=1, length=32)
    plain = KVCache(*(jnp.zeros(x.shape, jnp.bfloat16) for x in (bits.k, bits.v)), bits.length_B)
    x_BSD = jnp.asarray(rng.normal(size=(1, 1, 16)), jnp.bfloat16)
    found = []
    for cache in (bits, plain):
        program = step.lower(params, model, x_BSD, cache.length_B[:, None], cache).compile()
        copies = re.findall(rf" = (?:f32|bf16)\[{','.join(map(str, cache.k.shape))}\]", program.as_text())
        assert bool(copies) == (cache is plain)  # the reason for the bits: fails once XLA writes bfloat16 in place
        for _ in range(3):
            hidden_BSD, cache = program(params, x_BSD, cache.length_B[:, None], cache)
        found.append(hidden_BSD)
    np.testing.assert_array_equal(*found)
