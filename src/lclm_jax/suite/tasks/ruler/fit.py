"""How large a task may be: the published search for the size that fills a length, and draws that fit.

The search draws from the same random stream as the samples, so its order of draws is part of the published design.
"""

import random
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from lclm_jax.errors import LclmError

CountTokens = Callable[[str], int]
_TRIES = 1000


class Drawn(NamedTuple):
    """One task as drawn, before it is known whether it fits."""

    instruction: str
    context: str
    question: str
    prefix: str
    answers: list[str]
    depth: float | None = None

    @property
    def text(self) -> str:
        """The whole prompt."""
        return self.instruction + self.context + self.question + self.prefix


class Draws:
    """The two random streams of one task and seed; ``fresh`` is a stream that begins anew at every use."""

    def __init__(self, seed: int):
        self.seed = seed
        self.stream = random.Random(seed)  # noqa: S311 - the stream of the published samples
        self.numpy = np.random.RandomState(seed)

    def fresh(self) -> random.Random:
        """A stream that starts from the seed."""
        return random.Random(self.seed)  # noqa: S311


class Draw(Protocol):
    """Draws one task of a size; raises ``ValueError`` if the size leaves no room for what must be in it."""

    def __call__(self, size: int) -> Drawn:
        """Draw."""


class Fit(NamedTuple):
    """A length to fill."""

    count_tokens: CountTokens
    limit: int
    """Tokens of prompt and reply together."""
    reserve: int
    """Tokens that the drawn text leaves free: the reply, and an example that is put before it."""
    step: int
    """Sizes are multiples of it."""

    def tokens(self, text: str) -> int:
        """Tokens of ``text`` and what is reserved."""
        return self.count_tokens(text) + self.reserve


def largest_size(
    fit: Fit, draw: Draw, answered: Callable[[Drawn], str], most: int | None = None, slack: int = 0
) -> int:
    """The largest size whose prompt with its answer fits, found by growing one step at a time.

    Args:
        fit: the length.
        draw: draws a task.
        answered: the prompt with its answer.
        most: the largest size that there is; None: any.
        slack: how far above ``most`` sizes are still drawn.
    """
    size, total = fit.step, 0
    while total < fit.limit:
        try:
            total = fit.tokens(answered(draw(size)))
        except ValueError:  # too small for what must be in it
            total = 0
        if total > fit.limit:
            return size - fit.step
        size += fit.step
        if most is not None and size > most + slack:
            return most
    return size


def draw_fitting(fit: Fit, draw: Draw, size: int, shrinks: bool = True) -> Drawn | None:
    """A task that fits: of ``size``, or of the largest smaller size that does; None if there is none.

    Args:
        fit: the length.
        draw: draws a task.
        size: where to begin.
        shrinks: whether a task that is too long is drawn again smaller, or in the same size.
    """
    for _ in range(_TRIES):
        try:
            drawn = draw(size)
        except ValueError:
            drawn = None
        if drawn is not None and fit.tokens(drawn.text) <= fit.limit:
            return drawn
        if shrinks and size <= fit.step:
            return None
        if shrinks:
            size -= fit.step
    return None


def too_short(name: str, limit: int) -> LclmError:
    """The error of a length that a task does not fit in."""
    return LclmError(f"{name} does not fit in {limit} tokens; ask for a longer length, or leave the task out")
