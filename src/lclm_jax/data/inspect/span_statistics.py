"""What a source's law of spans produces: the lengths and shares behind the histograms."""

import numpy as np

from lclm_jax.data.packing.counter_rng import Shuffle, draw_key
from lclm_jax.data.packing.sources import Source


def span_statistics(source: Source, records: int = 2048, epoch: int = 0) -> dict[str, np.ndarray]:
    """Lengths and shares of the examples that a sample of records gives.

    Args:
        source: any source; of chats the spans are the contexts.
        records: size of the sample, drawn evenly from the collection.
        epoch: epoch of the source.

    Returns:
        ``span_tokens`` int64 [spans]: encoder tokens of each span. By example, int64: ``spans`` (how many),
        ``positions`` (of the decoder), ``raw_tokens`` (decoder tokens outside spans, tags included). Float64 by
        example: ``compressed_share`` (encoder tokens of spans as a share of all tokens of text).
    """
    order = Shuffle(draw_key("span statistics", source.name), len(source))
    plan = source.plan(epoch, order(np.arange(min(records, len(source)))))
    compressed = plan.spans.sums()
    return {
        "span_tokens": plan.spans.values,
        "spans": plan.spans.sizes,
        "positions": plan.tokens,
        "raw_tokens": plan.raw_tokens - compressed,
        "compressed_share": compressed / np.maximum(plan.raw_tokens, 1),
    }
