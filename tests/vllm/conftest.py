"""Environment of vLLM in this process and its children."""

import os

os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # the cores are shared with this process
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


import pytest
from tests.tiny_exports import PROMPTS, tiny_export
from tests.vllm.server import NEW_TOKENS

from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_export("mean", tmp_path_factory.mktemp("server") / "model")


@pytest.fixture(scope="module")
def generator(folder):
    return Generator.from_folder(folder)


@pytest.fixture(scope="module")
def answers(generator):
    """Name -> 32 greedy tokens of the JAX generator."""
    found = generator.generate(list(PROMPTS.values()), Sampling(max_new_tokens=NEW_TOKENS, stop_ids=()))
    return {name: list(answer.ids) for name, answer in zip(PROMPTS, found, strict=True)}
