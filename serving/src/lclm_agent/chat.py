"""What goes to a model and comes back: messages, calls, replies, and the interface of whatever answers."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lclm_agent.escape import harmless

Message = dict[str, Any]
"""A message of the OpenAI API."""

EXPAND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "expand",
        "description": "Get the text of a segment.",
        "parameters": {
            "type": "object",
            "properties": {"segment_id": {"type": "string"}},
            "required": ["segment_id"],
        },
    },
}
"""The one tool, as models are trained on it and as servers are told of it."""
FINAL = "FINAL:"
"""How the line of the answer begins."""

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)


class Call(NamedTuple):
    """A call of a tool."""

    id: str
    name: str
    arguments: str
    """JSON, as the model wrote it."""


@dataclass(frozen=True)
class Usage:
    """What a request cost, as the model's server counts."""

    prompt: int = 0
    """Positions of the prompt: tokens of text and latents."""
    cached: int = 0
    """Those of them that were in the server's prefix cache."""
    completion: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion)

    @property
    def computed(self) -> int:
        """Positions that were prefilled, and tokens that were generated."""
        return self.prompt - self.cached + self.completion


@dataclass(frozen=True)
class Reply:
    """A model's turn."""

    content: str
    calls: tuple[Call, ...] = ()
    usage: Usage = Usage()
    finish: str = "stop"


class Model(Protocol):
    """Whatever continues a chat: a served model, the JAX generator, a script."""

    def complete(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, max_tokens: int) -> Reply:
        """The next turn of the assistant, greedily."""


def expand_call(number: int, segment_id: str) -> Call:
    """A call of ``expand``."""
    return Call(f"call_{number}", "expand", json.dumps({"segment_id": segment_id}))


def assistant(reply: Reply) -> Message:
    """A reply as the message that the next request repeats: equal text, so that prefixes stay equal.

    But for special tokens that the model has written out: those are broken (``escape.harmless``).
    """
    message: Message = {"role": "assistant", "content": harmless(reply.content)}
    if reply.calls:
        message["tool_calls"] = [{"id": one.id, "type": "function", "function": _function(one)} for one in reply.calls]
    return message


def _function(call: Call) -> dict[str, str]:
    return {"name": harmless(call.name), "arguments": harmless(call.arguments)}


def parse_calls(text: str, first: int = 1) -> tuple[str, tuple[Call, ...]]:
    """Text of a model, and the calls in it in Hermes' and Qwen's form, ``<tool_call>{...}</tool_call>``.

    What is no JSON object with a name stays text. ``first``: number of the first call's id.
    """
    calls: list[Call] = []

    def take(found: re.Match[str]) -> str:
        try:
            values = json.loads(found.group(1))
            name, arguments = values["name"], values.get("arguments", {})
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return found.group()
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(Call(f"call_{first + len(calls)}", str(name), written))
        return ""

    rest = _CALL.sub(take, text)
    return (rest.strip() if calls else text), tuple(calls)


def final(text: str) -> str:
    """The answer in a last turn: what follows ``FINAL:``, or all of it."""
    _, found, rest = text.rpartition(FINAL)
    return (rest if found else text).strip()
