"""Scorers that look for strings, letters and numbers in an answer. Every score is from 0 to 1."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def all_parts(answer: str, wanted: Sequence[str]) -> float:
    """Share of ``wanted`` that occur in the answer, in any case of letters (RULER)."""
    return sum(one.lower() in answer.lower() for one in wanted) / len(wanted)


def any_part(answer: str, wanted: Sequence[str]) -> float:
    """Whether any of ``wanted`` occurs in the answer, in any case of letters (RULER's questions)."""
    return float(any(one.lower() in answer.lower() for one in wanted))


def contains(answer: str, wanted: Sequence[str]) -> float:
    """Whether the first of ``wanted`` occurs in the answer as it is (SCBench's retrieval of values)."""
    return float(wanted[0] in answer)


def last_number(answer: str, wanted: Sequence[str]) -> float:
    """Whether the number behind ``####``, or else the last number of the answer, is the one wanted (GSM8K)."""
    tail = answer.rpartition("####")[2] if "####" in answer else answer
    found = _NUMBER.findall(tail) or _NUMBER.findall(answer)
    if not found:
        return 0.0
    number = found[0] if "####" in answer else found[-1]
    return float(_value(number) == _value(wanted[0]))


def _value(text: str) -> float:
    return float(text.replace("$", "").replace(",", ""))


def first_integer(answer: str, wanted: Sequence[str]) -> float:
    """Whether the first run of digits is the one wanted (SCBench's passkey)."""
    found = re.search(r"\d+", answer)
    return float(found is not None and found.group() == wanted[0])


def first_number(answer: str, wanted: Sequence[str]) -> float:
    """Whether the first number, cut to an integer if an integer is wanted, is the one wanted (SCBench's mf)."""
    found = re.search(r"\d+\.\d+|\d+", answer)
    if found is None:
        return 0.0
    right, number = float(wanted[0]), float(found.group())
    return float((int(number) if "." not in wanted[0] else number) == right)


def stated_choice(answer: str, wanted: Sequence[str]) -> float:
    """Whether the answer says ``The correct answer is (X)`` with the letter wanted (LongBench-v2)."""
    plain = answer.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", plain) or re.search(r"The correct answer is ([A-D])", plain)
    return float(found is not None and found.group(1) == wanted[0])


def option(answer: str, wanted: Sequence[str]) -> float:
    """Whether the answer says ``The correct answer is X`` with the letter wanted, or repeats its text (LongHealth).

    ``wanted`` holds the letter and the text of the option.
    """
    found = re.search(r"(?:correct )?answer is:? *\**\(?([A-F])\b", answer) or re.match(r"\s*\(?([A-F])\b", answer)
    if found is not None:
        return float(found.group(1) == wanted[0])
    return float(wanted[1].lower() in answer.lower())


def book_choice(answer: str, wanted: Sequence[str]) -> float:
    """The letter that the answer names, found as SCBench finds it; ``wanted`` holds the letter and the text."""
    text = answer.strip()
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in wanted)
    if text in wanted:
        return 1.0
    text = " ".join(re.sub(r"[\n\"'.,?!{}]", " ", text).split())
    for prefix in ("answer is:", "answer:", "answer is", "option is"):
        place = text.find(prefix)
        if place >= 0:
            after = text[place + len(prefix) + 1 :]
            return float(any(after.startswith(one) for one in wanted))
    words = [word for word in text.split() if word in "ABCD"]
    return float(bool(words) and words[0] in wanted)
