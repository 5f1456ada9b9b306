"""Traces: what a conversation sent and got, as JSON lines that hold no time and no address, so that they replay.

The first line has the segments and the settings; then come, for each question, a line ``question``, a line ``round``
per request, and a line ``answer``. ``replay`` runs the loop again on the recorded replies: equal code, equal bytes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lclm_agent.chat import Call, Message, Reply, Usage
from lclm_agent.errors import AgentError
from lclm_agent.loop import Budget, Conversation, Outcome
from lclm_agent.segments import Segment

FORMAT = "lclm-agent trace 1"


class Scripted:
    """A model that gives the same replies in turn, whatever it is asked."""

    def __init__(self, replies: Iterable[Reply]):
        self._replies = iter(replies)

    def complete(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, max_tokens: int) -> Reply:
        """The next one; raises ``AgentError`` after the last."""
        for reply in self._replies:
            return reply
        raise AgentError("the script has no further reply: the conversation goes on where the recorded one had ended")


def trace_lines(conversation: Conversation, outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The lines of a trace, line breaks included."""
    name = "tools" if conversation.protocol.tools else "text"
    yield _line(
        {
            "format": FORMAT,
            "protocol": name,
            "budget": asdict(conversation.budget),
            "segments": [one._asdict() for one in conversation.segments],
        }
    )
    for outcome in outcomes:
        yield _line({"question": outcome.question})
        for one in outcome.rounds:
            reply = asdict(one.reply) | {"calls": [call._asdict() for call in one.reply.calls]}
            yield _line({"round": {"sent": list(one.sent), "reply": reply, "expanded": list(one.expanded)}})
        yield _line({"answer": outcome.answer})


def write_trace(path: Path, conversation: Conversation, outcomes: Sequence[Outcome]) -> None:
    """Write a trace."""
    path.write_text("".join(trace_lines(conversation, outcomes)), encoding="utf-8", newline="\n")


def replay(path: Path) -> list[Outcome]:
    """Run the loop again on the replies of a trace; returns what it led to.

    Raises:
        AgentError: the file is no trace, or the loop now does something else; the message has the first such line.
    """
    if not path.is_file():
        raise AgentError(f"there is no trace {path}; `lclm-agent ask --trace` writes one")
    recorded = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    try:
        conversation, questions = _read(recorded)
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise AgentError(f"{path} is no trace of {FORMAT!r} ({type(error).__name__}: {error})") from None
    outcomes = [conversation.ask(question) for question in questions]
    for number, (old, new) in enumerate(zip(recorded, trace_lines(conversation, outcomes), strict=False), 1):
        if old != new:
            raise AgentError(f"{path}, line {number}: the loop does something else now: {_difference(old, new)}")
    made = sum(1 for _ in trace_lines(conversation, outcomes))
    if made != len(recorded):
        raise AgentError(f"{path} has {len(recorded)} lines, its replay {made}; the recorded one broke off or was cut")
    return outcomes


def _read(lines: Sequence[str]) -> tuple[Conversation, list[str]]:
    head, *rest = [json.loads(line) for line in lines]
    if head.get("format") != FORMAT:
        raise ValueError(f"its format is {head.get('format')!r}")
    replies = [_reply(one["round"]["reply"]) for one in rest if "round" in one]
    segments = [Segment(**one) for one in head["segments"]]
    conversation = Conversation(Scripted(replies), segments, head["protocol"], Budget(**head["budget"]))
    return conversation, [one["question"] for one in rest if "question" in one]


def _reply(values: dict[str, Any]) -> Reply:
    calls = tuple(Call(**one) for one in values["calls"])
    return Reply(values["content"], calls, Usage(**values["usage"]), values["finish"])


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n"


def _difference(old: str, new: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return f"{old[place : place + 40]!r} was recorded, {new[place : place + 40]!r} comes now"
