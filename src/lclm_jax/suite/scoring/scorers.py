"""The scorers by name; a sample names its own in ``extra["scorer"]``."""

from collections.abc import Callable, Iterable, Sequence

from lclm_jax.errors import LclmError
from lclm_jax.suite.sample import Sample
from lclm_jax.suite.scoring import match, overlap

Scorer = Callable[[str, Sample], float]
JUDGED, LIKELIHOOD = "judge", "likelihood"
"""Scores that no function here gives: a judge model's, and none beside the likelihood."""


def _of_answers(function: Callable[[str, Sequence[str]], float]) -> Scorer:
    return lambda answer, sample: function(answer, sample.answers)


def _best(function: Callable[[str, str], float]) -> Scorer:
    """The best score over all answers."""
    return lambda answer, sample: max(function(answer, wanted) for wanted in sample.answers)


def _first_line(scorer: Scorer) -> Scorer:
    return lambda answer, sample: scorer(answer.lstrip("\n").split("\n")[0], sample)


def _classification(answer: str, sample: Sample) -> float:
    classes = sample.extra["classes"]
    return max(overlap.classification(answer, wanted, classes) for wanted in sample.answers)


SCORERS: dict[str, Scorer] = {
    **{
        function.__name__: _of_answers(function)
        for function in (
            match.all_parts,
            match.any_part,
            match.contains,
            match.last_number,
            match.first_integer,
            match.first_number,
            match.stated_choice,
            match.option,
            match.book_choice,
        )
    },
    **{
        function.__name__: _best(function)
        for function in (
            overlap.f1,
            overlap.f1_chinese,
            overlap.f1_characters,
            overlap.rouge,
            overlap.rouge_chinese,
            overlap.rouge_lsum,
            overlap.code_similarity,
            overlap.count,
            overlap.retrieval,
        )
    },
    "classification": _first_line(_classification),
    "f1_first_line": _first_line(_best(overlap.f1)),
    "rouge_first_line": _first_line(_best(overlap.rouge)),
}
_PACKAGES: dict[str, tuple[str, ...]] = {
    "rouge": ("rouge",),
    "rouge_first_line": ("rouge",),
    "f1_chinese": ("jieba",),
    "rouge_chinese": ("rouge", "jieba"),
    "rouge_lsum": ("rouge_score.rouge_scorer",),
}


def score(answer: str, sample: Sample) -> float | None:
    """Score of an answer by the scorer of its sample, from 0 to 1; None where a judge or the likelihood decides."""
    name = sample.extra["scorer"]
    return None if name in (JUDGED, LIKELIHOOD) else SCORERS[name](answer, sample)


def check_scorers(samples: Iterable[Sample], has_judge: bool) -> None:
    """Raise ``LclmError`` if a sample's scorer is unknown, or lacks a package; warn of nothing else.

    Without a judge, samples that ask for one are measured by the likelihood of the gold answer alone.
    """
    for name in {sample.extra.get("scorer") for sample in samples}:
        if name == JUDGED and not has_judge:
            continue
        if name not in SCORERS and name not in (JUDGED, LIKELIHOOD):
            raise LclmError(f"no scorer is called {name!r}; known: {', '.join(SCORERS)}, {JUDGED}, {LIKELIHOOD}")
        for package in _PACKAGES.get(str(name), ()):
            overlap.optional(package, f"the scorer {name}")
