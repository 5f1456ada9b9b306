"""The definition of attention in plain ``jnp``, and the fastest backend for short rows."""

import jax
import jax.numpy as jnp

from lclm_jax.kernels.masks import allowed_BST, precision_of
from lclm_jax.kernels.request import AttentionRequest


def unsupported_reason(request: AttentionRequest) -> str | None:
    """None: it honours every request."""
    return None


def reference_attention(
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    causal: bool,
    offset_B: jax.Array | None = None,
) -> jax.Array:
    """The definition of ``attention``, with the whole [S, T] score matrix of every head in memory."""
    group, precision = q_BSHd.shape[2] // k_BTKd.shape[2], precision_of(q_BSHd.dtype)
    # Heads before positions and one key head per query head: measured on CPUs, a third less time than grouped
    # products, whose scores need a transpose.
    q_BHSd = q_BSHd.swapaxes(1, 2)
    k_BHTd, v_BHTd = (jnp.repeat(x_BTKd, group, axis=2).swapaxes(1, 2) for x_BTKd in (k_BTKd, v_BTKd))
    scores_BHST = jnp.einsum("BHSd,BHTd->BHST", q_BHSd, k_BHTd, precision=precision, preferred_element_type=jnp.float32)
    mask_BHST = allowed_BST(*segments, causal, offset_B)[:, None]
    scores_BHST = jnp.where(mask_BHST, scores_BHST * q_BSHd.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    # The floor lies far above what masking wrote, so that a query without keys gets weights of exactly 0.
    highest_BHST = jax.lax.stop_gradient(jnp.maximum(scores_BHST.max(-1, keepdims=True), -1e30))
    weights_BHST = jnp.exp(scores_BHST - highest_BHST)
    sums_BHST = weights_BHST.sum(-1, keepdims=True)
    out_BHSd = jnp.einsum("BHST,BHTd->BHSd", weights_BHST.astype(v_BHTd.dtype), v_BHTd, precision=precision)
    out_BHSd = out_BHSd / jnp.where(sums_BHST > 0, sums_BHST, 1.0)  # padding sees nothing: 0 / 1
    return out_BHSd.astype(q_BSHd.dtype).swapaxes(1, 2)


run = reference_attention
