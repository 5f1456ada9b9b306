"""A small LCLM whose matrix products dominate, as a configuration."""

import pytest

from lclm_jax.bench.simulated import corpus
from lclm_jax.config import parse_config
from lclm_jax.plan.plans import Choice, Program, StagePlan


@pytest.fixture(autouse=True)
def documents_of_a_chapter(monkeypatch):
    """Rows are of 128 positions here: the longest documents would each have thousands of them."""
    monkeypatch.setattr(corpus, "_LONGEST", 2**13)


def small_config(**changes):
    """Stage ``all`` trains everything, ``adapter`` the adapter alone; dotted keys change values."""
    tower = dict(vocab_size=512, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32, mlp_size=256)
    values = {
        "name": "small",
        "tokenizer": {"vocab_size": 512},
        "model": {
            "encoder": tower | {"hidden_size": 32, "num_layers": 2},
            "decoder": tower,
            "ratio": 4,
            "window": 64,
            "compute_dtype": "float32",
            "attention": "reference",
            "loss_chunk": 32,
            "memory_token_ids": [509, 510, 511],
        },
        "data": {
            "pack": {"row_length": 128, "encoder_rows": 2, "encoder_row_length": 64},
            "sources": {"text": {"collection": "documents", "objective": "cpt"}},
        },
        "stages": {
            "adapter": {"lr": {"adapter": 1e-3}, "steps": 10, "batch_rows": 8, "mixture": {"text": 1}},
            "all": {
                "lr": {"adapter": 1e-3, "encoder": 1e-3, "decoder": 1e-3},
                "steps": 20,
                "batch_rows": 8,
                "mixture": {"text": 1},
            },
        },
    }
    for dotted, value in changes.items():
        branch, *path = values, *dotted.split("__")
        for name in path[:-1]:
            branch = branch[name]
        branch[path[-1]] = value
    return parse_config(values)


@pytest.fixture
def config():
    """The small configuration."""
    return small_config()


@pytest.fixture
def plan_of():
    """Makes plans of one chip with a peak of bytes and seconds of a step."""

    def make(peak=1e9, step=2.0, steps=43200, fits=True):
        program = Program(
            argument_bytes=peak / 2,
            temporary_bytes=peak / 2,
            peak_bytes=peak,
            executed_flops=1.5e12,
            hbm_bytes=1e9,
            wire_bytes={"fsdp": 2e9},
            unknown_kernels=(),
            compute_s=step / 2,
            hbm_s=step / 4,
            network_s=step / 2,
            step_s=step,
            bound="compute",
            compile_s=100.0,
        )
        mesh = {"replica": 1, "fsdp": 4, "context": 1, "tensor": 1}
        return StagePlan(
            stage="all",
            choice=Choice("v5e:2x2", 4, mesh, 1.0, 1, "full"),
            chip_bytes=16e9,
            model_flops=2e12,
            formula_flops=1.5e12,
            formula_peak_bytes=peak,
            tokens_per_step=1000,
            steps=steps,
            peak_flops=2e12,
            program=program if fits else None,
            why_not="" if fits else "too large",
        )

    return make
