"""Norm, pooling and norm on GPUs (Pallas for Triton): a program holds a few groups, one position of each at a time.

A position's state is a row of registers; what a second pass over a group reads again comes from the cache. Rows are
padded to a power of two with a mask, as Triton demands; masked lanes move no bytes.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lclm_jax.kernels.normed_pooling import Pooling, Scales
from lclm_jax.types import Ref

MULTIPLE = 1
"""Any number of groups will do: the last program masks what is beyond them."""
TILE_ELEMENTS = 2048
"""Groups times width that a program holds at a time, unless one group is wider."""
ELEMENTS_PER_WARP = 512
"""16 of a thread: with twice as many, 250 registers of the backward pass would leave two programs on a processor."""
BACKWARD_PROGRAMS = 528
"""Upper bound of the programs of a backward pass, four for each of 132 processors; each leaves a partial sum of the
scales' gradients."""


def unsupported_reason(width: int) -> str | None:
    """None: the kernel pools states of any width."""
    return None


def forward(how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales) -> jax.Array:
    """Pooled states [G, E] ([G, N * E] for ``concat``); see ``normed_pooling`` for the arguments."""
    groups, width = shares_GN.shape[0], x_PE.shape[1]
    tile = _tile(groups, width)
    shape = (groups, how.ratio, width) if how.kind == "concat" else (groups, width)
    pooled = pl.pallas_call(
        functools.partial(_forward, how, tile),
        out_shape=jax.ShapeDtypeStruct(shape, x_PE.dtype),
        grid=(pl.cdiv(groups, tile),),
        compiler_params=_compiler_params(groups, width),
        interpret=how.interpret,
        name=f"pool_{how.kind}_forward",
    )(shares_GN, x_PE.reshape(groups, how.ratio, width), *_given(scales))
    return pooled.reshape(groups, -1)


def backward(
    how: Pooling, x_PE: jax.Array, shares_GN: jax.Array, scales: Scales, bar_GE: jax.Array
) -> tuple[jax.Array, Scales]:
    """(gradient of ``x_PE``, gradients of the scales) from the gradient of the pooled states."""
    groups, width = shares_GN.shape[0], x_PE.shape[1]
    given, programs = _given(scales), _programs(groups, width)
    if how.kind == "concat":
        bar_GE = bar_GE.reshape(groups, how.ratio, width)
    partial = jax.ShapeDtypeStruct((programs, width), jnp.float32)
    out = pl.pallas_call(
        functools.partial(_backward, how, _tile(groups, width)),
        out_shape=[jax.ShapeDtypeStruct((groups, how.ratio, width), x_PE.dtype), *[partial] * len(given)],
        grid=(programs,),
        compiler_params=_compiler_params(groups, width),
        interpret=how.interpret,
        name=f"pool_{how.kind}_backward",
    )(shares_GN, x_PE.reshape(groups, how.ratio, width), bar_GE, *given)
    sums = [partial.sum(0) for partial in out[1:]]
    return out[0].reshape(x_PE.shape), Scales(*sums)


def share_bytes(groups: int, ratio: int) -> int:
    """Bytes of the shares."""
    return groups * ratio * 4


def partial_bytes(groups: int, ratio: int, width: int, size: int, latent: bool) -> int:
    """Bytes of the scales' gradients: written by each program, read and summed."""
    return 2 * 4 * width * _programs(groups, width) * (1 + latent)


def _forward(how: Pooling, tile: int, shares_ref: Ref, x_ref: Ref, scale_ref: Ref, *refs: Ref) -> None:
    *latent_scale_ref, out_ref = refs
    at = _Tile(how, pl.program_id(0) * tile, tile, shares_ref, x_ref)
    scale_1E = at.scale(scale_ref)
    if how.kind == "concat":

        def write(n: jax.Array, none: None) -> None:
            x_GE, inverse_G1, share_G1 = at.position(n)
            at.store(out_ref, n, x_GE * (inverse_G1 * share_G1) * scale_1E)
            return none

        jax.lax.fori_loop(0, how.ratio, write, None)
        return
    u_GE = at.mean(scale_1E)
    if how.latent_eps is not None:
        u_GE = u_GE * at.inverse(u_GE, how.latent_eps) * at.scale(latent_scale_ref[0])
    at.store(out_ref, None, u_GE)


