import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.config import PackConfig
from lclm_jax.data.packing import RowPacker
from lclm_jax.data.windows import place_types


def pack_all(examples, ratio, pack):
    packer, rows, dropped = RowPacker(ratio, pack), [], []
    for i, (tokens, types) in enumerate(examples):
        if packer.rejects(tokens, types):
            dropped.append(i)
        elif (closed := packer.add(i, tokens, types)) is not None:
            rows.append(closed)
    return rows, packer.flush(), dropped


types_ = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 5), st.integers(1, 3)), max_size=2, unique_by=lambda t: t[:2]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 120), types_), max_size=60), st.integers(1, 5), st.sampled_from([1, 4]))
def test_every_example_is_in_one_row_that_fits_or_is_dropped(examples, lookahead, ratio):
    pack = PackConfig(row_length=100, encoder_rows=2, encoder_row_length=64, lookahead=lookahead)
    examples = [
        (tokens, sorted(((max(s, c + 1), c, n) for s, c, n in types), key=lambda t: (-t[0], t[1])))
        for tokens, types in examples
    ]
    examples = [(tokens, types) for tokens, types in examples if len({t[:2] for t in types}) == len(types)]
    rows, last, dropped = pack_all(examples, ratio, pack)
    assert len(last) <= lookahead
    assert sorted([i for row in rows + last for i in row] + dropped) == list(range(len(examples)))
    for row in rows + last:
        assert sum(examples[i][0] for i in row) <= 100
        merged = {}
        for i in row:
            for size, context, count in examples[i][1]:
                merged[-size, context] = merged.get((-size, context), 0) + count
        assert place_types([(-s, c, n) for (s, c), n in sorted(merged.items())], ratio, pack) is not None


def test_a_longer_run_only_appends_rows():
    rng = np.random.default_rng(0)
    examples = [(int(n), [(int(n) // 2 + 1, 0, 1)]) for n in rng.integers(10, 90, 400)]
    pack = PackConfig(row_length=256, encoder_rows=2, encoder_row_length=128, lookahead=8)
    short, long = pack_all(examples[:200], 4, pack)[0], pack_all(examples, 4, pack)[0]
    assert long[: len(short)] == short


def test_rows_are_nearly_full():
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 90, 2000)
    rows, _, _ = pack_all([(int(n), []) for n in sizes], 4, PackConfig(row_length=256, lookahead=64))
    assert np.mean([sum(sizes[row]) for row in rows]) > 0.98 * 256


def test_reasons_to_drop_an_example():
    packer = RowPacker(4, PackConfig(row_length=16, encoder_rows=1, encoder_row_length=32))
    assert packer.rejects(17, []) == "longer_than_row"
    assert packer.rejects(16, [(20, 0, 2)]) == "windows_exceed_row"
    assert packer.rejects(16, [(16, 0, 2)]) is None
