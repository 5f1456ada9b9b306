"""Norm, pooling and norm on TPUs: one block of whole groups at a time, held in VMEM in float32.

Position n of all groups of a block is a strided read of its rows, so the same code serves every N, and reductions are
over lanes alone. Strided access wants 128 columns, so the block lies in VMEM as a stack of column tiles. The grid runs
along groups; its outer axis has two cuts, one for each core of chips that have two.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lclm_jax.kernels.normed_pooling import Pooling, Scales
from lclm_jax.types import Ref

LANES = 128
MULTIPLE = 16
"""Groups are padded to a multiple of this: the rows of a bfloat16 tile."""
BLOCK_ELEMENTS = 512 * 1024
"""Upper bound of positions times width in a block, unless 16 groups are more."""
VMEM_BYTES = 64 * 2**20
"""Limit given to the compiler; blocks of the largest shape (N = 32, E = 2560, backward) take less than half of it."""


class Specs(NamedTuple):
    """Blocks of what both passes read."""

    block: tuple[int, int]
    """Groups and positions of a block."""
    shares: pl.BlockSpec
    x: pl.BlockSpec
    scales: list[pl.BlockSpec]


def unsupported_reason(width: int) -> str | None:
    """Why the kernel cannot pool states of this width; None: it can."""
    return f"width {width} is not a multiple of {LANES}" if width % LANES else None


def forward(how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales) -> jax.Array:
    """Pooled states [G, E] ([G, N * E] for ``concat``); see ``normed_pooling`` for the arguments."""
    grid, specs = _layout(how, x_PE, shares_GN, scales)
    width = x_PE.shape[1] * (how.ratio if how.kind == "concat" else 1)
    block = specs.block
    return pl.pallas_call(
        functools.partial(_forward, how),
        out_shape=jax.ShapeDtypeStruct((shares_GN.shape[0], width), x_PE.dtype),
        grid=grid,
        in_specs=[specs.shares, specs.x, *specs.scales],
        out_specs=_along(grid, (block[0], width)),
        scratch_shapes=[_scratch(block[1], x_PE.shape[1])],
        compiler_params=_compiler_params(),
        interpret=how.interpret,
        name=f"pool_{how.kind}_forward",
    )(shares_GN, x_PE, *_as_rows(scales))


def backward(
    how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales, bar_GE: jax.Array
) -> tuple[jax.Array, Scales]:
    """(gradient of ``x_PE``, gradients of the scales) from the gradient of the pooled states."""
    grid, specs = _layout(how, x_PE, shares_GN, scales)
    rows = _as_rows(scales)
    width = x_PE.shape[1]
    block = specs.block
    partial = jax.ShapeDtypeStruct((grid[0], 1, width), jnp.float32)
    out = pl.pallas_call(
        functools.partial(_backward, how),
        out_shape=[jax.ShapeDtypeStruct(x_PE.shape, x_PE.dtype), *[partial] * len(rows)],
        grid=grid,
        in_specs=[specs.shares, specs.x, _along(grid, (block[0], bar_GE.shape[1])), *specs.scales],
        out_specs=[specs.x, *[pl.BlockSpec((1, 1, width), lambda core, step: (core, 0, 0))] * len(rows)],
        scratch_shapes=[_scratch(block[1], width)],
        compiler_params=_compiler_params(),
        interpret=how.interpret,
        name=f"pool_{how.kind}_backward",
    )(shares_GN, x_PE, bar_GE, *rows)
    sums = [partial.sum((0, 1)) for partial in out[1:]]
    return out[0], Scales(*sums)


def share_bytes(groups: int, ratio: int) -> int:
    """Bytes of the shares, whose rows are padded to whole lanes."""
    return groups * -(-ratio // LANES) * LANES * 4


def partial_bytes(groups: int, ratio: int, width: int, size: int, latent: bool) -> int:
    """Bytes of the scales' gradients: written by each core, read and summed."""
    return 2 * 4 * width * _cores(groups, _block_groups(groups, ratio, width)) * (1 + latent)


def _forward(how: Pooling, shares_ref: Ref, x_ref: Ref, scale_ref: Ref, *refs: Ref) -> None:
    *latent_scale_ref, out_ref, x32_ref = refs
    _fill(x32_ref, x_ref)
    scale, width = scale_ref[...], x_ref.shape[1]
    if how.kind == "concat":
        for n in range(how.ratio):
            x_GE, inverse_G1 = _states(how, x32_ref, n)
            y_GE = x_GE * (inverse_G1 * shares_ref[:, n : n + 1]) * scale
            out_ref[:, n * width : (n + 1) * width] = y_GE.astype(out_ref.dtype)
        return
    u_GE = _mean(how, shares_ref, x32_ref, scale)
    if how.latent_eps is not None:
        u_GE = u_GE * _inverse(u_GE, how.latent_eps) * latent_scale_ref[0][...]
    out_ref[...] = u_GE.astype(out_ref.dtype)


