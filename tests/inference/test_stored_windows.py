"""What a store has is not encoded again, and what it gives is what was encoded."""

import numpy as np
import pytest
from tests.tiny_exports import tiny_export

from lclm_jax.errors import LclmError
from lclm_jax.inference.generate import Generator
from lclm_jax.inference.stored_windows import open_store

SPANS = [np.arange(3, 100) % 300, np.arange(7), np.arange(50, 82)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_export("overlap", tmp_path_factory.mktemp("stored") / "model")


def pooled(generator, spans=SPANS):
    counts = []
    return generator.encoder.pooled(spans, counts.append), sum(counts)


def test_stored_windows_are_not_encoded_again(folder, tmp_path):
    plain, windows = pooled(Generator.from_folder(folder))
    assert windows == 7 + 1 + 2
    first = Generator.from_folder(folder, store=tmp_path / "s")
    for expected in (windows, 0):
        found, encoded = pooled(first)
        assert encoded == expected
        for one, other in zip(found, plain, strict=True):
            np.testing.assert_array_equal(one, other)
    # A span that grew at its end: its last window, which reads no further than before, changes alone.
    grown = [np.append(SPANS[0], [5, 6])]
    found, encoded = pooled(Generator.from_folder(folder, store=tmp_path / "s"), grown)
    assert encoded == 1
    np.testing.assert_allclose(found[0], pooled(Generator.from_folder(folder), grown)[0][0], atol=1e-6)


def test_windows_of_another_ratio_are_others(folder, tmp_path):
    spans = [np.arange(9)]  # three vectors by 3 and by 4: shapes do not tell them apart
    for ratio in (3, 4):
        changes = dict(ratio=ratio, window=48)
        plain, _ = pooled(Generator.from_folder(folder, **changes), spans)
        found, encoded = pooled(Generator.from_folder(folder, store=tmp_path / "s", **changes), spans)
        assert encoded == 1
        np.testing.assert_array_equal(found[0], plain[0])
    with pytest.raises(LclmError, match="mask=bidirectional"):
        Generator.from_folder(folder, store=tmp_path / "s", mask="bidirectional")


def test_a_file_that_is_no_store_is_refused(folder, tmp_path):
    (tmp_path / "s").write_text("no store" * 1000)
    with pytest.raises(LclmError, match="delete it"):
        open_store(tmp_path / "s")
    with pytest.raises(LclmError, match="float16"):
        Generator.from_folder(folder, store=tmp_path / "new", store_code="float16")
