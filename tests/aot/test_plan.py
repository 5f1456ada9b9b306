"""The whole train step, compiled for slices: what the program executes beside the formula."""

import pytest

from lclm_jax.config import parse_config
from lclm_jax.plan.plans import plan_stage
from lclm_jax.plan.topologies import GPU_PACKAGES, can_compile, parse_topology


def four_layers(chips):
    """Layers as wide as those of the published towers, few of them, short rows; one row a chip."""
    few = {"num_layers": 4, "vocab_size": 16384}
    return parse_config(
        {
            "name": "four-layers",
            "tokenizer": {"vocab_size": 16384},
            "model": {
                "encoder": {"preset": "qwen3_embedding_0p6b"} | few,
                "decoder": {"preset": "qwen3_4b"} | few,
                "memory_token_ids": [16381, 16382, 16383],
            },
            "data": {
                "pack": {"row_length": 4096, "encoder_rows": 4, "encoder_row_length": 1024},
                "sources": {"text": {"collection": "documents", "objective": "cpt"}},
            },
            "stages": {
                "all": {
                    "lr": {"adapter": 1e-3, "encoder": 1e-3, "decoder": 1e-3},
                    "steps": 10,
                    "batch_rows": chips,
                    "mixture": {"text": 1},
                }
            },
        }
    )


@pytest.mark.parametrize("name", ["v5p:2x2x2", "v6e:2x4", "h100:8"])
def test_programs_execute_the_flops_of_the_formula(name, report):
    topology = parse_topology(name)
    if topology.chip.dimensions == 0 and not can_compile(topology):
        pytest.skip(f"needs {', '.join(GPU_PACKAGES)}")
    plan = plan_stage(four_layers(topology.num_devices), "all", topology, reuse=False)
    assert plan.fits
    program = plan.program
    assert not program.unknown_kernels
    assert program.executed_flops == pytest.approx(plan.formula_flops, rel=0.05)
    assert program.executed_flops > plan.model_flops / topology.num_devices
    report(
        f"plan, four layers each, {name}",
        peak_GB=program.peak_bytes / 1e9,
        wire_GB=sum(program.wire_bytes.values()) / 1e9,
        executed_TFLOP=program.executed_flops / 1e12,
        formula_TFLOP=plan.formula_flops / 1e12,
        compile_s=program.compile_s,
    )
