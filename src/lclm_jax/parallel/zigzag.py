"""The order of a row's positions where ``context`` cuts them: zig-zag, so that all devices attend equally much.

Cut evenly into c pieces, the last of a causal row of one segment has (2c - 1) / c of the mean work. So a row is cut
into 2c pieces, and device i takes pieces i and 2c - 1 - i: one that sees little and one that sees much (Llama 3, arXiv
2407.21783, section 3.3.2). Only attention depends on the order; everything else is done for each position alone.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from lclm_jax.errors import LclmError
from lclm_jax.parallel.sharding import Axes, axis_names, logical_shard_map

Number = TypeVar("Number", int, jax.Array)


def context_size() -> int:
    """Devices of the current mesh that share the positions of a row; 1 without a mesh."""
    shape = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(shape.get(axis, 1) for axis in axis_names("seq"))


def pieces_in(devices: int) -> int:
    """Pieces that a row is cut into for ``devices`` that share its positions, which are a multiple of this number."""
    return 2 * devices if devices > 1 else 1


def to_zigzag(x: jax.Array, *axes: str) -> jax.Array:
    """``x`` with its positions (axis 1, "seq") in zig-zag order; as it is on a mesh without ``context``.

    Every device sends half of its positions at most twice; nothing is gathered.

    Args:
        x: any dtype, positions on axis 1.
        axes: logical names of all its axes.

    Raises:
        LclmError: (when traced) the positions are no multiple of twice the devices that share them.
    """
    return _exchange(_send, x, axes)


def from_zigzag(x: jax.Array, *axes: str) -> jax.Array:
    """The inverse of ``to_zigzag``."""
    return _exchange(_send_back, x, axes)


def natural_order(x: jax.Array, devices: int) -> jax.Array:
    """Positions (axis 1) gathered from ``devices`` in zig-zag order, put into their natural order."""
    pieces = x.reshape(x.shape[0], devices, 2, x.shape[1] // (2 * devices), *x.shape[2:])
    return jnp.concatenate([pieces[:, :, 0], jnp.flip(pieces[:, :, 1], axis=1)], axis=1).reshape(x.shape)


def pieces_of(device: Number, devices: int) -> tuple[Number, Number]:
    """Numbers of the two pieces, of ``2 * devices``, that ``device`` has; integers or traced ones."""
    return device, 2 * devices - 1 - device


def _exchange(local: Callable[[jax.Array, int], jax.Array], x: jax.Array, axes: Axes) -> jax.Array:
    devices = context_size()
    if devices == 1:
        return x
    if x.shape[1] % pieces_in(devices):
        raise LclmError(
            f"{x.shape[1]} positions are no multiple of {2 * devices}, two pieces for each of the {devices} devices of"
            " mesh.context; change pack.row_length or mesh.context"
        )
    return logical_shard_map(lambda piece: local(piece, devices), [axes], axes)(x)


def _owner(piece: int, devices: int) -> int:
    return min(piece, 2 * devices - 1 - piece)


def _send(x: jax.Array, devices: int) -> jax.Array:
    """A device's natural pieces 2i and 2i + 1 go to their owners; those of its own come, even and odd ones apart."""
    (axis,) = axis_names("seq")
    came = [
        jax.lax.ppermute(half, axis, [(i, _owner(2 * i + odd, devices)) for i in range(devices)])
        for odd, half in enumerate(jnp.split(x, 2, axis=1))
    ]
    # Of the pieces i and 2c - 1 - i that a device has, the lower is even where the device's number is.
    return jnp.concatenate(_swapped_on_odd_devices(came, axis), axis=1)


def _send_back(x: jax.Array, devices: int) -> jax.Array:
    (axis,) = axis_names("seq")
    halves = _swapped_on_odd_devices(jnp.split(x, 2, axis=1), axis)  # the even piece, the odd one
    came = []
    for odd, half in enumerate(halves):
        piece = [next(one for one in pieces_of(i, devices) if one % 2 == odd) for i in range(devices)]
        came.append(jax.lax.ppermute(half, axis, [(i, piece[i] // 2) for i in range(devices)]))
    return jnp.concatenate(came, axis=1)


def _swapped_on_odd_devices(pair: list[jax.Array], axis: str) -> list[jax.Array]:
    even = jax.lax.axis_index(axis) % 2 == 0
    first, second = pair
    return [jnp.where(even, first, second), jnp.where(even, second, first)]
