import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lclm_jax.data.store.columns import column_text, text_column
from lclm_jax.data.store.shards import PreparedError, PreparedSplit, decode_record, encode_record
from lclm_jax.errors import LclmError

DTYPES = st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32, np.int64, np.float32])
COLUMN = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, st.integers(0, 20)))


@settings(deadline=None)
@given(st.dictionaries(st.text(st.characters(categories=("Ll", "Nd")), min_size=1), COLUMN, max_size=5))
def test_records_come_back_as_they_went(columns):
    data = encode_record(columns)
    again = decode_record(data)
    assert again.keys() == columns.keys()
    for name, column in columns.items():
        assert again[name].dtype == column.dtype
        np.testing.assert_array_equal(again[name], column)
    assert encode_record(dict(reversed(columns.items()))) == data


@settings(deadline=None)
@given(st.text())
def test_text_columns(text):
    text = text.encode("utf-8", "ignore").decode()
    assert column_text(text_column(text)) == text


@pytest.mark.parametrize("column", [np.zeros((2, 2)), np.array(["a"]), np.array([object()])])
def test_only_plain_one_dimensional_columns(column):
    with pytest.raises(LclmError, match="1-D numeric"):
        encode_record({"c": column})


def test_damaged_record_is_an_error():
    with pytest.raises(PreparedError, match="prepare the data again"):
        decode_record(b"\x80\x04N.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "has format None; this version reads 2 and 3"),
        ('{"format": 1}', "has format 1; this version reads 2 and 3"),
        ('{"format": 2, "collections": {}}', "holds no a/train; prepared: nothing"),
        ('{"format": 2, "collections": {"a": {"train": {"shards": [{}]}}}}', "damaged where it lists a/train"),
    ],
)
def test_a_damaged_manifest_is_an_error(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(PreparedError, match=message):
        PreparedSplit(tmp_path, "a", "train")
