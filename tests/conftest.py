"""Settings of every test: eight simulated CPU devices, strict ranks, a compilation cache, and tiny models."""

import os
from importlib.metadata import version
from pathlib import Path

# Before JAX is imported: the flags are read once. Tests run each program a few times on tiny shapes, so compiling is
# what they wait for: LLVM optimises nothing (a third of the CPU time of tests/model/test_lclm.py less).
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # Fusions lowered by LLVM alone, in one module: a train step compiles in 6 s of CPU time instead of 16. Later
        # releases end the process on the first of these flags.
        *(
            ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
            if version("jaxlib").startswith("0.10.")
            else []
        ),
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest

from lclm_jax.config import BackboneConfig, MeshConfig, ModelConfig
from lclm_jax.parallel import make_mesh, use_mesh

_CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def mesh():
    """A mesh of one device, entered."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    with use_mesh(one):
        yield one


def tiny_backbone(**changes) -> BackboneConfig:
    """A backbone of a few thousand parameters with grouped heads and head_dim != hidden_size / num_heads."""
    values = dict(vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=32)
    return BackboneConfig(**(values | dict(rope_theta=1e4) | changes))


def tiny_model(**changes) -> ModelConfig:
    """A float32 LCLM at N = 4, W = 8; encoder and decoder differ in every size."""
    encoder = tiny_backbone(hidden_size=24, num_heads=2, num_kv_heads=1, head_dim=12, mlp_size=40)
    values = dict(encoder=encoder, decoder=tiny_backbone(), ratio=4, window=8, compute_dtype="float32", remat="none")
    return ModelConfig(**(values | dict(memory_token_ids=(61, 62, 63), loss_chunk=1024) | changes))


@pytest.fixture
def model() -> ModelConfig:
    """The tiny model."""
    return tiny_model()


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture
def make_model():
    """``tiny_model``: keyword arguments replace keys of the tiny model."""
    return tiny_model


@pytest.fixture
def make_backbone():
    """``tiny_backbone``: keyword arguments replace keys of the tiny backbone."""
    return tiny_backbone
