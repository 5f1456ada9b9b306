"""A long conversation under a budget: every past message raw, as latents, as a title, or left out.

Which of these a message gets is the decision of a policy (``lclm_agent.policies``), one function each. The chat is sent
in the order it had. A message whose level does not change is sent in the same words again, so the server's prefix cache
holds up to the first one that does; what is expanded comes at the end.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lclm_agent.chat import Message
from lclm_agent.errors import AgentError
from lclm_agent.escape import escape, memory

RAW, TITLE, OUT = "raw", "title", "out"
_PIECE = re.compile(r"\w+|[^\w\s]")
_TITLE_CHARACTERS = 60
_AROUND = 4
"""Positions that a message takes beside its text: role, tags, line breaks; about."""

_CALL = 12
"""Positions of a tool call beside its name and arguments, about."""


def latents(ratio: int) -> str:
    """The level of latents at a ratio: ``4x``, ``8x``, ``16x``."""
    return f"{ratio}x"


def count_tokens(text: str) -> int:
    """Words and marks: about the tokens of English, for want of the server's tokenizer."""
    return len(_PIECE.findall(text))


@dataclass(frozen=True)
class Item:
    """One message of a conversation."""

    number: int
    message: Message
    kind: str
    """``system``, ``user``, ``assistant`` or ``tool``."""
    title: str
    pinned: bool
    """Whether it stays raw whatever the policy says."""

    @property
    def id(self) -> str:
        """Its name for ``expand``: ``seg_3``."""
        return f"seg_{self.number}"

    @property
    def text(self) -> str:
        """Its content."""
        return self.message.get("content") or ""


class Situation(NamedTuple):
    """What a policy decides on."""

    items: Sequence[Item]
    levels: Sequence[str]
    """Of each item so far; of new ones ``raw``."""
    question: str
    """What is asked now."""
    budget: int
    """Positions that all items together may take."""
    ratios: Sequence[int]
    cost: Callable[[Item, str], int]
    """Positions of an item at a level."""

    def total(self, levels: Sequence[str]) -> int:
        """Positions of all items at ``levels``."""
        return sum(self.cost(item, level) for item, level in zip(self.items, levels, strict=True))


Policy = Callable[[Situation], Sequence[str]]
"""The level of every item; pinned ones and the last stay raw whatever it says."""
Summarise = Callable[[Sequence[Item]], str]
"""A text in the place of messages that are left out, such as one that a model writes."""


@dataclass
class Context:
    """A conversation that a policy keeps within a budget.

    Args:
        policy: see ``Policy``.
        budget: positions that all messages together may take; a policy is asked when they take more.
        ratios: compression ratios of the served model, mostly one.
        summarise: writes what stands in the place of messages that are left out; None: nothing does.
        count: tokens of a text.
    """

    policy: Policy
    budget: int
    ratios: Sequence[int] = (16,)
    summarise: Summarise | None = None
    count: Callable[[str], int] = count_tokens
    items: list[Item] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    summary: str = ""
    _out: set[int] = field(default_factory=set)

    def __post_init__(self):
        if self.budget < 1 or not self.ratios or min(self.ratios) < 2:
            raise AgentError(f"budget={self.budget} must be at least 1, ratios={tuple(self.ratios)} at least 2 each")

    def add(self, message: Message, title: str = "", pinned: bool = False) -> Item:
        """Put a message at the end; ``title``: what is left of it at that level, by default how it begins.

        Its text is escaped where it is shown, so that documents and tool results do no harm; an assistant's turn is
        sent as it was.
        """
        kind = str(message["role"])
        text = " ".join(str(message.get("content") or "").split())
        shown = title or (
            text if len(text) <= _TITLE_CHARACTERS else text[:_TITLE_CHARACTERS].rsplit(" ", 1)[0] + " ..."
        )
        item = Item(len(self.items) + 1, message, kind, shown, pinned or kind == "system")
        self.items.append(item)
        self.levels.append(RAW)
        return item

    def messages(self, question: str = "") -> list[Message]:
        """What is sent now: the policy is asked first. ``question``: what is asked; by default the last user's text."""
        if not self.items:
            raise AgentError("the conversation has no message; add one")
        asked = question or next((one.text for one in reversed(self.items) if one.kind == "user"), "")
        situation = Situation(self.items, tuple(self.levels), asked, self.budget, tuple(self.ratios), self.cost)
        found = list(self.policy(situation))
        if len(found) != len(self.items):
            raise AgentError(f"the policy gave {len(found)} levels for {len(self.items)} messages; one each is needed")
        known = {RAW, TITLE, OUT, *map(latents, self.ratios)}
        for level in found:
            if level not in known:
                raise AgentError(f"the policy gave the level {level!r}; there are {', '.join(sorted(known))}")
        last = len(self.items) - 1
        self.levels = [RAW if item.pinned or i == last else found[i] for i, item in enumerate(self.items)]
        self._summarise()
        return self._paired(
            [made for item, level in zip(self.items, self.levels, strict=True) if (made := self.show(item, level))]
        )

    def expand(self, wanted: str) -> str:
        """The text of a message by its id, harmless; what to say if there is none."""
        key = wanted.strip().lower()
        for item in self.items:
            if item.id == key:
                return escape(item.text)
        return escape(f"There is no message {wanted[:60]}; there are seg_1 to seg_{len(self.items)}.")

    def show(self, item: Item, level: str) -> Message | None:
        """An item as it is sent at a level; None: it is not."""
        if level == OUT:
            return None
        if level == RAW:
            raw = item.text if item.kind in ("assistant", "system") else escape(item.text)
            return {**item.message, "content": raw}
        if not item.text.strip():
            return dict(item.message)
        if level == TITLE:
            return {**item.message, "content": f"{item.id}: {escape(item.title)}"}
        return {**item.message, "content": f"{item.id}: {memory(item.text)}"}

    def cost(self, item: Item, level: str) -> int:
        """Positions of an item at a level, about."""
        if level == OUT:
            return 0
        functions = [call["function"] for call in item.message.get("tool_calls") or ()]
        calls = sum(_CALL + self.count(f"{one['name']} {one['arguments']}") for one in functions)
        if level == RAW:
            return _AROUND + calls + self.count(item.text)
        if level == TITLE:
            return _AROUND + calls + 3 + self.count(item.title)
        return _AROUND + calls + 5 + math.ceil(self.count(item.text) / int(level.removesuffix("x")))

    def _summarise(self) -> None:
        out = {item.number for item, level in zip(self.items, self.levels, strict=True) if level == OUT}
        if self.summarise is not None and out != self._out:
            self.summary = self.summarise([item for item in self.items if item.number in out]) if out else ""
        self._out = out

    def _paired(self, messages: list[Message]) -> list[Message]:
        """``messages`` with the summary, without results of calls that are not sent, nor calls without results."""
        results = {one.get("tool_call_id") for one in messages if one["role"] == "tool"}
        made: list[Message] = []
        called: set[str] = set()
        for one in messages:
            calls = [call for call in one.get("tool_calls") or () if call["id"] in results]
            called.update(call["id"] for call in calls)
            if one["role"] == "tool" and one.get("tool_call_id") not in called:
                one = {"role": "user", "content": one["content"]}
            elif "tool_calls" in one:
                one = {name: value for name, value in one.items() if name != "tool_calls"}
                one |= {"tool_calls": calls} if calls else {}
            made.append(one)
        if self.summary:
            at = sum(one["role"] == "system" for one in made[:1])
            made.insert(at, {"role": "user", "content": f"What was said before, in short: {escape(self.summary)}"})
        return made
