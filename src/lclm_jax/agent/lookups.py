"""Look-ups: chats that say for one name after another in which segment it stands, with loss on the numbers alone.

A model with random weights does not learn from traces (``lclm_jax.agent.traces``) which segment a question means: of a
whole call one number tells, and random codes, which nobody can predict, have loss beside it. Here every second token of
a reply is such a number, and nothing else has loss.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from lclm_jax.agent.tasks import check_segments, draw_segments
from lclm_jax.agent.traces import lclm_agent
from lclm_jax.types import JsonObject


class Lookups(NamedTuple):
    """Which rows are drawn; see ``lclm data lookups``."""

    rows: int
    segments: int = 8
    """Segments of a row, at most: half of the rows have 2, a quarter half as many, for few are learned first."""
    lookups: int = 24
    """Names of a reply, drawn with replacement: copying an earlier answer is the first step to finding one."""
    plain: bool = False
    """Names and numbers as text in place of compressed segments, without memory."""
    seed: int = 0

    def draw(self) -> Iterator[JsonObject]:
        """Rows of the format ``records: chat``: ``id``, and ``messages`` whose reply has ``train_detail``.

        Raises ``LclmError`` if lclm-serving is not installed, or there are fewer names than segments.
        """
        lclm_agent()
        check_segments(self.segments)
        from lclm_agent import number_segments
        from lclm_agent.segments import listing

        kind = "plain" if self.plain else "latents"
        stream = random.Random(f"look-ups {kind} {self.seed}")  # noqa: S311 - drawn data, no secret
        sizes = [min(2, self.segments)] * 2 + [max(1, self.segments // 2), self.segments]
        for number in range(self.rows):
            names, _, texts = draw_segments(stream, stream.choice(sizes))
            if self.plain:
                shown = "".join(f" {name}{place}" for place, name in enumerate(names, 1)) + " "
            else:
                shown = listing(number_segments(texts)) + "\n"
            reply, parts = "", []
            for place in stream.choices(range(len(names)), k=self.lookups):
                parts.append({"begin_offset": len(reply), "end_offset": len(reply) + len(names[place]), "train": False})
                reply += f" {names[place]}{place + 1}"
            yield {
                "id": f"look-ups/{kind}/{self.seed}/{number}",
                "messages": [
                    {"role": "user", "content": f"{shown}Where is each?"},
                    {"role": "assistant", "content": reply, "train_detail": parts},
                ],
            }
