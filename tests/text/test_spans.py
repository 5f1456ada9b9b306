import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lclm_jax.text.spans import snap


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 12), st.integers(1, 60))
def test_snap_takes_the_nearest_later_cut(gaps, start, length):
    cuts = np.cumsum([0, *gaps])
    start = min(start, len(cuts) - 1)
    found = snap(cuts, start, length)
    if start == len(cuts) - 1:
        assert found == start
    else:
        distances = abs(cuts[start + 1 :] - cuts[start] - length)
        assert found == start + 1 + int(distances.argmin())
