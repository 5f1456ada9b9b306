"""Policies compared on generated conversations: facts kept, positions prefilled, positions that a cache had.

Facts are random codes in messages of long dialogues or in the results of tools; later questions ask for them. The
reader of this comparison is an oracle, so that policies are compared and not models: it knows a fact that stands raw in
the prompt, expands a message whose latents hold it or whose title names it, and has lost it otherwise.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lclm_agent.chat import EXPAND, Message, Reply, assistant, expand_call
from lclm_agent.context import OUT, RAW, TITLE, Context, Item
from lclm_agent.errors import AgentError
from lclm_agent.policies import POLICIES

_TOPICS = ("harbour", "garden", "library", "kitchen", "workshop", "museum", "stable", "bakery", "office", "theatre")
_THINGS = ("gate", "safe", "locker", "door", "cabinet", "shed", "drawer", "lift", "till", "case")
_TALK = (
    "We spoke about the {topic} again and nothing was decided.",
    "The people of the {topic} were friendly and showed us around for an hour.",
    "Someone should write down how the {topic} is run in winter.",
    "It rained on the way to the {topic}, so we took the bus back.",
    "The old plan of the {topic} has been lost for years, it seems.",
)
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"


class Step(NamedTuple):
    """One message of a generated conversation, and what is asked after it."""

    message: Message
    title: str
    asked: tuple[str, str] | None
    """(question, answer)"""


def conversation(kind: str, seed: int, turns: int = 60, facts: int = 12, words: int = 200) -> Iterator[Step]:
    """A dialogue or a transcript of tools with ``facts`` codes, each asked for at some later turn.

    Args:
        kind: ``dialogue`` or ``tools``.
        seed: of all draws.
        turns: pairs of messages.
        facts: codes.
        words: of a message, about.
    """
    if kind not in ("dialogue", "tools"):
        raise AgentError(f"kind={kind!r} is unknown; use dialogue or tools")
    if not 0 <= facts <= min(turns * 3 // 4, len(_TOPICS) * len(_THINGS)):
        raise AgentError(f"turns={turns} are too few for {facts} facts; give at least {math.ceil(facts * 4 / 3)}")
    stream = random.Random(f"{kind} {seed}")  # noqa: S311 - drawn data, no secret
    names = stream.sample([f"the {thing} of the {topic}" for topic in _TOPICS for thing in _THINGS], facts)
    codes = ["".join(stream.choices(_LETTERS, k=8)) for _ in names]
    told = sorted(stream.sample(range(turns * 3 // 4), facts))
    due: dict[int, list[int]] = {}
    for fact, turn in enumerate(told):
        due.setdefault(stream.randrange(turn + 1, turns), []).append(fact)
    for turn in range(turns):
        told_now = [fact for fact, at in enumerate(told) if at == turn]
        text = _talk(stream, words, [f"The code of {names[fact]} is {codes[fact]}." for fact in told_now])
        title = f"about {', '.join(names[fact] for fact in told_now)}" if told_now else ""
        yield from _turn(kind, turn, text, title)
        for fact in due.get(turn, ()):
            question = f"What is the code of {names[fact]}?"
            yield Step({"role": "user", "content": question}, question, (question, codes[fact]))


def _turn(kind: str, turn: int, text: str, title: str) -> Iterator[Step]:
    if kind == "dialogue":
        yield Step({"role": "user", "content": text}, title, None)
        yield Step({"role": "assistant", "content": "I see. I have noted it, please go on."}, "", None)
        return
    call = {"id": f"read_{turn}", "type": "function", "function": {"name": "read", "arguments": f'{{"page": {turn}}}'}}
    yield Step({"role": "assistant", "content": "", "tool_calls": [call]}, "", None)
    yield Step({"role": "tool", "tool_call_id": call["id"], "content": text}, title, None)


def _talk(stream: random.Random, words: int, facts: Sequence[str]) -> str:
    sentences: list[str] = []
    while sum(len(one.split()) for one in sentences) < words:
        sentences.append(stream.choice(_TALK).format(topic=stream.choice(_TOPICS)))
    for fact in facts:
        sentences.insert(stream.randrange(1, len(sentences) + 1), fact)
    return " ".join(sentences)


@dataclass
class Kept:
    """What a policy did over conversations."""

    facts: int = 0
    raw: int = 0
    """Facts that stood raw in the prompt."""
    expanded: int = 0
    """Facts that were got back by ``expand``."""
    requests: int = 0
    positions: int = 0
    """Of all prompts together."""
    prefilled: int = 0
    """Of those, what is behind the part that the request before had."""
    longest: int = 0
    """Positions of the longest prompt."""

    @property
    def kept_share(self) -> float:
        """Facts that could be told when they were asked for."""
        return (self.raw + self.expanded) / (self.facts or 1)

    @property
    def cached_share(self) -> float:
        """Positions of prompts that the request before had as its prefix."""
        return 1 - self.prefilled / (self.positions or 1)


def first_sentences(items: Sequence[Item], words: int = 120) -> str:
    """Stands for a summary by a model: how the newest messages that are left out begin, as many as ``words`` hold."""
    chosen: list[str] = []
    for item in reversed(items):
        sentence = item.text.split(". ")[0]
        if sum(len(one.split()) for one in chosen) + len(sentence.split()) > words:
            break
        chosen.append(sentence)
    return ". ".join(reversed(chosen))


class Reader:
    """The oracle: keeps a conversation by a policy, and counts.

    Args:
        context: with its policy, empty.
    """

    def __init__(self, context: Context):
        self.context, self.kept = context, Kept()
        self._before: list[object] = []
        self._calls = 0

    def ask(self, question: str, answer: str) -> None:
        """Count whether the answer to ``question``, the last message, can be told; what is told joins the chat."""
        self.kept.facts += 1
        sent = self._request()
        known = any(answer in text for text in self._raw_texts(sent))
        if known:
            self.kept.raw += 1
        elif (item := self._holder(question, answer)) is not None:
            self._expand(item)
            self.kept.expanded += 1
            known = True
        told = f"It is {answer}." if known else "I do not know."
        self.context.add({"role": "assistant", "content": told}, title="an answer")

    def _expand(self, item: Item) -> None:
        self._calls += 1
        call = expand_call(self._calls, item.id)
        self.context.add(assistant(Reply("", (call,))))
        result = {"role": "tool", "tool_call_id": call.id, "content": self.context.expand(item.id)}
        self.context.add(result, title=item.title)
        self._request()

    def _request(self) -> list[Message]:
        sent = self.context.messages()
        flat = list(self._positions())
        same = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(flat, self._before, strict=False))
        )
        self._before = flat
        kept = self.kept
        kept.requests += 1
        kept.positions += len(flat)
        kept.prefilled += len(flat) - same
        kept.longest = max(kept.longest, len(flat))
        return sent

    def _positions(self) -> Iterator[object]:
        """What stands at each position of the prompt: equal objects for equal positions."""
        if self.context.summary:
            yield from ("summary", *self.context.summary.split())
        for item, level in zip(self.context.items, self.context.levels, strict=True):
            cost = self.context.cost(item, level)
            yield from ((item.number, level, place) for place in range(cost))

    def _raw_texts(self, sent: Sequence[Message]) -> Iterator[str]:
        return (text.split("<|memory_start|>")[0] for one in sent if (text := one.get("content") or ""))

    def _holder(self, question: str, answer: str) -> Item | None:
        name = question.removeprefix("What is the code of ").removesuffix("?")
        for item, level in zip(self.context.items, self.context.levels, strict=True):
            if answer in item.text and level not in (RAW, OUT) and (level != TITLE or name in item.title):
                return item
        return None


def compare(kind: str, budget: int, ratios: Sequence[int], seeds: int, turns: int = 60) -> dict[str, Kept]:
    """Every policy on the same conversations: ``POLICIES``, and ``truncate`` with a summary as ``summary``.

    Args:
        kind: ``dialogue`` or ``tools``.
        budget: positions of a prompt.
        ratios: compression ratios that may be used.
        seeds: conversations.
        turns: of a conversation.
    """
    found: dict[str, Kept] = {}
    for name in [*POLICIES, "summary"]:
        total = Kept()
        for seed in range(seeds):
            policy = POLICIES["truncate" if name == "summary" else name]
            reader = Reader(Context(policy, budget, ratios, first_sentences if name == "summary" else None))
            reader.context.add({"role": "system", "content": f"You may call {EXPAND['function']['name']}."})
            for step in conversation(kind, seed, turns):
                reader.context.add(step.message, step.title)
                if step.asked is not None:
                    reader.ask(*step.asked)
            for field in ("facts", "raw", "expanded", "requests", "positions", "prefilled"):
                setattr(total, field, getattr(total, field) + getattr(reader.kept, field))
            total.longest = max(total.longest, reader.kept.longest)
        found[name] = total
    return found


def table(found: dict[str, Kept]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        "| policy | facts kept | raw | expanded | longest prompt | prefilled a request | cached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kept in found.items():
        count = kept.facts or 1
        shares = f"{kept.kept_share:.0%} | {kept.raw / count:.0%} | {kept.expanded / count:.0%}"
        lines.append(
            f"| {name} | {shares} | {kept.longest:,}"
            f" | {math.ceil(kept.prefilled / (kept.requests or 1)):,} | {kept.cached_share:.0%} |"
        )
    return "\n".join(lines)
