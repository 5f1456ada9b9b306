from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.train.conftest import ROW, hand_made_batch
from tests.train.core import one_stage, programs

from lclm_jax.config import MeshConfig
from lclm_jax.data.packing.twin_rows import TwinMaker
from lclm_jax.model.lclm import forward, logits, read_raw
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.text.example import Example
from lclm_jax.text.memory_tags import MemoryIds
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.train.core.hooks import Hook
from lclm_jax.train.core.initial_state import fresh_state
from lclm_jax.train.core.loss import DistilledLoss, distilled_loss_sums
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.step import put_batch
from lclm_jax.train.logging.records import MEASURED, read_metrics


@pytest.fixture
def config(make_config):
    """Everything trains, so that the teacher is a copy; nothing but the divergence is trained on."""
    return make_config(steps=4, distill={"weight": 1.0}, train={"checkpoint": {"every_steps": 2}}, warmup_steps=0)


class SameTokenizer(NamedTuple):
    memory_ids: MemoryIds
    digest: str = "same"


def with_twins(config, batch):
    """The batch and the raw text of its rows."""
    memory = MemoryIds(*config.model.memory_token_ids)
    tokenizer = SameTokenizer(memory)
    rows = []
    for row in range(len(batch.decoder_tokens)):
        length = int(batch.decoder_segments[row].sum())
        span = batch.encoder_tokens[row, 0][batch.pool_weights[row, 0] > 0]
        loss = np.append(0, batch.loss_weights[row, : length - 1]).astype(np.float32)
        rows.append([Example(batch.decoder_tokens[row, :length], loss, (span,) if span.size else ())])
    maker = TwinMaker(Tokenizers(tokenizer, tokenizer), ROW, config.twin_length("only"))
    return batch._replace(**maker(rows))


def start(config, mesh):
    optimizer = make_optimizer(config.train.optimizer, config.stages["only"], programs._on_host(config.model, 0, mesh))
    params = programs.initial_params(config.model, 0, mesh)
    step = programs.train_step(config, "only", optimizer, mesh)
    return fresh_state(params, config.model, optimizer, mesh, seed=0), step


def teacher(config, mesh):
    return programs.initial_params(config.model, 0, mesh)["decoder"]


def test_equal_inputs_teach_nothing(config, mesh):
    state, step = start(config, mesh)
    batch = with_twins(config, hand_made_batch(config, 8, spans=False))
    _, metrics = step(state, put_batch(batch, mesh), teacher=teacher(config, mesh))
    assert abs(metrics["divergence_nats"]) < 1e-9
    assert metrics["grad_norm"] < 1e-6
    assert metrics["loss_nats"] > 1  # reported, though not trained on


@pytest.mark.slow
def test_a_mesh_finds_the_divergence_of_whole_logits(config):
    mesh, model = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2)), config.model
    loss = DistilledLoss(config.stages["only"].distill, "per_token", 0.0, [])

    def both(params, decoder, batch):
        sums, _ = distilled_loss_sums(params, model, batch, loss, teacher=decoder)
        ours = jax.nn.log_softmax(logits(params, model, forward(params, model, batch)))
        theirs = read_raw(decoder, model, batch).hidden_BSD
        theirs = jax.nn.log_softmax(logits({"decoder": decoder}, model, theirs))
        each = (jnp.exp(theirs) * (theirs - ours)).sum(-1)
        stored = dict(zip(("teacher_logits", "teacher_ids"), jax.lax.top_k(theirs, theirs.shape[-1]), strict=True))
        taught, _ = distilled_loss_sums(params, model, batch._replace(twin_index=None, **stored), loss)
        return sums.divergence, sums.objective(), taught.divergence, (each * batch.loss_weights).sum()

    with use_mesh(mesh):
        params = programs.initial_params(model, 0, mesh)
        decoder = jax.tree.map(lambda leaf: leaf * 1.5, params["decoder"])
        batch = with_twins(config, hand_made_batch(config, 8))
        assert (batch.twin_index >= 0)[batch.loss_weights > 0].all()
        found, objective, taught, whole = jax.jit(both)(params, decoder, put_batch(batch, mesh))
    np.testing.assert_allclose(found, whole, rtol=1e-5)
    np.testing.assert_allclose(taught, whole, rtol=1e-5)  # all of the teacher's logits, stored
    np.testing.assert_allclose(objective, whole, rtol=1e-5)  # weight 1: of the cross-entropy nothing is left


def test_a_stage_goes_on_bit_for_bit(config, tmp_path):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def run(name, hooks=()):
        own = config.model_copy(update={"run_dir": str(tmp_path / name)})
        options = {"teacher": lambda: teacher(config, mesh), "change": lambda _, batch: with_twins(config, batch)}
        try:
            one_stage.run_only(own, hooks=hooks, **options)
        except KeyboardInterrupt:
            one_stage.run_only(own, **options)
        records = read_metrics(tmp_path / name / "stages" / "only" / "metrics.jsonl")
        return [{k: v for k, v in record.items() if not k.endswith(MEASURED)} for record in records]

    def interrupt(info):
        raise KeyboardInterrupt

    whole, resumed = run("whole"), run("resumed", [Hook(3, interrupt)])
    assert len(whole) == 4 and whole == resumed
    assert whole[-1]["divergence_nats"] > 0
