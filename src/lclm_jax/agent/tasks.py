"""Tasks about segments, with the segments that answer them: named codes, quotations of documents, RULER."""

import functools
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lclm_jax.config import load_config
from lclm_jax.data.store.columns import column_text
from lclm_jax.data.store.shards import open_split
from lclm_jax.errors import LclmError
from lclm_jax.suite.tasks.ruler.design import TASKS, Needles, Tracking
from lclm_jax.suite.tasks.ruler.generate import generate
from lclm_jax.suite.tasks.ruler.sources import Sources

RULER = tuple(name for name, design in TASKS.items() if isinstance(design, Needles | Tracking))
"""Tasks of RULER whose answers stand in few places: eight of needles, and variable tracking."""
NAMES = 128
"""Different names of codes."""
CODE_LENGTH = 6
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_FACTS = ("The code of {name} is {code}.", "Here {name} has the code {code}.", "Use for {name} the code {code}.")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\S+")


class Asked(NamedTuple):
    """One question: its text, its answers, and the segments (from 0) that hold them."""

    text: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]


class Drawn(NamedTuple):
    """Segments and questions about them."""

    id: str
    kind: str
    segments: tuple[str, ...]
    questions: tuple[Asked, ...]
    names: tuple[str, ...] = ()
    """The name that each question asks about, where the task has names."""


@functools.cache
def names() -> list[str]:
    """The names that codes are given to: two syllables each, the same on every machine."""
    syllables = [a + b for a in _CONSONANTS for b in _VOWELS]
    pairs = [a + b for a, b in itertools.product(syllables, repeat=2) if a != b]
    return random.Random(0).sample(pairs, NAMES)  # noqa: S311 - a fixed list, no secret


def check_segments(count: int) -> None:
    """Raise ``LclmError`` if there are fewer names than ``count``."""
    if not 1 <= count <= NAMES:
        raise LclmError(f"{count} segments: there are names for 1 to {NAMES}; ask for fewer")


def draw_segments(stream: random.Random, count: int) -> tuple[list[str], list[str], list[str]]:
    """Different names, a random code for each, and the segments that say so; draws from ``stream``.

    Raises ``LclmError`` if there are fewer names than segments.
    """
    check_segments(count)
    chosen = stream.sample(names(), count)
    codes = ["".join(stream.choices(_LETTERS, k=CODE_LENGTH)) for _ in chosen]
    pairs = zip(chosen, codes, strict=True)
    return chosen, codes, [stream.choice(_FACTS).format(name=name, code=code) for name, code in pairs]


def draw_codes(seed: int, count: int, segments: int, questions: int) -> Iterator[Drawn]:
    """Tasks whose segments each give a random code to a name: nothing but the segment itself tells the code."""
    stream = random.Random(f"codes {seed}")  # noqa: S311 - drawn data, no secret
    for number in range(count):
        chosen, codes, texts = draw_segments(stream, segments)
        asked = stream.sample(range(segments), min(questions, segments))
        yield Drawn(
            f"codes/{seed}/{number}",
            "codes",
            tuple(texts),
            tuple(Asked(f"What is the code of {chosen[i]}?", (codes[i],), (i,)) for i in asked),
            tuple(chosen[i] for i in asked),
        )


def draw_quotations(
    texts: Sequence[tuple[str, str]], seed: int, count: int, segments: int, questions: int, words: int = 48
) -> Iterator[Drawn]:
    """Tasks about runs of segments of documents: which words follow a quotation that stands once.

    Args:
        texts: title and text of each document.
        seed: of all draws.
        count: tasks.
        segments: segments of a task.
        questions: questions of a task, at most.
        words: words of a segment.

    Raises:
        LclmError: no document is long enough.
    """
    stream = random.Random(f"quotations {seed}")  # noqa: S311 - drawn data, no secret
    cut = [(title, _segments(text, words)) for title, text in texts]
    long_enough = [(title, pieces) for title, pieces in cut if len(pieces) >= segments]
    if count and not long_enough:
        raise LclmError(
            f"none of {len(texts)} documents has {segments} segments of {words} words; name longer ones, or lower"
            " --segments or --words"
        )
    made = tries = 0
    while made < count:
        title, pieces = stream.choice(long_enough)
        begin = stream.randrange(len(pieces) - segments + 1)
        chosen = pieces[begin : begin + segments]
        asked = [_quotation(stream, chosen, i) for i in stream.sample(range(segments), min(questions, segments))]
        found = tuple(one for one in asked if one is not None)
        tries += 1
        if found:
            yield Drawn(f"quotations/{title}/{made}", "quotations", tuple(chosen), found)
            made += 1
        elif tries > 100 * (made + 1):
            raise LclmError("the documents repeat themselves: no quotation stands once; name others")


