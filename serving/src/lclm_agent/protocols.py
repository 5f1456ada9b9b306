"""How a model asks for segments: native tool calls, or lines of plain text (the protocol that was published first)."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from lclm_agent.chat import EXPAND, Message, Reply, final
from lclm_agent.errors import AgentError
from lclm_agent.escape import escape
from lclm_agent.segments import Segment, find, listing


class Turn(NamedTuple):
    """What a reply asks for."""

    wanted: tuple[tuple[str, str], ...]
    """(id of the call, segment as the model wrote it); none: the reply is the answer."""
    answer: str


class ExpandProtocol(Protocol):
    """One way to ask for segments."""

    @property
    def tools(self) -> Sequence[dict[str, Any]] | None:
        """What the server is told."""

    def opening(self, segments: Sequence[Segment], question: str) -> list[Message]:
        """The chat up to the first reply."""

    def ask(self, question: str) -> list[Message]:
        """A further question in the same chat."""

    def read(self, reply: Reply) -> Turn:
        """What a reply asks for."""

    def results(self, turn: Turn, texts: Sequence[str]) -> list[Message]:
        """The messages that answer a turn: one text per wanted segment, harmless already."""


def plain_opening(segments: Sequence[Segment], question: str) -> list[Message]:
    """A question about compressed segments without any means to expand them: what a plain LCLM is asked."""
    return [{"role": "user", "content": f"{listing(segments)}\n{question}"}]


class NativeTools:
    """The tool ``expand`` of the OpenAI API; the answer may begin with ``FINAL:``."""

    tools: Sequence[dict[str, Any]] | None = (EXPAND,)

    def opening(self, segments: Sequence[Segment], question: str) -> list[Message]:
        """The segments and the question in one message."""
        return plain_opening(segments, question)

    def ask(self, question: str) -> list[Message]:
        """The question alone."""
        return [{"role": "user", "content": question}]

    def read(self, reply: Reply) -> Turn:
        """Calls of ``expand``; other tools and broken arguments are asked for by what they are, and refused later."""
        wanted = tuple((one.id, segment_of(one.name, one.arguments)) for one in reply.calls)
        return Turn(wanted, "" if wanted else final(reply.content))

    def results(self, turn: Turn, texts: Sequence[str]) -> list[Message]:
        """One tool message per call."""
        return [
            {"role": "tool", "tool_call_id": call, "content": text}
            for (call, _), text in zip(turn.wanted, texts, strict=True)
        ]


_RULES = (
    "The segments above are compressed. To read some of them word for word, write a line such as EXPAND: 3, 7 and"
    " nothing else. Once you know the answer, write it in a line that begins with ANSWER:"
)
_EXPAND_LINE = re.compile(r"^[ \t]*EXPAND:[ \t]*(.*)$", re.MULTILINE)
_ANSWER_LINE = re.compile(r"^[ \t]*ANSWER:[ \t]*", re.MULTILINE)
_MOST_PER_TURN = 64


class PlainText:
    """Lines ``EXPAND: 3, 7`` and ``ANSWER: ...``, for models and servers without tool calls."""

    tools: Sequence[dict[str, Any]] | None = None

    def opening(self, segments: Sequence[Segment], question: str) -> list[Message]:
        """The segments, the rules and the question in one message."""
        return [{"role": "user", "content": f"{listing(segments)}\n{_RULES}\n\n{question}"}]

    def ask(self, question: str) -> list[Message]:
        """The question alone."""
        return [{"role": "user", "content": question}]

    def read(self, reply: Reply) -> Turn:
        """The numbers of the first ``EXPAND`` line that stands before any answer; else the answer."""
        text = reply.content
        answer, expand = _ANSWER_LINE.search(text), _EXPAND_LINE.search(text)
        if expand is not None and (answer is None or expand.start() < answer.start()):
            named = [one for one in re.split(r"[\s,;]+", expand.group(1).strip()) if one][:_MOST_PER_TURN]
            if named:
                return Turn(tuple((str(i), one) for i, one in enumerate(named)), "")
        return Turn((), text[answer.end() :].strip() if answer is not None else final(text))

    def results(self, turn: Turn, texts: Sequence[str]) -> list[Message]:
        """One user message with all of them."""
        shown = "\n".join(f"{name}: {text}" for (_, name), text in zip(turn.wanted, texts, strict=True))
        return [{"role": "user", "content": shown}]


PROTOCOLS: dict[str, Callable[[], ExpandProtocol]] = {"tools": NativeTools, "text": PlainText}
"""Both, by name."""


def protocol_named(name: str) -> ExpandProtocol:
    """The protocol of a name; raises ``AgentError`` for another."""
    if name not in PROTOCOLS:
        raise AgentError(f"protocol={name!r} is unknown; use {' or '.join(PROTOCOLS)}")
    return PROTOCOLS[name]()


def segment_of(name: str, arguments: str) -> str:
    """The segment that a call asks for, as the model wrote it; of another tool or broken arguments, what they are."""
    if name != "expand":
        return f"tool {name}"
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(values, dict):
        return str(values)
    return str(values.get("segment_id", ""))


def text_of(segments: Sequence[Segment], wanted: str) -> tuple[Segment | None, str]:
    """The segment that a model asks for, and what it is told: its text, harmless, or what is wrong."""
    found = find(segments, wanted)
    if found is None:
        named = " ".join(wanted.split())[:60] or "(none named)"
        return None, escape(f"There is no segment {named}; there are seg_1 to {segments[-1].id}.")
    return found, escape(found.text)
