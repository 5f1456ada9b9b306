"""What context is worth to the text that follows it: left out, as latents, as raw text.

``recovered share`` is the gain with latents over the gain with raw text, both against no context, in nats per token
and over the same tokens of the same places.
"""

from collections.abc import Sequence

import numpy as np

from lclm_jax.eval.examples import Place, continuation_variants, with_bos
from lclm_jax.eval.score import Scorer, Scores
from lclm_jax.eval.statistics import Estimate, mean_by_position, ratio
from lclm_jax.text.memory_tags import MemoryIds
from lclm_jax.types import JsonObject

VARIANTS = ("none", "latents", "raw")


def measure_context_gain(
    scorer: Scorer, places: Sequence[Place], tokens: int, memory: MemoryIds, bos_id: int | None = None
) -> JsonObject:
    """Losses of ``tokens`` continuation tokens after every place, and what they say of the latents.

    ``bos_id``: what the decoder's tokenizer puts before a text.

    Returns:
        ``loss_nats`` and ``loss_nats_by_position`` by variant, ``gain_nats`` of latents and raw, ``recovered_share``,
        and ``continuation_tokens``, the number of tokens measured per variant. Estimates are those of
        ``Estimate.as_dict``; standard errors are over files.
    """
    targets = [continuation_variants(place, tokens, memory, scorer.model.ratio) for place in places]
    scores = {name: scorer.score([with_bos(variants[name], bos_id) for variants in targets]) for name in VARIANTS}
    clusters = np.array([place.record for place in places])
    return {
        "loss_nats": {name: _mean(scores[name], clusters).as_dict() for name in VARIANTS},
        "gain_nats": {name: gain(scores["none"], scores[name], clusters).as_dict() for name in ("latents", "raw")},
        "recovered_share": recovered_share(scores, clusters).as_dict(),
        "loss_nats_by_position": {
            name: [e.as_dict() for e in mean_by_position(one.nll, one.weights, clusters)]
            for name, one in scores.items()
        },
        "continuation_tokens": int(scores["none"].weights.sum()),
    }


def gain(without: Scores, with_context: Scores, clusters: np.ndarray) -> Estimate:
    """Nats per token that context saves: paired, over the same tokens."""
    difference = ((without.nll - with_context.nll) * without.weights).sum(axis=1)
    return ratio(difference, without.weights.sum(axis=1), clusters)


def recovered_share(scores: dict[str, Scores], clusters: np.ndarray) -> Estimate:
    """Gain with latents over gain with raw context; the standard error is that of the ratio, by the delta method."""
    sums = {name: (one.nll * one.weights).sum(axis=1) for name, one in scores.items()}
    count = int(scores["none"].weights.sum())
    return ratio(sums["none"] - sums["latents"], sums["none"] - sums["raw"], clusters, count)


def _mean(scores: Scores, clusters: np.ndarray) -> Estimate:
    return ratio((scores.nll * scores.weights).sum(axis=1), scores.weights.sum(axis=1), clusters)
