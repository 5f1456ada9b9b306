"""Made-up documents whose loss depends on the context: for studies too small to learn what real text gains from it.

Each document has a topic of its own, a few words in a cycle; a word is mostly followed by the next one of the cycle,
else by any of the topic. Who has read a stretch of a document knows its words (what is lost without context is large
and soon learned) and who has read it exactly knows their order, too. A word is one token of a small tokenizer.
"""

import random
from collections.abc import Iterator

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row

DOCUMENTS = 4000
WORDS = 160
"""Words of a document."""
TOPIC = 4
"""Words of a topic."""
FOLLOWS = 0.85
"""Chance that a word is followed by the next one of the cycle."""
VOCABULARY = [first + second for first in "bdfgklmn" for second in "aeio"]


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """One entry per document; none is a file."""
    size = 3 * WORDS + 1
    return [Entry(f"synthetic/{number:05d}", size, "") for number in range(DOCUMENTS)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The document that the entry's name is the seed of."""
    draws = random.Random(entry.id)  # noqa: S311 - not for secrets; a text as seed gives the same draws everywhere
    topic = draws.sample(VOCABULARY, TOPIC)
    following = dict(zip(topic, topic[1:] + topic[:1], strict=True))
    words = [draws.choice(topic)]
    while len(words) < WORDS:
        words.append(following[words[-1]] if draws.random() < FOLLOWS else draws.choice(topic))
    yield Row(entry.id, {collection.columns.text: "".join(f" {word}" for word in words).encode() + b"\n"})
