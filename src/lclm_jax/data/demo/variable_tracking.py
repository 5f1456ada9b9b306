"""Made-up chats that need their own earlier steps: chains of variables, followed link by link.

The user gives links in any order and the variable that a chain begins with; the reply follows it to the end:
`` mur end, dov end, pat sel, sel mur, pat`` is answered with `` pat sel, sel mur, mur end,``. Links that are not of the
chain are one of their own, so that a question about a short chain may be as long as one about a long chain. Who loses
the step before cannot write the next. Variables are drawn anew for each chat, so a link is found by its name.
``variable_tracking`` writes the steps as they are. ``variable_tracking_compressed`` has the steps before a drawn place
between memory tags, ``STEPS`` in a span: what a row looks like whose reasoning is compressed while it is written
(``inference.reasoning``), so that a model learns to go on from it. ``variable_tracking_lookups`` teaches how a link is
found to a model that starts from random weights: replies repeat links at random, and what follows a name has the only
loss. In ``variable_tracking_compressed_lookups`` the question's links are compressed: latents are learned to be read.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row
from lclm_jax.types import JsonObject

ENTRIES = 64
CHATS = 100
"""Chats of an entry."""
TOTALS = (2, 4, 8, 16, 32)
"""How many links a question may have; to find one of few is learned first."""
LINKS = (2, 4, 8)
"""How many of them the chain may have."""
STEPS = 2
"""Steps in a span."""
STEP_TOKENS = 3
"""Tokens of a step in a tokenizer of a thousand tokens: `` pat``, `` sel`` and the comma. A name is one token, and the
same one wherever it stands: what is compared is equal from the beginning."""
NAMES = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "lmnr"]
END = "end"
COMPRESSED = "variable_tracking_compressed"
LOOKUPS = "variable_tracking_lookups"
COMPRESSED_LOOKUPS = "variable_tracking_compressed_lookups"
REPEATS = 24
"""Links of a reply of look-ups, drawn with replacement: copying an earlier one is the first step to finding one."""


class Chain(NamedTuple):
    """A chain, and how it is asked for."""

    steps: tuple[str, ...]
    """Its links in order, such as `` pat sel,``: what is to be written."""
    links: tuple[str, ...]
    """Those of the question, in its order."""
    question: str


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """Entries of ``CHATS`` chats each; none is a file."""
    size = CHATS * 10 * sum(TOTALS) // len(TOTALS)
    return [Entry(f"{collection.format}/{number:03d}", size, "") for number in range(ENTRIES)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The chats that the entry's name is the seed of; the same chains in both formats."""
    draws = random.Random(entry.id.partition("/")[2])  # noqa: S311 - not for secrets; a text as seed, everywhere alike
    for number in range(CHATS):
        total = draws.choice(TOTALS)
        chain = draw(draws, draws.choice([length for length in LINKS if length <= total]), total)
        question = chain.question
        if collection.format in (LOOKUPS, COMPRESSED_LOOKUPS):
            answer = lookups(draws.choices(chain.links, k=REPEATS))
            if collection.format == COMPRESSED_LOOKUPS:
                question = reply(chain.links, total // STEPS)
        else:
            spans = draws.randrange((len(chain.steps) - 1) // STEPS + 1) if collection.format == COMPRESSED else 0
            answer = {"content": reply(chain.steps, spans)}
        messages = [{"role": "user", "content": question}, {"role": "assistant", **answer}]
        yield Row(f"{entry.id}/{number:03d}", {collection.columns.messages: messages})


def draw(draws: random.Random, length: int, total: int) -> Chain:
    """A chain of ``length`` links, of ``total`` in the question."""
    names = draws.sample(NAMES, total)
    chains = [*names[1:length], END], [*names[length + 1 :], END]
    links = [f" {name} {following}," for name, following in zip(names, itertools.chain(*chains), strict=False)]
    shuffled = draws.sample(links, total)
    return Chain(tuple(links[:length]), tuple(shuffled), "".join(shuffled) + f" {names[0]}")


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
