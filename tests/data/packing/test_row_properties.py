"""From lengths to rows: tokens that all differ, so that each can be followed to the one place where it belongs."""

from collections import Counter
from itertools import count

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import BackboneConfig, ModelConfig, PackConfig
from lclm_jax.data.packing.row_packer import ExampleWindows, RowPacker
from lclm_jax.data.packing.rows import assemble_row
from lclm_jax.data.store.columns import Ragged
from lclm_jax.text.example import expand
from lclm_jax.text.outline import make_outline

START, END, PLACEHOLDER, MARKER = 1, 2, 3, 4
TOWER = BackboneConfig(
    vocab_size=100_000, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_size=8
)
PACK = PackConfig(row_length=64, encoder_rows=3, encoder_row_length=48)

models = st.builds(
    lambda ratio, groups, overlap, pooling, mask: ModelConfig(
        encoder=TOWER,
        decoder=TOWER,
        memory_token_ids=(START, END, PLACEHOLDER),
        ratio=ratio,
        window=ratio * groups,
        overlap=overlap,
        pooling=pooling,
        mask=mask,
    ),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(["mean", "eos"]),
    st.sampled_from(["causal", "bidirectional"]),
)
# An example: lengths of raw text and of the span after it (0: none), in turns.
turns = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=3)


def make_example(turns, ratio, fresh):
    """An example of tokens taken from ``fresh``; loss on raw text alone."""
    tokens, weights, gaps, spans, length = [], [], [], [], 0
    for raw, span in turns:
        tokens.append(np.array([next(fresh) for _ in range(raw)], np.int32))
        weights.append(np.ones(raw, np.float32))
        length += raw
        if span:
            tokens.append(np.array([START, END], np.int32))
            weights.append(np.zeros(2, np.float32))
            gaps.append(length + 1)
            spans.append(np.array([next(fresh) for _ in range(span)], np.int32))
            length += 2
    return expand(make_outline(tokens, weights, gaps, spans), ratio, PLACEHOLDER)


@settings(max_examples=60, deadline=None)
@given(models, st.lists(turns, min_size=1, max_size=10))
def test_every_token_is_exactly_where_it_belongs(model, lengths):
    fresh = count(10)
    examples = [make_example(one, model.ratio, fresh) for one in lengths]
    tokens = np.array([one.tokens.size for one in examples])
    spans = [np.array([span.size for span in one.spans], np.int64) for one in examples]
    windows = ExampleWindows(Ragged.from_sizes(np.array([s.size for s in spans]), np.concatenate(spans)), model)
    packer = RowPacker(model.ratio, PACK)
    usable, reasons = packer.find_packable(tokens, windows)
    rows = packer.pack(usable, tokens, windows)
    assert Counter(i for row in rows for i in row) == Counter(usable.tolist())
    assert sorted([*usable.tolist(), *reasons]) == list(range(len(examples)))
    for row in rows:
        chosen = [examples[i] for i in row]
        check(assemble_row(chosen, model, PACK, encoder_pad_id=MARKER), chosen, model)


def check(row, examples, model):
    check_decoder(row, examples)
    check_encoder(row, [span for one in examples for span in one.spans], model)
    placeholders = np.flatnonzero(row["latent_index"] >= 0)
    assert np.array_equal(placeholders, np.flatnonzero(row["decoder_tokens"] == PLACEHOLDER))
    needed = [-(-span.size // model.ratio) for one in examples for span in one.spans]
    assert placeholders.size == sum(needed)
    # The latents that a span's placeholders read are those of its own tokens, in order.
    pools = row["encoder_tokens"].reshape(-1, model.ratio)
    slots, spans = row["latent_index"][placeholders], [span for one in examples for span in one.spans]
    weights = row["pool_weights"].reshape(-1, model.ratio) > 0
    for span, part in zip(spans, np.split(slots, np.cumsum(needed)[:-1]) if spans else [], strict=True):
        assert pools[part][weights[part]].tolist() == span.tolist()


def check_decoder(row, examples):
    segments, weights, targets = row["decoder_segments"], row["loss_weights"], row["targets"]
    for number, example in enumerate(examples, 1):
        where = np.flatnonzero(segments == number)
        assert row["decoder_tokens"][where].tolist() == example.tokens.tolist()
        assert np.array_equal(where, np.arange(where[0], where[0] + where.size))
        # A target is the next token of the same segment; tags, placeholders and what the next segment begins with none.
        assert weights[where].tolist() == [*example.loss[1:].tolist(), 0.0]
        assert targets[where].tolist() == [*example.tokens[1:].tolist(), 0]
        assert not weights[where[:-1]][np.isin(example.tokens[1:], (START, END, PLACEHOLDER))].any()
    empty = segments == 0
    assert empty.sum() == PACK.row_length - sum(one.tokens.size for one in examples)
    assert not weights[empty].any() and not row["decoder_tokens"][empty].any()


def check_encoder(row, spans, model):
    tokens, segments, pooled = row["encoder_tokens"], row["encoder_segments"], row["pool_weights"] > 0
    assert sorted(tokens[pooled].tolist()) == sorted(int(token) for span in spans for token in span)
    assert not pooled[segments == 0].any() and not tokens[segments == 0].any()
    owner = {int(token): number for number, span in enumerate(spans) for token in span}
    for encoder_row in range(PACK.encoder_rows):
        for window in range(1, segments[encoder_row].max() + 1):
            where = np.flatnonzero(segments[encoder_row] == window)
            assert np.array_equal(where, np.arange(where[0], where[0] + where.size))
            read = [int(token) for token in tokens[encoder_row][where] if token != MARKER]
            assert len({owner[token] for token in read}) == 1
            assert read == list(range(read[0], read[0] + len(read)))
            assert 0 < pooled[encoder_row][where].sum() <= model.window
