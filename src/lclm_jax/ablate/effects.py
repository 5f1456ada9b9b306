"""What each value of each factor does: the paired difference from the baseline's value, all else being equal."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from lclm_jax.ablate.statistics import Comparison, Direction, Values, paired
from lclm_jax.ablate.variants import Variant


class Effect(NamedTuple):
    """A value of a factor against the baseline's value of it."""

    factor: str
    level: str
    against: str
    pairs: int
    """Pairs of variants that differ in this factor alone; the effect is their mean."""
    comparison: Comparison


def main_effects(
    variants: Sequence[Variant], values: Mapping[str, Values], better: Direction, confidence: float
) -> list[Effect]:
    """The effect of every value of every factor, by factor in the order of the study.

    Where factors were crossed, an effect is averaged within each seed over all pairs of variants that differ in nothing
    else; where each factor varied alone there is one pair, with the baseline.

    Args:
        variants: rows of the design, baseline first.
        values: variant -> seed -> value, of those that can be compared.
        better: which direction of the measure is better.
        confidence: of the intervals.
    """
    grid = _Grid(variants, values)
    found = []
    for factor, against in grid.baseline.items():
        for level in grid.levels(factor):
            pairs = [(one, grid.at(one, {factor: against})) for one in grid.having({factor: level})]
            sound = [(grid.values[one], grid.values[other]) for one, other in pairs if other]
            if sound:
                top, bottom = (_mean([pair[i] for pair in sound]) for i in (0, 1))
                found.append(Effect(factor, level, against, len(sound), paired(top, bottom, better, confidence)))
    return found


def interactions(
    variants: Sequence[Variant], values: Mapping[str, Values], better: Direction, confidence: float
) -> list[Effect]:
    """How much the effect of one factor's value changes with another factor's value, where the two were crossed.

    Each is a difference of differences within seeds: (both changed - first kept) - (second kept - both kept). 0 means
    that the two effects add up. ``factor``, ``level`` and ``against`` name both factors.
    """
    grid = _Grid(variants, values)
    found = []
    for first, second in combinations(grid.baseline, 2):
        for level in grid.levels(first):
            for other in grid.levels(second):
                base = {first: grid.baseline[first], second: grid.baseline[second]}
                corners = [
                    [one, grid.at(one, base)] + [grid.at(one, {key: base[key]}) for key in base]
                    for one in grid.having({first: level, second: other})
                ]
                sound = [[grid.values[name] for name in four if name] for four in corners if all(four)]
                if sound:
                    added = _mean([_sum(four[:2]) for four in sound])
                    apart = _mean([_sum(four[2:]) for four in sound])
                    names = (f"{first} × {second}", f"{level} × {other}", " × ".join(base.values()))
                    found.append(Effect(*names, len(sound), paired(added, apart, better, confidence)))
    return found


class _Grid:
    """Variants that have values, found by their levels; a level that is not named is the baseline's."""

    def __init__(self, variants: Sequence[Variant], values: Mapping[str, Values]) -> None:
        self.values = values
        self.baseline = dict(variants[0].levels)
        self._levels = {one.name: self.baseline | dict(one.levels) for one in variants}
        self._names = {tuple(levels.items()): name for name, levels in reversed(self._levels.items()) if name in values}

    def levels(self, factor: str) -> list[str]:
        """Levels of ``factor`` but the baseline's."""
        named = dict.fromkeys(levels[factor] for levels in self._levels.values())
        return [level for level in named if level != self.baseline[factor]]

    def having(self, levels: Mapping[str, str]) -> list[str]:
        """Names of the variants at ``levels``."""
        return [name for key, name in self._names.items() if levels.items() <= dict(key).items()]

    def at(self, name: str, levels: Mapping[str, str]) -> str | None:
        """The variant that differs from ``name`` in ``levels`` alone."""
        return self._names.get(tuple({**self._levels[name], **levels}.items()))


def _mean(values: Sequence[Values]) -> dict[int, float]:
    return {seed: sum(one[seed] for one in values) / len(values) for seed in values[0]}


def _sum(values: Sequence[Values]) -> dict[int, float]:
    return {seed: sum(one[seed] for one in values) for seed in values[0]}
