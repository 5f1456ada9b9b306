"""The whole train step takes our kernels through ``auto``, as the compiled program shows."""

import re

import pytest

from lclm_jax.config import parse_config
from lclm_jax.plan.compiled import compile_step, lower_step
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.kernels import is_kernel, kernel_name
from lclm_jax.plan.topologies import GPU_PACKAGES, can_compile, parse_topology

OURS = {"attention_forward", "attention_dq", "attention_dkv"}
SPLASH = {"splash_mha_fwd_segmented_residuals", "splash_attention_dq_dkv"}
POOLING = {"pool_mean_forward", "pool_mean_backward"}


def step(mesh):
    """One narrow layer a tower; what kernels take at the published widths is seen elsewhere."""
    tower = {"num_layers": 1, "hidden_size": 256, "mlp_size": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 128}
    towers = dict.fromkeys(("encoder", "decoder"), tower | {"vocab_size": 512})
    rates = dict.fromkeys(("adapter", "encoder", "decoder"), 1e-3)
    return parse_config(
        {
            "name": "narrow",
            "tokenizer": {"vocab_size": 512},
            "mesh": mesh,
            "model": towers | {"memory_token_ids": [509, 510, 511]},
            "data": {
                "pack": {"row_length": 1024, "encoder_rows": 2, "encoder_row_length": 1024},
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
"""Topology -> mesh, kernels of the encoder's attention, and of the decoder's, where splash takes no cut queries."""


@pytest.mark.parametrize("name", CASES)
def test_the_train_step_takes_kernels_through_auto(name):
    topology = parse_topology(name)
    if topology.chip.dimensions == 0 and not can_compile(topology):
        pytest.skip(f"needs {', '.join(GPU_PACKAGES)}")
    mesh, encoder, decoder = CASES[name]
    compiled = compile_step(lower_step(step(mesh), "all", topology))
    calls = [one.instruction for one in parse(compiled.text).executions() if is_kernel(one.instruction)]

    def inside(scope):
        scoped = re.compile(rf'op_name="[^"]*[/(]{scope}[/)]')
        return {kernel_name(call) for call in calls if scoped.search(call.attributes)}

    assert inside("decoder") == decoder
    assert inside("encoder") - POOLING == encoder
    assert {kernel_name(call) for call in calls} - encoder - decoder == POOLING
