"""What real chips were measured to reach: large products, attention kernels, gathers and scatters.

The timings are those that tokamax 0.0.17 ships for its autotuning (``tokamax/data/autotuning/CHIP/*.json``): medians of
the fastest tiling of each kernel. No figure was measured by this project. Two constants that no kernel's timing gives,
and the share of the peak within the range that was timed, are chosen by published steps (``published``).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lclm_jax.parallel.hardware import CHIPS, Chip

ELEMENTWISE = 2.0
"""Memory traffic of elementwise work beside the least there could be: intermediate values in float32, layouts changed,
tiles padded. Chosen by the published steps that are not held out."""

EXPOSED = 0.75
"""Part of the collectives' time that arithmetic does not hide. Chosen likewise."""


class BlockTime(NamedTuple):
    """Microseconds of a forward attention kernel on a TPU, per head; fitted to timings at 1,024 to 16,384 positions.

    A head narrower than 128 takes as long, as it fills a part of the matrix unit alone.
    """

    visit: float
    """Of each visited pair of blocks."""
    pair: float
    """Of each pair of positions in them."""
    row: float
    """Of each block of queries."""


class Curve(NamedTuple):
    """TFLOP/s of an attention kernel on a GPU by length; pairs that are computed, five products backward."""

    lengths: tuple[int, ...]
    forward: tuple[float, ...]
    backward: tuple[float, ...]

    def at(self, length: int) -> tuple[float, float]:
        """FLOP/s (forward, backward) at ``length``, between those that were timed by its logarithm."""
        x, known = np.log2(length), np.log2(self.lengths)
        return float(np.interp(x, known, self.forward)) * 1e12, float(np.interp(x, known, self.backward)) * 1e12


class Rates(NamedTuple):
    """What one kind of chip reaches."""

    products: float
    """Part of the peak that products of weights with many positions reach."""
    head: float
    """Part of the peak that a cross-entropy in chunks reaches, with its softmax."""
    gather_ns: float
    """Of each row of a table that is looked up."""
    scatter_ns: float
    """Of each row that is added to a table."""
    blocks: BlockTime | None = None
    """Of splash on a TPU."""
    curves: Mapping[str, Mapping[int, Curve]] = MappingProxyType({})
    """GPU kernel -> width of a head -> rates."""
    assumed_from: str = ""
    """The chip whose timings stand in for those of this one, by the ratio of their peaks; empty: its own."""


BACKWARD = 0.92
"""Time of a product in splash's backward beside one in its forward (tpu7x, 16,384 positions: 8.2 ms for five, 3.6 for
two); v5p and v6e have no timing of a backward."""

_LENGTHS = (1024, 4096, 8192, 16384)
_TRITON = {
    128: Curve(_LENGTHS, (261, 344, 366, 363), (228, 300, 332, 338)),
    64: Curve(_LENGTHS, (218, 275, 289, 295), (190, 230, 244, 257)),
}
_MOSAIC = {
    128: Curve(_LENGTHS, (388, 568, 620, 637), (288, 399, 438, 452)),
    64: Curve(_LENGTHS, (274, 420, 465, 502), (209, 280, 307, 334)),
}
_CUDNN = {  # its backward was not timed: as Mosaic GPU
    128: Curve(_LENGTHS, (448, 595, 629, 645), (288, 399, 438, 452)),
    64: Curve(_LENGTHS, (311, 460, 514, 538), (209, 280, 307, 334)),
}
_HOPPER = Rates(0.60, 0.38, 1.8, 1.8, curves={"pallas_gpu": _TRITON, "mosaic_gpu": _MOSAIC, "cudnn": _CUDNN})

# Large products, timed inside the kernels of the cross-entropy with 32,768 positions and more (the fastest of each
# direction): v5p 90 to 95 %, v6e 77 to 82 %, tpu7x 70 to 78 %, H100 57 to 68 %. ``head``: in chunks by XLA, one
# forward and three backward products. Rows: ragged_gather and ragged_gather_reduce, 1,024 rows of 512.
RATES = {
    "v5p": Rates(0.93, 0.84, 3.9, 12.7, BlockTime(0.184, 1.214e-6, 0.975)),
    "v6e": Rates(0.80, 0.53, 4.9, 7.8, BlockTime(0.150, 1.569e-6, 1.574)),
    "tpu7x": Rates(0.77, 0.60, 5.9, 7.8, BlockTime(0.444, 1.314e-6, 0.720)),
    "h100": _HOPPER,
    "h200": _HOPPER,
}

_LIKE = {"v4": "v5p", "v5e": "v5p", "b200": "h100", "gb200": "h100"}


def rates_of(chip: Chip) -> Rates:
    """The rates of ``chip``: its own, or for want of timings those of the chip most like it, by the ratio of peaks."""
    if chip.name in RATES:
        return RATES[chip.name]
    like = _LIKE[chip.name]
    rates, ratio = RATES[like], chip.flops / CHIPS[like].flops
    blocks = BlockTime(*(time / ratio for time in rates.blocks)) if rates.blocks else None
    curves = {
        kernel: {
            width: Curve(curve.lengths, _times(curve.forward, ratio), _times(curve.backward, ratio))
            for width, curve in widths.items()
        }
        for kernel, widths in rates.curves.items()
    }
    return rates._replace(blocks=blocks, curves=curves, assumed_from=like)


def _times(values: tuple[float, ...], ratio: float) -> tuple[float, ...]:
    return tuple(value * ratio for value in values)
