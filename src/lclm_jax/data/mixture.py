"""Which source the k-th example of a stage comes from, and which draw of that source it is.

Examples are assigned in blocks. A block holds each source's share (to within one example), in an order that depends
on (seed, block) alone, so any block can be computed without the ones before it.
"""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from lclm_jax.data.draws import draw_key, permutation, uniform

BLOCK = 1024


class MixtureOrder:
    """Order of the examples of several sources.

    Args:
        weights: Relative number of examples of each source, above zero.
        epoch_size: ``epoch_size(source, epoch)`` is how many examples the source has in that epoch, above zero.
        seed: Anything that names this order, such as (run seed, stage).
    """

    def __init__(self, weights: Sequence[float], epoch_size: Callable[[int, int], int], seed: object):
        share = np.asarray(weights, np.float64)
        if not share.size or not (share > 0).all():
            raise ValueError(f"mixture weights {list(weights)} must all be above zero; remove the sources at zero")
        self._bounds = np.append(0.0, np.cumsum(share / share.sum()))
        self._bounds[-1] = 1.0
        self._key = draw_key("mixture", seed)
        self._epoch_size = epoch_size
        self._epoch_ends: list[list[int]] = [[] for _ in share]

    def counts(self, blocks: np.ndarray) -> np.ndarray:
        """Examples of each source in each of ``blocks``: [blocks, sources] int64."""
        phase = uniform(self._key, np.asarray(blocks))[:, None]
        return np.diff(np.ceil(BLOCK * self._bounds[None] - phase), axis=1).astype(np.int64)

    def block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each example of ``block``, and which draw of that source it is (from 0): two int64 [BLOCK]."""
        before = self.counts(np.arange(block)).sum(axis=0) if block else np.zeros(len(self._bounds) - 1, np.int64)
        return self.block_after(block, before)

    def block_after(self, block: int, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``block(block)``, given how many examples of each source the blocks ``before`` it hold."""
        counts = self.counts(np.array([block]))[0]
        order = permutation(draw_key(self._key, block), BLOCK)
        sources = np.repeat(np.arange(counts.size), counts)[order]
        # A source is drawn in turn, so its epochs do not mix inside a block.
        draws = np.empty(BLOCK, np.int64)
        draws[np.argsort(sources, kind="stable")] = np.concatenate(
            [start + np.arange(count) for start, count in zip(before, counts, strict=True)]
        )
        return sources, draws

    def locate(self, source: int, draw: int) -> tuple[int, int]:
        """(epoch, place in the epoch's order) of a source's draw."""
        ends = self._epoch_ends[source]
        while not ends or ends[-1] <= draw:
            size = self._epoch_size(source, len(ends))
            if size <= 0:
                raise ValueError(f"source {source} has no examples; check its collection, max_tokens and span lengths")
            ends.append((ends[-1] if ends else 0) + size)
        epoch = bisect.bisect_right(ends, draw)
        return epoch, draw - (ends[epoch - 1] if epoch else 0)
