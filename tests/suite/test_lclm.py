"""The worker of the LCLM on a tiny model with random weights: contexts, budgets, stored latents, likelihood."""

import jax
import numpy as np
import pytest
from tests.conftest import tiny_backbone
from tests.exporting import export_model

from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import abstract_params
from lclm_jax.suite.systems.lclm_worker import load_system
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(train_tokenizer(["a few words to train a tokenizer on"], 290, home / "tokenizer"))
    tower = tiny_backbone(vocab_size=300)
    model = ModelConfig(encoder=tower, decoder=tower, ratio=4, window=16, compute_dtype="float32", remat="none")
    model = model.model_copy(update={"memory_token_ids": tuple(tokenizer.memory_ids)})
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32), abstract_params(model)
    )
    tokens = tokenizer.folder
    export_model(params, model, home / "out", decoder_tokenizer=tokens, encoder_tokenizer=tokens, dtype="float32")
    return home / "out"


def system(folder, context, **settings):
    return load_system({"model": str(folder), "context": context, "dtype": "float32", **settings})


REQUEST = {"id": "a", "instruction": "Do ", "context": "12345678901", "question": " now?", "prefix": "", "gold": " ok"}
REQUEST |= {"max_new_tokens": 3, "chat": False, "generate": True}


def test_contexts_take_what_they_should(folder):
    """Digits are tokens here: 11 of them become 3 latents and 2 tags, or 4 digits at ratio 3."""
    sizes, one = {}, system(folder, "raw", ratio=3)
    for context in ("raw", "memory", "none", "truncated"):
        one._context = context
        sizes[context] = one.count(REQUEST)
    assert one._text(REQUEST, "truncated") == "Do 1201 now?"
    raw = sizes["raw"]["positions"]
    assert [sizes[name]["positions"] - raw for name in ("memory", "none", "truncated")] == [5 - 11, -11, 4 - 11]
    assert {size["raw_tokens"] for size in sizes.values()} == {raw}


def test_stored_latents_give_the_same_answer_and_the_likelihood_is_the_models(folder):
    one = system(folder, "memory")
    cold, stored = one.answer(REQUEST), one.answer({**REQUEST, "stored": True})
    assert cold["answer"] == stored["answer"]
    assert cold["new_tokens"] <= 3
    assert 0 < cold["ttft_seconds"] <= cold["seconds"]
    assert cold["cache_bytes"] == cold["positions"] * one.facts["position_bytes"]
    # The greedy answer is likelier than another one of the same length.
    greedy = one.answer({**REQUEST, "gold": cold["answer"] or " ok", "generate": False})
    assert greedy["nll"] / greedy["gold_tokens"] < cold["nll"] / cold["gold_tokens"] + 1e-6
    chat = one.count({**REQUEST, "chat": True})
    assert chat["positions"] > cold["positions"]
