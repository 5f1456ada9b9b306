"""Tiny configurations and hand-made batches for the training tests."""

import numpy as np
import pytest

from lclm_jax.batch import Batch, batch_shapes
from lclm_jax.config import parse_config

ROW, ENCODER_ROW = 16, 16


@pytest.fixture
def make_config(model):
    """Build a configuration of one stage named ``only``; keys of the stage as arguments, ``train`` apart."""

    def make(lr=None, train=None, stages=None, model=model, **stage):
        one = {"steps": 10, "mixture": {"cpt": 1}, "batch_rows": 8, "warmup_steps": 2, **stage}
        one["lr"] = {"adapter": 1e-2, "encoder": 1e-2, "decoder": 1e-2} if lr is None else lr
        return parse_config(
            {
                "name": "tiny",
                "tokenizer": {"vocab_size": 64},
                "model": model.model_dump(),
                "data": {
                    "sources": {
                        "cpt": {"collection": "documents", "objective": "cpt"},
                        "qa": {"collection": "chat", "objective": "qa"},
                    },
                    "pack": {"row_length": ROW, "encoder_rows": 1, "encoder_row_length": ENCODER_ROW},
                },
                "stages": stages or {"only": one},
                "train": train or {},
            }
        )

    return make


def hand_made_batch(config, rows, seed=0, spans=True) -> Batch:
    """Rows of one example of random length: raw text, a span of two latents (5 to 8 tokens), raw text, padding."""
    random = np.random.default_rng(seed)
    shapes = batch_shapes(config.model, config.data.pack, rows)
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    arrays["latent_index"][:] = -1
    start, end, placeholder = config.model.memory_token_ids
    for row in range(rows):
        length = int(random.integers(10, ROW + 1))
        tokens = random.integers(0, 60, length).astype(np.int32)
        if spans:
            tokens[2:6] = (start, placeholder, placeholder, end)
            arrays["latent_index"][row, 3:5] = (0, 1)
            span = int(random.integers(5, 9))
            arrays["encoder_tokens"][row, 0, :span] = random.integers(0, 60, span)
            arrays["encoder_segments"][row, 0, :span] = 1
            arrays["encoder_positions"][row, 0, :span] = np.arange(span)
            arrays["pool_weights"][row, 0, :span] = 1
            arrays["latent_segments"][row, :2] = 1
            arrays["latent_positions"][row, :2] = (0, 1)
        arrays["decoder_tokens"][row, :length] = tokens
        arrays["decoder_segments"][row, :length] = 1
        arrays["decoder_positions"][row, :length] = np.arange(length)
        arrays["targets"][row, : length - 1] = tokens[1:]
        arrays["loss_weights"][row, : length - 1] = ~np.isin(tokens[1:], config.model.memory_token_ids)
    return Batch(**arrays)


@pytest.fixture
def make_batch():
    """``hand_made_batch(config, rows, seed=0, spans=True)``."""
    return hand_made_batch
