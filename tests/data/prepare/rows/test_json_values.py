import datetime
import decimal
import uuid

import pyarrow as pa
import pytest

from lclm_jax.data.prepare.readers.arrow_values import python_rows
from lclm_jax.data.prepare.rows.json_values import NotJsonError, plain_value


def test_values_that_json_lacks_become_text_or_go():
    value = {
        "date": datetime.date(2024, 1, 2),
        "time": datetime.datetime(2024, 1, 2, 3, 4),
        "price": decimal.Decimal("1.50"),
        "wait": datetime.timedelta(seconds=90),
        "id": uuid.UUID(int=5),
        "bytes": b"caf\xc3\xa9",
        "picture": b"\xff\xd8",
        "missing": float("nan"),
        "far": float("-inf"),
        3: [1, 2.5, None, True],
    }
    assert plain_value(value, "m", padded=False) == {
        "date": "2024-01-02",
        "time": "2024-01-02T03:04:00",
        "price": "1.50",
        "wait": "0:01:30",
        "id": "00000000-0000-0000-0000-000000000005",
        "bytes": "café",
        "far": "-Infinity",
        "3": [1, 2.5, None, True],
    }


def test_nulls_are_padding_in_arrow_alone():
    value = {"call": {"city": "Oslo", "unit": None, "list": [None, {"a": None}]}}
    assert plain_value(value, "m", padded=True) == {"call": {"city": "Oslo", "list": [None, {}]}}
    assert plain_value(value, "m", padded=False) == value


def test_the_key_path_is_named():
    with pytest.raises(NotJsonError) as caught:
        plain_value({"calls": [{"args": {"q": "x" * 500 + "\ud800" + "y" * 500}}]}, "messages[1]", padded=False)
    reason, shown = caught.value.args
    assert reason == "undecodable"
    assert shown.startswith(r"messages[1].calls[0].args.q: 'xxx")
    assert r"\ud800" in shown[:200]
    with pytest.raises(NotJsonError, match=r"m.a: object is no JSON"):
        plain_value({"a": object()}, "m", padded=False)
    deep = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(NotJsonError, match="nested deeper than 64"):
        plain_value(deep, "m", padded=False)


def test_arrow_rows_have_maps_as_dicts_and_times_that_python_has():
    inner = pa.struct([("args", pa.map_(pa.string(), pa.map_(pa.string(), pa.int64()))), ("at", pa.timestamp("ns"))])
    rows = [[{"args": [("a", [("b", 1)])], "at": 1_700_000_000_123_456_789}], None]
    batch = pa.record_batch([pa.array(rows, pa.list_(inner))], names=["m"])
    at = datetime.datetime(2023, 11, 14, 22, 13, 20, 123456)
    assert python_rows(batch) == [{"m": [{"args": {"a": {"b": 1}}, "at": at}]}, {"m": None}]
    zoned = pa.record_batch([pa.array([0], pa.timestamp("s", "America/New_York"))], names=["t"])
    assert python_rows(zoned) == [{"t": datetime.datetime(1970, 1, 1)}]
    twice = pa.record_batch([pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))], names=["m"])
    with pytest.raises(ValueError, match="duplicate key"):
        python_rows(twice)