def draw_ruler(
    task: str, seed: int, count: int, segments: int, length: int, sources: Sources | None = None
) -> Iterator[Drawn]:
    """Tasks of RULER of ``length`` words, their context cut into segments between sentences.

    Raises ``LclmError`` for a task whose answer is spread over all of its context, and as ``generate`` does.
    """
    if task not in RULER:
        raise LclmError(f"{task} has no segments that answer it; its answer is in {', '.join(RULER)} only")
    for sample in generate(task, length, count, _count_words, sources or Sources(), seed):
        pieces = _even(_sentence_parts(sample.context), segments)
        needed = tuple(i for i, text in enumerate(pieces) if any(_holds(text, answer) for answer in sample.answers))
        question = f"{sample.instruction}{sample.question}".strip()
        yield Drawn(sample.id, task, tuple(pieces), (Asked(question, sample.answers, needed),))


def _count_words(text: str) -> int:
    return len(text.split())


def _holds(text: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text) is not None


def _sentence_parts(text: str) -> list[str]:
    bounds = [0, *(found.end() for found in _SENTENCE.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds) if b > a]


def _even(parts: Sequence[str], count: int) -> list[str]:
    """``parts`` in at most ``count`` groups of about equal length, none blank."""
    total, groups, done = sum(map(len, parts)), [""], 0
    for part in parts:
        if groups[-1].strip() and done >= total * len(groups) / count:
            groups.append("")
        groups[-1] += part
        done += len(part)
    return [group for group in groups if group.strip()]


def _segments(text: str, words: int) -> list[str]:
    places = [found.start() for found in _WORD.finditer(text)]
    bounds = [*places[::words], len(text)]
    pieces = [text[a:b].strip() for a, b in itertools.pairwise(bounds)]
    return [piece for piece in pieces if piece]


def _quotation(stream: random.Random, segments: Sequence[str], place: int) -> Asked | None:
    words = _WORD.findall(segments[place])
    quoted = min(5, len(words) // 3)
    if quoted < 2:
        return None
    begin = stream.randrange(len(words) - 2 * quoted + 1)
    quote, answer = (" ".join(words[a : a + quoted]) for a in (begin, begin + quoted))
    whole = " ".join(word for segment in segments for word in segment.split())
    if whole.count(quote) != 1:
        return None
    return Asked(f"Which {quoted} words follow these: {quote}", (answer,), (place,))


def prepared_texts(config: Path, most: int = 5000) -> list[tuple[str, str]]:
    """Name and text of the first ``most`` training documents of each prepared collection of a configuration.

    Raises ``LclmError`` if nothing is prepared, or no collection is of documents.
    """
    tree, found = load_config(config), []
    for name, collection in tree.corpus.resolved.items():
        if collection.records == "documents":
            split = open_split(tree, name, "train")
            for record in split.read_many(range(min(len(split), most)), ("id", "text")):
                found.append((column_text(record["id"]), column_text(record["text"])))
    if not found:
        raise LclmError(f"{config} has no collection of documents; name one that has, or give --documents")
    return found


def read_texts(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """Title and text of the text files among and below ``paths``; what is no UTF-8 text is left out."""
    from lclm_jax.inference.documents import text_files

    found = []
    for path in text_files(paths):
        try:
            found.append((path.name, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    if not found:
        raise LclmError(f"{', '.join(map(str, paths))}: no UTF-8 text; name files or folders of text")
    return found


def named(name: str, number: int) -> str:
    """The words that a name and the number of its segment make in a reply; the name is the token that is read."""
    return f" {name}{number}"
