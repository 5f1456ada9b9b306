"""Small held-out measurements that training makes of itself now and then; teacher-forced, so that they are quick."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from lclm_jax.config import Config
from lclm_jax.data.loading.generation import stage_generation
from lclm_jax.data.packing.counter_rng import draw_key, uniform
from lclm_jax.data.packing.sources import ExampleRef, Source, make_sources
from lclm_jax.data.store.shards import open_split
from lclm_jax.eval.examples import (
    Place,
    Target,
    continuation_variants,
    repetition_variants,
    spread_places,
    with_bos,
)
from lclm_jax.eval.score import Scorer, Scores
from lclm_jax.text.example import Segment, expand
from lclm_jax.text.outline import make_outline
from lclm_jax.text.prompts import repetition_prompts
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import Params

_NEEDLE = "\nThe secret number is"


class Probe:
    """Measures parameters of a stage on ``train.probe.examples`` held-out examples of each kind, always the same.

    Args:
        config: the run; lengths are those of ``eval``.
        stage: whose sources are measured.
        tokenizers: the run's.
        mesh: where the parameters lie.

    Raises:
        LclmError: the held-out split is not prepared, or has no file long enough.
    """

    def __init__(self, config: Config, stage: str, tokenizers: Tokenizers, mesh: Mesh):
        settings, count = config.eval, config.train.probe.examples
        memory = tokenizers.decoder.memory_ids
        self._model = config.model.model_copy(update={"memory_token_ids": tuple(memory)})
        self._mesh, self._rows = mesh, min(settings.batch_rows, count)
        self._pad_id = tokenizers.encoder.pad_id if self._model.has_pad_markers else None
        generation = stage_generation(config, stage, tokenizers)
        documents = open_split(config, settings.collection, "held_out", generation)
        following, ratio = settings.continuation_tokens + 1, self._model.ratio
        places = spread_places(documents, count, settings.context_tokens, following, Counter())
        variants = [continuation_variants(place, settings.continuation_tokens, memory, ratio) for place in places]
        bos_id = tokenizers.decoder.bos_id
        self._context = {name: [with_bos(one[name], bos_id) for one in variants] for name in variants[0]}
        spans = spread_places(documents, count, settings.repetition_tokens, 0, Counter())
        prompts = repetition_prompts(tokenizers.decoder)
        self._repetition = [repetition_variants(place, prompts, memory, ratio)["latents"] for place in spans]
        self._needle = [with_bos(_needle(place, tokenizers, ratio), bos_id) for place in places]
        sources = make_sources(config, stage, tokenizers, "held_out", generation=generation)
        self._sources = {source.name: first_examples(source, count) for source in sources}

    def __call__(self, params: Params) -> dict[str, float]:
        """Measure ``params`` (on the mesh; they are only read).

        Returns:
            ``loss_nats/SOURCE`` of each source of the stage that has held-out records; ``context_nats/none``,
            ``/latents`` and ``/raw`` of the text after a context; ``verbatim/token_accuracy`` of repetition from
            latents; ``needle/token_accuracy`` of a number told in the middle of a compressed context.
        """
        values = {}
        for name, (targets, scores) in self.score(params).items():
            kind = name.partition("/")[0]
            if kind == "loss_nats":
                values[name] = _mean(scores.nll, trained_weights(targets, scores))
            elif kind == "context_nats":
                values[name] = _mean(scores.nll, scores.weights)
            else:
                values[f"{name}/token_accuracy"] = _mean(scores.hits, scores.weights)
        return values

    def score(self, params: Params) -> dict[str, "Scored"]:
        """Targets and scores of every measurement: ``loss_nats/SOURCE``, ``context_nats/VARIANT``, verbatim, needle."""
        scorer = Scorer(params, self._model, self._mesh, self._rows, self._pad_id)
        context = {f"context_nats/{name}": targets for name, targets in self._context.items()}
        found = _score_together(scorer, {f"loss_nats/{name}": targets for name, targets in self._sources.items()})
        return found | _score_together(scorer, {**context, "verbatim": self._repetition, "needle": self._needle})


class Scored(NamedTuple):
    """One measurement: what was scored, and how."""

    targets: list[Target]
    scores: Scores


def _score_together(scorer: Scorer, kinds: Mapping[str, list[Target]]) -> dict[str, Scored]:
    """Score the targets of all kinds as one list, so that one shape is compiled, not one for each."""
    flat = [target for targets in kinds.values() for target in targets]
    if not flat:
        return {}
    scores, found, begin = scorer.score(flat), {}, 0
    for name, targets in kinds.items():
        end = begin + len(targets)
        if targets:
            found[name] = Scored(targets, Scores(*(array[begin:end] for array in scores)))
        begin = end
    return found


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / max(weights.sum(), 1e-9))


def trained_weights(targets: list[Target], scores: Scores) -> np.ndarray:
    """[targets, tokens] float64: the loss weights of whole examples, as ``scores`` lays them out."""
    weights = np.zeros_like(scores.weights)
    for row, target in enumerate(targets):
        weights[row, : target.stop - target.start] = target.example.loss[target.start : target.stop]
    return weights


def first_examples(source: Source, count: int) -> list[Target]:
    """The first example of up to ``count`` records, evenly over the split; none of a split without records."""
    records = np.arange(0, len(source), max(1, len(source) // count))[:count]
    if not len(records):
        return []
    plan = source.plan(0, records)
    _, firsts = np.unique(plan.record, return_index=True)
    columns = source.split.read_many(plan.record[firsts].tolist())
    targets = []
    for at, one in zip(firsts.tolist(), columns, strict=True):
        ref = ExampleRef(0, int(plan.record[at]), int(plan.variant[at]), plan.bounds.list(at))
        example = source.example(ref, one)
        targets.append(Target(example, 1, len(example.tokens)))
    return targets


def _needle(place: Place, tokenizers: Tokenizers, ratio: int) -> Target:
    """A context with a sentence about a number in it, compressed, and the same sentence to be completed."""
    draws = uniform(draw_key("needle"), place.record, place.first + np.arange(2))
    answer = f" {int(1000 + 9000 * draws[0])}"
    context = place.document.encoder_slice(Segment(True, place.first, place.middle))
    told = tokenizers.encoder.encode(f"{_NEEDLE}{answer}.\n", plain=True)
    middle = int(draws[1] * len(context))
    span = np.concatenate([context[:middle], told, context[middle:]]).astype(np.int32)
    memory = tokenizers.decoder.memory_ids
    question, reply = (tokenizers.decoder.encode(text, plain=True) for text in (_NEEDLE, answer))
    tags = np.array([memory.start, memory.end], np.int32)
    weights = [np.zeros(2), np.zeros(len(question)), np.ones(len(reply))]
    example = expand(make_outline([tags, question, reply], weights, [1], [span]), ratio, memory.placeholder)
    size = len(example.tokens)
    return Target(example, size - len(reply), size)
