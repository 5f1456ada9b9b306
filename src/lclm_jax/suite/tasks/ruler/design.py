"""The published design of RULER: texts of the prompts, sizes of the answers, the thirteen tasks.

The texts are those of the paper (arXiv 2404.06654) and of the authors' files (Apache-2.0), spelling included: scores
are comparable only with equal prompts.
"""

from typing import Literal, NamedTuple

Kind = Literal["words", "numbers", "uuids"]
Haystack = Literal["repeat", "essay", "needle"]

PUBLISHED_LENGTH = 4096
"""Below it the published sizes leave no haystack, and questions about documents do not fit: a variant of our own."""

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."


class Prompt(NamedTuple):
    """Text around the context of one kind of task."""

    before: str
    after: str
    prefix: str
    new_tokens: int
    """Length of the reply, part of the nominal length."""


NEEDLE_PROMPT = Prompt(
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about"
    " the {kind} afterwards.\n",
    "\nWhat are all the special magic {kind} for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text are",
    128,
)
TRACKING_PROMPT = Prompt(
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
    "\nQuestion: Find all variables that are assigned the value {query} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assgined the"
    " value {query}, they are: ",
    30,
)
COMMON_PROMPT = Prompt(
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that"
    " appear most often.\n",
    "\nQuestion: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
    120,
)
FREQUENT_PROMPT = Prompt(
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared"
    " coded words. ",
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently"
    " appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
    50,
)
_ONLY = "Only give me the answer and do not output any other words."
QUESTION_PROMPT = Prompt(
    f"Answer the question based on the given documents. {_ONLY}\n\nThe following are given documents.\n\n",
    f"\n\nAnswer the question based on the given documents. {_ONLY}\n\nQuestion: {{query}}",
    " Answer:",
    32,
)


class Needles(NamedTuple):
    """What is hidden where: one of the eight needle tasks."""

    haystack: Haystack
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


class Tracking(NamedTuple):
    """Variable tracking."""

    hops: int = 4


class CommonWords(NamedTuple):
    """Extraction of the most common words of a list."""

    common: int = 10
    common_repeats: int = 30
    rare_repeats: int = 3


class FrequentWords(NamedTuple):
    """Extraction of the most frequent words of a text whose frequencies follow a zeta distribution."""

    alpha: float = 2.0


class Questions(NamedTuple):
    """Questions about one of many documents."""

    data: Literal["squad", "hotpotqa"]


Design = Needles | Tracking | CommonWords | FrequentWords | Questions

TASKS: dict[str, Design] = {
    "niah_single_1": Needles("repeat"),
    "niah_single_2": Needles("essay"),
    "niah_single_3": Needles("essay", value="uuids"),
    "niah_multikey_1": Needles("essay", keys=4),
    "niah_multikey_2": Needles("needle"),
    "niah_multikey_3": Needles("needle", key="uuids", value="uuids"),
    "niah_multivalue": Needles("essay", values=4),
    "niah_multiquery": Needles("essay", keys=4, queries=4),
    "vt": Tracking(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
    "qa_1": Questions("squad"),
    "qa_2": Questions("hotpotqa"),
}
