"""Prompts from a JSONL file: one object per line, ``{"prompt": text or messages}`` or ``{"messages": [...]}``."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lclm_jax.errors import LclmError
from lclm_jax.types import ReadOnlyJson

Prompt = str | Sequence[ReadOnlyJson]


class PromptError(LclmError):
    """A line that holds no usable prompt; the message names the file, the line and the fix."""


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One prompt of a file."""

    line: int
    """Counted from 1."""
    id: str
    """As given, else the line's number."""
    prompt: Prompt
    extra: ReadOnlyJson = field(default_factory=dict)
    """The line's other keys, passed on to the metadata."""


def read_prompts(path: Path) -> Iterator[PromptLine]:
    """Yield the prompts of ``path`` in order; blank lines are left out.

    Raises ``PromptError``, naming the line, for anything but a JSON object with one non-empty ``prompt`` (a string or
    a list of messages with ``role`` and ``content``) or ``messages``, and for an id that an earlier line has.
    """
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = _read_line(number, line)
                if found.id in seen:
                    raise LclmError(f"id {found.id!r} is that of line {seen[found.id]}; give every prompt its own")
            except LclmError as error:
                raise PromptError(f"{path}, line {number}: {error}") from None
            seen[found.id] = number
            yield found


def _read_line(number: int, line: bytes) -> PromptLine:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LclmError(f"not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    except ValueError as error:
        raise LclmError(f"not JSON ({error}); write one object per line") from None
    if not isinstance(values, dict):
        raise LclmError(f'{type(values).__name__} instead of an object; write {{"prompt": ...}}')
    given = [name for name in ("prompt", "messages") if name in values]
    if len(given) != 1:
        raise LclmError(f"has {' and '.join(given) or 'neither prompt nor messages'}; give exactly one of the two")
    prompt = values.pop(given[0])
    if isinstance(prompt, list):
        _check_messages(prompt)
    elif not isinstance(prompt, str) or given == ["messages"]:
        raise LclmError(f"{given[0]} is {type(prompt).__name__}; give chat messages, or text as prompt")
    if not prompt:
        raise LclmError(f"{given[0]} is empty; give at least one token to continue")
    name = values.pop("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int) or name in ("", "__metadata__"):
        raise LclmError(f"id {name!r} is no usable name; give a text or a whole number")
    return PromptLine(number, str(name), prompt, values)


def _check_messages(messages: list[Any]) -> None:
    for index, message in enumerate(messages):
        fields = message if isinstance(message, dict) else {}
        if not isinstance(fields.get("role"), str) or not isinstance(fields.get("content"), str):
            raise LclmError(f"message {index} lacks a text under role or content; give it both")
