"""Negative log likelihood of the targets without the [B, S, V] logits.

Letters as in the model, and P = B * S positions of one device. The vocabulary is visited in tiles: the logits of all
positions for a few thousand columns exist at once, in the forward pass and again in the backward pass, which saves the
log-sum-exp alone. Why tiles of the vocabulary and not chunks of positions: every part of the table is gathered once and
its gradient is finished, reduced and scattered in one go. What is carried from tile to tile is the gradient of the
hidden states, which is smaller than that of the table as long as P < V.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from lclm_jax.kernels.masks import precision_of
from lclm_jax.types import PyTree

LANES = 128
"""Tiles wider than this are multiples of it: the columns of a tile of accelerator memory."""

POSITIONS = ("batch", "seq")
HIDDEN = ("batch", "seq", "embed")
OUTPUT_TABLE = ("vocab", "param_embed")
MEMORY_ROWS = ("memory_row", "embed")


def overlaid_logits(
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    memory_rows_3D: jax.Array | None = None,
    memory_ids: tuple[int, int, int] | None = None,
) -> jax.Array:
    """float32 logits [B, S, V]; columns ``memory_ids`` come from ``memory_rows_3D`` instead of the table.

    The overlay is on the columns, not on the table, so that a frozen table needs no gradient at all. Both operands
    are used in the dtype of ``hidden_BSD``.
    """
    dtype, precision = hidden_BSD.dtype, precision_of(hidden_BSD.dtype)
    options = {"precision": precision, "preferred_element_type": jnp.float32}
    logits_BSV = jnp.einsum("BSD,VD->BSV", hidden_BSD, table_VD.astype(dtype), **options)
    if memory_rows_3D is None or memory_ids is None:
        return logits_BSV
    memory_BS3 = jnp.einsum("BSD,VD->BSV", hidden_BSD, memory_rows_3D.astype(dtype), **options)
    column_BSV = jnp.arange(table_VD.shape[0])[None, None, :]
    for order, token in enumerate(memory_ids):
        logits_BSV = jnp.where(column_BSV == token, memory_BS3[..., order : order + 1], logits_BSV)
    return logits_BSV


State = TypeVar("State")
Number = jax.Array | int
"""Number of a tile, a plain integer where there is one only."""


class Shards(NamedTuple):
    """How the arrays of ``cross_entropy`` lie on a mesh; by default on one device. Hashable."""

    shard_map: Callable[..., Callable[..., PyTree]] = lambda function, in_axes, out_axes: function
    """Runs a function on every device's pieces, given the logical names of all axes: ``parallel.logical_shard_map``."""
    rows: tuple[str, ...] = ()
    """Mesh axes over which positions are spread."""
    vocab: tuple[str, ...] = ()
    """Mesh axes that share the table's rows."""
    width: tuple[str, ...] = ()
    """Mesh axes, among ``rows``, that share the table's columns."""


class Spec(NamedTuple):
    """What is fixed when a program is compiled."""

    chunk: int
    memory_ids: tuple[int, int, int] | None
    shards: Shards


@jax.tree_util.register_static
@dataclass(frozen=True)
class Needs:
    """Which gradients the backward pass is asked for, beside that of the hidden states."""

    table: bool
    memory_rows: bool