def _backward(how: Pooling, tile: int, shares_ref: Ref, x_ref: Ref, bar_ref: Ref, scale_ref: Ref, *refs: Ref) -> None:
    fused = how.latent_eps is not None
    latent_scale_ref, (x_bar_ref, *sum_refs) = refs[:fused], refs[fused:]
    tiles, programs, first = pl.cdiv(x_ref.shape[0], tile), sum_refs[0].shape[0], pl.program_id(0)

    def visit(round_: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at = _Tile(how, (first + round_ * programs) * tile, tile, shares_ref, x_ref)
        return _visit_backward(at, bar_ref, scale_ref, latent_scale_ref, x_bar_ref, sums)

    at = _Tile(how, 0, tile, shares_ref, x_ref)
    zeros_1E = jnp.zeros((1, at.padded), jnp.float32)
    sums = jax.lax.fori_loop(0, pl.cdiv(tiles, programs), visit, (zeros_1E,) * len(sum_refs))
    for sum_ref, sum_1E in zip(sum_refs, sums, strict=True):
        plgpu.store(sum_ref.at[first + jnp.zeros((1, 1), jnp.int32), at.columns_1E], sum_1E, mask=at.inside_1E)


def _visit_backward(
    at: "_Tile",
    bar_ref: Ref,
    scale_ref: Ref,
    latent_scale_ref: tuple[Ref, ...],
    x_bar_ref: Ref,
    sums: tuple[jax.Array, ...],
) -> tuple[jax.Array, ...]:
    """Write the gradient of one tile's states; the sums of the scales' gradients with the tile's."""
    how, scale_1E = at.how, at.scale(scale_ref)
    scale_sum_1E, *latent_sum_1E = sums
    if how.kind != "concat":
        bar_GE = at.load(bar_ref, None)
        if latent_sum_1E:
            u_GE = at.mean(scale_1E)
            inverse_G1, latent_1E = at.inverse(u_GE, how.latent_eps), at.scale(latent_scale_ref[0])
            bar_GE, latent_bar_GE = at.norm_bars(u_GE, inverse_G1, latent_1E, bar_GE)
            latent_sum_1E = [latent_sum_1E[0] + latent_bar_GE.sum(0)[None, :]]

    def write(n: jax.Array, scale_sum_1E: jax.Array) -> jax.Array:
        x_GE, inverse_G1, share_G1 = at.position(n)
        own_GE = at.load(bar_ref, n) if how.kind == "concat" else bar_GE
        x_bar_GE, scale_bar_GE = at.norm_bars(x_GE, inverse_G1, scale_1E, own_GE * share_G1)
        at.store(x_bar_ref, n, x_bar_GE)
        return scale_sum_1E + scale_bar_GE.sum(0)[None, :]

    return (jax.lax.fori_loop(0, how.ratio, write, scale_sum_1E), *latent_sum_1E)


class _Tile:
    """Masked reads and writes of a tile of groups, and reductions over the real width."""

    def __init__(self, how: Pooling, first: jax.Array | int, tile: int, shares_ref: Ref, x_ref: Ref) -> None:
        self.how, self.shares_ref, self.x_ref = how, shares_ref, x_ref
        self.width, self.padded = x_ref.shape[2], pl.next_power_of_2(x_ref.shape[2])
        self.groups_G1 = first + jnp.arange(tile)[:, None]
        self.columns_1E = jnp.arange(self.padded)[None, :]
        self.inside_1E = self.columns_1E < self.width
        self.real_G1 = self.groups_G1 < x_ref.shape[0]

    def _place(self, ref: Ref, n: jax.Array | None) -> Ref:
        where = (self.groups_G1, self.columns_1E) if n is None else (self.groups_G1, n, self.columns_1E)
        return ref.at[where]

    def load(self, ref: Ref, n: jax.Array | None) -> jax.Array:
        """Position n of every group (None: the group's only state), float32; zero outside."""
        x_GE = plgpu.load(self._place(ref, n), mask=self.real_G1 & self.inside_1E, other=0)
        return x_GE.astype(jnp.float32)

    def store(self, ref: Ref, n: jax.Array | None, x_GE: jax.Array) -> None:
        plgpu.store(self._place(ref, n), x_GE.astype(ref.dtype), mask=self.real_G1 & self.inside_1E)

    def scale(self, ref: Ref) -> jax.Array:
        return plgpu.load(ref.at[self.columns_1E], mask=self.inside_1E, other=0).astype(jnp.float32)

    def position(self, n: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """States at position n, their inverse root mean squares, and their shares."""
        x_GE = self.load(self.x_ref, n)
        share_G1 = plgpu.load(self.shares_ref.at[self.groups_G1, n], mask=self.real_G1, other=0)
        return x_GE, self.inverse(x_GE, self.how.eps), share_G1

    def mean(self, scale_1E: jax.Array) -> jax.Array:
        """The groups' weighted sums of normed states."""

        def add(n: jax.Array, total_GE: jax.Array) -> jax.Array:
            x_GE, inverse_G1, share_G1 = self.position(n)
            return total_GE + x_GE * (inverse_G1 * share_G1)

        zeros_GE = jnp.zeros((self.groups_G1.shape[0], self.padded), jnp.float32)
        return jax.lax.fori_loop(0, self.how.ratio, add, zeros_GE) * scale_1E

    def inverse(self, x_GE: jax.Array, eps: float | None) -> jax.Array:
        assert eps is not None
        return jax.lax.rsqrt((x_GE * x_GE).sum(-1)[:, None] / self.width + eps)

    def norm_bars(
        self, x_GE: jax.Array, inverse_G1: jax.Array, scale_1E: jax.Array, bar_GE: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Gradients of ``x * inverse * scale``: of x, and of scale by group."""
        normed_GE, inner_GE = x_GE * inverse_G1, bar_GE * scale_1E
        along_G1 = (inner_GE * normed_GE).sum(-1)[:, None] / self.width
        return inverse_G1 * (inner_GE - normed_GE * along_G1), bar_GE * normed_GE


def _given(scales: Scales) -> list[jax.Array]:
    return [scale_E.astype(jnp.float32) for scale_E in scales if scale_E is not None]


def _tile(groups: int, width: int) -> int:
    """Groups of a tile, a power of two."""
    return max(1, min(TILE_ELEMENTS // pl.next_power_of_2(width), pl.next_power_of_2(groups)))


def _compiler_params(groups: int, width: int) -> plgpu.CompilerParams:
    elements = _tile(groups, width) * pl.next_power_of_2(width)
    return plgpu.CompilerParams(num_warps=max(1, min(16, elements // ELEMENTS_PER_WARP)), num_stages=2)


def _programs(groups: int, width: int) -> int:
    """Programs of a backward pass."""
    return min(pl.cdiv(groups, _tile(groups, width)), BACKWARD_PROGRAMS)
