import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.helpers import unpack_row

from lclm_jax.batch import batch_shapes
from lclm_jax.config import BackboneConfig, ModelConfig, PackConfig
from lclm_jax.data.packing.rows import RowError, assemble_batch, assemble_row, slots_of_latents, span_tokens
from lclm_jax.errors import LclmError
from lclm_jax.text.example import Example

TINY = BackboneConfig(vocab_size=64, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8)
START, END, MEMORY = 61, 62, 63


def model(**values):
    return ModelConfig(encoder=TINY, decoder=TINY, memory_token_ids=(START, END, MEMORY), **values)


def make_example(parts, ratio, seed=0):
    """An example from parts: ("raw", n) or ("span", n); loss 1 on raw tokens, but not on the first token."""
    rng = np.random.default_rng(seed)
    tokens, loss, spans = [], [], []
    for kind, size in parts:
        if kind == "raw":
            tokens += rng.integers(1, 60, size).tolist()
            loss += [1.0] * size
        else:
            latents = -(-size // ratio)
            tokens += [START] + [MEMORY] * latents + [END]
            loss += [0.0] * (latents + 2)
            spans.append(rng.integers(1, 60, size).astype(np.int32))
    if loss:
        loss[0] = 0.0
    return Example(tokens=np.array(tokens, np.int32), loss=np.array(loss, np.float32), spans=tuple(spans))


def test_a_row_written_out():
    config = model(ratio=2, window=4, overlap=1, mask="bidirectional", pooling="eos")
    pack = PackConfig(row_length=16, encoder_rows=1, encoder_row_length=24)
    first = Example(
        tokens=np.array([7, START, MEMORY, MEMORY, MEMORY, END, 8, 9], np.int32),
        loss=np.array([0, 0, 0, 0, 0, 0, 1, 1], np.float32),
        spans=(np.array([10, 11, 12, 13, 14], np.int32),),
    )
    second = Example(np.array([20, 21, 22], np.int32), np.array([0, 1, 0.5], np.float32), ())
    row = assemble_row([first, second], config, pack, encoder_pad_id=5)
    assert row["decoder_tokens"].tolist() == [7, START, MEMORY, MEMORY, MEMORY, END, 8, 9, 20, 21, 22, 0, 0, 0, 0, 0]
    assert row["decoder_segments"].tolist() == [1] * 8 + [2] * 3 + [0] * 5
    assert row["decoder_positions"].tolist() == [*range(8), 0, 1, 2, 0, 0, 0, 0, 0]
    assert row["targets"].tolist() == [START, MEMORY, MEMORY, MEMORY, END, 8, 9, 0, 21, 22, 0, 0, 0, 0, 0, 0]
    assert row["loss_weights"].tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1, 0.5, 0, 0, 0, 0, 0, 0]
    # Window 0 reads tokens 0..4 (one of right context) and two markers; window 1 reads 3..4 and one marker.
    # Window 1 begins at 7, so that its pooled part starts at 8, a multiple of 2.
    assert row["encoder_tokens"][0, :10].tolist() == [10, 11, 12, 13, 14, 5, 5, 13, 14, 5]
    assert row["encoder_segments"][0].tolist() == [1] * 7 + [2] * 3 + [0] * 14
    assert row["encoder_positions"][0, :10].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert np.flatnonzero(row["pool_weights"]).tolist() == [0, 1, 2, 3, 8]
    assert row["latent_index"].tolist() == [-1, -1, 0, 1, 4, -1, -1, -1] + [-1] * 8
    assert row["latent_segments"].tolist() == [1, 1, 0, 0, 1] + [0] * 7
    assert row["latent_positions"].tolist() == [0, 1, 0, 0, 2] + [0] * 7
    assert row["marker_index"].tolist() == [5, 6, 0, 0, 9] + [0] * 7


parts_ = st.lists(st.tuples(st.sampled_from(["raw", "span"]), st.integers(1, 30)), min_size=1, max_size=4)
models = st.builds(
    lambda ratio, groups, overlap, pooling, mask: model(
        ratio=ratio, window=ratio * groups, overlap=overlap, pooling=pooling, mask=mask
    ),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 6),
    st.integers(0, 8),
    st.sampled_from(["mean", "concat", "eos"]),
    st.sampled_from(["causal", "bidirectional"]),
)


@settings(max_examples=60, deadline=None)
@given(models, st.lists(parts_, max_size=3))
def test_assembly_is_inverted_and_honours_the_contract(config, examples_parts):
    pack = PackConfig(row_length=420, encoder_rows=16, encoder_row_length=128)
    examples = [make_example(parts, config.ratio, seed) for seed, parts in enumerate(examples_parts)]
    try:
        row = assemble_row(examples, config, pack, encoder_pad_id=0)
    except RowError as error:
        assert "do not fit" in str(error)
        return
    for got, wanted in zip(unpack_row(row, config.ratio), examples, strict=True):
        assert np.array_equal(got.tokens, wanted.tokens)
        assert np.array_equal(got.loss, wanted.loss)
        assert all(np.array_equal(a, b) for a, b in zip(got.spans, wanted.spans, strict=True))
    check_row(row, config)


