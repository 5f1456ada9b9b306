"""The loss as sums, so that accumulation over microbatches and devices divides once."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lclm_jax.batch import Batch
from lclm_jax.config import OBJECTIVES, ModelConfig
from lclm_jax.config.distill import SAME, DistillConfig
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import divergence_from, forward, teacher_of, token_nll_and_lse
from lclm_jax.types import Params

Normalisation = Literal["per_token", "per_row"]


class LossSums(NamedTuple):
    """float32 scalars that add up over batches; the loss is ``total / weight``."""

    total: jax.Array
    """Sum of weighted nats (per_token), or of the rows' weighted means (per_row)."""
    weight: jax.Array
    """Sum of weights (per_token), or number of rows that carry any (per_row)."""
    tokens: jax.Array
    """Sum of weights, under either normalisation."""
    z_loss: jax.Array
    """Sum of the weighted z-losses, as ``total``; trained on, not reported."""
    by_objective: dict[str, jax.Array]
    """Objective -> float32 [2]: sums of weighted nats and of weights, under either normalisation; reported only."""
    mixed: jax.Array | None = None
    """Sum, as ``total``, of what distillation puts in the place of cross-entropy; trained on. None: there is none."""
    divergence: jax.Array | None = None
    """Sum, as ``total``, of the divergence from the teacher; reported only."""

    @classmethod
    def zero(cls, objectives: Sequence[str] = (), distilled: bool = False) -> "LossSums":
        """Where a sum begins."""
        none = jnp.zeros((), jnp.float32)
        both = (none, none) if distilled else (None, None)
        return cls(none, none, none, none, {name: jnp.zeros(2, jnp.float32) for name in objectives}, *both)

    def add(self, other: "LossSums") -> "LossSums":
        """Sum of both."""
        both: LossSums = jax.tree.map(jnp.add, self, other)
        return both

    def objective(self) -> jax.Array:
        """What is differentiated: ``total`` and the z-loss, and what distillation changes in it."""
        without = self.total + self.z_loss
        return without if self.mixed is None else without + self.mixed

    def mean(self) -> jax.Array:
        """The loss in nats; 0 where nothing carries loss."""
        return self.total / divisor(self.weight)


def divisor(weight: jax.Array) -> jax.Array:
    """``weight``, or 1 where it is 0, so that a step without loss tokens has a zero gradient, not NaN."""
    return jnp.where(weight > 0, weight, 1.0)


def loss_sums(
    params: Params,
    model: ModelConfig,
    batch: Batch,
    normalisation: Normalisation,
    key: jax.Array | None = None,
    z_loss: float = 0.0,
    objectives: Sequence[str] = (),
) -> tuple[LossSums, jax.Array]:
    """Next-token cross-entropy of a batch, and which rows' is finite (bool [B]); runs under a mesh.

    ``key``: of LoRA's dropout; None: nothing is dropped. ``objectives``: those whose losses are told apart, which takes
    ``batch.objectives``.

    ``z_loss`` weighs the square of the log-sum-exp of a position's logits (PaLM, arXiv 2204.02311, section 5).
    The PyTorch implementation averages per device batch (one packed row in its configs), then over ranks: that is
    ``per_row``. ``per_token`` weighs every target of the optimizer step equally.
    """
    hidden_BSD = forward(params, model, batch, key)
    nll_BS, lse_BS = token_nll_and_lse(params, model, hidden_BSD, batch.targets)
    return sums_of(nll_BS, lse_BS, batch, normalisation, z_loss, objectives)


def sums_of(
    nll_BS: jax.Array,
    lse_BS: jax.Array,
    batch: Batch,
    normalisation: Normalisation,
    z_loss: float,
    objectives: Sequence[str],
) -> tuple[LossSums, jax.Array]:
    """``loss_sums`` from the nats of every position and the log-sum-exp of its logits, float32 [B, S]."""
    sums = sum_nll(nll_BS, batch.loss_weights, normalisation)
    if objectives:
        sums = sums._replace(by_objective=sum_by_objective(nll_BS, batch, objectives))
    finite_B = jnp.isfinite(jnp.where(batch.loss_weights > 0, nll_BS * batch.loss_weights, 0.0)).all(axis=1)
    if not z_loss:
        return sums, finite_B
    squares = sum_nll(jnp.square(lse_BS), batch.loss_weights, normalisation).total
    return sums._replace(z_loss=z_loss * squares), finite_B


