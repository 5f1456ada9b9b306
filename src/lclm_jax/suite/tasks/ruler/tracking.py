"""Variable tracking: a chain of assignments, its links spread over noise."""

import itertools
import string

from lclm_jax.suite.tasks.ruler.design import NOISE, PUBLISHED_LENGTH, TRACKING_PROMPT, Tracking
from lclm_jax.suite.tasks.ruler.fit import CountTokens, Drawn, Draws, Fit, draw_fitting, largest_size, too_short

_EXAMPLE_TOKENS = 500
_EXAMPLE_STEP, _STEP = 5, 10


class TrackingTask:
    """Draws samples of variable tracking, each behind a worked example (none in the short variant)."""

    def __init__(self, design: Tracking, draws: Draws):
        self._design, self._draws = design, draws

    def draw(self, size: int, letters: int = 5) -> Drawn:
        """A task in ``size`` lines of noise, with names of so many letters."""
        names, chain = self._chain(letters)
        sentences = [NOISE + "\n"] * size
        if len(sentences) <= len(chain):
            pieces = [piece for line in sentences for piece in line.split(".")]
            sentences = [piece + "." if piece.strip() else piece for piece in pieces]
            chain = chain if len(sentences) > len(chain) else chain[: len(sentences) - 1]
        places = sorted(self._draws.stream.sample(range(len(sentences)), len(chain)))
        for number, (place, link) in enumerate(zip(places, chain, strict=True)):
            sentences.insert(place + number, link)
        context = " ".join(sentences).replace(". \n", ".\n")
        words = {"query": chain[0].split("=")[-1].strip(), "count": len(names)}
        before, after, prefix, _ = TRACKING_PROMPT
        return Drawn(before, context, after.format(**words), prefix.format(**words), names)

    def _chain(self, letters: int) -> tuple[list[str], list[str]]:
        length = self._design.hops + 1
        names = [self._name(letters) for _ in range(length)]
        while len(set(names)) < length:
            names.append(self._name(letters))
        names = list(dict.fromkeys(names))
        value = self._draws.numpy.randint(10000, 99999)
        links = [f"VAR {new} = VAR {old} " for old, new in itertools.pairwise(names)]
        return names, [f"VAR {names[0]} = {value}", *links]

    def _name(self, letters: int) -> str:
        return "".join(self._draws.stream.choices(string.ascii_uppercase, k=letters))

    def samples(self, count_tokens: CountTokens, limit: int, count: int) -> list[Drawn]:
        """``count`` tasks of at most ``limit`` tokens, reply included."""
        if limit < PUBLISHED_LENGTH:
            return self._drawn(Fit(count_tokens, limit, TRACKING_PROMPT.new_tokens, 1), count)
        example = self._example(count_tokens)
        reserve = TRACKING_PROMPT.new_tokens + count_tokens(example)
        fit = Fit(count_tokens, limit, reserve, _STEP)
        size = self._size(fit)
        return [self._behind(example, self._one(fit, size)) for _ in range(count)]

    def _drawn(self, fit: Fit, count: int) -> list[Drawn]:
        size = self._size(fit)
        found = []
        for _ in range(count):
            one = self._one(fit, size, shrinks=True)
            # The instruction is part of what is compressed, as behind an example.
            found.append(one._replace(instruction="", context=one.instruction + one.context))
        return found

    def _size(self, fit: Fit, letters: int = 5) -> int:
        return largest_size(fit, lambda size: self.draw(size, letters), lambda one: f"{one.text} {one.answers}")

    def _one(self, fit: Fit, size: int, letters: int = 5, shrinks: bool = False) -> Drawn:
        drawn = draw_fitting(fit, lambda size: self.draw(size, letters), size, shrinks) if size > 0 else None
        if drawn is None:
            raise too_short("variable tracking", fit.limit)
        return drawn

    def _example(self, count_tokens: CountTokens) -> str:
        """A small solved task, with names of three letters."""
        fit = Fit(count_tokens, _EXAMPLE_TOKENS, TRACKING_PROMPT.new_tokens, _EXAMPLE_STEP)
        drawn = self._one(fit, self._size(fit, letters=3), letters=3)
        return f"{drawn.text} {' '.join(drawn.answers)}\n\n"

    def _behind(self, example: str, drawn: Drawn) -> Drawn:
        """The task behind ``example``, whose names are drawn anew for every sample."""
        tail = TRACKING_PROMPT.prefix[-10:]
        for name in example[example.index(tail) + len(tail) :].strip().split():
            example = example.replace(name, self._name(len(name)))
        context = f" {example}\n\n{drawn.instruction}{drawn.context}"
        return drawn._replace(instruction="", context=context)
