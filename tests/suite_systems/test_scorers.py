"""Scorers beside the published code on 200 answers (``make test-suite-systems``)."""

import importlib.util
import random
from pathlib import Path

import pytest
from fuzzywuzzy import fuzz

from lclm_jax.suite.scoring import match, overlap

WORDS = ["red", "Blue", "green", "12", "apple", "Apple", "tree", "of", "the", "a", "house", "7"]


def draw(seed, count=200):
    """Pairs of an answer and what is wanted, many of them alike."""
    stream = random.Random(seed)
    for _ in range(count):
        wanted = [" ".join(stream.choices(WORDS, k=stream.randint(1, 3))) for _ in range(stream.randint(1, 4))]
        parts = stream.choices(wanted, k=2) + stream.choices(WORDS, k=stream.randint(0, 4))
        stream.shuffle(parts)
        yield stream.choice([" ", "\n", ", "]).join(parts), wanted


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("string_match_all_per_sample", match.all_parts), ("string_match_part_per_sample", match.any_part)],
)
def test_ruler(theirs, ours):
    (place,) = importlib.util.find_spec("long_context_eval").submodule_search_locations
    published = {}
    exec((Path(place) / "eval/synthetic/constants.py").read_text(), published)
    answers, wanted = zip(*draw(1), strict=True)
    assert [100 * ours(*one) for one in zip(answers, wanted, strict=True)] == published[theirs](answers, wanted)


@pytest.mark.filterwarnings("ignore:Using slow pure-python")
def test_code_similarity():
    for answer, wanted in draw(2):
        line = next((one for one in answer.lstrip("\n").split("\n")), "")
        assert overlap.code_similarity(answer, wanted[0]) == fuzz.ratio(line, wanted[0]) / 100


def test_rouge_and_chinese_run():
    assert overlap.rouge("the red house", "the red house") == pytest.approx(1, abs=1e-6)
    assert overlap.rouge("", "the red house") == 0
    assert overlap.rouge_chinese("红色的房子", "红色的房子") == pytest.approx(1, abs=1e-6)
    assert overlap.f1_chinese("红色的房子。", "红色的房子") == 1


def test_rouge_of_lines():
    """Three of three words are found, in an answer of five: 2 * 1 * 0.6 / 1.6."""
    assert overlap.rouge_lsum("the red house\na tree", "the red house") == pytest.approx(0.75)
    assert overlap.rouge_lsum("", "the red house") == 0
