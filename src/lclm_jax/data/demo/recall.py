"""Made-up documents that ask for exact things read before, so that latents must hold more than a topic.

A document begins with a stretch of ``STRETCH`` words that holds some facts, and goes on with words that only these
facts predict. There are two kinds:

- ``pairs``: keys, each followed by its value, all of them as often as there is room; then keys at random, each
  followed by its value. A value is drawn anew in each document, so who has not read the stretch has to guess among all.
- ``copy``: a string of random words said over and over; it goes on in the same way.

The density differs: a document has one of ``FACTS`` numbers of pairs, or a string of twice as many words. A stretch of
32 words fills two windows of 16 tokens, so half of what is asked about lies in another window. A word is one token of a
small tokenizer.

What the stretch is worth is known. Without it, the first time a fact is used it costs log(32) nats: for ``pairs`` that
is every value whose key comes for the first time after the stretch, for ``copy`` the first turn of the string; with
it, nothing. Keys are drawn from those of the document: log(facts) nats each, with the stretch or without it.
"""

import math
import random
from collections.abc import Iterator

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row

DOCUMENTS = 6000
STRETCH = 32
"""Words of the stretch."""
WORDS = 96
"""Words of a document."""
FACTS = (2, 4, 8, 16)
KEYS = [first + second for first in "cpst" for second in "aeiouy"]
VALUES = [first + second for first in "bdfgklmn" for second in "aeio"]


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per document; none is a file."""
    size = 3 * WORDS + 1
    return [Entry(f"recall/{number:05d}", size, "") for number in range(DOCUMENTS)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The document that the entry's name is the seed of."""
    draws = random.Random(entry.id)  # noqa: S311 - not for secrets; a text as seed gives the same draws everywhere
    facts = draws.choice(FACTS)
    words = _pairs(draws, facts) if draws.random() < 0.5 else _copy(draws, 2 * facts)
    yield Row(entry.id, {collection.columns.text: "".join(f" {word}" for word in words).encode() + b"\n"})


def worth(facts: int, uses: int) -> float:
    """Nats that the stretch saves on ``uses`` values of a document with ``facts`` pairs, on average.

    A value costs log(32) nats without it if its key comes for the first time.
    """
    first_times = facts * (1 - (1 - 1 / facts) ** uses)
    return first_times * math.log(len(VALUES))


def _pairs(draws: random.Random, facts: int) -> list[str]:
    table = {key: draws.choice(VALUES) for key in draws.sample(KEYS, facts)}
    order = [key for _ in range(STRETCH // (2 * facts)) for key in draws.sample(list(table), facts)]
    order += [draws.choice(list(table)) for _ in range((WORDS - STRETCH) // 2)]
    return [word for key in order for word in (key, table[key])]


def _copy(draws: random.Random, length: int) -> list[str]:
    string = [draws.choice(VALUES) for _ in range(length)]
    return [string[place % length] for place in range(WORDS)]
