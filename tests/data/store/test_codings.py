import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lclm_jax.data.store.codings import CODINGS, decode_list, decode_varints, encode_varints
from lclm_jax.data.store.columns import Ragged
from lclm_jax.errors import LclmError

PLACES = st.sets(st.integers(0, 300), min_size=1).map(sorted)
LISTS = {
    "varint": st.lists(st.integers(0, 2**32 - 1), max_size=20),
    "bits": PLACES,
    "deltas": st.lists(st.integers(0, 2**20), max_size=20).map(sorted),
    "flags": st.lists(st.sampled_from([0, 0, 0, 0, 1, 3, 4, 7]), max_size=60),
}


@pytest.mark.parametrize("coding", CODINGS)
@settings(deadline=None)
@given(data=st.data())
def test_lists_come_back_alone_and_end_to_end(coding, data):
    lists = data.draw(st.lists(LISTS[coding], max_size=6))
    encode, decode = CODINGS[coding]
    coded = [encode(np.array(one, np.int64)) for one in lists]
    for one, stored in zip(lists, coded, strict=True):
        assert stored.dtype == np.uint8
        assert decode_list(coding, stored).tolist() == one
    sizes = np.array([len(one) for one in coded], np.int64)
    found = decode(Ragged.from_sizes(sizes, np.concatenate([np.zeros(0, np.uint8), *coded])))
    assert [found.list(i).tolist() for i in range(len(lists))] == lists


def test_the_bytes_of_varints():
    assert encode_varints(np.array([0, 127, 128, 16_383, 16_384, 2**32 - 1])).tolist() == [
        *[0], *[127], *[128, 1], *[255, 127], *[128, 128, 1], *[255, 255, 255, 255, 15],
    ]  # fmt: skip


@pytest.mark.parametrize("data", [[128], [1, 255], [128, 128, 128, 128, 128, 1]])
def test_broken_varints_are_errors(data):
    with pytest.raises(LclmError, match="whole variable-length integers"):
        decode_varints(np.array(data, np.uint8))


def test_what_a_coding_cannot_hold_is_refused():
    with pytest.raises(LclmError, match="do not ascend"):
        CODINGS["bits"][0](np.array([3, 1]))
    with pytest.raises(LclmError, match="3 bits"):
        CODINGS["flags"][0](np.array([0, 8]))
