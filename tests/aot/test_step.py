"""The whole train step takes our kernels through ``auto``, as the compiled program shows."""

import pytest

from lclm_jax.config import parse_config
from lclm_jax.plan.compiled import compile_step, lower_step
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.kernels import is_kernel, kernel_name
from lclm_jax.plan.topologies import GPU_PACKAGES, can_compile, parse_topology

OURS = {"attention_forward", "attention_dq", "attention_dkv"}
SPLASH = {"splash_mha_fwd_residuals", "splash_mha_dq_no_residuals", "splash_mha_dkv_no_residuals"}
POOLING = {"pool_mean_forward", "pool_mean_backward"}


def step(mesh):
    """One layer of each published tower, a small vocabulary, two rows of 2,048."""
    few = {"num_layers": 1, "vocab_size": 4096}
    towers = {"encoder": {"preset": "qwen3_embedding_0p6b"} | few, "decoder": {"preset": "qwen3_4b"} | few}
    rates = {part: 1e-3 for part in ("adapter", "encoder", "decoder")}
    return parse_config(
        {
            "name": "one-layer",
            "tokenizer": {"vocab_size": 4096},
            "mesh": mesh,
            "model": towers | {"memory_token_ids": [4093, 4094, 4095]},
            "data": {
                "pack": {"row_length": 2048, "encoder_rows": 2, "encoder_row_length": 1024},
                "sources": {"text": {"collection": "documents", "objective": "cpt"}},
            },
            "stages": {"all": {"lr": rates, "steps": 10, "batch_rows": 2, "mixture": {"text": 1}}},
        }
    )


CASES = {
    "v5e:2x2": ({"fsdp": 2, "tensor": 2}, SPLASH, SPLASH),
    "v5p:2x2x1": ({"fsdp": 2, "context": 2}, SPLASH, OURS),
    "h100:2": ({"fsdp": 2}, OURS, OURS),
}
"""Topology -> mesh, kernels of the encoder's attention, and of the decoder's; splash takes no queries cut over ``context``."""


@pytest.mark.parametrize("name", CASES)
def test_the_train_step_takes_kernels_through_auto(name):
    topology = parse_topology(name)
    if not can_compile(topology):
        pytest.skip(f"needs {', '.join(GPU_PACKAGES)}")
    mesh, encoder, decoder = CASES[name]
    compiled = compile_step(lower_step(step(mesh), "all", topology))
    calls = [visit.instruction for visit in parse(compiled.text).visits() if is_kernel(visit.instruction)]
    print({(kernel_name(c), c.attributes[-600:]) for c in calls})

    def inside(scope):
        return {kernel_name(call) for call in calls if f"/{scope}/" in call.attributes or f"({scope})" in call.attributes}

    assert inside("decoder") == decoder
    assert inside("encoder") - POOLING == encoder
    assert {kernel_name(call) for call in calls} - encoder - decoder == POOLING
