"""One line per compared quantity: how far apart, how far apart it may be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class Tolerance:
    """``absolute + relative * |expected|``, element by element; ``of_peak``: relative to the largest expected value."""

    absolute: float = 0.0
    relative: float = 0.0
    of_peak: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.absolute:g}"] if self.absolute else []
        parts += [f"{self.relative:g}*|expected|"] if self.relative else []
        parts += [f"{self.of_peak:g}*max|expected|"] if self.of_peak else []
        return " + ".join(parts) or "exact"


# Tolerances of a float32 implementation, from the README of the reference outputs.
EXACT = Tolerance()
LATENTS = Tolerance(absolute=1e-4, relative=1e-4)
LOGITS = Tolerance(absolute=2e-4, relative=1e-4)
LOSS = Tolerance(absolute=1e-4)
GRADIENT = Tolerance(of_peak=1e-3)
GRADIENT_NORM = Tolerance(relative=1e-3)
TRAINING_LOSS = Tolerance(absolute=1e-3)
TRAINING_NORM = Tolerance(relative=5e-3)
CHANGE_NORM = Tolerance(relative=2e-2)
LEARNING_RATE = Tolerance(relative=1e-6)


class Check(NamedTuple):
    """Result of one comparison."""

    case: str
    quantity: str
    max_abs: float
    """Largest absolute difference; infinite if shapes or structures differ; for exact ones the count of differences."""
    max_rel: float
    """Largest difference relative to the expected value (0 where both are 0)."""
    allowed: str
    ok: bool

    def __str__(self) -> str:
        verdict = "ok  " if self.ok else "FAIL"
        apart = f"abs {self.max_abs:.3g}, rel {self.max_rel:.3g}, allowed {self.allowed}"
        return f"{verdict} {self.case} {self.quantity}: {apart}"


def compare(case: str, quantity: str, found: object, expected: object, tolerance: Tolerance) -> Check:
    """Compare numbers or arrays; another shape, and NaN on either side, is a failure."""
    ours, theirs = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if ours.shape != theirs.shape:
        shapes = f"{tolerance}; shape {ours.shape}, expected {theirs.shape}"
        return Check(case, quantity, np.inf, np.inf, shapes, False)
    if not ours.size:
        return Check(case, quantity, 0.0, 0.0, str(tolerance), True)
    difference = np.abs(ours - theirs)
    peak = float(np.max(np.abs(theirs)))
    allowed = tolerance.absolute + tolerance.relative * np.abs(theirs) + tolerance.of_peak * peak
    with np.errstate(divide="ignore"):  # any difference from an expected 0 is infinitely large, relatively
        ratio = np.divide(difference, np.abs(theirs), out=np.zeros_like(difference), where=difference > 0)
    ok = bool(np.all(difference <= allowed))
    return Check(case, quantity, float(difference.max()), float(ratio.max()), str(tolerance), ok)


def same(case: str, quantity: str, found: object, expected: object) -> Check:
    """Compare plain values (numbers, strings, lists, dicts) for equality; NumPy arrays count as lists."""
    ours, theirs = _plain(found), _plain(expected)
    wrong = 0 if ours == theirs else max(1, sum(1 for _ in _differences(ours, theirs)))
    return Check(case, quantity, float(wrong), float(wrong > 0), str(EXACT), wrong == 0)


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _differences(ours: object, theirs: object) -> Iterator[None]:
    if isinstance(ours, list) and isinstance(theirs, list):
        for one, other in zip(ours, theirs, strict=False):
            yield from _differences(one, other)
        yield from [None] * abs(len(ours) - len(theirs))
    elif isinstance(ours, dict) and isinstance(theirs, dict):
        for name in ours.keys() | theirs.keys():
            yield from _differences(ours.get(name), theirs.get(name))
    elif ours != theirs:
        yield None
