import json
from collections import Counter

import jax
import numpy as np
import pytest

from lclm_jax.config import EvalConfig, MeshConfig, RunPaths
from lclm_jax.data.packing.rows import assemble_batch
from lclm_jax.data.store.shards import PreparedError, PreparedSplit
from lclm_jax.eval.examples import continuation_variants, repetition_variants, spread_places
from lclm_jax.eval.run import evaluate
from lclm_jax.eval.score import Scorer
from lclm_jax.inference.windows import pack_for
from lclm_jax.model.lclm import forward, logits
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.text.prompts import repetition_prompts
from lclm_jax.train.core.initial_state import params_shardings


def places_of(run, count=10, span=20, following=13):
    split = PreparedSplit(RunPaths(run[0]).prepared, "documents", "held_out")
    return split, spread_places(split, count, span, following, Counter())


def test_places_are_spread_and_do_not_overlap(run):
    split, places = places_of(run)
    assert len(places) == 10
    files = {place.record for place in places}
    assert len(files) == min(10, len(split))
    _, many = places_of(run, 1000)
    for record in {place.record for place in many}:
        mine = [p for p in many if p.record == record]
        ends = [int(p.document.decoder_cuts[p.middle]) for p in mine]
        starts = [int(p.document.decoder_cuts[p.first]) for p in mine]
        assert all(stop <= start for stop, start in zip(ends, starts[1:], strict=False))


def test_variants_measure_the_same_tokens(run):
    _, tokenizers, model, _ = run
    memory = tokenizers.decoder.memory_ids
    for place in places_of(run)[1]:
        variants = continuation_variants(place, 12, memory, model.ratio)
        measured = {name: t.example.tokens[t.start : t.stop].tolist() for name, t in variants.items()}
        assert measured["none"] == measured["latents"] == measured["raw"]
        assert len(measured["none"]) == 12
        assert all(t.example.loss[t.start : t.stop].all() for t in variants.values())
        raw = variants["raw"].example.tokens
        begin = int(place.document.decoder_cuts[place.first])
        np.testing.assert_array_equal(raw, place.document.decoder_ids[begin : begin + len(raw)])
        (span,) = variants["latents"].example.spans
        assert 10 <= len(span) <= 20
        repeated = repetition_variants(place, repetition_prompts(tokenizers.decoder), memory, model.ratio)
        whole = repeated["latents"]
        np.testing.assert_array_equal(whole.example.tokens[whole.start : whole.stop], whole.example.spans[0])


def test_scores_are_those_of_the_logits(run):
    config, tokenizers, model, params = run
    places = places_of(run)[1][:3]
    targets = [continuation_variants(p, 12, tokenizers.decoder.memory_ids, 4)["latents"] for p in places]
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    scores = Scorer(params, model, mesh, 2, None).score(targets)
    batch = assemble_batch([[t.example] for t in targets], model, pack_for([[t.example] for t in targets], model))
    with use_mesh(mesh):
        full = jax.nn.log_softmax(logits(params, model, forward(params, model, batch)))
    for row, target in enumerate(targets):
        tokens = target.example.tokens[target.start : target.stop]
        want = -full[row, np.arange(target.start - 1, target.stop - 1), tokens]
        np.testing.assert_allclose(scores.nll[row], want, atol=1e-5)
        best = np.argmax(full[row, target.start - 1 : target.stop - 1], axis=-1)
        np.testing.assert_array_equal(scores.hits[row], best == tokens)


def test_devices_that_share_positions_score_alike(run):
    _, tokenizers, model, params = run
    targets = [continuation_variants(p, 12, tokenizers.decoder.memory_ids, 4)["latents"] for p in places_of(run)[1][:2]]
    one, eight = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(fsdp=1, context=8))
    expected = Scorer(params, model, one, 2, None).score(targets)
    placed = jax.device_put(jax.device_get(params), params_shardings(model, eight))
    np.testing.assert_allclose(Scorer(placed, model, eight, 2, None).score(targets).nll, expected.nll, atol=1e-5)


def test_evaluation_is_complete_and_deterministic(run):
    config, tokenizers, _, params = run
    result = evaluate(config, params, tokenizers)
    again = evaluate(config, params, tokenizers)
    assert json.dumps(result, sort_keys=True) == json.dumps(again, sort_keys=True)
    assert set(result["loss_nats"]) == {"none", "latents", "raw"}
    for name in ("recovered_share", "verbatim_token_accuracy"):
        assert {"value", "standard_error", "count", "clusters"} == set(result[name])
    for name in ("none", "latents", "raw"):
        assert result["loss_nats"][name]["count"] == 120
        assert 4 < result["loss_nats"][name]["value"] < 8  # never trained: about log(320)
        assert len(result["loss_nats_by_position"][name]) == 12
    assert result["held_out_tokens"] == 120 + result["repetition_tokens"]
    assert 0 <= result["verbatim_token_accuracy"]["value"] < 0.2
    assert set(result["free_running"]) == {"token_accuracy", "exact_share"}


def test_texts_too_short_to_measure_on_are_an_error(run):
    config = run[0].model_copy(update={"eval": EvalConfig(context_tokens=100_000)})
    with pytest.raises(PreparedError, match=r"eval\.context_tokens"):
        evaluate(config, run[3], run[1])
