"""Scorers against cases computed by hand; tests/suite_systems compares them with the published code."""

import pytest

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.scoring import judge
from lclm_jax.suite.scoring.scorers import SCORERS, check_scorers, score


def sample(scorer, *answers, **extra):
    return Sample("t/0", "t", "context", "question", answers, extra={"scorer": scorer, **extra})


@pytest.mark.parametrize(
    ("scorer", "answers", "reply", "expected"),
    [
        ("all_parts", ["Ab", "cd"], "it is AB.", 0.5),
        ("any_part", ["Ab", "cd"], "it is AB.", 1),
        ("any_part", ["Ab", "cd"], "neither", 0),
        ("contains", ["Ab"], "ab", 0),
        ("last_number", ["1234"], "First 7, then\n#### 1,234", 1),
        ("last_number", ["12"], "3 and 4 give $12.00", 1),
        ("last_number", ["12"], "12 and then 5", 0),
        ("last_number", ["-3"], "#### -3 apples of 9", 1),
        ("last_number", ["3"], "none", 0),
        ("first_integer", ["42"], "it is 42, not 7", 1),
        ("first_number", ["7"], "about 7.9", 1),
        ("first_number", ["7.5"], "about 7.9", 0),
        ("stated_choice", ["B"], "**The correct answer is (B)** because", 1),
        ("stated_choice", ["B"], "The correct answer is A", 0),
        ("stated_choice", ["B"], "B", 0),
        ("option", ["C", "Acute bronchitis"], "The correct answer is C: Acute bronchitis.", 1),
        ("option", ["C", "Acute bronchitis"], "I think it is acute bronchitis", 1),
        ("option", ["C", "Acute bronchitis"], "The correct answer is A: acute bronchitis", 0),
        ("book_choice", ["B", "Anna"], "B. Anna", 1),
        ("book_choice", ["B", "Anna"], "well, the answer is: Anna", 1),
        ("book_choice", ["B", "Anna"], "well, perhaps C or B", 0),
        ("book_choice", ["B", "Anna"], "", 0),
        ("f1", ["the red house"], "A red, big house!", 0.8),  # red, big, house against red, house: 2/3 and 1
        ("f1", ["no", "red"], "red", 1),
        ("f1", ["yes"], "", 0),
        ("f1_characters", ["红色 房子"], "红房。", 2 * 1 * 0.5 / 1.5),
        ("f1_first_line", ["red"], "\nred\nand more", 1),
        ("code_similarity", ["return x"], "```python\n# note\nreturn y\n", 0.88),
        ("count", ["3"], "3 or 4", 0.5),
        ("count", ["3"], "three", 0),
        ("retrieval", ["Paragraph 12"], "Paragraph 12", 1),
        ("retrieval", ["段落3"], "段落3或段落4", 0.5),
    ],
)
def test_by_hand(scorer, answers, reply, expected):
    assert score(reply, sample(scorer, *answers)) == pytest.approx(expected)


def test_classes_that_are_part_of_the_right_name_do_not_count():
    classes = ["Person", "Person name", "Place"]
    assert score("Person name", sample("classification", "Person name", classes=classes)) == 1
    assert score("Person name or Place", sample("classification", "Person name", classes=classes)) == 0.5
    assert score("Place\nPerson name", sample("classification", "Person name", classes=classes)) == 0


def test_judged_and_likelihood_have_no_score_of_their_own():
    assert score("x", sample("judge", "a")) is None
    assert score("x", sample("likelihood", "a")) is None


def test_judge_requests_and_verdicts():
    one = sample("judge", "12 days", judge="aa_lcr", asked="How long?")
    assert "The OFFICIAL ANSWER: 12 days\nCANDIDATE ANSWER TO ASSESS: 11\n" in judge.request(one, "11")
    assert [judge.verdict(one, said) for said in ("CORRECT", " INCORRECT\n", "maybe")] == [1, 0, None]
    two = sample("judge", "12 days", judge="temporal-reasoning", asked="How long?")
    assert "off-by-one" in judge.request(two, "11")
    assert [judge.verdict(two, said) for said in ("Yes.", "no")] == [1, 0]


def test_unknown_scorer_and_missing_package_are_named(monkeypatch):
    with pytest.raises(LclmError, match="no scorer is called 'bleu'; known: all_parts"):
        check_scorers([sample("bleu", "a")], has_judge=False)
    monkeypatch.setitem(__import__("sys").modules, "rouge", None)
    with pytest.raises(LclmError, match=r"the scorer rouge needs the package rouge, .*: pip install rouge"):
        check_scorers([sample("rouge", "a")], has_judge=False)
    check_scorers([sample(name, "a") for name in ("f1", "judge", "likelihood")], has_judge=False)
    assert "judge" not in SCORERS
