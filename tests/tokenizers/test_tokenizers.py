"""Published tokenizers, as ``make test-tokenizers`` fetches them: cuts and round trips hold, or they are refused."""

import functools

import pytest
from tests.tokenizers.measure import FOLDER, folders, measure

if not folders():
    pytest.skip(f"no tokenizers in {FOLDER}; run make test-tokenizers", allow_module_level=True)

measured = functools.cache(measure)


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_a_tokenizer_holds_or_is_refused(folder):
    row = measured(folder)
    if row.refused:
        assert row.name in row.refused and "Traceback" not in row.refused
        return
    assert not row.unstable and row.pieces > 100
    assert not row.lost
    assert row.cuts > 1, "spans can be cut"
    assert len(row.memory) == len(set(row.memory)) == 3
