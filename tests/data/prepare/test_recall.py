"""Documents of the format ``recall``: what is asked can be known from the stretch, and its worth is as computed."""

import math

import numpy as np
import pytest

from lclm_jax.config import CollectionConfig
from lclm_jax.data.demo.recall import FACTS, KEYS, STRETCH, VALUES, WORDS, list_entries, read, worth

COLLECTION = CollectionConfig(format="recall")


def documents(count):
    for entry in list_entries(COLLECTION, 10**6)[:count]:
        (row,) = read(entry, COLLECTION)
        yield row.values["text"].decode().split()


def test_the_stretch_tells_all_that_follows_and_differs_in_density():
    kinds, uses, saved = {}, (WORDS - STRETCH) // 2, {facts: [] for facts in FACTS}
    for words in documents(300):
        stretch, rest = words[:STRETCH], words[STRETCH:]
        kind = "pairs" if words[0] in KEYS else "copy"
        assert len(words) == WORDS
        if kind == "pairs":
            table = dict(zip(stretch[::2], stretch[1::2], strict=True))
            assert all(table[key] == value for key, value in zip(rest[::2], rest[1::2], strict=True))
            facts = len(table)
            saved[facts].append(len(set(rest[::2])) * math.log(len(VALUES)))
        else:
            facts = next(n // 2 for n in (4, 8, 16, 32) if words[n : 2 * n] == words[:n])
            assert rest == [words[place % (2 * facts)] for place in range(STRETCH, WORDS)]
        kinds[kind, facts] = kinds.get((kind, facts), 0) + 1
    assert set(kinds) == {(kind, facts) for kind in ("pairs", "copy") for facts in FACTS}
    for facts, found in saved.items():
        assert np.mean(found) == pytest.approx(worth(facts, uses), rel=0.06)


def test_a_document_depends_on_its_name_alone():
    assert list(documents(3)) == list(documents(3))
    assert len({" ".join(words) for words in documents(50)}) == 50
