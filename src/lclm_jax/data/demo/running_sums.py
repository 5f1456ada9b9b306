"""Made-up chats that need their own earlier steps: running sums, worked out term by term.

The user gives single digits; the reply writes the sum of all so far, modulo 100, after each, and then the result. Who
loses an earlier line cannot write the next. ``running_sums`` writes the steps as they are. ``running_sums_compressed``
has the steps before a drawn place between memory tags, ``STEPS`` in a span: what a row looks like whose reasoning is
compressed while it is written (``inference.reasoning``), so that a model learns to go on from it.
"""

import random
from collections.abc import Iterator

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row

ENTRIES = 64
CHATS = 100
"""Chats of an entry."""
TERMS = (8, 32)
"""Fewest and most terms of a sum."""
STEPS = 4
"""Steps in a span."""
MODULUS = 100
COMPRESSED = "running_sums_compressed"


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """Entries of ``CHATS`` chats each; none is a file."""
    size = CHATS * 8 * sum(TERMS) // 2
    return [Entry(f"{collection.format}/{number:03d}", size, "") for number in range(ENTRIES)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The chats that the entry's name is the seed of; the same sums in both formats."""
    draws = random.Random(entry.id.partition("/")[2])  # noqa: S311 - not for secrets; a text as seed, everywhere alike
    for number in range(CHATS):
        terms = [draws.randrange(10) for _ in range(draws.randint(*TERMS))]
        spans = draws.randrange(len(terms) // STEPS) if collection.format == COMPRESSED else 0
        reply = [{"role": "user", "content": question(terms)}, {"role": "assistant", "content": solution(terms, spans)}]
        yield Row(f"{entry.id}/{number:03d}", {collection.columns.messages: reply})


def question(terms: list[int]) -> str:
    """What is asked."""
    return " ".join(map(str, terms))


def steps(terms: list[int]) -> list[str]:
    """A line for each term: the sum of all up to it."""
    total, lines = 0, []
    for term in terms:
        total = (total + term) % MODULUS
        lines.append(f"+{term}={total}\n")
    return lines


def solution(terms: list[int], spans: int = 0) -> str:
    """The reply: the steps, the first ``spans`` times ``STEPS`` of them compressed, and the result."""
    lines = steps(terms)
    parts = ["".join(lines[k * STEPS : (k + 1) * STEPS]) for k in range(spans)]
    raw = "".join(lines[spans * STEPS :])
    return "".join(f"<|memory_start|>{part}<|memory_end|>" for part in parts) + raw + f"={result(terms)}"


def result(terms: list[int]) -> int:
    """What the sum comes to."""
    return sum(terms) % MODULUS
