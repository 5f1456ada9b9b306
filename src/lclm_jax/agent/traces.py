"""Traces to train an agent on: chats over compressed segments in which an oracle expands what a question needs.

A row is a chat of the format ``records: chat``: the segments as memory spans behind their ids, a question, the native
tool call ``expand``, its raw result, the answer; then the next question. The prompts, the tool and the way segments are
written are those of ``lclm_agent``, so that a served model meets what it was trained on.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lclm_jax.agent.tasks import (
    RULER,
    Asked,
    Drawn,
    draw_codes,
    draw_quotations,
    draw_ruler,
    named,
    prepared_texts,
    read_texts,
)
from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject

if TYPE_CHECKING:
    from lclm_agent import Segment


@dataclass(frozen=True)
class TraceShares:
    """Which kinds of rows there are; what is left of 1 are rows that expand.

    Raises:
        LclmError: for shares outside 0 to 1, or above 1 together.
    """

    direct: float = 0.15
    """Rows whose questions are answered from latents, without a tool."""
    raw: float = 0.15
    """Memory-free rows: the segments stand there as text, and are called for all the same, as in chats of other agents;
    what a question matches is learned sooner from them."""
    distractors: float = 0.1
    """Questions of expanding rows before which a wrong segment is expanded, without loss, and then the right one."""
    lookup: bool = False
    """Whether a call is preceded by the name that is asked for and its number (tasks about codes), as in look-ups: a
    small model finds the number right behind the name, and copies it into the call."""

    def __post_init__(self):
        for name in ("direct", "raw", "distractors"):
            if not 0 <= getattr(self, name) <= 1:
                raise LclmError(f"{name}={getattr(self, name)} is no share; give a number from 0 to 1")
        if self.direct + self.raw > 1:
            raise LclmError(f"direct={self.direct} and raw={self.raw} are more than all rows; lower one")


def make_traces(tasks: Iterable[Drawn], shares: TraceShares, seed: int) -> Iterator[JsonObject]:
    """One row per task: ``id``, ``kind``, ``messages``, and ``tools`` for rows that expand.

    Raises ``LclmError`` if lclm-serving is not installed.
    """
    lclm_agent()
    for task in tasks:
        stream = random.Random(f"{seed} {task.id}")  # noqa: S311 - drawn data, no secret
        draw = stream.random()
        if draw < shares.direct:
            yield {"id": task.id, "kind": "direct", "messages": _answered(task)}
            continue
        from lclm_agent.chat import EXPAND

        compressed = draw >= shares.direct + shares.raw
        messages = _expanding(task, compressed, shares, stream)
        yield {"id": task.id, "kind": "expand" if compressed else "raw", "messages": messages, "tools": [EXPAND]}


@dataclass(frozen=True)
class Choice:
    """Which tasks are drawn; see ``lclm data expand-traces``."""

    codes: int = 0
    documents: Sequence[Path] = ()
    prepared: Sequence[Path] = ()
    """Configurations whose prepared documents are read, too."""
    quotations: int = 0
    words: int = 48
    ruler: int = 0
    """Tasks of each of ``ruler_tasks``."""
    ruler_tasks: Sequence[str] = ()
    ruler_length: int = 1024
    segments: int = 8
    questions: int = 4
    seed: int = 0

    def __post_init__(self):
        if not self.codes + self.quotations + self.ruler:
            raise LclmError("nothing is asked for; give --codes, --quotations with --documents, or --ruler a number")
        named = len(self.documents) + len(self.prepared)
        if bool(self.quotations) != bool(named):
            raise LclmError(
                f"--quotations {self.quotations} with {named} --documents or --prepared: each needs the other"
            )

    def draw(self) -> Iterator[Drawn]:
        """The tasks, kind by kind."""
        yield from draw_codes(self.seed, self.codes, self.segments, self.questions)
        if self.quotations:
            texts = read_texts(self.documents) if self.documents else []
            texts += [text for config in self.prepared for text in prepared_texts(config)]
            yield from draw_quotations(texts, self.seed, self.quotations, self.segments, self.questions, self.words)
        for name in (self.ruler_tasks or RULER) if self.ruler else ():
            yield from draw_ruler(name, self.seed, self.ruler, self.segments, self.ruler_length)


def write_traces(
    out: Path, choice: Choice, shares: TraceShares, texts: Path | None = None, tasks: Path | None = None
) -> dict[str, int]:
    """Write traces to ``out``, what they say to ``texts``, and the tasks to ``tasks``; returns rows of each kind."""
    counts: Counter[str] = Counter()
    with ExitStack() as files:
        rows, documents, drawn = (
            None if path is None else files.enter_context(path.open("w", encoding="utf-8"))
            for path in (out, texts, tasks)
        )

        def noted() -> Iterator[Drawn]:
            for task in choice.draw():
                _write(drawn, _as_json(task))
                yield task

        for row in make_traces(noted(), shares, choice.seed):
            _write(rows, row)
            _write(documents, texts_of(row))
            counts[row["kind"]] += 1
    return dict(sorted(counts.items()))


def write_rows(out: Path, rows: Iterable[JsonObject], texts: Path | None = None) -> int:
    """Write ``rows`` to ``out``, and what they say to ``texts``; returns how many."""
    with ExitStack() as files:
        file, documents = (
            None if path is None else files.enter_context(path.open("w", encoding="utf-8")) for path in (out, texts)
        )
        written = 0
        for row in rows:
            _write(file, row)
            _write(documents, texts_of(row))
            written += 1
        return written


def _write(file: IO[str] | None, values: JsonObject) -> None:
    if file is not None:
        file.write(json.dumps(values, ensure_ascii=False) + "\n")


def _as_json(task: Drawn) -> JsonObject:
    kept = {"id": task.id, "kind": task.kind, "segments": task.segments}
    return {**kept, "questions": [one._asdict() for one in task.questions]}


def texts_of(row: JsonObject) -> JsonObject:
    """What a row says, as a document: for the tokenizer that a run trains."""
    lines = []
    for message in row["messages"]:
        lines.append(message["content"].replace("<|memory_start|>", "").replace("<|memory_end|>", ""))
        for call in message.get("tool_calls", ()):
            written = f'{{"name": "{call["function"]["name"]}", "arguments": {call["function"]["arguments"]}}}'
            lines.append(f"<tool_call>\n{written}\n</tool_call>")
        if message["role"] == "tool":
            lines[-1] = f"<tool_response>\n{lines[-1]}\n</tool_response>"
    tools = f"<tools>\n{json.dumps(row['tools'][0])}\n</tools>\n" if row.get("tools") else ""
    return {"id": row["id"], "text": tools + "\n".join(lines)}


def lclm_agent():
    """The package of that name; raises ``LclmError`` if it is not installed."""
    try:
        import lclm_agent
    except ImportError:
        raise LclmError("traces need the package lclm-serving: pip install 'lclm-jax[store]'") from None
    return lclm_agent


def _segments(task: Drawn) -> tuple["Segment", ...]:
    return lclm_agent().number_segments(task.segments)


def _opening(task: Drawn, compressed: bool) -> str:
    from lclm_agent.segments import listing

    return listing(_segments(task), compressed) + "\n"


def _user(task: Drawn, number: int, compressed: bool) -> JsonObject:
    before = "" if number else _opening(task, compressed)
    return {"role": "user", "content": before + task.questions[number].text}


def _final(asked: Asked) -> JsonObject:
    from lclm_agent.chat import FINAL

    return {"role": "assistant", "content": f"{FINAL} {', '.join(asked.answers)}"}


def _answered(task: Drawn) -> list[JsonObject]:
    pairs = ((_user(task, i, True), _final(asked)) for i, asked in enumerate(task.questions))
    return [message for pair in pairs for message in pair]


def _expanding(task: Drawn, compressed: bool, shares: TraceShares, stream: random.Random) -> list[JsonObject]:
    from lclm_agent import Reply, escape
    from lclm_agent.chat import assistant, expand_call

    segments, messages, calls = _segments(task), [], 0
    for number, asked in enumerate(task.questions):
        messages.append(_user(task, number, compressed))
        wrong = [place for place in range(len(segments)) if place not in asked.needed]
        first = [stream.choice(wrong)] if wrong and stream.random() < shares.distractors else []
        for place in [*first, *asked.needed]:
            calls += 1
            call = expand_call(calls, segments[place].id)
            said = named(task.names[number], place + 1) if shares.lookup and task.names else ""
            message = assistant(Reply(said, (call,)))
            messages.append(message if place in asked.needed else {**message, "weight": 0})
            messages.append({"role": "tool", "tool_call_id": call.id, "content": escape(segments[place].text)})
        messages.append(_final(asked))
    return messages