def _backward(how: Pooling, shares_ref: Ref, x_ref: Ref, bar_ref: Ref, scale_ref: Ref, *refs: Ref) -> None:
    fused = how.latent_eps is not None
    latent_scale_ref, (x_bar_ref, scale_bar_ref, *latent_bar_ref, x32_ref) = refs[:fused], refs[fused:]
    sums = [scale_bar_ref, *latent_bar_ref]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for sum_ref in sums:
            sum_ref[...] = jnp.zeros_like(sum_ref)

    _fill(x32_ref, x_ref)
    scale, width = scale_ref[...], x_ref.shape[1]
    if how.kind != "concat":
        bar_GE = bar_ref[...].astype(jnp.float32)
        if fused:
            u_GE = _mean(how, shares_ref, x32_ref, scale)
            bar_GE, latent_bar_GE = norm_bars(u_GE, _inverse(u_GE, how.latent_eps), latent_scale_ref[0][...], bar_GE)
            latent_bar_ref[0][0] += latent_bar_GE.sum(0, keepdims=True)
    for n in range(how.ratio):
        x_GE, inverse_G1 = _states(how, x32_ref, n)
        if how.kind == "concat":
            bar_GE = bar_ref[:, n * width : (n + 1) * width].astype(jnp.float32)
        own_bar_GE, scale_bar_GE = norm_bars(x_GE, inverse_G1, scale, bar_GE * shares_ref[:, n : n + 1])
        scale_bar_ref[0] += scale_bar_GE.sum(0, keepdims=True)
        for tile in range(x32_ref.shape[0]):  # in place: position n is not read again
            x32_ref.at[tile][_every(how, x32_ref, n), :] = own_bar_GE[:, tile * LANES : (tile + 1) * LANES]
    for tile in range(x32_ref.shape[0]):
        x_bar_ref[:, tile * LANES : (tile + 1) * LANES] = x32_ref[tile].astype(x_bar_ref.dtype)


def norm_bars(
    x_GE: jax.Array, inverse_G1: jax.Array, scale: jax.Array, bar_GE: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of ``x * inverse * scale`` with ``inverse = rsqrt(mean(x ** 2) + eps)``: of x, and of scale by row."""
    normed_GE = x_GE * inverse_G1
    inner_GE = bar_GE * scale
    along_G1 = jnp.mean(inner_GE * normed_GE, axis=-1, keepdims=True)
    return inverse_G1 * (inner_GE - normed_GE * along_G1), bar_GE * normed_GE


def _mean(how: Pooling, shares_ref: Ref, x32_ref: Ref, scale: jax.Array) -> jax.Array:
    """The groups' weighted sums of normed states, float32."""
    total_GE = jnp.zeros((shares_ref.shape[0], scale.shape[1]), jnp.float32)
    for n in range(how.ratio):
        x_GE, inverse_G1 = _states(how, x32_ref, n)
        total_GE += x_GE * (inverse_G1 * shares_ref[:, n : n + 1])
    return total_GE * scale


def _states(how: Pooling, x32_ref: Ref, n: int) -> tuple[jax.Array, jax.Array]:
    """Position n of every group of the block, and the inverse of its root mean square."""
    every = _every(how, x32_ref, n)
    x_GE = jnp.concatenate([x32_ref.at[tile][every, :] for tile in range(x32_ref.shape[0])], axis=-1)
    return x_GE, _inverse(x_GE, how.eps)


def _scratch(positions: int, width: int) -> pl.MemoryRef:
    return pltpu.VMEM((width // LANES, positions, LANES), jnp.float32)


def _fill(x32_ref: Ref, x_ref: Ref) -> None:
    for tile in range(x32_ref.shape[0]):
        x32_ref[tile] = x_ref[:, tile * LANES : (tile + 1) * LANES].astype(jnp.float32)


def _every(how: Pooling, x32_ref: Ref, n: int) -> slice | pl.Slice:
    return pl.ds(n, x32_ref.shape[1] // how.ratio, stride=how.ratio)


def _inverse(x_GE: jax.Array, eps: float | None) -> jax.Array:
    assert eps is not None
    return jax.lax.rsqrt(jnp.mean(jnp.square(x_GE), axis=-1, keepdims=True) + eps)


def _as_rows(scales: Scales) -> list[jax.Array]:
    return [scale_E[None, :].astype(jnp.float32) for scale_E in scales if scale_E is not None]


def _layout(how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales) -> tuple[tuple[int, int], Specs]:
    """(grid, block specifications) of what both passes read."""
    groups, width = shares_GN.shape[0], x_PE.shape[1]
    block = _block_groups(groups, how.ratio, width)
    cores = _cores(groups, block)
    grid = (cores, groups // block // cores)
    fixed = pl.BlockSpec((1, width), lambda core, step: (0, 0))
    scale_specs = [fixed] * sum(scale_E is not None for scale_E in scales)
    sizes = (block, block * how.ratio)
    return grid, Specs(sizes, _along(grid, (block, how.ratio)), _along(grid, (block * how.ratio, width)), scale_specs)


def _along(grid: tuple[int, int], shape: tuple[int, int]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda core, step: (core * grid[1] + step, 0))


def _block_groups(groups: int, ratio: int, width: int) -> int:
    """Groups of a block: the most that the bound allows, a divisor of all, a multiple of 16."""
    most = max(1, BLOCK_ELEMENTS // (ratio * width * MULTIPLE))
    return MULTIPLE * max(k for k in range(1, most + 1) if groups // MULTIPLE % k == 0)


def _cores(groups: int, block: int) -> int:
    return 2 if groups // block % 2 == 0 else 1


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES)
