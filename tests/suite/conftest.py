"""Small sources of RULER and a tokenizer that needs no file."""

import json
import re

import pytest

from lclm_jax.suite.tasks.ruler.sources import Sources

WORDS = {
    "nouns": ["apple", "boat", "cloud", "door", "eagle", "flame", "garden", "house", "island", "jacket"],
    "adjectives": ["able", "brave", "calm", "dark", "eager"],
    "verbs": [f"verb{number:03d}" for number in range(400)],
}


def count_tokens(text: str) -> int:
    """Words and marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def split_sentences(text: str) -> list[str]:
    """After full stops."""
    return re.split(r"(?<=\.) ", text)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ruler")
    essay = " ".join(f"Line {number} says\nsomething of little  weight." for number in range(3000))
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": essay}))
    squad = [
        {
            "paragraphs": [
                {
                    "context": f"Fact {article} {paragraph} is kept here. " + "Filler text follows. " * 10,
                    "qas": [
                        {
                            "question": f"Which fact is {article} {paragraph}?",
                            "answers": [{"text": f"{article} {paragraph}"}, {"text": f"fact {article}"}],
                            "is_impossible": False,
                        },
                        {"question": "None?", "answers": [], "is_impossible": True},
                    ],
                }
                for paragraph in range(4)
            ]
        }
        for article in range(60)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": squad}))
    hotpot = [
        {
            "question": f"Who wrote book {number}?",
            "answer": f"Author {number}",
            "context": [[f"T{number}.{k}", [f"Title {k} of {number}.", " More of it." * 8]] for k in range(10)],
            "supporting_facts": [[f"T{number}.3", 0], [f"T{number}.7", 0]],
        }
        for number in range(30)
    ]
    (folder / "hotpotqa.json").write_text(json.dumps(hotpot))
    made = Sources(folder, split_sentences)
    for name, words in WORDS.items():
        setattr(made, name, words)  # in the place of the cached words of a package
    return made
