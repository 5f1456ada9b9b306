"""Special tokens that a chat smuggles into its rendered text: found by rendering it once more without them.

A template prints special tokens of its own (``<|im_start|>``), and whatever strings the chat holds: names, arguments of
calls, tools, reasoning. A string of the chat may hold a special token, or become one beside what is printed next to it
(``<|im_`` before ``end|>``, or a role between ``<|`` and ``|>``). So every such string is broken by a character that no
special token holds, and the chat is rendered again: it is harmless if both texts hold the same special tokens. Memory
tags in the content of messages are wanted and stay.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lclm_jax.text.chats.chat_template import ChatError
from lclm_jax.text.memory_tags import MEMORY_END, MEMORY_START
from lclm_jax.types import JsonObject, ReadOnlyJson

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython", "environment"})
"""Roles that templates compare with, and print inside special tokens of their own."""

_BREAK = "\ue000"
_AROUND = 60

Render = Callable[[Sequence[ReadOnlyJson], Sequence[ReadOnlyJson] | None], str]
"""The text of messages and tools by a chat template."""


class SpecialTokenError(ChatError):
    """A chat whose strings print as special tokens; the message names the key and shows the string."""


class _Text(NamedTuple):
    """One string of a chat, and where it stands."""

    path: str
    text: str
    is_key: bool

    @property
    def is_content(self) -> bool:
        """Whether memory tags are wanted in it."""
        return re.fullmatch(r"messages\[\d+\]\.content(\[\d+\]\.text)?", self.path) is not None and not self.is_key

    @property
    def is_compared(self) -> bool:
        """Whether templates compare it with words of their own."""
        name = self.path.rpartition(".")[2]
        return name == "type" or (name == "role" and self.text in ROLES)


class SpecialStrings:
    """The strings of special tokens, and whether a chat holds them.

    Args:
        tokens: The strings of all special tokens.
    """

    def __init__(self, tokens: Iterable[str]):
        names = sorted({*tokens, MEMORY_START, MEMORY_END}, key=lambda name: (-len(name), name))  # the longest first
        self._any = _pattern(names)
        self._in_content = _pattern([name for name in names if name not in (MEMORY_START, MEMORY_END)])
        self._heads = {name[:i] for name in names for i in range(1, len(name))}
        self._tails = {name[-i:] for name in names for i in range(1, len(name))}
        self._longest, self._joined = len(names[0]), "\0".join(names)

    def in_text(self, text: str) -> list[str]:
        """The special tokens of ``text``, memory tags included, in their order."""
        return self._any.findall(text)

    def forbidden(self, text: str) -> str | None:
        """The first special token of ``text`` that is no memory tag."""
        found = self._in_content.search(text)
        return None if found is None else found.group()

    def check(
        self, messages: Sequence[ReadOnlyJson], tools: Sequence[ReadOnlyJson] | None, rendered: str, render: Render
    ) -> None:
        """Raise ``SpecialTokenError`` if strings of the chat add special tokens to ``rendered``, its text."""
        suspects: list[str] = []
        neutral = self._broken({"messages": messages, "tools": tools}, suspects)
        if not suspects:
            return
        try:
            harmless = self.in_text(render(neutral["messages"], neutral["tools"])) == self.in_text(rendered)
        except ChatError:
            harmless = False
        if not harmless:
            raise SpecialTokenError(f"{suspects[0]}; it would become a special token: remove it from the row")

    def _broken(self, value: Any, suspects: list[str], path: str = "") -> Any:
        """``value`` with its suspicious strings broken; what they are goes to ``suspects``, the surest first."""
        if isinstance(value, str):
            return self._text(_Text(path, value, False), suspects)
        if isinstance(value, list | tuple):
            return [self._broken(one, suspects, f"{path}[{i}]") for i, one in enumerate(value)]
        if not isinstance(value, dict):
            return value
        made: JsonObject = {}
        for name, part in value.items():
            below = f"{path}.{name}" if path else name
            made[self._text(_Text(below, name, True), suspects)] = self._broken(part, suspects, below)
        return made

    def _text(self, one: _Text, suspects: list[str]) -> str:
        pattern = self._in_content if one.is_content else self._any
        broken = pattern.sub(_apart, one.text)
        if broken != one.text:
            at = next(pattern.finditer(one.text)).start()
            suspects.insert(0, f"{one.path[-_AROUND:]}: {one.text[max(0, at - _AROUND) : at + _AROUND]!r}")
        core = broken.strip()
        if core and not one.is_compared and self._may_join(core, one.is_key):
            suspects.append(f"{one.path[-_AROUND:]}: {one.text[:_AROUND]!r}")
            broken = broken.replace(core, f"{_BREAK}{core}{_BREAK}", 1)
        return broken

    def _may_join(self, core: str, is_key: bool) -> bool:
        """Whether a string could become part of a special token together with what is printed beside it."""
        if not is_key and len(core) < self._longest and core in self._joined:
            return True
        sizes = range(1, min(self._longest, len(core) + 1))
        return any(core[-size:] in self._heads or core[:size] in self._tails for size in sizes)


def _apart(found: re.Match[str]) -> str:
    name = found.group()
    return f"{name[:-1]}{_BREAK}{name[-1]}" if len(name) > 1 else _BREAK


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)))
