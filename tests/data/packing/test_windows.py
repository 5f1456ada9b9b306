import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import BackboneConfig, ModelConfig, PackConfig
from lclm_jax.data.packing.windows import (
    marker_tokens,
    place_types,
    place_windows,
    plan_spans,
    plan_windows,
    window_types,
)
from lclm_jax.errors import LclmError

CASES = sorted(Path(__file__).parents[4].joinpath("shared/reference/cases").glob("*/case.json"))
TINY = BackboneConfig(vocab_size=64, hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8)


def model(**values):
    return ModelConfig(encoder=TINY, decoder=TINY, memory_token_ids=(61, 62, 63), **values)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)
def test_windows_of_the_golden_cases(path):
    case = json.loads(path.read_text())
    settings_ = case["model_config"]
    config = model(
        ratio=settings_["compression_ratio"],
        window=settings_["encoder_window_size"],
        overlap=settings_["boundary_overlap"],
        pooling=settings_["pooling"],
        mask=settings_["encoder_mask_type"],
    )
    for sample in case["samples"]:
        for tokens, expected, count in zip(
            sample["memory_token_ids"], sample["windows"], sample["latent_counts"], strict=True
        ):
            if not tokens:
                continue
            windows = plan_windows(len(tokens), config)
            assert sum(-(-w.pool_len // config.ratio) for w in windows) == count
            assert len(windows) == len(expected)
            for window, reference in zip(windows, expected, strict=True):
                ids = tokens[window.left : window.right]
                assert reference["input_ids"][: len(ids)] == ids
                assert len(reference["input_ids"]) == window.length
                assert (reference["pool_start"], reference["pool_len"]) == (window.pool_start, window.pool_len)
                assert reference["markers"] == list(range(len(ids), window.length))


def test_an_empty_span_is_refused():
    with pytest.raises(LclmError, match="span 1 is empty"):
        plan_spans([3, 0], model(ratio=4, window=8))


models = st.builds(
    lambda ratio, groups, overlap, pooling, mask: model(
        ratio=ratio, window=ratio * groups, overlap=overlap, pooling=pooling, mask=mask
    ),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 6),
    st.integers(0, 20),
    st.sampled_from(["mean", "concat", "eos"]),
    st.sampled_from(["causal", "bidirectional"]),
)


@settings(max_examples=60, deadline=None)
@given(models, st.lists(st.integers(1, 90), max_size=6), st.integers(1, 6))
def test_places_are_aligned_disjoint_and_inside_a_row(config, lengths, encoder_rows):
    pack = PackConfig(row_length=64, encoder_rows=encoder_rows, encoder_row_length=96 // config.ratio * config.ratio)
    table = plan_spans(lengths, config)
    offsets = place_windows(table, config.ratio, pack)
    assert (offsets is None) == (place_types(window_types(table), config.ratio, pack) is None)
    if offsets is None:
        return
    assert not ((offsets + table.context) % config.ratio).any()
    taken = np.zeros(pack.encoder_rows * pack.encoder_row_length, int)
    slots = []
    for i, offset in enumerate(offsets):
        first, last = offset // pack.encoder_row_length, (offset + table.storage[i] - 1) // pack.encoder_row_length
        assert first == last
        taken[offset : offset + table.storage[i]] += 1
        slot = (offset + table.context[i]) // config.ratio
        slots += range(slot, slot + table.latents[i])
    assert taken.max(initial=0) <= 1
    assert len(set(slots)) == len(slots) == sum(-(-n // config.ratio) for n in lengths)


def test_windows_tile_the_span_and_never_read_past_its_ends():
    config = model(ratio=4, window=8, overlap=6, mask="bidirectional")
    windows = plan_windows(21, config)
    assert [(w.left, w.start, w.stop, w.right) for w in windows] == [(0, 0, 8, 14), (2, 8, 16, 21), (10, 16, 21, 21)]


def test_many_equal_windows_are_placed_without_a_loop_over_them():
    config = model(ratio=16, window=16)
    pack = PackConfig(encoder_rows=16, encoder_row_length=1024)
    table = plan_spans([16 * 1024], config)
    assert len(window_types(table)) == 1
    assert sorted(place_windows(table, 16, pack)) == list(range(0, 16 * 1024, 16))


def test_learned_markers_are_numbered_in_their_window():
    counts = np.array([2, 0, 3])
    assert marker_tokens(counts, model(pooling="slots"), None).tolist() == [64, 65, 64, 65, 66]
    assert marker_tokens(counts, model(pooling="eos"), 5).tolist() == [5] * 5
    with pytest.raises(LclmError, match="pooling=eos marks latents with the encoder's pad token"):
        marker_tokens(counts, model(pooling="eos"), None)
