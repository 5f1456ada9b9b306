"""Values of rows as JSON has them, so that a chat template sees what JSON lines would have given it.

Arrow (Parquet, datasets) fills every object of a column up to the same keys with nulls, and has types that JSON lacks.
"""

import datetime
import decimal
import math
import uuid
from collections.abc import Mapping
from typing import Any

from lclm_jax.types import Json

_DEEPEST = 64
_SHOWN = 120


class NotJsonError(Exception):
    """A value that JSON cannot have: (reason, what it is with the path of its keys)."""


def plain_value(value: Any, path: str, padded: bool) -> Json:
    """``value`` as JSON has it.

    Times and dates become text in ISO form, decimals, durations and UUIDs text, bytes the text that they are in UTF-8.
    Infinities become the text ``Infinity``. In an object, a key is dropped whose value is not-a-number or bytes that
    are no text, and, if ``padded``, null.

    Args:
        value: What a reader gave.
        path: The keys that lead to it, for messages.
        padded: Whether Arrow may have filled objects up with nulls.

    Raises:
        NotJsonError: Half characters, values nested deeper than 64, or of another type.
    """
    return _plain(value, path, padded, 0)


def _plain(value: Any, path: str, padded: bool, depth: int) -> Json:
    if isinstance(value, str):
        return _whole_text(value, path)
    if value is None or isinstance(value, bool | int):
        return value
    if depth > _DEEPEST:
        raise NotJsonError("wrong_type", f"{path[:_SHOWN]}: nested deeper than {_DEEPEST}")
    if isinstance(value, Mapping):
        made = {}
        for key, part in value.items():
            name = _whole_text(key if isinstance(key, str) else _key(key), path)
            below = f"{path}.{name}"
            if _is_absent(part) or (part is None and padded):
                continue
            made[name] = _plain(part, below, padded, depth + 1)
        return made
    if isinstance(value, list | tuple):
        return [_plain(part, f"{path}[{i}]", padded, depth + 1) for i, part in enumerate(value)]
    return _scalar(value, path)


def _scalar(value: Any, path: str) -> Json:
    if isinstance(value, float):
        return (
            value if math.isfinite(value) else None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        )
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta | uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        return None if (text := _text_of(value)) is None else text
    raise NotJsonError("wrong_type", f"{path}: {type(value).__name__} is no JSON: {value!r:.{_SHOWN}}")


def _is_absent(value: Any) -> bool:
    if isinstance(value, bytes):
        return _text_of(value) is None
    return isinstance(value, float) and math.isnan(value)


def _text_of(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _key(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _whole_text(text: str, path: str) -> str:
    """``text``, unless it holds half characters (lone surrogates), which JSON can write and UTF-8 cannot."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            around = text[max(0, error.start - 30) : error.start + 30]
            raise NotJsonError("undecodable", f"{path}: {around!r} holds half a character") from None
    return text
