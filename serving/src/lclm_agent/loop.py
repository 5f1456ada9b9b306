"""The loop: a model reads segments as latents, expands some, and answers, within budgets.

The chat only ever grows at its end, so a server with prefix caching prefills in each round what that round added: the
last reply and the expanded text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lclm_agent.chat import Message, Model, Reply, Usage, assistant
from lclm_agent.errors import AgentError
from lclm_agent.escape import whole
from lclm_agent.protocols import ExpandProtocol, plain_opening, protocol_named, text_of
from lclm_agent.segments import Segment

USED_UP = "The budget for expanding is used up; answer now with what you know."
ALREADY = "You have this segment already; it stands above."


@dataclass(frozen=True)
class Budget:
    """What one question may cost.

    Raises:
        AgentError: for limits below those that make sense.
    """

    rounds: int = 5
    """Replies that may expand; then the answer is asked for. 0: nothing is ever expanded."""
    tokens: int | None = None
    """Positions prefilled (cached ones excepted) and tokens generated after the first reply, beyond which the answer is
    asked for; None: no limit."""
    reply_tokens: int = 512
    """Tokens of one reply."""

    def __post_init__(self):
        for name, least in (("rounds", 0), ("reply_tokens", 1), ("tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise AgentError(f"{name}={value} must be at least {least}")


@dataclass(frozen=True)
class Round:
    """One request."""

    sent: tuple[Message, ...]
    """Messages that it added to the chat."""
    reply: Reply
    expanded: tuple[str, ...]
    """Ids of segments whose text the next request adds."""


@dataclass
class Outcome:
    """What a question led to."""

    question: str
    answer: str = ""
    rounds: list[Round] = field(default_factory=list)

    @property
    def expanded(self) -> tuple[str, ...]:
        """Ids of the segments that were expanded, in that order."""
        return tuple(one for round_ in self.rounds for one in round_.expanded)

    @property
    def usage(self) -> Usage:
        """Of all requests together."""
        return sum((one.reply.usage for one in self.rounds), Usage())


class Conversation:
    """Questions about the same segments, in one chat.

    Args:
        model: what answers.
        segments: see ``number_segments``.
        protocol: ``tools`` or ``text``.
        budget: of each question.
    """

    def __init__(
        self, model: Model, segments: Sequence[Segment], protocol: str = "tools", budget: Budget | None = None
    ):
        self.model, self.segments, self.budget = model, tuple(segments), budget or Budget()
        self.protocol: ExpandProtocol = protocol_named(protocol)
        self.messages: list[Message] = []
        self._shown: set[str] = set()

    def ask(self, question: str) -> Outcome:
        """Ask, expand as the model wants within the budget, and return the answer; raises what the model raises."""
        outcome = Outcome(question)
        for _ in self.rounds(question, outcome):
            pass
        return outcome

    def rounds(self, question: str, outcome: Outcome) -> Iterator[Round]:
        """The same, round by round; ``outcome`` grows with them."""
        if not question.strip():
            raise AgentError("the question is empty; write one")
        if whole(question) != question:
            raise AgentError("the question holds half a character, which is no text; write whole characters")
        sent = self._opening(question)
        tools = self.protocol.tools if self.budget.rounds else None
        left = self.budget.rounds
        while True:
            reply = self._request(sent, tools)
            turn = self.protocol.read(reply) if self.budget.rounds else None
            if turn is None or not turn.wanted or left == 0:
                if reply.calls:  # they stay without results, which no server takes in a further question
                    self.messages[-1] = assistant(Reply(reply.content))
                outcome.rounds.append(Round(tuple(sent), reply, ()))
                outcome.answer = self._answer(reply)
                yield outcome.rounds[-1]
                return
            left -= 1
            texts, expanded = self._texts([wanted for _, wanted in turn.wanted])
            outcome.rounds.append(Round(tuple(sent), reply, expanded))
            yield outcome.rounds[-1]
            if left == 0 or self._spent(outcome):
                left = 0
                texts[-1] = f"{texts[-1]}\n\n{USED_UP}"
            sent = self.protocol.results(turn, texts)

    def _opening(self, question: str) -> list[Message]:
        if self.messages:
            return self.protocol.ask(question)
        if self.budget.rounds == 0:
            return plain_opening(self.segments, question)
        return self.protocol.opening(self.segments, question)

    def _request(self, sent: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> Reply:
        self.messages.extend(sent)
        reply = self.model.complete(self.messages, tools, self.budget.reply_tokens)
        self.messages.append(assistant(reply))
        return reply

    def _answer(self, reply: Reply) -> str:
        """The answer in the last reply; calls that were not followed any more are none."""
        return self.protocol.read(Reply(reply.content)).answer

    def _texts(self, wanted: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
        texts, expanded = [], []
        for one in wanted:
            found, text = text_of(self.segments, one)
            if found is not None and found.id in self._shown:
                text = ALREADY
            elif found is not None:
                self._shown.add(found.id)
                expanded.append(found.id)
            texts.append(text)
        return texts, tuple(expanded)

    def _spent(self, outcome: Outcome) -> bool:
        later = sum((one.reply.usage.computed for one in outcome.rounds[1:]), 0)
        return self.budget.tokens is not None and later >= self.budget.tokens


def ask(
    model: Model, segments: Sequence[Segment], question: str, protocol: str = "tools", budget: Budget | None = None
) -> Outcome:
    """One question in a chat of its own; see ``Conversation``."""
    return Conversation(model, segments, protocol, budget).ask(question)
