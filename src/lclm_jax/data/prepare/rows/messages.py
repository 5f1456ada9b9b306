"""Messages of a chat as templates want them: a role, a text, and what else a row has."""

from typing import Any

from lclm_jax.config.corpus import MessageConfig
from lclm_jax.data.documents import Messages
from lclm_jax.types import JsonObject


class BrokenRow(Exception):
    """A row that cannot be used: (reason, excerpt)."""


def messages_of(chat: Any, config: MessageConfig) -> Messages:
    """Messages with a role and a string as content; keys without a value are left out.

    Text parts (``[{"type": "text", "text": ...}]``) become one string, end to end, as templates print them.

    Raises:
        BrokenRow: It is no list of messages (``wrong_type``), or a part is no text (``unsupported_content``).
    """
    if not isinstance(chat, list):
        raise BrokenRow("wrong_type", chat)
    if config.in_turn and all(isinstance(one, str) for one in chat):
        chat = [{config.role: ("user", "assistant")[i % 2], config.content: one} for i, one in enumerate(chat)]
    return [_message(one, f"messages[{i}]", config) for i, one in enumerate(chat)]


def _message(value: Any, path: str, config: MessageConfig) -> JsonObject:
    if not isinstance(value, dict):
        raise BrokenRow("wrong_type", f"{path}: {value!r}")
    message = {name: part for name, part in value.items() if part is not None}
    for name, key in (("role", config.role), ("content", config.content)):
        if key != name and key in message:
            message = {name: message[key]} | {one: message[one] for one in message if one not in (name, key)}
    role = message.get("role")
    if isinstance(role, str):
        message["role"] = config.roles.get(role, role)
    if "content" not in message and message.get("tool_calls"):
        message["content"] = ""
    if isinstance(message.get("content"), list):
        message["content"] = "".join(_part(one, f"{path}.content[{i}]") for i, one in enumerate(message["content"]))
    for name in ("role", "content"):
        if not isinstance(message.get(name), str):
            keys = ", ".join(sorted(message))
            raise BrokenRow("wrong_type", f"{path}.{name}: {message.get(name)!r} is no text (keys: {keys})")
    return message


def _part(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) and kind == "text" else None
    if not isinstance(text, str):
        raise BrokenRow("unsupported_content", f"{path}: a part of type {kind!r}; only text can be trained on")
    return text
