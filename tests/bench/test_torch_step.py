"""The comparison is fair only if both sides compute the same: losses and windows are checked against ours."""

import jax
import numpy as np
import pytest

from lclm_jax.bench.torch_step import TorchStep, padding_factor, windows_of
from lclm_jax.config import parse_config
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import init_params
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.train.core.loss import loss_sums

ROW = 24


@pytest.fixture
def config(make_model):
    model = make_model(remat="full")
    return parse_config(
        {
            "name": "tiny",
            "tokenizer": {"vocab_size": 64},
            "model": model.model_dump(),
            "data": {
                "sources": {"cpt": {"collection": "documents", "objective": "cpt"}},
                "pack": {"row_length": ROW, "encoder_rows": 2, "encoder_row_length": 16},
            },
            "stages": {"only": {"lr": {"adapter": 1e-3}, "steps": 1, "mixture": {"cpt": 1}, "batch_rows": 2}},
        }
    )


@pytest.fixture
def batch(config):
    """Two rows: spans of 11 (windows of 8 and 3) and 5 tokens in shared encoder rows; a row without a span."""
    from lclm_jax.batch import Batch, batch_shapes

    rng = np.random.default_rng(0)
    a = {n: np.zeros(s, d) for n, (s, d) in batch_shapes(config.model, config.data.pack, 2).items()}
    a["latent_index"][:] = -1
    for number, (row, first, length) in enumerate([(0, 0, 8), (0, 8, 3), (1, 0, 5)], 1):
        here = slice(first, first + length)
        a["encoder_tokens"][0, row, here] = rng.integers(0, 60, length)
        a["encoder_segments"][0, row, here] = number
        a["encoder_positions"][0, row, here] = np.arange(length)
        a["pool_weights"][0, row, here] = 1
    a["decoder_tokens"][:] = rng.integers(0, 60, (2, ROW))
    a["decoder_segments"][:, :20], a["decoder_segments"][:, 12:20] = 1, 2
    a["decoder_positions"][:, :12], a["decoder_positions"][:, 12:20] = np.arange(12), np.arange(8)
    a["latent_index"][0, 3:6], a["latent_index"][0, 14:16] = [0, 1, 2], [4, 5]
    a["latent_segments"][0, [0, 1, 2, 4, 5]] = [1, 1, 1, 2, 2]
    a["targets"][:, :-1] = a["decoder_tokens"][:, 1:]
    a["loss_weights"][:, 6:11] = 1
    a["loss_weights"][:, 16:19] = 1
    return Batch(**a)


def test_windows_are_taken_apart_as_they_were_packed(batch):
    windows = windows_of(batch, 0, 4)
    assert windows.lengths.tolist() == [8, 3, 5] and windows.tokens.shape == (3, 8)
    assert windows.slots.tolist() == [0, 1, 2, 4, 5]
    assert windows.tokens[1, :3].tolist() == batch.encoder_tokens[0, 0, 8:11].tolist()
    assert not len(windows_of(batch, 1, 4).slots)


def test_padding_factor_counts_positions(config, batch):
    model = config.model
    assert padding_factor(model, batch) < 1  # 24 padded positions against 4 rows of 16, mostly empty


def test_torch_computes_our_loss_and_trains_what_we_train(config, batch):
    params = jax.device_get(init_params(config.model, jax.random.key(0)))
    torch_step = TorchStep(config, "only", params, batch)
    with use_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        sums, _ = jax.jit(lambda p, b: loss_sums(p, config.model, b, "per_token"))(params, batch)
    assert torch_step.first_loss == pytest.approx(float(sums.mean()), rel=1e-5)
    table = torch_step.modules["decoder"].get_input_embeddings().weight.detach().numpy()
    moved = np.flatnonzero((table != _with_memory_rows(params, config.model)).any(-1))
    assert set(moved) <= set(config.model.memory_token_ids)
    before = params["adapter"]["fc1"]["kernel"].T
    assert (torch_step.modules["adapter"].fc1.weight.detach().numpy() != before).any()


def _with_memory_rows(params, model):
    table = np.array(params["decoder"]["embed"]["table"])
    table[list(model.memory_token_ids)] = params["decoder"]["memory_rows"]
    return table


def test_what_it_does_not_have_is_refused(config, batch):
    other = config.model_copy(update={"model": config.model.model_copy(update={"pooling": "concat"})})
    with pytest.raises(LclmError, match="--no-torch"):
        TorchStep(other, "only", {}, batch)
