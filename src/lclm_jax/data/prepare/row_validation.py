"""Raw rows to documents and chats: types checked, text made clean, what is broken counted by reason."""

import json
import reprlib
import unicodedata
from typing import Any

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Messages, RawChat, RawText, Row
from lclm_jax.data.prepare.reject_counter import RejectCounter
from lclm_jax.data.prepare.rows.json_values import NotJsonError, plain_value
from lclm_jax.data.prepare.rows.messages import BrokenRow as _Broken
from lclm_jax.data.prepare.rows.messages import messages_of
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START
from lclm_jax.types import JsonObject

_STRETCH = 2**20

TRAIN_ON_PROMPT = "NA_string_only"
"""Target of a row whose prompt is itself the text to train on, memory tags included."""


def document_of(row: Row, collection: CollectionConfig, counter: RejectCounter) -> RawText | None:
    """The document of ``row``: valid UTF-8, form C, from its first line that is not blank; None if it is rejected.

    Reasons: ``missing_column``, ``wrong_type``, ``undecodable``, ``empty``, ``too_long`` (``max_row_bytes``); ``cut``
    counts texts longer than ``max_document_bytes``, which are kept up to the last whole line before it.
    """
    try:
        value = _column(row, collection.columns.text)
        if not isinstance(value, str | bytes):
            raise _Broken("wrong_type", reprlib.repr(value))
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        longest = collection.max_document_bytes
        if longest is None and len(content) > collection.max_row_bytes:
            raise _Broken("too_long", _too_long(len(content), collection))
        if longest is not None and len(content) > longest:
            counter.note("cut")
            content = content[:longest]
            content = content[: content.rfind(b"\n") + 1] or _whole_characters(content)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _Broken("undecodable", content[:200]) from None
        text = _without_blank_start(_form_c(text))
        if not text:
            raise _Broken("empty", "")
        return RawText(_name(row, collection), text, _language(row, collection))
    except _Broken as broken:
        counter.reject(broken.args[0], row.place, broken.args[1])
        return None


def _form_c(text: str) -> str:
    """``text`` in Unicode's form C; a long one by stretches that end with a line, as nothing composes with its end.

    Python takes up to twelve bytes a character while it normalizes.
    """
    parts, start = [], 0
    while (stop := text.find("\n", start + _STRETCH) + 1) > 0:
        parts.append(unicodedata.normalize("NFC", text[start:stop]))
        start = stop
    last = unicodedata.normalize("NFC", text[start:])
    return "".join([*parts, last]) if parts else last


def chat_of(row: Row, collection: CollectionConfig, counter: RejectCounter) -> RawChat | None:
    """The chat of ``row`` (prompt and target, messages, or context, question and answer); None if it is rejected.

    Reasons: ``missing_column``, ``wrong_type``, ``invalid_json``, ``unsupported_content``, ``no_reply``,
    ``undecodable``, ``empty``, ``too_long``.
    """
    try:
        names, has = collection.columns, row.values
        if has.get(names.prompt) is not None:
            messages, tools, tagged = _prompted(row, collection)
        elif has.get(names.messages) is not None:
            messages, tools, tagged = _messages(row, names.messages, collection), _tools(row, collection), None
        elif has.get(names.question) is not None:
            messages, tools, tagged = _asked(row, collection), None, None
        else:
            raise _missing(row, f"{names.prompt}, {names.messages} or {names.question}")
        if tagged is None and (not messages or messages[-1]["role"] != "assistant"):
            raise _Broken("no_reply", messages[-1:])
        size = sum(len(message["content"]) for message in messages)
        if size > collection.max_row_bytes:
            raise _Broken("too_long", _too_long(size, collection))
        return RawChat(_name(row, collection), messages, tools, tagged, _language(row, collection))
    except _Broken as broken:
        counter.reject(broken.args[0], row.place, broken.args[1])
        return None


