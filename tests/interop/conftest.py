"""Tiny models and tokenizers for import and export."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.exporting import export_model

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import abstract_params, decode, embed, logits
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=300, hidden_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Folder of a tokenizer with memory tokens, 290 ids at most."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a few words to train a tokenizer on, and then a few more words"], 290, folder)
    return folder


def tiny(tokenizer, adapter="mlp", pooling="mean", **decoder) -> ModelConfig:
    """A model for ``tokenizer`` with tables of 300 rows."""
    ids = tuple(Tokenizer(tokenizer).memory_ids)
    towers = dict(
        encoder=TOWER | {"hidden_size": 16},
        decoder=TOWER | decoder,
        adapter={"type": adapter, "num_layers": 1 if adapter == "mlp" else 2},
    )
    return ModelConfig(**towers, pooling=pooling, ratio=4, window=8, memory_token_ids=ids, compute_dtype="float32")


def random_leaves(model, seed):
    """Random parameters without compiling an initialiser."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(np.float32), abstract_params(model))


def export_tiny(params, model, folder, tokenizer, **options):
    """``export_model`` with one tokenizer for both towers; returns the folder."""
    export_model(params, model, folder, decoder_tokenizer=tokenizer, encoder_tokenizer=tokenizer, **options)
    return folder


@pytest.fixture(scope="session")
def our_logits():
    """``our_logits(params, model, tokens)`` of the decoder, on the current mesh."""

    def run(params, model, tokens_BS):
        batch = Batch(*[None] * len(Batch._fields))._replace(decoder_tokens=jnp.asarray(tokens_BS))
        segments = jnp.ones_like(batch.decoder_tokens)
        positions = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
        hidden = decode(params, model, embed(params, model, batch), segments, positions)
        return np.asarray(logits(params, model, hidden))

    return run


@pytest.fixture
def make_tiny(tokenizer):
    """``tiny(adapter, pooling, **decoder)``."""
    return lambda *args, **decoder: tiny(tokenizer, *args, **decoder)


@pytest.fixture
def random_params():
    """``random_leaves(model, seed)``."""
    return random_leaves


@pytest.fixture
def export(tokenizer):
    """``export_tiny(params, model, folder, **options)``."""
    return lambda params, model, folder, **options: export_tiny(params, model, folder, tokenizer, **options)
