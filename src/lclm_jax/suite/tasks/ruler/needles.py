"""Needle in a haystack: sentences that give keys their values, hidden in noise, essays or more such sentences."""

import itertools
import uuid

import numpy as np

from lclm_jax.suite.tasks.ruler.design import NEEDLE, NEEDLE_PROMPT, NOISE, PUBLISHED_LENGTH, Kind, Needles
from lclm_jax.suite.tasks.ruler.fit import CountTokens, Drawn, Draws, Fit, draw_fitting, largest_size, too_short
from lclm_jax.suite.tasks.ruler.sources import Sources

_DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40, endpoint=True))]


class NeedleTask:
    """Draws samples of one needle task.

    Args:
        design: which one.
        draws: random streams.
        sources: words and essays.
    """

    def __init__(self, design: Needles, draws: Draws, sources: Sources):
        self._design, self._draws, self._sources = design, draws, sources

    def draw(self, size: int) -> Drawn:
        """A task with ``size`` words of essay, or sentences of haystack."""
        design = self._design
        keys, values = [], []
        for _ in range(design.keys):
            keys.append(self._draw(design.key))
            values.append([self._draw(design.value) for _ in range(design.values)])
        needles = [self._needle(key, value) for key, of_key in zip(keys, values, strict=True) for value in of_key]
        self._draws.fresh().shuffle(needles)
        context = self._essay(size, needles) if design.haystack == "essay" else self._sentences(size, needles)
        asked = self._draws.stream.sample(range(design.keys), design.queries)
        names, answers = [keys[i] for i in asked], [value for i in asked for value in values[i]]
        query = ", ".join(names[:-1]) + ", and " + names[-1] if len(names) > 1 else names[0]
        depth = None
        if len(answers) == 1:
            depth = context.index(self._needle(names[0], answers[0])) / len(context)
        return self._written(context, query, answers, depth)

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self._design.value, key=key, value=value)

    def _draw(self, kind: Kind) -> str:
        stream = self._draws.stream
        if kind == "numbers":
            return str(stream.randint(10**6, 10**7 - 1))
        if kind == "words":
            return stream.choice(self._sources.pairs)
        return str(uuid.UUID(int=stream.getrandbits(128), version=4))

    def _essay(self, size: int, needles: list[str]) -> str:
        sentences = self._sources.essay_sentences(size)
        depths = sorted(self._draws.stream.sample(_DEPTHS, len(needles)))
        bounds = [0, *(int(len(sentences) * (depth / 100)) for depth in depths), len(sentences)]
        pieces = []
        for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
            pieces.append(" ".join(sentences[begin:end]))
            pieces += needles[number : number + 1]
        return " ".join(pieces)

    def _sentences(self, size: int, needles: list[str]) -> str:
        design, noise = self._design, NOISE
        if design.haystack == "needle":
            sentences = [self._needle(self._draw(design.key), self._draw(design.value)) for _ in range(size)]
        else:
            sentences = [noise] * size
        places = sorted(self._draws.stream.sample(range(size), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            sentences.insert(place, needle)
        return "\n".join(sentences)

    def _written(self, context: str, query: str, answers: list[str], depth: float | None) -> Drawn:
        kind: str = self._design.value
        before, after, prefix, _ = NEEDLE_PROMPT
        if self._design.queries * self._design.values == 1:  # in the singular
            before, after, prefix = (
                text.replace("Some", "A").replace("are all", "is").replace("are", "is")
                for text in (before, after, prefix)
            )
            kind = kind[:-1]
        words = {"kind": kind, "query": query}
        return Drawn(before.format(**words), context, after.format(**words), prefix.format(**words), answers, depth)

    def samples(self, count_tokens: CountTokens, limit: int, count: int) -> list[Drawn]:
        """``count`` tasks of at most ``limit`` tokens, reply included."""
        essay, short = self._design.haystack == "essay", limit < PUBLISHED_LENGTH
        step = (50 if short else 500) if essay else (1 if limit < 1024 else 5) if short else 25
        fit = Fit(count_tokens, limit, NEEDLE_PROMPT.new_tokens, step)
        most = len(self._sources.essay) if essay else None
        size = largest_size(fit, self.draw, lambda one: one.text + " ".join(one.answers), most, slack=step)
        found = []
        for _ in range(count):
            drawn = draw_fitting(fit, self.draw, size)
            if drawn is None:
                raise too_short("this needle task", limit)
            found.append(drawn)
        return found
