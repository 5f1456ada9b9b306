"""Settings of every test: eight simulated CPU devices, strict ranks, a compilation cache, and tiny models."""

import os
import sys
from pathlib import Path

from tests.compiler_flags import FAST

# Before JAX is imported: the flags are read once.
os.environ["XLA_FLAGS"] = " ".join(["--xla_force_host_platform_device_count=8", *FAST, os.environ.get("XLA_FLAGS", "")])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests start hundreds of processes, each of which would compile the package's sources again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jax
import numpy as np
import pytest
from tests.devices import only_one_device

from lclm_jax.config import BackboneConfig, MeshConfig, ModelConfig
from lclm_jax.parallel import make_mesh, use_mesh

sys.dont_write_bytecode = False
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(__file__).resolve().parents[1] / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Files that take most of a minute: begun first, so that no worker waits for the last file of the other. With the option
# --no-loadscope-reorder of pytest-xdist, which would put files of few tests last.
LONG = (
    "train/core/test_loop.py",
    "train/core/test_stages.py",
    "train/core/test_step.py",
    "test_pipeline.py",
    "digests/test_digests.py",
    "model/test_sharded.py",
    "model/test_lora.py",
    "ablate/test_run.py",
    "interop/test_init_from_hf.py",
    "parity/test_run.py",
)


def pytest_collection_modifyitems(items):
    """Put the tests of long files first."""
    long = {Path(__file__).parent / name for name in LONG}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture
def mesh():
    """A mesh of one device, entered."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    with use_mesh(one):
        yield one


@pytest.fixture
def one_device():
    """JAX has one device; the mesh of it."""
    with only_one_device() as one:
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
