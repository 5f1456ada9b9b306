"""Random numbers as a pure function of (key, counters), vectorised: the same on every host, worker and resume.

A 64-bit counter hash (splitmix64's finaliser, Steele et al. 2014), not a NumPy generator: any draw can be had without
the ones before it, and NumPy may change its generators' streams between versions.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def draw_key(*parts: object) -> int:
    """A 64-bit key from strings and numbers; different parts give unrelated keys."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def random_bits(key: int, *counters: np.ndarray | int) -> np.ndarray:
    """64 random bits (uint64) for each element of the broadcast ``counters``."""
    state = np.full(np.broadcast_shapes(*(np.shape(c) for c in counters), (1,)), key, np.uint64)
    for counter in counters:
        step = np.atleast_1d(np.asarray(counter)).astype(np.uint64) + np.uint64(1)
        state = _mix(state + _GOLDEN * step)
    return state


def uniform(key: int, *counters: np.ndarray | int) -> np.ndarray:
    """Uniform float64 in [0, 1) for each element of the broadcast ``counters``."""
    return (random_bits(key, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, size: int) -> np.ndarray:
    """A random order of ``range(size)``, int64."""
    return np.argsort(random_bits(key, np.arange(size)), kind="stable")


class Shuffle:
    """A random order of ``range(size)`` of which any part is computed without the rest: no list is ever held.

    A Feistel network over the smallest square power of two that holds the range; what falls outside is mapped again
    until it is inside (cycle walking, Black and Rogaway 2002).
    """

    _ROUNDS = 4

    def __init__(self, key: int, size: int):
        self._keys = [draw_key("shuffle", key, i) for i in range(self._ROUNDS)]
        self._size, self._half = size, np.uint64(max(1, -(-max(size - 1, 1).bit_length() // 2)))

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Members at ``places`` of the order, int64; every place below ``size`` has another member."""
        members = self._mix(np.asarray(places).astype(np.uint64))
        while (outside := np.flatnonzero(members >= self._size)).size:
            members[outside] = self._mix(members[outside])
        return members.astype(np.int64)

    def _mix(self, values: np.ndarray) -> np.ndarray:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = values >> self._half, values & mask
        for key in self._keys:
            left, right = right, left ^ (random_bits(key, right) & mask)
        return (left << self._half) | right


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _MIX1
    state = (state ^ (state >> np.uint64(27))) * _MIX2
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
