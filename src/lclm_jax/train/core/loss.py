"""The loss as sums, so that accumulation over microbatches and devices divides once."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from lclm_jax.batch import Batch
from lclm_jax.config import OBJECTIVES, ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import forward, token_nll_and_lse
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

    @classmethod
    def zero(cls, objectives: Sequence[str] = ()) -> "LossSums":
        """Where a sum begins."""
        none = jnp.zeros((), jnp.float32)
        return cls(none, none, none, none, {name: jnp.zeros(2, jnp.float32) for name in objectives})

    def add(self, other: "LossSums") -> "LossSums":
        """Sum of both."""
        both: LossSums = jax.tree.map(jnp.add, self, other)
        return both

    def objective(self) -> jax.Array:
        """What is differentiated: ``total`` and the z-loss."""
        return self.total + self.z_loss

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
    sums = sum_nll(nll_BS, batch.loss_weights, normalisation)
    if objectives:
        sums = sums._replace(by_objective=sum_by_objective(nll_BS, batch, objectives))
    finite_B = jnp.isfinite(jnp.where(batch.loss_weights > 0, nll_BS * batch.loss_weights, 0.0)).all(axis=1)
    if not z_loss:
        return sums, finite_B
    squares = sum_nll(jnp.square(lse_BS), batch.loss_weights, normalisation).total
    return sums._replace(z_loss=z_loss * squares), finite_B


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