def _prompted(row: Row, collection: CollectionConfig) -> tuple[Messages, list[JsonObject] | None, str | None]:
    names = collection.columns
    messages, target = _messages(row, names.prompt, collection), _plain(_column(row, names.target), names.target)
    if not isinstance(target, str):
        raise _Broken("wrong_type", target)
    if target == TRAIN_ON_PROMPT:
        text = "".join(message["content"] for message in messages if message["role"] == "user")
        if not text.strip():
            raise _Broken("empty", messages)
        return messages, None, unicodedata.normalize("NFC", text)
    if not target:
        raise _Broken("empty", "")
    return [*messages, {"role": "assistant", "content": target}], _tools(row, collection), None


def _asked(row: Row, collection: CollectionConfig) -> Messages:
    names = collection.columns
    passages, question, answer = (
        _plain(_column(row, name), name) for name in (names.context, names.question, names.answer)
    )
    passages = [passages] if isinstance(passages, str) else passages
    if not (isinstance(passages, list) and all(isinstance(one, str) for one in (*passages, question, answer))):
        raise _Broken("wrong_type", reprlib.repr(row.values))
    spans = [f"{MEMORY_START}{passage}{MEMORY_END}\n" for passage in passages if passage.strip()]
    if not (spans and question.strip() and answer.strip()):
        raise _Broken("empty", row.values)
    content = "".join(spans) + "\n" + question
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def _messages(row: Row, column: str, collection: CollectionConfig) -> Messages:
    """The messages in ``column``, after that of the system column if the row has it."""
    messages = messages_of(_values(row, column, collection), collection.message)
    system = collection.columns.system
    text = None if system is None else _plain(row.values.get(system), system)
    if not (text is None or isinstance(text, str)):
        raise _Broken("wrong_type", f"{system}: {text!r}")
    return [{"role": "system", "content": text}, *messages] if text else messages


def _tools(row: Row, collection: CollectionConfig) -> list[JsonObject] | None:
    tools = _values(row, collection.columns.tools, collection)
    if tools is None or isinstance(tools, list):
        return tools or None
    raise _Broken("wrong_type", tools)


def _values(row: Row, column: str, collection: CollectionConfig) -> Any:
    """What ``column`` holds, or the JSON that is its text; Arrow's padding is undone."""
    value, padded = row.values.get(column), collection.format in ("parquet", "arrow")
    if isinstance(value, str):
        try:
            value, padded = json.loads(value), False
        except (ValueError, RecursionError):
            raise _Broken("invalid_json", value) from None
    return _plain(value, "messages" if column != collection.columns.tools else "tools", padded)


def _plain(value: object, path: str, padded: bool = False) -> Any:
    try:
        return plain_value(value, path, padded)
    except NotJsonError as error:
        raise _Broken(*error.args) from None


def _column(row: Row, name: str) -> Any:
    value = row.values.get(name)
    if value is None:
        raise _missing(row, name)
    return value


def _too_long(size: int, collection: CollectionConfig) -> str:
    return f"{size:,} bytes are above max_row_bytes={collection.max_row_bytes:,}; raise it or shorten the row"


def _missing(row: Row, name: str) -> _Broken:
    return _Broken(
        "missing_column", f"{name} is missing or null; the columns are: {', '.join(sorted(row.columns or row.values))}"
    )


def _name(row: Row, collection: CollectionConfig) -> str:
    """The row's own name, or its place."""
    column = collection.columns.id
    return row.place if column is None or row.values.get(column) is None else _plain(str(row.values[column]), column)


def _language(row: Row, collection: CollectionConfig) -> str:
    """What the column of languages says; empty where it says nothing."""
    value = row.values.get(collection.columns.language or "")
    return value if isinstance(value, str) else ""


def _whole_characters(content: bytes) -> bytes:
    """``content`` without the beginning of a character that was cut in two."""
    for back in range(1, min(4, len(content)) + 1):
        if content[-back] & 0xC0 != 0x80:  # not a continuation byte: the last character starts here
            width = 1 + (content[-back] >= 0xC0) + (content[-back] >= 0xE0) + (content[-back] >= 0xF0)
            return content if width == back else content[:-back]
    return content


def _without_blank_start(text: str) -> str:
    """Drop blank lines before the first line (its indentation stays); empty if nothing else is there."""
    body = text.lstrip()
    if not body:
        return ""
    start = len(text) - len(body)
    return text[text.rfind("\n", 0, start) + 1 :]
