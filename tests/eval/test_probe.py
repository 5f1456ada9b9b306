from collections import Counter

import jax
import numpy as np
import pytest

from lclm_jax.config import RunPaths
from lclm_jax.data.store.shards import PreparedSplit
from lclm_jax.eval.context_gain import measure_context_gain
from lclm_jax.eval.examples import spread_places
from lclm_jax.eval.probe import Probe
from lclm_jax.eval.score import Scorer
from lclm_jax.parallel import make_mesh


def with_examples(config, count):
    probe = config.train.probe.model_copy(update={"examples": count, "every_steps": 1})
    return config.model_copy(update={"train": config.train.model_copy(update={"probe": probe})})


def test_a_probe_measures_what_the_evaluation_does(run):
    config, tokenizers, model, params = run
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    values = Probe(with_examples(config, 4), "a", tokenizers, mesh)(params)
    assert set(values) == {
        "loss_nats/cpt", "context_nats/none", "context_nats/latents", "context_nats/raw",
        "verbatim/token_accuracy", "needle/token_accuracy",
    }  # fmt: skip
    assert values["loss_nats/cpt"] == pytest.approx(np.log(model.decoder.vocab_size), rel=0.2)  # untrained
    documents = PreparedSplit(RunPaths(config).prepared, "documents", "held_out")
    places = spread_places(documents, 4, 20, 13, Counter())
    whole = measure_context_gain(Scorer(params, model, mesh, 8, None), places, 12, tokenizers.decoder.memory_ids)
    for name, estimate in whole["loss_nats"].items():
        assert values[f"context_nats/{name}"] == pytest.approx(estimate["value"], rel=1e-5)