class DistilledLoss(NamedTuple):
    """Settings of the loss."""

    distill: DistillConfig
    normalisation: Normalisation
    z_loss: float
    objectives: Sequence[str]


def distilled_loss_sums(
    params: Params,
    model: ModelConfig,
    batch: Batch,
    loss: DistilledLoss,
    key: jax.Array | None = None,
    teacher: Params | None = None,
) -> tuple[LossSums, jax.Array]:
    """``loss_sums`` and, in ``mixed``, what makes ``(1 - a) CE + a T^2 KL(teacher || student)`` of it.

    KL over the positions that carry loss; T^2 keeps its gradient as large as at temperature 1 (arXiv 1503.02531,
    section 2). Where there is no teacher, as its row was full, the loss is the cross-entropy.

    Args:
        params: the model's.
        model: its configuration.
        batch: with the twins, or the stored logits, of its rows.
        loss: settings.
        key: of LoRA's dropout; the teacher drops nothing.
        teacher: the teacher's decoder, as in ``params["decoder"]``; None: that one, or the stored logits.
    """
    distill = loss.distill
    hidden_BSD = forward(params, model, batch, key)
    nll_BS, lse_BS = token_nll_and_lse(params, model, hidden_BSD, batch.targets)
    sums, finite_B = sums_of(nll_BS, lse_BS, batch, loss.normalisation, loss.z_loss, loss.objectives)
    taught = teacher_of(params["decoder"] if teacher is None else teacher, teacher_model(model, distill), batch)
    kl_BS = divergence_from(taught, params, model, hidden_BSD, distill.temperature)
    kl_BS = jnp.where(has_teacher(batch), kl_BS, 0.0)
    mixed_BS = distill.weight * jnp.where(has_teacher(batch), distill.temperature**2 * kl_BS - nll_BS, 0.0)
    mixed, total = (sum_nll(x_BS, batch.loss_weights, loss.normalisation).total for x_BS in (mixed_BS, kl_BS))
    return sums._replace(mixed=mixed, divergence=jax.lax.stop_gradient(total)), finite_B


def has_teacher(batch: Batch) -> jax.Array:
    """Bool [B, S]: at which positions there is a teacher."""
    twinned = batch.twin_index is not None
    there_BS: jax.Array = batch.twin_index >= 0 if twinned else (batch.teacher_logits != 0).any(axis=-1)
    return there_BS


def teacher_model(model: ModelConfig, distill: DistillConfig) -> ModelConfig:
    """``model`` with the decoder of the teacher: that of a folder has no LoRA."""
    return model if distill.teacher == SAME else model.plain


def sum_nll(nll_BS: jax.Array, weights_BS: jax.Array, normalisation: Normalisation) -> LossSums:
    """Sums of per-position nats; both arrays [B, S] float32. Weight 0 hides a position, whatever its value.

    Example:
        weights [[1, 1], [1, 0]] and nats [[1, 3], [5, 9]] sum to 9 over 3 tokens, or to 2 + 5 over 2 rows.
    """
    if nll_BS.shape != weights_BS.shape:
        raise LclmError(f"nll has shape {nll_BS.shape}, weights {weights_BS.shape}; give one of each per position")
    weighted_BS = jnp.where(weights_BS > 0, nll_BS * weights_BS, 0.0)
    row_total, row_weight = weighted_BS.sum(axis=1), weights_BS.sum(axis=1)
    tokens, none = row_weight.sum(), jnp.zeros((), jnp.float32)
    if normalisation == "per_token":
        return LossSums(row_total.sum(), tokens, tokens, none, {})
    rows = (row_weight > 0).sum().astype(jnp.float32)
    return LossSums((row_total / divisor(row_weight)).sum(), rows, tokens, none, {})


def sum_by_objective(nll_BS: jax.Array, batch: Batch, objectives: Sequence[str]) -> dict[str, jax.Array]:
    """Objective -> float32 [2]: the sums of weighted nats and of weights over its positions; both without gradient."""
    nll_BS, weights_BS = jax.lax.stop_gradient(nll_BS), batch.loss_weights
    sums = {}
    for name in objectives:
        weights_own_BS = jnp.where(batch.objectives == OBJECTIVES.index(name), weights_BS, 0.0)
        nats = jnp.where(weights_own_BS > 0, nll_BS * weights_own_BS, 0.0).sum()
        sums[name] = jnp.stack([nats, weights_own_BS.sum()])
    return sums
