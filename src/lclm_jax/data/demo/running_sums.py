"""Made-up chats that need their own earlier steps: running sums, worked out label by label.

The user gives labels with a digit each; the reply goes through them and writes behind each the sum of all digits so
far, modulo 10, and then the result: `` pat3 sel9 mur4`` is answered with `` pat3=3 sel9=2 mur4=6 =6``. Who loses the
step before cannot write the next, neither the label nor the sum. Labels are drawn anew for each chat, so a step is
found by its label, however many there are. The digit is said again: without it, the sum of one that is not found yet
and one that is not carried yet tells nothing about either, and models of this size learn neither. ``running_sums``
writes the steps as they are. ``running_sums_compressed`` has the steps before a drawn place between memory tags,
``STEPS`` in a span: what a row looks like whose reasoning is compressed while it is written (``inference.reasoning``),
so that a model learns to go on from it.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lclm_jax.config import CollectionConfig
from lclm_jax.data.documents import Bad, Entry, Row

ENTRIES = 64
CHATS = 100
"""Chats of an entry."""
TERMS = (4, 8, 16, 32)
"""How many terms a sum may have; sums of few are learned first."""
STEPS = 8
"""Steps in a span."""
MODULUS = 10
LABELS = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "lmnr"]
"""240 words; each is one token of a tokenizer of a few hundred tokens, and a step is four."""
COMPRESSED = "running_sums_compressed"


class Term(NamedTuple):
    """A label and its digit."""

    label: str
    digit: int


def list_entries(collection: CollectionConfig, part_bytes: int) -> list[Entry]:
    """Entries of ``CHATS`` chats each; none is a file."""
    size = CHATS * 14 * sum(TERMS) // len(TERMS)
    return [Entry(f"{collection.format}/{number:03d}", size, "") for number in range(ENTRIES)]


def read(entry: Entry, collection: CollectionConfig) -> Iterator[Row | Bad]:
    """The chats that the entry's name is the seed of; the same sums in both formats."""
    draws = random.Random(entry.id.partition("/")[2])  # noqa: S311 - not for secrets; a text as seed, everywhere alike
    for number in range(CHATS):
        terms = draw(draws, draws.choice(TERMS))
        spans = draws.randrange(len(terms) // STEPS + 1) if collection.format == COMPRESSED else 0
        reply = [{"role": "user", "content": question(terms)}, {"role": "assistant", "content": solution(terms, spans)}]
        yield Row(f"{entry.id}/{number:03d}", {collection.columns.messages: reply})


def draw(draws: random.Random, count: int) -> list[Term]:
    """``count`` terms, at most as many as there are labels."""
    return [Term(label, draws.randrange(10)) for label in draws.sample(LABELS, count)]


def question(terms: Sequence[Term]) -> str:
    """What is asked."""
    return "".join(f" {label}{digit}" for label, digit in terms)


def steps(terms: Sequence[Term]) -> list[str]:
    """The steps: each label and its digit, and the sum of all digits up to it."""
    total, lines = 0, []
    for label, digit in terms:
        total = (total + digit) % MODULUS
        lines.append(f" {label}{digit}={total}")
    return lines


def solution(terms: Sequence[Term], spans: int = 0) -> str:
    """The reply: the steps, the first ``spans`` times ``STEPS`` of them compressed, and the result."""
    lines = steps(terms)
    parts = ["".join(lines[k * STEPS : (k + 1) * STEPS]) for k in range(spans)]
    raw = "".join(lines[spans * STEPS :])
    return "".join(f"<|memory_start|>{part}<|memory_end|>" for part in parts) + raw + f" ={result(terms)}"


def result(terms: Sequence[Term]) -> int:
    """What the sum comes to."""
    return sum(term.digit for term in terms) % MODULUS
