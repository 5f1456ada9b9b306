import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import ModelConfig, PackConfig
from lclm_jax.data.packing.row_packer import ExampleWindows, RowPacker
from lclm_jax.data.packing.windows import place_windows, plan_spans
from lclm_jax.data.store.columns import Ragged

TOWER = dict(hidden_size=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_size=8, vocab_size=16)


def model(**changes):
    return ModelConfig(**{"encoder": TOWER, "decoder": TOWER, "ratio": 4, "window": 32} | changes)


def pack_all(tokens, spans, model, pack):
    """(rows, reasons by example)."""
    packer, windows = RowPacker(model.ratio, pack), ExampleWindows(spans, model)
    usable, reasons = packer.find_packable(tokens, windows)
    return packer.pack(usable, tokens, windows), reasons


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 120), st.lists(st.integers(1, 90), max_size=3)), max_size=60),
    st.sampled_from([{}, {"overlap": 5}, {"overlap": 3, "mask": "bidirectional"}, {"pooling": "eos"}, {"ratio": 1}]),
)
def test_every_example_is_in_one_row_that_fits_or_is_dropped(examples, changes):
    shape, pack = model(**changes), PackConfig(row_length=100, encoder_rows=2, encoder_row_length=64)
    tokens = np.array([length for length, _ in examples], np.int64)
    sizes = np.array([len(spans) for _, spans in examples], np.int64)
    spans = Ragged.from_sizes(sizes, np.array([one for _, spans in examples for one in spans], np.int64))
    rows, reasons = pack_all(tokens, spans, shape, pack)
    assert sorted([i for row in rows for i in row] + list(reasons)) == list(range(len(examples)))
    for row in rows:
        assert tokens[row].sum() <= 100
        assert place_windows(plan_spans(spans.take(row).values, shape), shape.ratio, pack) is not None
    for i, reason in reasons.items():
        fits = place_windows(plan_spans(spans.list(i), shape), shape.ratio, pack) is not None
        assert reason == ("longer_than_row" if tokens[i] > 100 else "windows_exceed_row")
        assert tokens[i] > 100 or not fits


def test_both_budgets_run_out_together():
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 90, 3000)
    spans = Ragged.from_sizes(np.ones(3000, int), np.maximum(1, tokens * rng.uniform(0, 2, 3000)).astype(int))
    pack = PackConfig(row_length=1024, encoder_rows=9, encoder_row_length=128)
    rows, reasons = pack_all(tokens, spans, model(window=128), pack)
    assert not reasons
    assert sum(tokens) / (len(rows) * 1024) > 0.98
    assert spans.values.sum() / (len(rows) * 9 * 128) > 0.85


def test_rows_hold_examples_of_one_group_alone():
    rng = np.random.default_rng(0)
    tokens, groups = rng.integers(10, 90, 300), rng.integers(0, 3, 300)
    spans = Ragged.from_sizes(np.ones(300, int), np.maximum(1, tokens // 2))
    packer = RowPacker(4, PackConfig(row_length=256, encoder_rows=2, encoder_row_length=128))
    windows = ExampleWindows(spans, model())
    some = np.arange(0, 300, 2)
    rows = packer.pack_apart(some, groups, tokens, windows)
    assert sorted(i for row in rows for i in row) == some.tolist()
    assert all(len(set(groups[row])) == 1 for row in rows)
    together = packer.pack_apart(some, np.zeros(300, int), tokens, windows)
    assert together == packer.pack(some, tokens, windows), "one group is packed as ever"


@pytest.mark.parametrize("room", [1024, 200])
def test_rows_are_nearly_full(room):
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 90, 2000)
    rows, _ = pack_all(
        tokens, Ragged.from_sizes(np.zeros(2000, int), np.zeros(0, int)), model(), PackConfig(row_length=room)
    )
    assert tokens.sum() / (len(rows) * room) > 0.98


def test_packing_is_a_pure_function():
    rng = np.random.default_rng(1)
    tokens, spans = rng.integers(1, 90, 200), Ragged(np.arange(201), rng.integers(1, 90, 200))
    pack = PackConfig(row_length=256, encoder_rows=4, encoder_row_length=64)
    assert pack_all(tokens, spans, model(), pack) == pack_all(tokens, spans, model(), pack)
    assert pack_all(tokens[:0], spans.take([]), model(), pack) == ([], {})


def test_reasons_to_drop_an_example():
    packer = RowPacker(4, PackConfig(row_length=16, encoder_rows=1, encoder_row_length=32))
    assert packer.reject_reason(17, []) == "longer_than_row"
    assert packer.reject_reason(16, [(20, 0, 2)]) == "windows_exceed_row"
    assert packer.reject_reason(16, [(16, 0, 2)]) is None
