"""Policies of a context: which messages stay raw, which become latents or titles, which are left out.

``replay_all`` and ``truncate`` (with a summary or without) are what is common. ``focus`` chooses anew for every
question by relevance, recency and kind, as Adaptive Focus Memory does. ``steady`` only ever lowers a message, oldest
first and many at once, so that the prefix stays the same for many turns (the aim of TokenPilot); what it lowers can be
expanded.
"""

import math
import re
from collections.abc import Sequence

from lclm_agent.chat import Model
from lclm_agent.context import OUT, RAW, TITLE, Item, Policy, Situation, Summarise, latents
from lclm_agent.escape import escape

KIND_WEIGHTS = {"user": 1.0, "assistant": 0.7, "tool": 0.5}
HALF_LIFE = 12
"""Messages after which recency counts half."""
LOW_WATER = 0.6
"""Share of the budget that ``steady`` goes down to, so that it need not act again soon."""
_WORD = re.compile(r"\w{3,}")


def replay_all(situation: Situation) -> list[str]:
    """Everything raw, whatever it costs."""
    return [RAW] * len(situation.items)


def truncate(situation: Situation) -> list[str]:
    """The newest messages raw, as many as fit; the others are left out."""
    levels = [RAW if item.pinned else OUT for item in situation.items]
    left = situation.budget - situation.total(levels)
    for place in reversed(range(len(levels))):
        if levels[place] == OUT:
            left -= situation.cost(situation.items[place], RAW)
            if left < 0:
                break
            levels[place] = RAW
    return levels


def steady(situation: Situation) -> list[str]:
    """Levels as they are while they fit; else messages are lowered, oldest first, one level after another.

    Raw to latents, mildest ratio first, then to a title, down to ``LOW_WATER`` of the budget; then out, as few as must.
    """
    levels = list(situation.levels)
    if situation.total(levels) <= situation.budget:
        return levels
    steps = [RAW, *map(latents, sorted(situation.ratios)), TITLE, OUT]
    total, target = situation.total(levels), situation.budget * LOW_WATER
    for step in range(1, len(steps)):
        for place, item in enumerate(situation.items[:-1]):
            if total <= (situation.budget if steps[step] == OUT else target):
                return levels
            if item.pinned or steps.index(levels[place]) >= step:
                continue
            lower, held = situation.cost(item, steps[step]), situation.cost(item, levels[place])
            if lower < held:
                total += lower - held
                levels[place] = steps[step]
    return levels


def focus(situation: Situation) -> list[str]:
    """Chosen anew for each question: the most valuable messages are raised first, each as far as the budget goes."""
    levels = [RAW if item.pinned else TITLE for item in situation.items]
    levels = _fitting(situation, levels)
    left = situation.budget - situation.total(levels)
    ranked = sorted(range(len(levels)), key=lambda place: -_value(situation, place))
    for level in [RAW, *map(latents, sorted(situation.ratios))]:
        for place in ranked:
            if levels[place] in (TITLE, OUT):
                more = situation.cost(situation.items[place], level) - situation.cost(
                    situation.items[place], levels[place]
                )
                if more <= left:
                    left -= max(more, 0)
                    levels[place] = level
    return levels


def _fitting(situation: Situation, levels: list[str]) -> list[str]:
    """``levels`` with the oldest titles left out until they fit."""
    total = situation.total(levels)
    for place, item in enumerate(situation.items):
        if total <= situation.budget:
            break
        if not item.pinned:
            total -= situation.cost(item, levels[place])
            levels[place] = OUT
    return levels


def _value(situation: Situation, place: int) -> float:
    item = situation.items[place]
    age = len(situation.items) - 1 - place
    recency = 0.5 ** (age / HALF_LIFE)
    return (_relevance(item, situation.question) * 2 + recency) * KIND_WEIGHTS.get(item.kind, 1.0)


def _relevance(item: Item, question: str) -> float:
    """Share of the question's words that the item has."""
    asked = set(_WORD.findall(question.lower()))
    if not asked:
        return 0.0
    return len(asked & set(_WORD.findall(item.text.lower()))) / math.sqrt(len(asked))


def summary_by(model: Model, max_tokens: int = 200) -> Summarise:
    """Summaries that a model writes, for ``Context(truncate, ..., summarise=summary_by(model))``.

    A new one is asked for whenever other messages are left out.
    """

    def summarise(items: Sequence[Item]) -> str:
        said = "\n".join(f"{item.kind}: {escape(item.text)}" for item in items)
        request = f"{said}\n\nSummarise what was said above; keep names, numbers and decisions."
        return model.complete([{"role": "user", "content": request}], None, max_tokens).content.strip()

    return summarise


POLICIES: dict[str, Policy] = {"replay_all": replay_all, "truncate": truncate, "steady": steady, "focus": focus}
"""By name."""
