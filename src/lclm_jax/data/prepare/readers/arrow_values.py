"""Rows of Arrow as Python values."""

import pyarrow as pa

from lclm_jax.types import JsonObject


def python_rows(batch: pa.RecordBatch) -> list[JsonObject]:
    """The rows of ``batch`` as dicts; at any depth maps are dicts too, and times are in UTC and of microseconds.

    Raises:
        UnicodeDecodeError: Text is not UTF-8.
        ValueError, OverflowError: A map has a key twice, or a time is beyond what Python can say.
    """
    fields = [field.with_type(_python_type(field.type)) for field in batch.schema]
    if fields != list(batch.schema):
        columns = [column.cast(field.type, safe=False) for column, field in zip(batch.columns, fields, strict=True)]
        batch = pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        raise ValueError(str(error)) from None


def _python_type(type_: pa.DataType) -> pa.DataType:
    """``type_`` with nanoseconds, which Python's times lack, as microseconds, and without time zones."""
    if pa.types.is_timestamp(type_):  # a zone would need the machine's table of zones
        return pa.timestamp("us" if type_.unit == "ns" else type_.unit)
    if pa.types.is_duration(type_) and type_.unit == "ns":
        return pa.duration("us")
    if pa.types.is_time64(type_) and type_.unit == "ns":
        return pa.time64("us")
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_python_type(field.type)) for field in type_])
    if pa.types.is_map(type_):
        return pa.map_(_python_type(type_.key_type), type_.item_field.with_type(_python_type(type_.item_type)))
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        made = pa.list_ if pa.types.is_list(type_) else pa.large_list
        return made(type_.value_field.with_type(_python_type(type_.value_type)))
    return type_
