"""From the encoder's last layer to one vector per latent slot, by the fused kernel or by a pooling with parameters.

A pooling with parameters is a ``Module`` in ``model/poolings/`` with the attribute ``model``, and

- ``__call__(hidden_BLNE, weights_BLN) -> pooled_BLE``: from the states of every group of N after the final norm, in
  the compute dtype, and their weights (1 real, 0 not: the short tail of a span), float32. Every group has a real
  position: of a gap it is the first, and the gap's latent is replaced by zeros;
- ``products() -> Products``: its FLOPs.

A pooling with learned markers is called as ``__call__() -> markers_KE``, their input embeddings; the kernel then takes
the markers' states. Parameters are ``adapter/pool/...``: a stage trains them with the adapter.
"""

from typing import cast

import jax
import jax.numpy as jnp

from lclm_jax.batch import Batch
from lclm_jax.config.model import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.kernels.normed_pooling import Pooling, Scales, normed_pool
from lclm_jax.model.adapter import NORM_EPS, input_norm_scale
from lclm_jax.model.functional import rms_norm
from lclm_jax.model.layers import Module, load
from lclm_jax.parallel.sharding import constrain, logical_shard_map
from lclm_jax.types import Params


def pooling_of(model: ModelConfig) -> Module | None:
    """The pooling with parameters of ``model``; None: it has none."""
    code = model.pooling_row.code
    return None if code is None else load(code, model)


def learned_markers(params: Params, model: ModelConfig) -> jax.Array | None:
    """[K, E]: input embeddings of the markers of a window; None: they have none of their own."""
    pooling = pooling_of(model)
    if pooling is None or model.pooling_row.markers != "learned":
        return None
    return cast(jax.Array, pooling.apply({"params": params["adapter"]["pool"]}))


def dummy_groups(model: ModelConfig) -> tuple[jax.Array, ...]:
    """Smallest inputs that a pooling can be initialised with."""
    if model.pooling_row.markers == "learned":
        return ()
    return jnp.zeros((1, 1, model.ratio, model.encoder.hidden_size)), jnp.ones((1, 1, model.ratio))


def fused_norm_scale(params: Params, model: ModelConfig) -> jax.Array | None:
    """Scale of the adapter's input norm if the pooling kernel applies it too; None: ``latents_of`` does.

    Args:
        params: of the whole model.
        model: its configuration.
    """
    # Where spans have ratios of their own, the norm comes after the means of what the kernel gives.
    fused = model.pooling_row.kernel is not None and model.adapter.row.norm_first and not model.span_ratios
    return input_norm_scale(params["adapter"]) if fused else None


def pool_rows(
    params: Params, model: ModelConfig, x_BRE: jax.Array, batch: Batch, rows: str, latent_scale_E: jax.Array | None
) -> jax.Array:
    """pooled_BLE of encoder rows, each on its own; zeros in gaps.

    Args:
        params: of the whole model.
        model: its configuration.
        x_BRE: residual stream after the encoder's last layer.
        batch: ``pool_weights`` and ``marker_index`` of these rows, M = 1.
        rows: logical axis of the rows.
        latent_scale_E: scale of the adapter's input norm, if it is to be applied as well (``fused_norm_scale``).
    """
    scale_E = params["encoder"]["final_norm"]["scale"]
    weights_BR = batch.pool_weights[:, 0]
    kernel, pooling = model.pooling_row.kernel, pooling_of(model)
    if kernel is not None:
        latent_eps = None if latent_scale_E is None else NORM_EPS
        how = Pooling(kernel, model.ratio, model.encoder.norm_eps, latent_eps, model.pooling_backend)
        run = logical_shard_map(
            lambda x_BRE, weights_BR, *scales_and_markers: normed_pool(
                how, x_BRE, weights_BR, Scales(*scales_and_markers[:2]), scales_and_markers[2]
            ),
            [(rows, "encoder_seq", "embed"), (rows, "encoder_seq"), ("norm",), ("norm",), (rows, "latents")],
            (rows, "latents", "embed"),
        )
        return run(x_BRE, weights_BR, scale_E, latent_scale_E, batch.marker_index)
    assert pooling is not None and latent_scale_E is None
    hidden_BRE = rms_norm(x_BRE, scale_E, model.encoder.norm_eps)
    hidden_BLNE, weights_BLN, full_BL = _groups(model, hidden_BRE, weights_BR)
    hidden_BLNE = constrain(hidden_BLNE, rows, "latents", None, "embed")
    pooled_BLE = cast(jax.Array, pooling.apply({"params": params["adapter"]["pool"]}, hidden_BLNE, weights_BLN))
    if pooled_BLE.shape != (*full_BL.shape, model.latent_size):
        raise LclmError(
            f"pooling {model.pooling} gave {pooled_BLE.shape}, not {(*full_BL.shape, model.latent_size)}; correct its"
            " __call__, or the width on its line of config/registry/poolings.py"
        )
    return constrain(jnp.where(full_BL[..., None], pooled_BLE, 0), rows, "latents", "embed")


def merge_groups(model: ModelConfig, pooled_BLE: jax.Array, batch: Batch) -> jax.Array:
    """pooled_BLE with every latent the mean over its own N tokens; in what were slots of its other tokens, anything.

    The mean over N = k * n tokens is the mean over the k groups of n, each weighed by its tokens; so one pass of the
    kernel at the smallest n serves all N. Sums are float32.

    Args:
        model: with ``span_ratios``.
        pooled_BLE: means of groups of ``model.ratio``.
        batch: ``latent_ratios`` and ``pool_weights``.
    """
    rows, slots, _ = pooled_BLE.shape
    counts_BL = batch.pool_weights.reshape(rows, slots, model.ratio).sum(-1)
    sums_BLE = pooled_BLE.astype(jnp.float32) * counts_BL[..., None]
    merged_BLE = pooled_BLE
    for ratio in model.span_ratios[1:]:
        groups = ratio // model.ratio
        sum_BGE = sums_BLE.reshape(rows, slots // groups, groups, -1).sum(2)
        count_BG = jnp.maximum(counts_BL.reshape(rows, slots // groups, groups).sum(-1), 1.0)
        mean_BGE = (sum_BGE / count_BG[..., None]).astype(pooled_BLE.dtype)
        merged_BLE = jnp.where(batch.latent_ratios[..., None] == ratio, jnp.repeat(mean_BGE, groups, 1), merged_BLE)
    return merged_BLE


def _groups(model: ModelConfig, hidden_BRE: jax.Array, weights_BR: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(hidden_BLNE, weights_BLN in which every group has a real position, full_BL: whether it truly has)."""
    rows, positions, width = hidden_BRE.shape
    if positions % model.ratio:
        raise LclmError(f"encoder rows of {positions} positions are not a multiple of ratio={model.ratio}; change one")
    slots = positions // model.ratio
    weights_BLN = weights_BR.reshape(rows, slots, model.ratio)
    full_BL = weights_BLN.max(-1) > 0
    first_N = jnp.arange(model.ratio) == 0
    weights_BLN = jnp.where(full_BL[..., None] | ~first_N[None, None], weights_BLN, 1.0)
    return hidden_BRE.reshape(rows, slots, model.ratio, width), weights_BLN, full_BL
