import jax
import numpy as np
import pytest
from tests.exporting import export_model

from lclm_jax.config import ModelConfig
from lclm_jax.inference.generate import Generator
from lclm_jax.model.lclm import abstract_params
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.text.train_tokenizer import train_tokenizer

TOWER = dict(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_size=32)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A byte-level tokenizer with the memory tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return Tokenizer(train_tokenizer(["a few words to train a tokenizer on and a few words more"], 290, folder))


@pytest.fixture(scope="session")
def make_generator(tokenizer):
    """A float32 Generator with random weights, large enough that its answers differ; keys of ModelConfig."""

    def make(batch_windows=128, **changes):
        values = dict(ratio=4, window=8, memory_token_ids=tuple(tokenizer.memory_ids), compute_dtype="float32")
        model = ModelConfig(encoder=TOWER, decoder=TOWER, **(values | dict(remat="none") | changes))
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf: rng.normal(scale=0.4, size=leaf.shape).astype(np.float32), abstract_params(model)
        )
        return Generator(params, model, tokenizer, tokenizer, batch_windows=batch_windows)

    return make


@pytest.fixture(scope="session")
def generator(make_generator):
    return make_generator()


@pytest.fixture(scope="session")
def exported(generator, tmp_path_factory):
    """The generator's model as an exported folder."""
    out = tmp_path_factory.mktemp("exported") / "out"
    folder = generator.decoder_tokenizer.folder
    export_model(
        generator.params, generator.model, out, decoder_tokenizer=folder, encoder_tokenizer=folder, dtype="float32"
    )
    return out
