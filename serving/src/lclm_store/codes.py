"""How vectors are kept: float32, bfloat16, or int8 with a scale per row."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lclm_store.errors import StoreError


class Code(NamedTuple):
    """One way to keep an array of shape [rows, width]."""

    pack: Callable[[np.ndarray], bytes]
    unpack: Callable[[bytes, int, int], np.ndarray]
    bytes_per_row: Callable[[int], int]
    """Bytes of a row of so many numbers."""


def _pack_float32(array: np.ndarray) -> bytes:
    return array.astype("<f4").tobytes()


def _unpack_float32(data: bytes, rows: int, width: int) -> np.ndarray:
    return np.frombuffer(data, "<f4").reshape(rows, width).astype(np.float32)


def _pack_bfloat16(array: np.ndarray) -> bytes:
    """Rounded to nearest, ties to even, as hardware does."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def _unpack_bfloat16(data: bytes, rows: int, width: int) -> np.ndarray:
    bits = np.frombuffer(data, "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(rows, width)


def _pack_int8(array: np.ndarray) -> bytes:
    scales = np.abs(array).max(axis=1, initial=0.0).astype(np.float32) / 127
    steps = np.where(scales > 0, scales, 1)[:, None]
    return scales.astype("<f4").tobytes() + np.rint(array / steps).astype(np.int8).tobytes()


def _unpack_int8(data: bytes, rows: int, width: int) -> np.ndarray:
    scales = np.frombuffer(data, "<f4", count=rows)
    values = np.frombuffer(data, np.int8, offset=4 * rows).reshape(rows, width)
    return (values * scales[:, None]).astype(np.float32)


CODES: dict[str, Code] = {
    "float32": Code(_pack_float32, _unpack_float32, lambda width: 4 * width),
    "bfloat16": Code(_pack_bfloat16, _unpack_bfloat16, lambda width: 2 * width),
    "int8": Code(_pack_int8, _unpack_int8, lambda width: 4 + width),
}


def pack(array: np.ndarray, code: str) -> bytes:
    """The bytes of ``array``, [rows, width] of finite floats; raises ``StoreError`` for anything else."""
    values = np.asarray(array, np.float32)
    if values.ndim != 2 or not values.size:
        raise StoreError(f"vectors of shape {values.shape} cannot be stored; a window is [latents, width]")
    if not np.isfinite(values).all():
        raise StoreError("vectors that are not finite are not stored; the model that made them is broken")
    return CODES[code].pack(values)


def unpack(data: bytes, code: str, rows: int, width: int) -> np.ndarray | None:
    """float32 [rows, width]; None if ``data`` cannot be that."""
    if code not in CODES or rows < 1 or width < 1 or len(data) != rows * CODES[code].bytes_per_row(width):
        return None
    return CODES[code].unpack(data, rows, width)
