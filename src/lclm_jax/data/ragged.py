"""Lists of different lengths as two arrays: all values end to end, and where each list begins."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Ragged(NamedTuple):
    """List i is ``values[offsets[i] : offsets[i + 1]]``."""

    offsets: np.ndarray
    """int64 [lists + 1]."""
    values: np.ndarray

    @classmethod
    def from_sizes(cls, sizes: np.ndarray, values: np.ndarray) -> "Ragged":
        """Cut ``values`` into lists of ``sizes``."""
        return cls(np.append(0, np.cumsum(sizes)).astype(np.int64), values)

    @property
    def sizes(self) -> np.ndarray:
        """Length of each list, int64 [lists]."""
        return np.diff(self.offsets)

    def owners(self) -> np.ndarray:
        """Index of the list that each value belongs to, int64 [values]."""
        return np.repeat(np.arange(self.offsets.size - 1), self.sizes)

    def sums(self) -> np.ndarray:
        """Sum of each list, int64 [lists]; 0 for an empty one."""
        totals = np.append(0, np.cumsum(self.values, dtype=np.int64))
        return totals[self.offsets[1:]] - totals[self.offsets[:-1]]

    def take(self, lists: np.ndarray | Sequence[int]) -> "Ragged":
        """The given lists in the given order."""
        chosen = np.asarray(lists, np.int64)
        sizes = self.sizes[chosen]
        ends = np.cumsum(sizes)
        places = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(self.offsets[chosen] - ends + sizes, sizes)
        return Ragged(np.append(0, ends), self.values[places])

    def list(self, index: int) -> np.ndarray:
        """One list."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]


def join(parts: Sequence[Ragged]) -> Ragged:
    """The lists of all ``parts`` in turn; none of int64 for no parts."""
    if not parts:
        return Ragged(np.zeros(1, np.int64), np.zeros(0, np.int64))
    return Ragged.from_sizes(np.concatenate([part.sizes for part in parts]), np.concatenate([p.values for p in parts]))
