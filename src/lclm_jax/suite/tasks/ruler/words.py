"""Aggregation: the most common words of a numbered list, the most frequent words of a coded text."""

import string
from collections.abc import Sequence

import numpy as np
from scipy.special import zeta

from lclm_jax.suite.tasks.ruler.design import (
    COMMON_PROMPT,
    FREQUENT_PROMPT,
    PUBLISHED_LENGTH,
    CommonWords,
    FrequentWords,
)
from lclm_jax.suite.tasks.ruler.fit import CountTokens, Drawn, Draws, Fit, draw_fitting, largest_size, too_short
from lclm_jax.suite.tasks.ruler.sources import Sources

_LETTERS = 6
_STEP = 10


def numbered(words: Sequence[str]) -> str:
    """``1. one 2. two``."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


class CommonWordsTask:
    """Draws lists in which ten words are common, each behind a solved example (none in the short variant)."""

    def __init__(self, design: CommonWords, draws: Draws, sources: Sources):
        self._design, self._draws = design, draws
        self._words = sorted({*sources.nouns, *sources.adjectives, *sources.verbs})
        draws.fresh().shuffle(self._words)

    def draw(self, size: int) -> Drawn:
        """A task with ``size`` different words."""
        design, (before, after, prefix, _) = self._design, COMMON_PROMPT
        solved, solution = self._list(40, 10, 3)
        context, answers = self._list(size, design.common_repeats, design.rare_repeats)
        example = f"{before}{solved}{after}{prefix}{numbered(solution)}\n"
        return Drawn("", f"{example}{before}{context}", after, prefix, answers)

    def draw_short(self, size: int) -> Drawn:
        """A task with ``size`` different words, common ones six times, without an example."""
        before, after, prefix, _ = COMMON_PROMPT
        context, answers = self._list(size, 6, 1)
        return Drawn("", before + context, after, prefix, answers)

    def _list(self, size: int, common_repeats: int, rare_repeats: int) -> tuple[str, list[str]]:
        words = self._draws.stream.sample(self._words, size)
        common, rare = words[: self._design.common], words[self._design.common :]
        repeated = common * common_repeats + rare * rare_repeats
        self._draws.fresh().shuffle(repeated)
        return numbered(repeated), common

    def samples(self, count_tokens: CountTokens, limit: int, count: int) -> list[Drawn]:
        """``count`` tasks of at most ``limit`` tokens, reply included."""
        draw = self.draw if limit >= PUBLISHED_LENGTH else self.draw_short
        fit = Fit(count_tokens, limit, COMMON_PROMPT.new_tokens, _STEP)
        size = largest_size(fit, draw, lambda one: f"{one.text} {numbered(one.answers)}", len(self._words))
        found = []
        for _ in range(count):
            drawn = draw_fitting(fit, draw, size) if size > 0 else None
            if drawn is None:
                raise too_short("the list of common words", limit)
            found.append(drawn)
        return found


class FrequentWordsTask:
    """Draws coded texts; their most frequent word is the noise ``...``."""

    def __init__(self, design: FrequentWords, draws: Draws):
        self._design, self._draws = design, draws

    def samples(self, count_tokens: CountTokens, limit: int, count: int) -> list[Drawn]:
        """``count`` tasks; published ones fill ``limit`` without room for the reply, short ones leave it."""
        vocabulary, step = limit // 50, limit // 32
        if limit < PUBLISHED_LENGTH:
            vocabulary, limit = max(vocabulary, 20), limit - FREQUENT_PROMPT.new_tokens
        if vocabulary < 4 or step < 1:
            raise too_short("the coded text", limit)
        words = self._vocabulary(vocabulary)
        size = limit // _LETTERS
        while count_tokens(self._written(words, size).text) < limit:
            size += step
        size -= step
        found = []
        for _ in range(count):
            words, words_now = self._vocabulary(vocabulary), size
            while count_tokens(self._written(words, words_now).text) > limit:
                words_now -= step
            if words_now <= 0:
                raise too_short("the coded text", limit)
            found.append(self._written(words, words_now))
        return found

    def _vocabulary(self, size: int) -> list[str]:
        words = [self._word() for _ in range(size)]
        while len(set(words)) < size:
            words.append(self._word())
        words = sorted(set(words))
        self._draws.fresh().shuffle(words)
        words[0] = "..."
        return words

    def _word(self) -> str:
        return "".join(self._draws.stream.choices(string.ascii_lowercase, k=_LETTERS))

    def _written(self, vocabulary: list[str], size: int) -> Drawn:
        ranks = np.arange(1, len(vocabulary) + 1)
        counts = (size * (ranks**-self._design.alpha) / zeta(self._design.alpha)).astype(int)
        words = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
        self._draws.fresh().shuffle(words)
        before, after, prefix, _ = FREQUENT_PROMPT
        return Drawn(before, " ".join(words), after, prefix, vocabulary[1:4])
