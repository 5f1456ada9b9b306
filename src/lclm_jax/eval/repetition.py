"""Verbatim repetition: how much of a span the decoder can write out from its latents.

Teacher-forced: whether each token, given the true ones before it, has the largest logit. Free-running: greedy
generation, compared with the span token by token.
"""

from collections.abc import Sequence

import numpy as np

from lclm_jax.eval.context_gain import gain
from lclm_jax.eval.examples import Place, Target, repetition_variants, with_bos
from lclm_jax.eval.score import Scorer, Scores
from lclm_jax.eval.statistics import mean_by_position, ratio
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.sampling import Sampling
from lclm_jax.text.example import Example
from lclm_jax.text.prompts import repetition_prompts
from lclm_jax.types import JsonObject


def measure_repetition(scorer: Scorer, generator: Generator, places: Sequence[Place], free_running: int) -> JsonObject:
    """Accuracy of repeating every place from its latents, and the loss beside that without context.

    Args:
        scorer: model, mesh and batch size.
        generator: the same model for free-running repetition.
        places: spans to repeat.
        free_running: how many of them, evenly chosen, are also generated; 0: none.

    Returns:
        ``verbatim_token_accuracy``, ``verbatim_accuracy_by_depth``, ``repetition_loss_nats`` (none and latents, over
        the same tokens: all but the first of a span), ``repetition_gain_nats``, ``repetition_tokens``, and
        ``free_running`` with ``token_accuracy`` and ``exact_share`` (None if not asked for).
    """
    tokenizer = generator.decoder_tokenizer
    prompts, memory = repetition_prompts(tokenizer), tokenizer.memory_ids
    targets = [repetition_variants(place, prompts, memory, scorer.model.ratio) for place in places]
    clusters = np.array([place.record for place in places])
    latents = scorer.score([variants["latents"] for variants in targets])
    none = scorer.score([with_bos(variants["none"], tokenizer.bos_id) for variants in targets])
    later = Scores(*(array[:, 1:] for array in latents))
    counts = later.weights.sum(axis=1)
    losses = {"none": none, "latents": later}
    right = (latents.hits * latents.weights).sum(axis=1)
    return {
        "verbatim_token_accuracy": ratio(right, latents.weights.sum(axis=1), clusters).as_dict(),
        "verbatim_accuracy_by_depth": [e.as_dict() for e in mean_by_position(latents.hits, latents.weights, clusters)],
        "repetition_loss_nats": {
            name: ratio((one.nll * one.weights).sum(axis=1), counts, clusters).as_dict() for name, one in losses.items()
        },
        "repetition_gain_nats": gain(none, later, clusters).as_dict(),
        "repetition_tokens": int(latents.weights.sum()),
        "free_running": _free_running(
            generator, [variants["latents"] for variants in targets], clusters, free_running, scorer.rows
        ),
    }


def _free_running(
    generator: Generator, targets: Sequence[Target], clusters: np.ndarray, count: int, rows: int
) -> JsonObject | None:
    if not count:
        return None
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(count, len(targets))).round().astype(int))
    right, sizes, exact = [], [], []
    for begin in range(0, len(chosen), rows):
        some = [targets[i] for i in chosen[begin : begin + rows]]
        longest = max(target.stop - target.start for target in some)
        prompts = [_prompt(target) for target in some]
        for target, answer in zip(
            some, generator.generate_examples(prompts, Sampling(max_new_tokens=longest)), strict=True
        ):
            truth = target.example.tokens[target.start : target.stop]
            same = np.array([a == b for a, b in zip(answer.ids, truth, strict=False)], bool)
            right.append(int(same.sum()))
            sizes.append(len(truth))
            exact.append(bool(len(same) == len(truth) and same.all()))
    groups = clusters[chosen]
    return {
        "token_accuracy": ratio(np.array(right), np.array(sizes), groups).as_dict(),
        "exact_share": ratio(np.array(exact, float), np.ones(len(exact)), groups).as_dict(),
    }


def _prompt(target: Target) -> Example:
    """The example up to where the repetition begins."""
    example = target.example
    return Example(example.tokens[: target.start], example.loss[: target.start], example.spans)
