"""Kullback-Leibler divergence of a student's next-token distribution from a teacher's, without [B, S, V] logits.

Letters as in ``cross_entropy``, whose tiles of the vocabulary are visited here as well: of each, the logits of both
exist at once, in the forward pass and again in the backward pass. K tokens of a teacher that is stored.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from lclm_jax.kernels.cross_entropy import (
    HIDDEN,
    MEMORY_ROWS,
    OUTPUT_TABLE,
    POSITIONS,
    Needs,
    Number,
    Shards,
    Spec,
    Tiles,
    gradients,
)

PER_TOKEN = ("batch", "seq", None)


class Output(NamedTuple):
    """What logits are made of."""

    hidden_BSD: jax.Array
    """After the final norm."""
    table_VD: jax.Array
    """One row per token."""
    memory_rows_3D: jax.Array | None
    """Rows that stand in for the table's at the memory tokens; None: none do."""


class Stored(NamedTuple):
    """The teacher's largest logits; all other tokens have probability 0."""

    ids_BSK: jax.Array
    """int32: tokens, different from each other."""
    logits_BSK: jax.Array
    """float32: of these, up to a constant per position; -inf where there are fewer than K."""


Teacher = Output | Stored


class _Setting(NamedTuple):
    spec: Spec
    temperature: float


def divergence(
    student: Output,
    teacher: Teacher,
    temperature: float = 1.0,
    *,
    chunk: int,
    memory_ids: tuple[int, int, int] | None = None,
    shards: Shards | None = None,
) -> jax.Array:
    """kl_BS, float32 nats: ``KL(teacher || student)`` of the distributions at ``temperature``, at every position.

    Exactly 0, and so is its gradient, where both have the same hidden states and the same table. Only the student is
    differentiated; a table of his that is not differentiated costs no gradient.

    Args:
        student: whose gradient is wanted.
        teacher: as many positions as the student has; of any width, but of the student's vocabulary.
        temperature: what logits are divided by.
        chunk: logits that exist at once on a device, in whole positions, of each of the two.
        memory_ids: token ids of the three memory rows.
        shards: how the arrays lie on the mesh; None: on one device.
    """
    spec = Spec(chunk, memory_ids, Shards() if shards is None else shards)
    teacher = jax.tree.map(jax.lax.stop_gradient, teacher)
    return _divergence(_Setting(spec, temperature), *student, teacher)


