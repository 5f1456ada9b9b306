"""Look-ups: chats about which name stands in which segment, with loss on the answers alone.

A model with random weights does not learn from traces (``lclm_jax.agent.traces``) which segment a question means: of a
whole call one number tells. Here every other word of a reply is an answer, and nothing else has loss. Replies that give
the names of numbers teach latents to hold names; only then can replies that give the numbers of names be learned.
"""

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

from lclm_jax.agent.tasks import check_segments, draw_segments, named
from lclm_jax.agent.traces import lclm_agent
from lclm_jax.types import JsonObject

Asked = Literal["number", "name", "code", "question"]

_Fact = tuple[str, int, str]
"""A name, the number of its segment, and its code."""


class Lookups(NamedTuple):
    """Which rows are drawn; see ``lclm data lookups``."""

    rows: int
    segments: int = 8
    """Segments of a row, at most: half of the rows have 2, a quarter half as many, for few are learned first."""
    ask: Asked = "number"
    """What has loss: the number of the segment that a name stands in, behind the name; the name in the segment of a
    number; the code that a name is given; or, after a question as in traces, the name that is asked for and the
    number."""
    plain: bool = False
    """Numbers and names (or names and codes) as text in place of compressed segments, without memory."""
    repeats: int = 0
    """Answers of a reply, drawn with replacement: copying an earlier answer is the first step to finding one. 0: every
    segment once, so that no answer can be copied."""
    seed: int = 0

    def draw(self) -> Iterator[JsonObject]:
        """Rows of the format ``records: chat``: ``id``, and ``messages`` whose reply has ``train_detail``.

        Raises ``LclmError`` if lclm-serving is not installed, or there are fewer names than segments.
        """
        lclm_agent()
        check_segments(self.segments)
        kind = f"{self.ask}s/{'plain' if self.plain else 'latents'}"
        stream = random.Random(f"look-ups {kind} {self.seed}")  # noqa: S311 - drawn data, no secret
        sizes = [min(2, self.segments)] * 2 + [max(1, self.segments // 2), self.segments]
        for row in range(self.rows):
            names, codes, texts = draw_segments(stream, stream.choice(sizes))
            facts = list(zip(names, range(1, len(names) + 1), codes, strict=True))
            order = stream.choices(facts, k=self.repeats) if self.repeats else stream.sample(facts, len(facts))
            shown = self._plain(facts) if self.plain else self._compressed(texts)
            messages = self._questions(shown, order) if self.ask == "question" else self._list(shown, order)
            yield {"id": f"look-ups/{kind}/{self.seed}/{row}", "messages": messages}

    def _questions(self, shown: str, facts: list[_Fact]) -> list[JsonObject]:
        """A question for each of ``facts`` and its answer."""
        turns = [(f"What is the code of {name}?", named(name, number)) for name, number, _ in facts]
        turns[0] = (shown + turns[0][0], turns[0][1])
        return [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]

    def _list(self, shown: str, facts: list[_Fact]) -> list[JsonObject]:
        """One reply that gives one thing of each of ``facts`` behind another; only what was asked for has loss."""
        reply, parts = "", []
        for name, number, code in facts:
            given, answer = {
                "number": (f" {name}", f"{number}"),
                "name": (f" {number}", f" {name}"),
                "code": (f" {name}", f" {code}"),
            }[self.ask]
            # Inclusive, as in Axolotl: the last character of what has no loss.
            end = len(reply) + len(given) - 1
            parts.append({"begin_offset": len(reply), "end_offset": end, "train": False})
            reply += given + answer
        question = {"number": "Where is each?", "name": "Which is each?", "code": "What is the code of each?"}[self.ask]
        return [
            {"role": "user", "content": f"{shown}{question}"},
            {"role": "assistant", "content": reply, "train_detail": parts},
        ]

    def _plain(self, facts: list[_Fact]) -> str:
        """Names behind their numbers, or before their codes where those are asked for."""
        if self.ask == "code":
            return "".join(f" {name} {code}" for name, _, code in facts) + " "
        return "".join(f" {number} {name}" for name, number, _ in facts) + " "

    def _compressed(self, texts: list[str]) -> str:
        """Segments as a user's message lists them."""
        from lclm_agent import number_segments
        from lclm_agent.segments import listing

        return listing(number_segments(texts)) + "\n"
