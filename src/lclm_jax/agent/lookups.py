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

Asked = Literal["number", "name", "question"]


class Lookups(NamedTuple):
    """Which rows are drawn; see ``lclm data lookups``."""

    rows: int
    segments: int = 8
    """Segments of a row, at most: half of the rows have 2, a quarter half as many, for few are learned first."""
    ask: Asked = "number"
    """What has loss: the number of the segment that a name stands in, behind the name; the name in the segment of a
    number; or, after a question as in traces, the name that it asks for and the number."""
    plain: bool = False
    """Numbers and names as text in place of compressed segments, without memory."""
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
            names, _, texts = draw_segments(stream, stream.choice(sizes))
            places = range(len(names))
            order = stream.choices(places, k=self.repeats) if self.repeats else stream.sample(places, len(places))
            yield {
                "id": f"look-ups/{kind}/{self.seed}/{row}",
                "messages": self._chat(self._shown(names, texts), [(names[place], place + 1) for place in order]),
            }

    def _chat(self, shown: str, pairs: list[tuple[str, int]]) -> list[JsonObject]:
        """The messages that ask for names or numbers of ``pairs`` and give them."""
        if self.ask == "question":
            turns = [(f"What is the code of {name}?", named(name, number)) for name, number in pairs]
            turns[0] = (shown + turns[0][0], turns[0][1])
            return [
                {"role": role, "content": content}
                for turn in turns
                for role, content in zip(("user", "assistant"), turn, strict=True)
            ]
        reply, parts = "", []
        for name, number in pairs:
            given, answer = (f" {name}", str(number)) if self.ask == "number" else (f" {number}", f" {name}")
            # Inclusive, as in Axolotl: the last character of what has no loss.
            end = len(reply) + len(given) - 1
            parts.append({"begin_offset": len(reply), "end_offset": end, "train": False})
            reply += given + answer
        question = "Where is each?" if self.ask == "number" else "Which is each?"
        return [
            {"role": "user", "content": f"{shown}{question}"},
            {"role": "assistant", "content": reply, "train_detail": parts},
        ]

    def _shown(self, names: list[str], texts: list[str]) -> str:
        """Segments as a user's message lists them, or their numbers and names."""
        if self.plain:
            return "".join(f" {number} {name}" for number, name in enumerate(names, 1)) + " "
        from lclm_agent import number_segments
        from lclm_agent.segments import listing

        return listing(number_segments(texts)) + "\n"
