from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import SpanConfig
from lclm_jax.data.packing.span_sampling import Limits, make_cut_table, sample_lengths, sample_segments, sample_spans
from lclm_jax.data.store.columns import Ragged


def random_cuts(seed, documents, longest=300):
    """Cuts of documents in two tokenizations, with gaps of one to four tokens."""
    rng = np.random.default_rng(seed)
    decoder, encoder = [], []
    for _ in range(documents):
        gaps = rng.integers(1, 5, rng.integers(1, longest))
        decoder.append(np.append(0, np.cumsum(gaps)))
        encoder.append(np.append(0, np.cumsum(np.maximum(gaps - rng.integers(0, 2, gaps.size), 1))))
    return decoder, encoder


def cut_table(decoder, encoder):
    as_ragged = [
        Ragged.from_sizes(np.array([len(c) for c in cuts], int), np.concatenate([[], *cuts]).astype(int))
        for cuts in (decoder, encoder)
    ]
    return make_cut_table(np.arange(len(decoder)), *as_ragged)


def segments_of(pieces, i):
    """(compressed, first cut, last cut) of example ``i``."""
    bounds = pieces.bounds.list(i)
    return [
        (bool(pieces.opens_compressed[i]) ^ bool(k % 2), int(a), int(b)) for k, (a, b) in enumerate(pairwise(bounds))
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from(["fixed", "uniform", "log_uniform"]),
    st.sampled_from(["raw", "compressed", "either"]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(20, 200),
)
def test_pieces_alternate_within_limits_and_never_overlap(seed, law, first, raw_share, positions):
    decoder, encoder = random_cuts(seed, 12)
    spans = SpanConfig(law=law, min_tokens=4, max_tokens=30, raw_min_tokens=5, raw_max_tokens=40, first=first)
    spans = spans.model_copy(update={"raw_share": raw_share})
    limits = Limits(positions=positions, ratio=4, window=16, context=0, markers=False, encoder_positions=64)
    pieces = sample_segments(cut_table(decoder, encoder), spans, limits, seed)
    end = {}
    for i, record in enumerate(pieces.document.tolist()):
        segments = segments_of(pieces, i)
        assert not segments[-1][0]
        assert segments[0][1] >= end.get(record, 0)
        end[record] = segments[-1][2]
        cost = storage = raw = 0
        for compressed, a, b in segments:
            assert a < b
            if compressed:
                tokens = encoder[record][b] - encoder[record][a]
                assert 4 <= tokens <= 30
                cost += -(-tokens // 4) + 2
                storage += -(-tokens // 4) * 4
            else:
                raw += decoder[record][b] - decoder[record][a]
        assert cost + raw <= positions
        assert storage <= 64
        assert raw > 1 or len(segments) > 1
        assert raw_share < 1 or len(segments) == 1
        assert not (first == "raw" and segments[0][0])
    if positions >= 60:
        covered = sum(decoder[r][e] for r, e in end.items())
        assert covered >= 0.8 * sum(cuts[-1] for cuts in decoder)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.sampled_from(["fixed", "uniform", "log_uniform"]))
def test_spans_follow_each_other_and_cover_the_documents(seed, law):
    decoder, encoder = random_cuts(seed, 12)
    spans = SpanConfig(law=law, min_tokens=4, max_tokens=30)
    pieces = sample_spans(cut_table(decoder, encoder), spans, seed)
    end = {}
    for i, record in enumerate(pieces.document.tolist()):
        [(compressed, a, b)] = segments_of(pieces, i)
        assert compressed
        assert a == end.get(record, 0)
        tokens = encoder[record][b] - encoder[record][a]
        assert tokens <= 30
        assert tokens >= 4 or b == len(encoder[record]) - 1
        end[record] = b
    for record, cuts in enumerate(encoder):
        assert cuts[-1] - cuts[end[record]] < 4


def test_a_document_does_not_depend_on_the_others():
    decoder, encoder = random_cuts(3, 5)
    spans = SpanConfig(min_tokens=4, max_tokens=30, raw_min_tokens=5, raw_max_tokens=40)
    limits = Limits(positions=90, ratio=4, window=16, context=0, markers=False, encoder_positions=64)
    for walk in (lambda t: sample_segments(t, spans, limits, 7), lambda t: sample_spans(t, spans, 7)):
        whole, part = walk(cut_table(decoder, encoder)), walk(cut_table(decoder[:2], encoder[:2]))
        wanted = [segments_of(whole, i) for i, r in enumerate(whole.document) if r < 2]
        assert [segments_of(part, i) for i in range(part.document.size)] == wanted


def test_a_stretch_that_cannot_be_cut_is_skipped_and_nothing_gives_nothing():
    limits = Limits(positions=20, ratio=4, window=16, context=0, markers=False, encoder_positions=64)
    cuts = [np.array([0, 100, 110, 118])]
    pieces = sample_segments(cut_table(cuts, cuts), SpanConfig(min_tokens=4, max_tokens=8), limits, 0)
    assert min(pieces.bounds.values) == 1
    for walked in (
        sample_segments(cut_table([], []), SpanConfig(), limits, 0),
        sample_spans(cut_table([np.array([0])], [np.array([0])]), SpanConfig(), 0),
    ):
        assert walked.document.size == 0
        assert walked.bounds.offsets.tolist() == [0]


@pytest.mark.parametrize("law", ["fixed", "uniform", "log_uniform"])
def test_laws_reach_both_ends(law):
    share = np.linspace(0, 1, 1000, endpoint=False)
    lengths = sample_lengths(law, np.int64(8), np.int64(64), share)
    assert (lengths.min(), lengths.max()) == ((64, 64) if law == "fixed" else (8, 64))
    if law == "log_uniform":
        assert np.median(lengths) == pytest.approx(np.sqrt(8 * 64), rel=0.05)
