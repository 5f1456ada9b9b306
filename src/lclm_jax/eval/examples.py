"""Held-out examples: evenly spread places of many files, each with its variants.

Deterministic: a place depends on the prepared data and the settings alone. Nothing is tokenized here; spans and raw
segments are slices of prepared ids at cut points, as in training.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lclm_jax.data.packing.counter_rng import draw_key, permutation, uniform
from lclm_jax.data.store.shards import PreparedError, PreparedSplit
from lclm_jax.text.example import DocumentTokens, Example, Segment, expand
from lclm_jax.text.memory_tags import MemoryIds
from lclm_jax.text.outline import make_outline
from lclm_jax.text.prompts import RepetitionPrompt


class Target(NamedTuple):
    """An example and the stretch of its tokens that is measured."""

    example: Example
    start: int
    """Index in ``example.tokens`` of the first token measured."""
    stop: int
    """Index after the last one."""


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of a held-out document between two cuts."""

    record: int
    document: DocumentTokens
    first: int
    """Index of the cut where the context (or the span to repeat) begins."""
    middle: int
    """Index of the cut where it ends."""


def spread_places(
    split: PreparedSplit, count: int, span_tokens: int, following: int, skipped: Counter[str]
) -> list[Place]:
    """At most ``count`` stretches of about ``span_tokens``, as evenly over the files as their lengths allow.

    Args:
        split: prepared documents.
        count: places wanted.
        span_tokens: encoder tokens of a stretch: the longest that ends at a cut is taken, at least half of this.
        following: decoder tokens of the same document that must follow it.
        skipped: gains one by reason for what gives no place: ``short_file`` and ``no_cut``.

    Raises:
        PreparedError: if no file gives any.
    """
    sizes = split.column("decoder_tokens").astype(np.int64)
    room = sizes // (span_tokens + following + 1)
    skipped["short_file"] += int((room == 0).sum())
    places: list[Place] = []
    for record, wanted in _shares(room, count):
        document = DocumentTokens.from_record(split.read(record))
        phase = float(uniform(draw_key("place", span_tokens, following), record)[0])
        for number in range(wanted):
            begin = (number + phase) / wanted * max(int(sizes[record]) - span_tokens - following, 1)
            bounds = _stretch(document, int(begin), span_tokens, following)
            if bounds is None:
                skipped["no_cut"] += 1
            else:
                places.append(Place(record, document, *bounds))
    if not places:
        raise PreparedError(
            f"{split.collection}/{split.split} of {split.root} has no file of {span_tokens} + {following} tokens to"
            " measure on; prepare more text, or lower eval.context_tokens, eval.continuation_tokens and"
            " eval.repetition_tokens"
        )
    return places


def continuation_variants(place: Place, tokens: int, memory: MemoryIds, ratio: int) -> dict[str, Target]:
    """The text after a place: on its own (``none``), after its latents, and after its raw text.

    ``tokens`` of it are measured, from its second token on: the first has no predecessor without context.
    """
    document = place.document
    context = Segment(True, place.first, place.middle)
    begin = int(document.decoder_cuts[place.middle])
    text = np.asarray(document.decoder_ids[begin : begin + tokens + 1]).astype(np.int32)
    raw = document.decoder_slice(context)
    tags = np.array([memory.start, memory.end], np.int32)
    outlines = {
        "none": make_outline([text], [np.ones(len(text))], [], []),
        "latents": make_outline(
            [tags, text], [np.zeros(2), np.ones(len(text))], [1], [document.encoder_slice(context)]
        ),
        "raw": make_outline([raw, text], [np.zeros(len(raw)), np.ones(len(text))], [], []),
    }
    variants = {}
    for name, outline in outlines.items():
        example = expand(outline, ratio, memory.placeholder)
        size = len(example.tokens)
        variants[name] = Target(example, size - len(text) + 1, size)
    return variants


def repetition_variants(
    place: Place, prompts: Sequence[RepetitionPrompt], memory: MemoryIds, ratio: int
) -> dict[str, Target]:
    """The text of a place, on its own (``none``) and as the answer to a request to repeat its latents.

    All its tokens are measured after the latents; on its own all but the first.
    """
    span = Segment(True, place.first, place.middle)
    text = place.document.decoder_slice(span)
    draw = uniform(draw_key("request"), place.record, place.first)[0]
    prompt = prompts[int(draw * len(prompts))]
    question = np.concatenate([prompt.head, prompt.tail])
    weights = [np.zeros(len(question)), np.ones(len(text))]
    asked = make_outline([question, text], weights, [len(prompt.head)], [place.document.encoder_slice(span)])
    alone = make_outline([text], [np.ones(len(text))], [], [])
    latents, none = (expand(outline, ratio, memory.placeholder) for outline in (asked, alone))
    size = len(latents.tokens)
    return {"none": Target(none, 1, len(text)), "latents": Target(latents, size - len(text), size)}


def with_bos(target: Target, bos_id: int | None) -> Target:
    """``target`` behind the token that the decoder's tokenizer puts before a text; None: as it is."""
    if bos_id is None:
        return target
    example, start, stop = target
    tokens, loss = (
        np.concatenate([first, column]).astype(column.dtype)
        for first, column in (([bos_id], example.tokens), ([0.0], example.loss))
    )
    return Target(Example(tokens, loss, example.spans, example.ratios), start + 1, stop + 1)


def _shares(room: np.ndarray, count: int) -> Iterator[tuple[int, int]]:
    """(file, examples of it): one more for every file in turn, in a fixed random order, while it has room."""
    order = permutation(draw_key("files"), len(room))
    low, high = 0, int(room.max(initial=0))
    while low < high:  # the smallest bound on the examples of one file that gives enough of them
        bound = (low + high) // 2
        low, high = (low, bound) if np.minimum(room, bound).sum() >= count else (bound + 1, high)
    shares = np.minimum(room, low)
    spare = int(shares.sum()) - count
    for record in order.tolist():
        if spare > 0 and shares[record] == low:
            shares[record] -= 1
            spare -= 1
    yield from ((record, int(shares[record])) for record in range(len(room)) if shares[record])


def _stretch(document: DocumentTokens, begin: int, span_tokens: int, following: int) -> tuple[int, int] | None:
    """Cut indices of the longest stretch of at most ``span_tokens`` from the first cut at or after ``begin``."""
    cuts, encoder = document.decoder_cuts.astype(np.int64), document.encoder_cuts.astype(np.int64)
    first = int(np.searchsorted(cuts, begin))
    if first >= len(cuts):
        return None
    middle = int(np.searchsorted(encoder, encoder[first] + span_tokens, side="right")) - 1
    long_enough = encoder[middle] - encoder[first] >= max(1, span_tokens // 2)
    return (first, middle) if long_enough and cuts[middle] + following < len(document.decoder_ids) else None
