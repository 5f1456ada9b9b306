"""What one JAX device can do, from its maker's data sheet; bytes and FLOPs a second, one direction of a link."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Peak rates of one JAX device of a kind of chip. Real programs reach a part of them: times are lower bounds."""

    name: str
    """As topologies name it: v4, v5e, v5p, v6e, tpu7x, h100, h200, b200, gb200."""
    flops: float
    """bfloat16 FLOP/s of the matrix units, dense."""
    hbm_bytes_per_s: float
    """Memory bandwidth."""
    hbm_bytes: float
    """Memory a program can use: what the compiler says is available (less than what is fitted)."""
    link_bytes_per_s: float
    """One direction of one fast link: ICI for TPUs; all of NVLink for a GPU, which has one switch for a neighbour."""
    dcn_bytes_per_s: float
    """One direction of the data-centre network, per chip."""
    dimensions: int
    """Of the torus of fast links; 0: all chips of a node hang on one switch."""
    source: str
    """Where the figures come from."""
    devices: int = 1
    """JAX devices of one chip: both cores of a TPU7x are devices of their own, each with half of everything."""

    @property
    def eight_bit(self) -> tuple[str, float] | None:
        """The 8-bit type, as ``model.quantize`` names it, that is faster than bfloat16 here, and its FLOP/s."""
        return _EIGHT_BIT.get(self.name)


_TPU = "https://cloud.google.com/tpu/docs/{}; links: https://jax-ml.github.io/scaling-book/tpus"

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 1228e9, 30.75 * GIB, 45e9, 6.25e9, 3, _TPU.format("v4")),
        Chip("v5e", 197e12, 819e9, 15.75 * GIB, 45e9, 3.125e9, 2, _TPU.format("v5e")),
        Chip("v5p", 459e12, 2765e9, 95.73 * GIB, 90e9, 6.25e9, 3, _TPU.format("v5p")),
        Chip("v6e", 918e12, 1640e9, 31.24 * GIB, 90e9, 12.5e9, 2, _TPU.format("v6e")),
        Chip("tpu7x", 2307e12 / 2, 7380e9 / 2, 94.74 * GIB, 100e9, 12.5e9, 3, _TPU.format("tpu7x"), devices=2),
        Chip("h100", 989.4e12, 3350e9, 79.1 * GIB, 450e9, 50e9, 0, "NVIDIA H100 SXM data sheet; 400 Gb/s of network"),
        Chip("h200", 989.4e12, 4800e9, 139.8 * GIB, 450e9, 50e9, 0, "NVIDIA H200 SXM data sheet; 400 Gb/s of network"),
        Chip("b200", 2250e12, 8000e9, 166.0 * GIB, 900e9, 50e9, 0, "NVIDIA DGX B200 data sheet, dense; 400 Gb/s a GPU"),
        Chip("gb200", 2500e12, 8000e9, 171.5 * GIB, 900e9, 50e9, 0, "NVIDIA GB200 NVL72 data sheet, dense; 400 Gb/s"),
    )
}
"""Memory of TPUs: "available HBM" in the out-of-memory message of libtpu 0.0.50.

Of H100 and H200: what nvidia-smi shows. Of B200 and GB200: the data sheet's, less 1 %.
"""

_EIGHT_BIT = {
    "v5e": ("int8", 394e12),
    "v5p": ("int8", 918e12),
    "v6e": ("int8", 1836e12),
    "tpu7x": ("fp8", 4614e12 / 2),
    "h100": ("fp8", 1978.9e12),
    "h200": ("fp8", 1978.9e12),
    "b200": ("fp8", 4500e12),
    "gb200": ("fp8", 5000e12),
}
"""From the same data sheets, dense. A v4 has int8 at the rate of bfloat16; int8 of GPUs is not used here."""

_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
}
"""``jax.Device.device_kind`` -> chip."""


def chip_of(device_kind: str) -> str | None:
    """Name in ``CHIPS`` of a device by its ``device_kind``; None if it is not known, as for a CPU."""
    return _KINDS.get(device_kind)


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device by its ``device_kind``; None if it is not known: no peak, no MFU."""
    chip = chip_of(device_kind)
    return CHIPS[chip].flops if chip else None