Saved = tuple[Needs, Output, Teacher, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _divergence(
    setting: _Setting,
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    memory_rows_3D: jax.Array | None,
    teacher: Teacher,
) -> jax.Array:
    return _run_forward(setting, Output(hidden_BSD, table_VD, memory_rows_3D), teacher)[0]


def _save(
    setting: _Setting,
    hidden: CustomVJPPrimal,
    table: CustomVJPPrimal,
    memory_rows: CustomVJPPrimal | None,
    teacher: Teacher,
) -> tuple[jax.Array, Saved]:
    student = Output(hidden.value, table.value, None if memory_rows is None else memory_rows.value)
    needs = Needs(table.perturbed, memory_rows is not None and memory_rows.perturbed)
    teacher = jax.tree.map(lambda leaf: leaf.value, teacher, is_leaf=lambda node: isinstance(node, CustomVJPPrimal))
    kl_BS, lse_BS, teacher_lse_BS = _run_forward(setting, student, teacher)
    return kl_BS, (needs, student, teacher, lse_BS, teacher_lse_BS)


def _differentiate(
    setting: _Setting, saved: Saved, bar_BS: jax.Array | SymbolicZero
) -> tuple[jax.Array, jax.Array | None, jax.Array | None, None]:
    needs, student, teacher, lse_BS, teacher_lse_BS = saved
    bar_BS = jnp.zeros_like(lse_BS) if isinstance(bar_BS, SymbolicZero) else bar_BS
    out_axes: dict[str, tuple[str, ...]] = {"hidden": HIDDEN}
    out_axes |= {"table": OUTPUT_TABLE} if needs.table else {}
    out_axes |= {"memory_rows": MEMORY_ROWS} if needs.memory_rows else {}
    in_axes = (HIDDEN, OUTPUT_TABLE, MEMORY_ROWS, *_axes(teacher), POSITIONS, POSITIONS, POSITIONS)
    run = setting.spec.shards.shard_map(functools.partial(_backward, setting, needs, type(teacher)), in_axes, out_axes)
    bars = run(*student, *teacher, lse_BS, teacher_lse_BS, bar_BS)
    table_bar_VD = bars["table"].astype(student.table_VD.dtype) if needs.table else None
    memory_bar_3D = None
    if needs.memory_rows:
        assert student.memory_rows_3D is not None
        memory_bar_3D = bars["memory_rows"].astype(student.memory_rows_3D.dtype)
    return bars["hidden"], table_bar_VD, memory_bar_3D, None


_divergence.defvjp(_save, _differentiate, symbolic_zeros=True)


def _axes(teacher: Teacher) -> tuple[tuple[str | None, ...], ...]:
    return (PER_TOKEN, PER_TOKEN) if isinstance(teacher, Stored) else (HIDDEN, OUTPUT_TABLE, MEMORY_ROWS)


def _run_forward(setting: _Setting, student: Output, teacher: Teacher) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(kl_BS, log-sum-exp of the student's logits, that of the teacher's), all at the temperature."""
    in_axes = (HIDDEN, OUTPUT_TABLE, MEMORY_ROWS, *_axes(teacher))
    run = setting.spec.shards.shard_map(
        functools.partial(_forward, setting, type(teacher)), in_axes, (POSITIONS, POSITIONS, POSITIONS)
    )
    return run(*student, *teacher)


def _forward(
    setting: _Setting,
    kind: type[Teacher],
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    memory_rows_3D: jax.Array | None,
    *teacher: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``_run_forward`` of one device's positions over the whole vocabulary."""
    shards, shape = setting.spec.shards, hidden_BSD.shape[:2]
    student = _Logits.of(setting, Output(hidden_BSD, table_VD, memory_rows_3D))
    if kind is Stored:
        stored = _Shares.of(setting, Stored(*teacher), student.tiles)

        def visit_stored(number: Number) -> tuple[jax.Array, jax.Array]:
            logits_PV = student(number)
            # Masked, as 0 times the -inf of columns that an earlier tile had is no number.
            cross_PV = jnp.where(student.tiles.fresh(number)[None, :], stored(number) * logits_PV, 0.0)
            return jax.nn.logsumexp(logits_PV, axis=-1), cross_PV.sum(-1)

        lse_TP, cross_TP = student.tiles.map(visit_stored)
        lse_P = _over_tiles(lse_TP, shards)
        kl_P = stored.negative_entropy_P - jax.lax.psum(cross_TP.sum(0), shards.vocab) + lse_P
        teacher_lse_P = jnp.zeros_like(lse_P)
    else:
        taught = _Logits.of(setting, Output(*teacher))

        def visit(number: Number) -> tuple[jax.Array, jax.Array, jax.Array]:
            logits_PV, taught_PV = student(number), taught(number)
            taught_lse_P1 = jax.nn.logsumexp(taught_PV, axis=-1, keepdims=True)
            gap_PV = jnp.where(student.tiles.fresh(number)[None, :], taught_PV - logits_PV, 0.0)
            gap_P = (jnp.exp(taught_PV - taught_lse_P1) * gap_PV).sum(-1)
            return jax.nn.logsumexp(logits_PV, axis=-1), taught_lse_P1[:, 0], gap_P

        lse_TP, taught_lse_TP, gap_TP = student.tiles.map(visit)
        lse_P, teacher_lse_P = _over_tiles(lse_TP, shards), _over_tiles(taught_lse_TP, shards)
        gap_P = (jnp.exp(taught_lse_TP - teacher_lse_P[None]) * gap_TP).sum(0)
        kl_P = jax.lax.psum(gap_P, shards.vocab) - teacher_lse_P + lse_P
    return kl_P.reshape(shape), lse_P.reshape(shape), teacher_lse_P.reshape(shape)


def _backward(
    setting: _Setting,
    needs: Needs,
    kind: type[Teacher],
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    memory_rows_3D: jax.Array | None,
    *others: jax.Array,
) -> dict[str, jax.Array]:
    """Gradients of one device's pieces, from the teacher's arrays and (lse, teacher's lse, cotangent) per position."""
    lse_P1, teacher_lse_P1, bar_P1 = (x_BS.reshape(-1, 1) for x_BS in others[-3:])
    student = _Logits.of(setting, Output(hidden_BSD, table_VD, memory_rows_3D))
    if kind is Stored:
        shares_of_teacher = _Shares.of(setting, Stored(*others[:-3]), student.tiles).__call__
    else:
        taught = _Logits.of(setting, Output(*others[:-3]))

        def shares_of_teacher(number: Number) -> jax.Array:
            return jnp.exp(taught(number) - teacher_lse_P1)

    def logits_bar(number: Number, rows_VD: jax.Array) -> jax.Array:
        shares_PV = jnp.exp(student(number, rows_VD) - lse_P1)
        return (shares_PV - shares_of_teacher(number)) * (bar_P1 / setting.temperature)

    return gradients(student.tiles, needs, hidden_BSD, logits_bar)


class _Logits(NamedTuple):
    """Tile of the vocabulary -> logits of one device's positions at the temperature, float32 [P, V of the tile]."""

    hidden_PD: jax.Array
    tiles: Tiles
    temperature: float

    @classmethod
    def of(cls, setting: _Setting, output: Output) -> "_Logits":
        hidden_PD = output.hidden_BSD.reshape(-1, output.hidden_BSD.shape[-1])
        tiles = Tiles.of(setting.spec, hidden_PD, output.table_VD, output.memory_rows_3D)
        return cls(hidden_PD, tiles, setting.temperature)

    def __call__(self, number: Number, rows_VD: jax.Array | None = None) -> jax.Array:
        rows_VD = self.tiles.rows(number) if rows_VD is None else rows_VD
        return self.tiles.logits(self.hidden_PD, rows_VD, number) / self.temperature


class _Shares(NamedTuple):
    """Tile of the vocabulary -> the stored teacher's probabilities in it, float32 [P, V of the tile]."""

    ids_PK: jax.Array
    shares_PK: jax.Array
    tiles: Tiles

    @classmethod
    def of(cls, setting: _Setting, stored: Stored, tiles: Tiles) -> "_Shares":
        ids_PK, logits_PK = (x_BSK.reshape(-1, x_BSK.shape[-1]) for x_BSK in stored)
        return cls(ids_PK, jax.nn.softmax(logits_PK / setting.temperature, axis=-1), tiles)

    @property
    def negative_entropy_P(self) -> jax.Array:
        return jax.scipy.special.xlogy(self.shares_PK, self.shares_PK).sum(-1)

    def __call__(self, number: Number) -> jax.Array:
        width = self.tiles.width
        place_PK = self.ids_PK - self.tiles.first() - self.tiles.start(number)
        place_PK = jnp.where((place_PK >= 0) & (place_PK < width), place_PK, width)
        rows_P1 = jnp.arange(place_PK.shape[0])[:, None]
        shares_PV = (
            jnp.zeros((place_PK.shape[0], width), jnp.float32).at[rows_P1, place_PK].add(self.shares_PK, mode="drop")
        )
        return jnp.where(self.tiles.fresh(number)[None, :], shares_PV, 0.0)


def _over_tiles(lse_TP: jax.Array, shards: Shards) -> jax.Array:
    """Log-sum-exp over the whole vocabulary from that of each tile of this device."""
    lse_P = jax.nn.logsumexp(lse_TP, axis=0)
    highest_P = jax.lax.pmax(lse_P, shards.vocab)
    return highest_P + jnp.log(jax.lax.psum(jnp.exp(lse_P - highest_P), shards.vocab))