def check_row(row, config):
    """Properties that every packed row has."""
    segments, index = row["decoder_segments"], row["latent_index"]
    last = np.append(segments[1:] != segments[:-1], True)
    assert not row["loss_weights"][last].any()
    assert not row["targets"][last].any()
    weighted = row["loss_weights"][:-1] > 0
    assert np.array_equal(row["targets"][:-1][weighted], row["decoder_tokens"][1:][weighted])
    assert not np.isin(row["targets"][row["loss_weights"] > 0], (START, MEMORY)).any()
    assert np.array_equal(index >= 0, (row["decoder_tokens"] == MEMORY) & (segments > 0))
    used = index[index >= 0]
    assert len(set(used.tolist())) == used.size
    assert np.array_equal(np.sort(used), np.flatnonzero(row["latent_segments"]))
    pooled = row["pool_weights"].reshape(-1, config.ratio).sum(axis=1)
    assert np.array_equal(pooled > 0, row["latent_segments"] > 0)
    windows = row["encoder_segments"]
    assert not row["pool_weights"][windows == 0].any()
    if config.pooling == "eos":
        markers = row["marker_index"][used]
        assert len(set(markers.tolist())) == markers.size
        # A marker is in the window of its group.
        assert np.array_equal(windows.reshape(-1)[markers], windows.reshape(-1)[used * config.ratio])


def test_batches_stack_rows_and_match_the_declared_shapes():
    config, pack = model(ratio=4, window=8), PackConfig(row_length=64, encoder_rows=2, encoder_row_length=32)
    example = make_example([("raw", 3), ("span", 10), ("raw", 5)], 4)
    batch = assemble_batch([[example], [example, example], []], config, pack)
    for name, (shape, dtype) in batch_shapes(config, pack, 3).items():
        assert getattr(batch, name).shape == shape
        assert getattr(batch, name).dtype == dtype
    assert batch.marker_index is None
    assert not batch.decoder_segments[2].any()
    assert (batch.latent_index[2] == -1).all()


def test_spans_with_ratios_of_their_own_written_out():
    config, pack = (
        model(ratio=2, span_ratios=(2, 4), window=4),
        PackConfig(row_length=12, encoder_rows=1, encoder_row_length=16),
    )
    ids = np.arange(10, 15, dtype=np.int32), np.arange(20, 23, dtype=np.int32)
    tokens = np.array([START, MEMORY, MEMORY, END, START, MEMORY, MEMORY, END, 7], np.int32)
    example = Example(tokens, np.zeros(9, np.float32), ids, np.array([4, 2], np.int32))
    row = assemble_row([example], config, pack)
    # Windows of 4, 3 and 1 tokens, each at a multiple of 4; the five tokens of the first span are pooled as 4 and 1.
    assert row["encoder_tokens"][0].tolist() == [10, 11, 12, 13, 20, 21, 22, 0, 14] + [0] * 7
    assert row["latent_segments"].tolist() == [1, 0, 2, 2, 1, 0, 0, 0]
    assert row["latent_positions"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert row["latent_ratios"].tolist() == [4, 0, 2, 2, 4, 0, 0, 0]
    assert row["latent_index"].tolist() == [-1, 0, 4, -1, -1, 2, 3, -1, -1, -1, -1, -1]
    latents, slots = slots_of_latents(row, np.array([0, 2, 3, 4]), 2)
    assert (latents.tolist(), slots.tolist()) == ([0, 0, 2, 3, 4, 4], [0, 1, 2, 3, 4, 5])
    assert [span.tolist() for span in span_tokens(row, 2).values()] == [list(one) for one in ids]
    without = assemble_row([Example(np.array([START, *[MEMORY] * 3, END]), np.zeros(5), ids[:1])], config, pack)
    assert without["latent_ratios"].tolist() == [2, 2, 2, 0, 0, 0, 0, 0]  # the model's, as the example has none
    wrong = Example(tokens, np.zeros(9, np.float32), ids, np.array([8, 2], np.int32))
    with pytest.raises(RowError, match=r"ratio=8 of a span is not one of \[2, 4\]"):
        assemble_row([wrong], config, pack)


def test_what_does_not_fit_is_an_error_with_numbers():
    config, pack = model(ratio=4, window=8), PackConfig(row_length=20, encoder_rows=1, encoder_row_length=16)
    with pytest.raises(RowError, match="21 decoder positions, the row has row_length=20"):
        assemble_row([make_example([("raw", 21)], 4)], config, pack)
    with pytest.raises(RowError, match="17 encoder positions of 1 spans"):
        assemble_row([make_example([("span", 17)], 4)], config, pack)


def test_placeholders_must_match_the_spans():
    config, pack = model(ratio=2, window=8), PackConfig(row_length=64, encoder_rows=2, encoder_row_length=32)
    with pytest.raises(RowError, match="3 placeholders and its spans need 5 at ratio=2"):
        assemble_row([make_example([("raw", 4)], 4), make_example([("span", 10)], 4)], config, pack)
    with pytest.raises(RowError, match="no tokens"):
        assemble_row([make_example([], 4)], config, pack)
    with pytest.raises(RowError, match="memory_token_ids"):
        unset = config.model_copy(update={"memory_token_ids": None})
        assemble_row([make_example([("span", 10)], 2)], unset, pack)


def test_an_empty_span_is_refused():
    config, pack = model(ratio=4, window=8), PackConfig(row_length=16, encoder_rows=1, encoder_row_length=16)
    example = Example(
        np.array([START, MEMORY, END, START, MEMORY, END], np.int32),
        np.zeros(6, np.float32),
        (np.empty(0, np.int32), np.array([3], np.int32)),
    )
    with pytest.raises(LclmError, match="span 0 is empty"):
        assemble_row([example], config, pack)
