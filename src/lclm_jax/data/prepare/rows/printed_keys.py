"""Keys of messages that a chat template does not print: found by rendering a chat with and without them."""

from collections import Counter

from lclm_jax.data.documents import RawChat
from lclm_jax.text.chats.chat_template import ChatError
from lclm_jax.text.chats.loss_markers import without_markers
from lclm_jax.text.tokenizer import Tokenizer
from lclm_jax.types import JsonObject

_TRIES = 8
"""Chats that are rendered without a key before it counts as one that is not printed."""
_MOST = 200
"""Keys that are looked at: a row may make up keys of its own."""
_NAMED = 20
_SHOWN = 40

_Key = tuple[str, str]
"""(role, key of its messages); the role of the row's tools is empty."""


class PrintedKeys:
    """Watches the chats of one part.

    Args:
        decoder: The tokenizer with the chat template.
    """

    def __init__(self, decoder: Tokenizer):
        self._decoder = decoder
        self._printed: set[_Key] = set()
        self._tried: Counter[_Key] = Counter()
        self._rows: Counter[frozenset[_Key]] = Counter()

    def look(self, chat: RawChat) -> None:
        """Count the keys of ``chat`` that have a value, and try those that are not known to be printed."""
        if chat.tagged is not None:
            return
        messages = [without_markers(message) for message in chat.messages]
        keys = {(message["role"], name) for message in messages for name in message if name != "role" and message[name]}
        keys.discard(("assistant", "content"))  # replies that print as empty are looked for one by one
        if chat.tools:
            keys.add(("", "tools"))
        keys -= self._printed
        new = {key for key in keys if self._tried[key] < _TRIES and (key in self._tried or len(self._tried) < _MOST)}
        if new:
            whole = self._render(messages, chat.tools)
            for key in sorted(new):
                self._tried[key] += 1
                if self._render(*_without(messages, chat.tools, key)) != whole:
                    self._printed.add(key)
        if left := frozenset(key for key in keys if key in self._tried):
            self._rows[left] += 1

    def unprinted(self) -> dict[str, int]:
        """``not_printed:KEY`` -> chats with a key that is never printed; the most frequent ones."""
        counts: Counter[str] = Counter()
        for keys, rows in self._rows.items():
            counts.update(dict.fromkeys({name for _, name in keys - self._printed}, rows))
        commonest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]
        return {f"not_printed:{name[:_SHOWN]}": rows for name, rows in commonest}

    def _render(self, messages: list[JsonObject], tools: list[JsonObject] | None) -> str | None:
        try:
            return self._decoder.render_chat(messages, tools=tools)
        except ChatError:
            return None  # a template that asks for the key reads it


def _without(
    messages: list[JsonObject], tools: list[JsonObject] | None, key: _Key
) -> tuple[list[JsonObject], list[JsonObject] | None]:
    role, name = key
    if not role:
        return messages, None
    empty = {"content": ""} if name == "content" else {}
    return [
        {one: value for one, value in message.items() if one != name} | empty if message["role"] == role else message
        for message in messages
    ], tools
