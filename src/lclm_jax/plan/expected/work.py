"""The work of a step on one device, and how long it takes at measured rates."""

import functools
import math
from typing import NamedTuple

import numpy as np

from lclm_jax.config.model import BackboneConfig
from lclm_jax.parallel.hardware import Chip
from lclm_jax.plan.expected.rates import BACKWARD, ELEMENTWISE, Rates

_SIZE = 2
"""Bytes of an activation or a gathered weight."""
_STATE = 28
"""Bytes that AdamW in float32 moves per parameter: weight and both moments read and written, the gradient read."""

Segments = tuple[tuple[int, ...], ...]
"""Positions of the segments of each of some rows, as rows of a stage have them."""


class Attention(NamedTuple):
    """The attention kernels of a tower."""

    kernel: str
    """A backend's name, or ``cudnn``."""
    forward_block: int
    """Positions of a block, of queries and of keys, that is visited or skipped as a whole."""
    backward_block: int
    backward_products: int
    """5: one fused kernel; 7: one for the queries' gradient and one for that of keys and values."""
    causal: bool
    segments: Segments
    again: bool
    """Whether the backward pass runs the forward kernel again."""


class Tower(NamedTuple):
    """All layers of a backbone over the rows of one device in a step."""

    shape: BackboneConfig
    rows: float
    length: int
    attention: Attention
    repeated: frozenset[str]
    """Products that the backward pass computes again (``model.flops.kernel_sizes``)."""
    trains: bool
    learns: bool
    """Whether the backward pass goes through it."""
    tensor: int = 1
    """Devices that share its heads and its MLP."""
    eight_bit: bool = False
    """Whether its products take the chip's 8-bit rate."""

    @property
    def positions(self) -> float:
        """Of one device in a step."""
        return self.rows * self.length


class TowerSeconds(NamedTuple):
    """Of one step."""

    products: float
    kernels: float
    elementwise: float


def tower_seconds(tower: Tower, chip: Chip, rates: Rates) -> TowerSeconds:
    """How long the layers of ``tower`` take on ``chip``."""
    return TowerSeconds(
        _products(tower, chip, rates),
        tower.shape.num_layers * _attention(tower, chip, rates),
        _elementwise(tower) * ELEMENTWISE / chip.hbm_bytes_per_s,
    )


def head_seconds(shape: BackboneConfig, positions: float, products: int, chip: Chip, rates: Rates) -> float:
    """Logits, cross-entropy and their gradients: ``products`` passes over the output matrix."""
    return 2.0 * positions * shape.hidden_size * shape.vocab_size * products / (chip.flops * rates.head)


def optimizer_seconds(trained: float, chip: Chip) -> float:
    """Of the update of ``trained`` parameters on one device."""
    return _STATE * trained / chip.hbm_bytes_per_s


def lookup_seconds(rows: float, learns: bool, rates: Rates) -> float:
    """Of ``rows`` looked up in a table and, if it ``learns``, sorted and added to its gradient.

    A sort was not timed by anybody that we know of: it is taken to be as long as the additions.
    """
    return rows * (rates.gather_ns + 2 * rates.scatter_ns * learns) * 1e-9


def _products(tower: Tower, chip: Chip, rates: Rates) -> float:
    """Each product takes its arithmetic's time or, where it is narrow, that of its operands' way to memory."""
    shape, seconds = tower.shape, 0.0
    peak = chip.eight_bit[1] if tower.eight_bit and chip.eight_bit else chip.flops
    for name, (rows, columns) in _kernel_shapes(shape).items():
        size = rows * columns / tower.tensor
        flops = 2.0 * tower.positions * size
        moved = _SIZE * (tower.positions * (rows + columns) + size)
        once = max(flops / (peak * rates.products), moved / chip.hbm_bytes_per_s)
        seconds += once * (1 + tower.learns + tower.trains + (name in tower.repeated))
    return shape.num_layers * seconds


def _kernel_shapes(shape: BackboneConfig) -> dict[str, tuple[int, int]]:
    width, heads, kv = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {
        "q": (width, heads),
        "k": (width, kv),
        "v": (width, kv),
        "o": (heads, width),
        "gate": (width, shape.mlp_size),
        "up": (width, shape.mlp_size),
        "down": (shape.mlp_size, width),
    }


def _elementwise(tower: Tower) -> float:
    """Bytes of norms, rotary embedding, activation and residuals: each array read and written once a pass.

    The backward pass moves twice as much as the forward pass; what is computed again moves again.
    """
    shape = tower.shape
    heads = (shape.num_heads + shape.num_kv_heads) * shape.head_dim * (3 + 2 * shape.qk_norm)
    each = 4 * shape.hidden_size + (heads + 3 * shape.mlp_size) / tower.tensor
    # Norms, rotary embedding and activation are taken again with the products that they stand between.
    passes = 1 + (2 + bool(tower.repeated)) * tower.learns
    return _SIZE * each * tower.positions * shape.num_layers * passes


def _attention(tower: Tower, chip: Chip, rates: Rates) -> float:
    """Of one layer."""
    what, shape = tower.attention, tower.shape
    rows = tower.rows * shape.num_heads / tower.tensor
    if rates.blocks is not None and what.kernel in ("splash", "pallas_tpu"):
        # A head wider than the matrix unit takes as many passes as it fills; a narrower one takes one.
        passes = max(1.0, shape.head_dim / 128)
        forward, back = (
            rows * passes * _splash(what, tower.length, block, rates)
            for block in (what.forward_block, what.backward_block)
        )
        backward = back * BACKWARD * what.backward_products / 2
    else:
        pairs = visited(what.segments, tower.length, what.forward_block, what.causal) * what.forward_block**2
        flops = 4.0 * pairs * shape.head_dim * rows
        widths = rates.curves.get(what.kernel)
        if widths:
            fast, slow = widths[128 if shape.head_dim > 64 else 64].at(tower.length)
        else:  # no kernel: products and a softmax through memory, which nobody timed
            fast = slow = chip.flops * rates.products / 2
        # Backward rates are of five products, whatever a kernel takes again.
        forward, backward = flops / fast, 2.5 * flops / slow
    return forward * (1 + what.again * tower.learns) + backward * tower.learns


def _splash(what: Attention, length: int, block: int, rates: Rates) -> float:
    """Seconds of a forward pass over one row of one head."""
    assert rates.blocks is not None
    visits = visited(what.segments, length, block, what.causal)
    if what.kernel == "splash":
        return 1e-6 * (visits * (rates.blocks.visit + rates.blocks.pair * block**2) + rates.blocks.row * length / block)
    # Our own kernel has not been timed: a pair of its tiles as splash's at 1,024, which moves and masks as it does.
    return 1e-6 * visits * block**2 * (rates.blocks.pair + rates.blocks.visit / 1024**2)


@functools.lru_cache(maxsize=64)
def visited(segments: Segments, length: int, block: int, causal: bool) -> float:
    """Pairs of blocks in which some query sees some key, and those on the diagonal; the mean of the rows."""
    blocks = -(-length // block)
    total = 0
    for row in segments:
        seen, begin = np.eye(blocks, dtype=bool), 0
        for size in row:
            first, last = begin // block, -(-(begin + size) // block)
            part = np.ones((last - first, last - first), bool)
            seen[first:last, first:last] |= np.tril(part) if causal else part
            begin += size
        total += int(seen.sum())
    return total / len(segments)


def visible_pairs(segments: Segments, causal: bool) -> float:
    """Pairs of a query and a key that it sees; the mean of the rows."""
    return math.fsum(size * (size + 1) / 2 if causal else size**2 for row in segments for size in row) / len(segments)
