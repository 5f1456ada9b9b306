"""The head that chooses ratios: its targets, its fit, its budgets, and a whole fit of an untrained model."""

import jax
import numpy as np
import pytest
from tests.exporting import export_model

from lclm_jax.config import parse_config
from lclm_jax.errors import LclmError
from lclm_jax.eval.ratio_head import (
    FitSettings,
    Measured,
    fit,
    fit_ratio_head,
    logistic_regression,
    targets,
    worth,
)
from lclm_jax.inference.span_ratios import RatioHead

RATIOS = (4, 8, 16)


def made_up(rng, spans=400):
    """Spans whose first state says how dense they are: a coarser latent costs more of the dense ones."""
    states = rng.normal(size=(spans, 5)).astype(np.float32)
    dense = states[:, 0] > 0
    cost = np.stack([np.zeros(spans), np.where(dense, 0.5, 0.0), np.where(dense, 1.0, 0.01)], axis=1)
    return Measured(states, np.full(spans, 32), 2.0 + cost, np.arange(spans) % 20)


def test_a_target_is_the_largest_ratio_within_the_margin():
    losses = np.array([[1.0, 1.01, 1.02], [1.0, 1.5, 2.0], [1.0, 1.01, 3.0], [1.0, 2.0, 0.9]])
    assert targets(losses, 0.015).tolist() == [1, 0, 1, 2]
    assert targets(losses, 10.0).tolist() == [2, 2, 2, 2]


def test_logistic_regression_is_at_the_least_of_its_sum(rng):
    inputs, ridge = rng.normal(size=(50, 3)), 2.0
    reached = rng.uniform(size=50) < 1 / (1 + np.exp(-inputs[:, 0]))
    weights = logistic_regression(inputs, reached, ridge)

    def cost(weights):
        logits = inputs @ weights[:-1] + weights[-1]
        penalty = ridge * (weights[:-1] ** 2).sum() + ridge / 1000 * weights[-1] ** 2
        return np.logaddexp(0, -np.where(reached, logits, -logits)).sum() + penalty / 2

    for step in np.eye(4) * 1e-3:
        assert cost(weights) < min(cost(weights + step), cost(weights - step))
    assert np.isfinite(logistic_regression(inputs, np.ones(50, bool), ridge)).all()


def test_choices_beat_every_static_ratio_where_density_differs_and_can_be_seen(rng):
    head = fit(made_up(rng), made_up(rng), RATIOS, margin=0.02)
    found = worth(head, made_up(rng), margin=0.02)
    assert found["right"] > 0.95
    assert found["targets"]["8"] == 0 and 0.4 < found["targets"]["16"] < 0.6
    eight = found["static"]["8"]
    assert eight["latents_per_token"] == 0.125
    assert eight["adaptive_latents_per_token"] < 0.14
    assert eight["difference_nats"]["value"] < -3 * eight["difference_nats"]["standard_error"]
    for budget in (0.0625, 0.1, 0.15, 0.25):
        spans = made_up(rng)
        latents = spans.latents(head.choose(spans.states_SE, head.threshold(budget))).sum() / spans.tokens_S.sum()
        assert latents == pytest.approx(budget, abs=0.02)


def test_a_model_is_given_a_head(run, tmp_path):
    config, tokenizers, model, params = run
    folder, values = tmp_path / "model", config.model_dump()
    export_model(
        jax.device_get(params), model, folder, decoder_tokenizer=tokenizers.decoder.folder,
        encoder_tokenizer=tokenizers.encoder.folder, dtype="float32",
    )  # fmt: skip
    with pytest.raises(LclmError, match=r"model.span_ratios of the run is empty"):
        fit_ratio_head(config, folder, FitSettings())
    values["model"]["span_ratios"], values["eval"]["examples"] = (4, 8), 6
    head, found = fit_ratio_head(parse_config(values), folder, FitSettings(margin=0.0, examples=8))
    assert head.kernel_EK.shape == (16, 1) and head.budgets[0] > head.budgets[-1]
    assert [*found["static"]] == ["4", "8"] and sum(found["targets"].values()) == pytest.approx(1)
    assert found["static"]["4"]["difference_nats"]["value"] == 0.0
    head.save(folder)
    assert RatioHead.load(folder, model).threshold(0.25) == head.threshold(0.25)
