import re

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from tests.kernels.backends import RUN, D, H, K

from lclm_jax.config.registry.remat_policies import REMAT_POLICIES
from lclm_jax.kernels.request import SAVED
from lclm_jax.model.block import saveable


@pytest.mark.parametrize(
    ("name", "loop", "forward", "backward"),
    [("chunked", "scan[", 2, 2), ("splash", "pallas_call[", 1, 1)],
)
def test_a_saved_attention_runs_no_second_forward(name, loop, forward, backward):
    """Counts the loops or kernels in the traced program; nothing runs. tests/aot counts those of ``pallas_tpu``."""

    def loss(q, k, segments):
        return jnp.sin(RUN[name](jnp.sin(q), k, k, (segments, segments), True)).sum()

    def count(policy):
        step = jax.value_and_grad(jax.checkpoint(loss, policy=policy), (0, 1))
        shapes = [((1, 128, H, D), jnp.float32), ((1, 128, K, D), jnp.float32), ((1, 128), jnp.int32)]
        traced = jax.make_jaxpr(step)(*(jax.ShapeDtypeStruct(*x) for x in shapes)).jaxpr
        used, _ = dce_jaxpr(traced, [True] * len(traced.outvars))  # as compilers do with what nobody reads
        return str(used).count(loop)

    policies = jax.checkpoint_policies
    assert count(policies.nothing_saveable) == 2 * forward + backward
    assert count(policies.save_only_these_names(SAVED)) == forward + backward


@pytest.mark.parametrize(
    ("remat", "products", "loops"),
    [("none", 3, 4), ("full", 4, 6), ("dots", 3, 6), ("attention", 4, 4), ("dots_attention", 3, 4)],
)
def test_a_policy_repeats_what_it_does_not_save(remat, products, loops):
    """Products with the weight, and loops of ``chunked`` (two for each pass), in the traced program."""

    def block(x, weight, segments):
        q = jnp.sin(x).reshape(1, 128, H * D) @ weight
        out = RUN["chunked"](jnp.cos(q).reshape(1, 128, H, D), x[:, :, :K], x[:, :, :K], (segments, segments), True)
        return jnp.sin(out).sum()

    policy = REMAT_POLICIES[remat]
    function = jax.checkpoint(block, policy=saveable(policy)) if policy.recomputes else block
    shapes = [((1, 128, H, D), jnp.float32), ((H * D, H * D), jnp.float32), ((1, 128), jnp.int32)]
    traced = jax.make_jaxpr(jax.value_and_grad(function, (0, 1)))(*(jax.ShapeDtypeStruct(*x) for x in shapes)).jaxpr
    text = str(dce_jaxpr(traced, [True] * len(traced.outvars))[0])
    wide = re.findall(rf"f32\[(?:1,128,{H * D}|{H * D},{H * D})\] = dot_general", text)
    assert (len(wide), text.count("scan[")) == (products, loops)
