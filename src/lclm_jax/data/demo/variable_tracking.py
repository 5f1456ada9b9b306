"""Made-up chats that need their own earlier steps: chains of variables, followed link by link.

The user gives the links of a chain in any order and the variable that it begins with; the reply follows them to the
end: `` mur>end pat>sel sel>mur pat`` is answered with `` pat>sel sel>mur mur>end``. Who loses the step before cannot
write the next. Variables are drawn anew for each chat, so a link is found by its name, however many there are.
``variable_tracking`` writes the steps as they are. ``variable_tracking_compressed`` has the steps before a drawn place
between memory tags, ``STEPS`` in a span: what a row looks like whose reasoning is compressed while it is written
(``inference.reasoning``), so that a model learns to go on from it.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row

ENTRIES = 64
CHATS = 100
"""Chats of an entry."""
LINKS = (4, 8, 16, 32)
"""How many links a chain may have; short ones are learned first."""
STEPS = 8
"""Steps in a span."""
STEP_TOKENS = 2
"""Tokens of a step in a tokenizer of a thousand tokens: `` pat`` and ``>sel``."""
NAMES = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "lmnr"]
END = "end"
COMPRESSED = "variable_tracking_compressed"


class Chain(NamedTuple):
    """A chain, and how it is asked for."""

    steps: tuple[str, ...]
    """Its links in order, such as `` pat>sel``: what is to be written."""
    question: str


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """Entries of ``CHATS`` chats each; none is a file."""
    size = CHATS * 16 * sum(LINKS) // len(LINKS)
    return [Entry(f"{collection.format}/{number:03d}", size, "") for number in range(ENTRIES)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The chats that the entry's name is the seed of; the same chains in both formats."""
    draws = random.Random(entry.id.partition("/")[2])  # noqa: S311 - not for secrets; a text as seed, everywhere alike
    for number in range(CHATS):
        chain = draw(draws, draws.choice(LINKS))
        spans = draws.randrange((len(chain.steps) - 1) // STEPS + 1) if collection.format == COMPRESSED else 0
        said = (("user", chain.question), ("assistant", reply(chain.steps, spans)))
        messages = [{"role": role, "content": content} for role, content in said]
        yield Row(f"{entry.id}/{number:03d}", {collection.columns.messages: messages})


def draw(draws: random.Random, links: int) -> Chain:
    """A chain of so many links, at most as many as there are names."""
    names = draws.sample(NAMES, links)
    steps = tuple(f" {name}>{following}" for name, following in zip(names, [*names[1:], END], strict=True))
    return Chain(steps, "".join(draws.sample(steps, links)) + f" {names[0]}")


def reply(steps: Sequence[str], spans: int = 0) -> str:
    """The steps, the first ``spans`` times ``STEPS`` of them compressed."""
    parts = ["".join(steps[k * STEPS : (k + 1) * STEPS]) for k in range(spans)]
    return "".join(f"<|memory_start|>{part}<|memory_end|>" for part in parts) + "".join(steps[spans * STEPS :])
