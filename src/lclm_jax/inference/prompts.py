"""Prompts from a JSONL file: one object per line, ``{"prompt": text or messages}`` or ``{"messages": [...]}``."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lclm_jax.config import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.text.example import Example, prompt_example
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import JsonObject, ReadOnlyJson

Prompt = str | Sequence[ReadOnlyJson]

MAX_ID = 1000
"""Characters of an id."""

_HALF = re.compile("[\ud800-\udfff]")


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
    a list of messages with ``role`` and ``content``) or ``messages``, for values that JSON cannot write again (half
    characters, NaN), for a key that stands twice, and for an id that an earlier line has.
    """
    if path.exists() and not path.is_dir() and not path.is_file():
        raise PromptError(f"{path} is a pipe or a device; prompts are read more than once: write them to a file")
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


def read_example(prompt: Prompt, tokenizers: Tokenizers, model: ModelConfig) -> Example:
    """Tokens and spans of a prompt: text as it is, or chat messages; memory tags inside either.

    Raises ``LclmError`` on half characters, unbalanced or nested tags, empty spans, prompts without any token, and
    tokens that a table of the model lacks.
    """
    check_characters(prompt, "the prompt")
    example = prompt_example(prompt, *tokenizers, model.ratio)
    if not len(example.tokens):
        raise LclmError("the prompt is empty; give at least one to continue")
    check_ids(example, tokenizers, model)
    return example


def check_ids(example: Example, tokenizers: Tokenizers, model: ModelConfig) -> None:
    """Raise ``LclmError`` for a token without a row in the table that it is looked up in; a device would clamp it."""
    texts = [("the prompt", "decoder", example.tokens, tokenizers.decoder, model.decoder.vocab_size)]
    for number, span in enumerate(example.spans, 1):
        texts.append((f"memory span {number}", "encoder", span, tokenizers.encoder, model.encoder.vocab_size))
    for what, tower, ids, tokenizer, rows in texts:
        beyond = ids[np.asarray(ids) >= rows]
        if len(beyond):
            raise LclmError(
                f"{what} has {tokenizer.decode(beyond[:1])!r}, token {beyond[0]} of the {tower}'s tokenizer, but its"
                f" embedding table has {rows} rows; leave that text out, or import the {tower} with a larger table"
            )


def check_characters(value: object, what: str = "") -> None:
    """Raise ``LclmError`` if a text anywhere in a JSON ``value`` holds half of a surrogate pair, which is no character.

    ``what``: how to call the value.
    """
    if isinstance(value, str):
        half = _HALF.search(value)
        if half:
            raise LclmError(
                f"{what} holds half a character ({ascii(half.group())[1:-1]} at character {half.start()}), which is no"
                " Unicode text; write the whole character, or leave it out"
            )
    elif isinstance(value, dict):
        for name, one in value.items():
            check_characters(name, "a key")
            check_characters(one, what if name in ("role", "content") else name)
    elif isinstance(value, list | tuple):
        for one in value:
            check_characters(one, what)


def _read_line(number: int, line: bytes) -> PromptLine:
    try:
        # Editors of Windows begin a file with a byte order mark.
        values = _parse(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise LclmError(f"not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    if not isinstance(values, dict):
        raise LclmError(f'{type(values).__name__} instead of an object; write {{"prompt": ...}}')
    given = [name for name in ("prompt", "messages") if name in values]
    if len(given) != 1:
        raise LclmError(f"has {' and '.join(given) or 'neither prompt nor messages'}; give exactly one of the two")
    for name, value in values.items():
        check_characters(name, "a key")
        check_characters(value, name)
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
    if len(str(name)) > MAX_ID:
        raise LclmError(f"id {str(name)[:40]!r}... has {len(str(name))} characters, at most {MAX_ID} are kept")
    return PromptLine(number, str(name), prompt, values)


def _parse(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> JsonObject:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise LclmError(f"the key {twice!r} stands twice in one object; give it once")
        return values

    def no_number(name: str) -> NoReturn:
        raise LclmError(f"{name} is no JSON number; write null or a text")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=no_number)
    except ValueError as error:
        raise LclmError(f"not JSON ({error}); write one object per line") from None
    except RecursionError:
        raise LclmError("not JSON that can be read (too deeply nested); write one flat object per line") from None


def _check_messages(messages: list[Any]) -> None:
    for index, message in enumerate(messages):
        fields = message if isinstance(message, dict) else {}
        if not isinstance(fields.get("role"), str) or not isinstance(fields.get("content"), str):
            raise LclmError(f"message {index} lacks a text under role or content; give it both")