def cross_entropy(
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    targets_BS: jax.Array,
    *,
    chunk: int,
    memory_rows_3D: jax.Array | None = None,
    memory_ids: tuple[int, int, int] | None = None,
    shards: Shards | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Per-position negative log likelihood in nats, and log-sum-exp of the logits (for a z-loss).

    Products take both operands in the dtype of ``hidden_BSD`` and accumulate in float32; so does the table's gradient,
    which is summed over devices in float32. A table that is not differentiated costs no gradient.

    Args:
        hidden_BSD: decoder output after the final norm.
        table_VD: output head, one row per token.
        targets_BS: token ids, int32.
        chunk: logits that exist at once on a device, in whole positions: ``chunk * V`` of them, however long S is.
        memory_rows_3D: rows that stand in for the table's at ``memory_ids``; None: no overlay.
        memory_ids: token ids of the three memory rows.
        shards: how the arrays lie on the mesh; None: on one device.

    Returns:
        (nll_BS, lse_BS), float32.
    """
    memory_ids = None if memory_rows_3D is None else memory_ids
    spec = Spec(chunk, memory_ids, Shards() if shards is None else shards)
    return _cross_entropy(spec, hidden_BSD, table_VD, memory_rows_3D, targets_BS)


Saved = tuple[Needs, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    spec: Spec, hidden_BSD: jax.Array, table_VD: jax.Array, memory_rows_3D: jax.Array | None, targets_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    in_axes = (HIDDEN, OUTPUT_TABLE, MEMORY_ROWS, POSITIONS)
    run = spec.shards.shard_map(functools.partial(_forward, spec), in_axes, (POSITIONS, POSITIONS))
    return run(hidden_BSD, table_VD, memory_rows_3D, targets_BS)


def _save(
    spec: Spec,
    hidden: CustomVJPPrimal,
    table: CustomVJPPrimal,
    memory_rows: CustomVJPPrimal | None,
    targets: CustomVJPPrimal,
) -> tuple[tuple[jax.Array, jax.Array], Saved]:
    memory_value = None if memory_rows is None else memory_rows.value
    needs = Needs(table.perturbed, memory_rows is not None and memory_rows.perturbed)
    nll_BS, lse_BS = _cross_entropy(spec, hidden.value, table.value, memory_value, targets.value)
    return (nll_BS, lse_BS), (needs, hidden.value, table.value, memory_value, targets.value, lse_BS)


def _differentiate(
    spec: Spec, saved: Saved, cotangents: tuple[jax.Array | SymbolicZero, jax.Array | SymbolicZero]
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, None]:
    needs, hidden_BSD, table_VD, memory_rows_3D, targets_BS, lse_BS = saved
    nll_bar_BS, lse_bar_BS = (jnp.zeros_like(lse_BS) if isinstance(bar, SymbolicZero) else bar for bar in cotangents)
    in_axes = (HIDDEN, OUTPUT_TABLE, MEMORY_ROWS, POSITIONS, POSITIONS, POSITIONS, POSITIONS)
    out_axes: dict[str, tuple[str, ...]] = {"hidden": HIDDEN}
    out_axes |= {"table": OUTPUT_TABLE} if needs.table else {}
    out_axes |= {"memory_rows": MEMORY_ROWS} if needs.memory_rows else {}
    run = spec.shards.shard_map(functools.partial(_backward, spec, needs), in_axes, out_axes)
    bars = run(hidden_BSD, table_VD, memory_rows_3D, targets_BS, lse_BS, nll_bar_BS, lse_bar_BS)
    table_bar_VD = bars["table"].astype(table_VD.dtype) if needs.table else None
    memory_bar_3D = None
    if needs.memory_rows:
        assert memory_rows_3D is not None
        memory_bar_3D = bars["memory_rows"].astype(memory_rows_3D.dtype)
    return bars["hidden"], table_bar_VD, memory_bar_3D, None


_cross_entropy.defvjp(_save, _differentiate, symbolic_zeros=True)


def _forward(
    spec: Spec, hidden_BSD: jax.Array, table_VD: jax.Array, memory_rows_3D: jax.Array | None, targets_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(nll_BS, lse_BS) of one device's positions over the whole vocabulary."""
    hidden_PD, targets_P = hidden_BSD.reshape(-1, hidden_BSD.shape[-1]), targets_BS.reshape(-1)
    tiles = Tiles.of(spec, hidden_PD, table_VD, memory_rows_3D)

    def visit(number: Number) -> tuple[jax.Array, jax.Array]:
        logits_PV = tiles.logits(hidden_PD, tiles.rows(number), number)
        # A masked sum rather than a gather, which would not fuse with what makes the logits.
        picked_PV = jnp.where(tiles.columns(number)[None, :] == targets_P[:, None], logits_PV, 0.0)
        return jax.nn.logsumexp(logits_PV, axis=-1), picked_PV.sum(-1)

    lse_TP, picked_TP = tiles.map(visit)
    lse_P = jax.nn.logsumexp(lse_TP, axis=0)
    highest_P = jax.lax.pmax(lse_P, spec.shards.vocab)
    lse_P = highest_P + jnp.log(jax.lax.psum(jnp.exp(lse_P - highest_P), spec.shards.vocab))
    picked_P = jax.lax.psum(picked_TP.sum(0), spec.shards.vocab)
    return (lse_P - picked_P).reshape(targets_BS.shape), lse_P.reshape(targets_BS.shape)


def _backward(
    spec: Spec,
    needs: Needs,
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    memory_rows_3D: jax.Array | None,
    *per_position_BS: jax.Array,
) -> dict[str, jax.Array]:
    """Gradients of one device's pieces, from (targets, lse, cotangents of nll and lse) per position."""
    targets_P, lse_P, nll_bar_P, lse_bar_P = (x_BS.reshape(-1, 1) for x_BS in per_position_BS)
    hidden_PD = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
    tiles = Tiles.of(spec, hidden_PD, table_VD, memory_rows_3D)

    def logits_bar(number: Number, rows_VD: jax.Array) -> jax.Array:
        shares_PV = jnp.exp(tiles.logits(hidden_PD, rows_VD, number) - lse_P)
        picked_PV = tiles.columns(number)[None, :] == targets_P
        return shares_PV * (nll_bar_P + lse_bar_P) - jnp.where(picked_PV, nll_bar_P, 0.0)

    return gradients(tiles, needs, hidden_BSD, logits_bar)


def gradients(
    tiles: "Tiles", needs: Needs, hidden_BSD: jax.Array, logits_bar: Callable[[Number, jax.Array], jax.Array]
) -> dict[str, jax.Array]:
    """Gradients of one device's pieces: of ``hidden``, and of ``table`` and ``memory_rows`` where needed.

    ``logits_bar`` gives the gradient of a tile's logits, [P, V of the tile], from its number and its rows.
    """
    hidden_PD, shards = hidden_BSD.reshape(-1, hidden_BSD.shape[-1]), tiles.spec.shards
    product = functools.partial(jnp.einsum, precision=precision_of(hidden_PD.dtype), preferred_element_type=jnp.float32)

    def visit(bars: dict[str, jax.Array], number: Number) -> dict[str, jax.Array]:
        rows_VD = tiles.rows(number)
        logits_bar_PV = logits_bar(number, rows_VD).astype(hidden_PD.dtype)
        new = {"hidden": bars["hidden"] + product("PV,VD->PD", logits_bar_PV, rows_VD)}
        if needs.memory_rows:
            memory_bar_P3 = tiles.memory_columns(logits_bar_PV, number)
            new["memory_rows"] = bars["memory_rows"] + product("PV,PD->VD", memory_bar_P3, hidden_PD)
        if needs.table:
            rows_bar_VD = tiles.without_memory_rows(product("PV,PD->VD", logits_bar_PV, hidden_PD), number)
            new["table"] = tiles.add_rows(bars["table"], rows_bar_VD, number)
        return new

    bars = {"hidden": jnp.zeros(hidden_PD.shape, jnp.float32)}
    bars |= {"table": jnp.zeros(tiles.table_VD.shape, jnp.float32)} if needs.table else {}
    if needs.memory_rows:
        assert tiles.memory_rows_3D is not None
        bars["memory_rows"] = jnp.zeros(tiles.memory_rows_3D.shape, jnp.float32)
    bars = tiles.fold(visit, bars)
    hidden_bar_PD = jax.lax.psum(bars["hidden"].astype(hidden_PD.dtype), shards.vocab)
    bars["hidden"] = hidden_bar_PD.reshape(hidden_BSD.shape)
    if needs.table:
        bars["table"] = jax.lax.psum(bars["table"], tuple(axis for axis in shards.rows if axis not in shards.width))
    if needs.memory_rows:
        bars["memory_rows"] = jax.lax.psum(bars["memory_rows"], shards.rows + shards.vocab)
    return bars


class Tiles(NamedTuple):
    """The tiles of one device's share of the vocabulary.

    All have the same width; the last begins early enough to end with the table, and its columns that an earlier tile
    had are masked: 20 columns in tiles of 8 are 0..7, 8..15, and 12..19 of which 12..15 do not count.
    """

    table_VD: jax.Array
    memory_rows_3D: jax.Array | None
    spec: Spec
    dtype: jnp.dtype[np.generic]
    width: int
    total: int

    @classmethod
    def of(cls, spec: Spec, hidden_PD: jax.Array, table_VD: jax.Array, memory_rows_3D: jax.Array | None) -> "Tiles":
        """Tiles such that the logits of all positions for one of them are ``spec.chunk`` positions' worth."""
        rows, positions = table_VD.shape[0], max(hidden_PD.shape[0], 1)
        count = -(-rows // max(1, rows * spec.chunk // positions))
        width = -(-rows // count)
        width = min(rows, width if width <= LANES else math.ceil(width / LANES) * LANES)
        return cls(table_VD, memory_rows_3D, spec, hidden_PD.dtype, width, -(-rows // width))

    def fold(self, visit: Callable[[State, Number], State], carry: State) -> State:
        """``carry = visit(carry, number)`` over all tiles; no loop for a single one."""
        if self.total == 1:
            return visit(carry, 0)
        return jax.lax.scan(lambda carry, number: (visit(carry, number), None), carry, jnp.arange(self.total))[0]

    def map(self, visit: Callable[[Number], State]) -> State:
        """Results of ``visit(number)`` of all tiles, stacked."""
        if self.total == 1:
            return jax.tree.map(lambda x: x[None], visit(0))
        return jax.lax.scan(lambda _, number: (None, visit(number)), None, jnp.arange(self.total))[1]

    def rows(self, number: Number) -> jax.Array:
        """Rows of the table with memory rows in place, gathered over the devices that share their columns."""
        rows_VD = jax.lax.dynamic_slice_in_dim(self.table_VD, self.start(number), self.width).astype(self.dtype)
        for axis in reversed(self.spec.shards.width):
            rows_VD = jax.lax.all_gather(rows_VD, axis, axis=1, tiled=True)
        if self.memory_rows_3D is None:
            return rows_VD
        return rows_VD.at[self._memory_places(number)].set(self.memory_rows_3D.astype(self.dtype), mode="drop")

    def columns(self, number: Number) -> jax.Array:
        """Token ids of the tile's columns; -1 where an earlier tile had the column."""
        return jnp.where(self.fresh(number), self.first() + self.start(number) + jnp.arange(self.width), -1)

    def logits(self, hidden_PD: jax.Array, rows_VD: jax.Array, number: Number) -> jax.Array:
        """float32 [P, V of the tile]; -inf in columns that an earlier tile had."""
        options = {"precision": precision_of(self.dtype), "preferred_element_type": jnp.float32}
        logits_PV = jnp.einsum("PD,VD->PV", hidden_PD, rows_VD, **options)
        if self.table_VD.shape[0] % self.width == 0:
            return logits_PV
        return jnp.where(self.fresh(number)[None, :], logits_PV, -jnp.inf)

    def memory_columns(self, x_PV: jax.Array, number: Number) -> jax.Array:
        """The columns of ``x_PV`` that are memory tokens; zero where they are not in this tile."""
        return x_PV.at[:, self._memory_places(number)].get(mode="fill", fill_value=0)

    def without_memory_rows(self, rows_VD: jax.Array, number: Number) -> jax.Array:
        """``rows_VD`` with zeros at the memory tokens."""
        if self.memory_rows_3D is None:
            return rows_VD
        return rows_VD.at[self._memory_places(number)].set(0, mode="drop")

    def add_rows(self, total_VD: jax.Array, rows_VD: jax.Array, number: Number) -> jax.Array:
        """Add whole rows, summed over the devices that share their columns, to this device's columns."""
        for axis in self.spec.shards.width:
            rows_VD = jax.lax.psum_scatter(rows_VD, axis, scatter_dimension=1, tiled=True)
        start = self.start(number)
        before_VD = jax.lax.dynamic_slice_in_dim(total_VD, start, self.width)
        return jax.lax.dynamic_update_slice_in_dim(total_VD, before_VD + rows_VD, start, 0)

    def first(self) -> Number:
        """Token id of this device's first row."""
        return jax.lax.axis_index(self.spec.shards.vocab) * self.table_VD.shape[0] if self.spec.shards.vocab else 0

    def start(self, number: Number) -> jax.Array:
        """Row of this device's table that the tile begins with."""
        return jnp.minimum(number * self.width, self.table_VD.shape[0] - self.width)

    def fresh(self, number: Number) -> jax.Array:
        """Which columns no earlier tile had."""
        return self.start(number) + jnp.arange(self.width) >= number * self.width

    def _memory_places(self, number: Number) -> jax.Array:
        """Row of the tile that each memory token has; beyond the tile if it is not in it."""
        place_3 = jnp.asarray(self.spec.memory_ids) - self.first() - self.start(number)
        return jnp.where((place_3 >= 0) & (place_3 < self.width), place_3, self.width)
