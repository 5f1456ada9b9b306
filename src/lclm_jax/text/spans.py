"""Laws of span and segment lengths, and where they fall in a document: pure functions of a random generator.

Places are indices into a document's cuts, so the same place is known in both tokenizations and in the text.
"""

import math
from typing import NamedTuple

import numpy as np

from lclm_jax.config import SpanConfig
from lclm_jax.text.document import DocumentTokens, Segment
from lclm_jax.text.example import latent_count


class Limits(NamedTuple):
    """What one example may take."""

    positions: int
    """Decoder positions, placeholders and tags included."""
    ratio: int
    """N: encoder tokens per latent."""
    encoder_tokens: int | None = None
    """Encoder tokens of all its spans; None: any number."""


def draw_length(law: str, low: int, high: int, rng: np.random.Generator) -> int:
    """A length in [low, high]: ``fixed`` (always high), ``uniform`` or ``log_uniform``."""
    if law == "fixed":
        return high
    share = rng.random()
    if law == "uniform":
        return low + int(share * (high - low + 1))
    return min(high, int(low * math.exp(share * math.log((high + 1) / low))))


def snap(cuts: np.ndarray, start: int, length: int, low: int, high: int) -> int:
    """Index of the cut after ``start`` that lies nearest to ``length`` tokens from it.

    Cuts ``low`` to ``high`` tokens away come first; where there is none, the nearest of all is taken. At the end of the
    document (``start`` is the last cut) the answer is ``start``.
    """
    last = len(cuts) - 1
    if start >= last:
        return start
    origin = int(cuts[start])
    first_in = max(start + 1, int(np.searchsorted(cuts, origin + low)))
    last_in = min(last, int(np.searchsorted(cuts, origin + high, side="right")) - 1)
    if first_in > last_in:
        first_in, last_in = start + 1, last
    above = int(np.searchsorted(cuts, origin + length))
    above = min(max(above, first_in), last_in)
    below = max(above - 1, first_in)
    wanted = origin + length
    return below if wanted - int(cuts[below]) < int(cuts[above]) - wanted else above


def cpt_segments(
    document: DocumentTokens, law: SpanConfig, limits: Limits, rng: np.random.Generator, start: int = 0
) -> tuple[Segment, ...]:
    """Alternating raw and compressed segments from cut ``start`` on, as many as fit in ``limits``.

    The last segment is raw (a span that nothing follows would train nothing). A share of examples
    (``law.raw_share``) is one raw segment. Empty if the document has no cut left or nothing that could be a target.
    """
    if rng.random() < law.raw_share:
        segments = [Segment(False, start, _furthest(document.decoder_cuts, start, limits.positions))]
    else:
        opens = law.first == "compressed" or (law.first == "either" and rng.random() < 0.5)
        segments = _alternate(document, law, limits, rng, Segment(opens, start, start))
    while segments and (segments[-1].compressed or segments[-1].start == segments[-1].stop):
        segments.pop()
    return tuple(segments) if _has_target(document, segments) else ()


def _alternate(
    document: DocumentTokens, law: SpanConfig, limits: Limits, rng: np.random.Generator, opening: Segment
) -> list[Segment]:
    decoder_cuts, encoder_cuts = document.decoder_cuts, document.encoder_cuts
    segments: list[Segment] = []
    compressed, at = opening.compressed, opening.start
    positions = limits.positions
    budget = limits.encoder_tokens if limits.encoder_tokens is not None else int(encoder_cuts[-1])
    while at < len(encoder_cuts) - 1:
        low, high = (law.min_tokens, law.max_tokens) if compressed else (law.raw_min_tokens, law.raw_max_tokens)
        length = draw_length(law.law, low, high, rng)
        stop = snap(encoder_cuts, at, length, low, high)
        if compressed:
            tokens = int(encoder_cuts[stop] - encoder_cuts[at])
            cost = latent_count(tokens, limits.ratio) + 2
            budget -= tokens
            fits = budget >= 0 and cost < positions
        else:
            cost = int(decoder_cuts[stop] - decoder_cuts[at])
            fits = cost <= positions
        if not fits:
            if not compressed and (stop := _furthest(decoder_cuts, at, positions)) > at:
                segments.append(Segment(False, at, stop))
            break
        segments.append(Segment(compressed, at, stop))
        positions -= cost
        compressed, at = not compressed, stop
    return segments


def repetition_segment(
    document: DocumentTokens, law: SpanConfig, limits: Limits, rng: np.random.Generator, overhead: int
) -> Segment | None:
    """A span to repeat: its start uniform over the cuts, its length by ``law``, shortened to fit ``limits``.

    ``overhead`` counts the decoder positions of the prompt around it (``RepetitionPrompt.overhead``). None if not even
    the shortest stretch fits.
    """
    encoder_cuts = document.encoder_cuts
    length = draw_length(law.law, law.min_tokens, law.max_tokens, rng)
    # Starts that leave room for the length, so that the end of a document does not shorten spans; at least the first.
    starts = max(1, int(np.searchsorted(encoder_cuts, encoder_cuts[-1] - length, side="right")))
    start = int(rng.random() * starts)
    stop = snap(encoder_cuts, start, length, law.min_tokens, law.max_tokens)
    while stop > start:
        tokens = int(encoder_cuts[stop] - encoder_cuts[start])
        answer = int(document.decoder_cuts[stop] - document.decoder_cuts[start])
        in_encoder = limits.encoder_tokens is None or tokens <= limits.encoder_tokens
        if in_encoder and overhead + latent_count(tokens, limits.ratio) + answer <= limits.positions:
            return Segment(True, start, stop)
        stop -= 1
    return None


def segment_lengths(document: DocumentTokens, segments: tuple[Segment, ...], ratio: int) -> tuple[int, tuple[int, ...]]:
    """Decoder positions of a ``cpt`` example and the encoder tokens of each span, without making it."""
    spans = tuple(int(document.encoder_cuts[s.stop] - document.encoder_cuts[s.start]) for s in segments if s.compressed)
    raw = sum(int(document.decoder_cuts[s.stop] - document.decoder_cuts[s.start]) for s in segments if not s.compressed)
    return raw + sum(latent_count(tokens, ratio) + 2 for tokens in spans), spans


def _furthest(cuts: np.ndarray, start: int, tokens: int) -> int:
    """The last cut at most ``tokens`` after cut ``start``."""
    return max(start, int(np.searchsorted(cuts, int(cuts[start]) + tokens, side="right")) - 1)


def _has_target(document: DocumentTokens, segments: list[Segment]) -> bool:
    """Whether a raw token stands anywhere but first."""
    if len(segments) != 1:
        return bool(segments)
    return int(document.decoder_cuts[segments[0].stop] - document.decoder_cuts[segments[0].start]) > 1
