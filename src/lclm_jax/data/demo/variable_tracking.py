"""Made-up chats that need their own earlier steps: chains of variables, followed link by link.

The user gives the links of a chain in any order and the variable that it begins with; the reply follows them to the
end: `` mur end, pat sel, sel mur, pat`` is answered with `` pat sel, sel mur, mur end,``. Who loses the step before
cannot write the next. Variables are drawn anew for each chat, so a link is found by its name, however many there are.
``variable_tracking`` writes the steps as they are. ``variable_tracking_compressed`` has the steps before a drawn place
between memory tags, ``STEPS`` in a span: what a row looks like whose reasoning is compressed while it is written
(``inference.reasoning``), so that a model learns to go on from it. ``variable_tracking_lookups`` teaches how a link is
found to a model that starts from random weights: replies repeat links at random, and what follows a name has the only
loss.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.types import JsonObject

ENTRIES = 64
CHATS = 100
"""Chats of an entry."""
LINKS = (2, 4, 8, 16)
"""How many links a chain may have; short ones are learned first."""
STEPS = 4
"""Steps in a span."""
STEP_TOKENS = 3
"""Tokens of a step in a tokenizer of a thousand tokens: `` pat``, `` sel`` and the comma. A name is one token, and the
same one wherever it stands: what is compared is equal from the beginning."""
NAMES = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "lmnr"]
END = "end"
COMPRESSED = "variable_tracking_compressed"
LOOKUPS = "variable_tracking_lookups"
REPEATS = 24
"""Links of a reply of look-ups, drawn with replacement: copying an earlier one is the first step to finding one."""


class Chain(NamedTuple):
    """A chain, and how it is asked for."""

    steps: tuple[str, ...]
    """Its links in order, such as `` pat sel,``: what is to be written."""
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
        if collection.format == LOOKUPS:
            answer = lookups(draws.choices(chain.steps, k=REPEATS))
        else:
            spans = draws.randrange((len(chain.steps) - 1) // STEPS + 1) if collection.format == COMPRESSED else 0
            answer = {"content": reply(chain.steps, spans)}
        messages = [{"role": "user", "content": chain.question}, {"role": "assistant", **answer}]
        yield Row(f"{entry.id}/{number:03d}", {collection.columns.messages: messages})


def draw(draws: random.Random, links: int) -> Chain:
    """A chain of so many links, at most as many as there are names."""
    names = draws.sample(NAMES, links)
    steps = tuple(f" {name} {following}," for name, following in zip(names, [*names[1:], END], strict=True))
    return Chain(steps, "".join(draws.sample(steps, links)) + f" {names[0]}")


def reply(steps: Sequence[str], spans: int = 0) -> str:
    """The steps, the first ``spans`` times ``STEPS`` of them compressed."""
    parts = ["".join(steps[k * STEPS : (k + 1) * STEPS]) for k in range(spans)]
    return "".join(f"<|memory_start|>{part}<|memory_end|>" for part in parts) + "".join(steps[spans * STEPS :])


def lookups(steps: Sequence[str]) -> JsonObject:
    """Content of ``steps``, and the parts of it without loss: all but what follows a name."""
    begin, parts = 0, []
    for step in steps:
        # Inclusive, as in Axolotl: the last character of what has no loss.
        parts.append({"begin_offset": begin, "end_offset": begin + step.index(" ", 1) - 1, "train": False})
        begin += len(step)
    return {"content": "".join(steps), "train_detail": parts}
