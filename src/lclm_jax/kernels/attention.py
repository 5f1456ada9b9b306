"""Attention with segments and grouped heads: one entry, several backends, one meaning.

Letters: B rows, S queries, T keys, H query heads, K key/value heads, G = H / K, d head width. Query ``s`` of row ``b``
sees key ``t`` iff both lie in the same segment, the segment is not 0, and (causal) ``t <= offset_B[b] + s``: causality
is array order, not RoPE position. A query that sees no key returns zeros. For segments ``1 1 2 0``, causal::

    query 0 sees 0 | query 1 sees 0 1 | query 2 sees 2 | query 3 (padding) sees nothing and returns 0
"""

import functools
import logging

import jax
import jax.numpy as jnp

from lclm_jax.kernels.chunked_attention import chunked_attention
from lclm_jax.kernels.masks import allowed_BST, precision_of

_LOG = logging.getLogger(__name__)

REFERENCE_MAX_KEYS = 512
"""Up to this many keys ``auto`` takes the reference: one fused block is faster than a loop over blocks."""


def attention(
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    *,
    segments: tuple[jax.Array, jax.Array],
    causal: bool,
    offset_B: jax.Array | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Scaled dot-product attention (scale ``d ** -0.5``), softmax in float32.

    Args:
        q_BSHd: queries, float.
        k_BTKd: keys; K divides H and query head h reads key head ``h // (H / K)``.
        v_BTKd: values.
        segments: (q_segments_BS, kv_segments_BT), int32; 0 is padding.
        causal: whether array order limits what a query sees.
        offset_B: array order of each row's query 0 among the keys, int32; None is 0 (used with a key/value cache).
        backend: ``reference`` (builds [S, T] scores), ``chunked`` (memory linear in T), or ``auto``.

    Returns:
        [B, S, H, d] in the queries' dtype.

    Raises:
        ValueError: shapes that do not fit together, or an unknown backend.
    """
    _check(q_BSHd, k_BTKd, v_BTKd, segments)
    if backend == "auto":
        backend = "reference" if k_BTKd.shape[1] <= REFERENCE_MAX_KEYS else "chunked"
        _log_choice(backend, "at most" if backend == "reference" else "more than")
    if backend == "reference":
        return reference_attention(q_BSHd, k_BTKd, v_BTKd, segments, causal, offset_B)
    if backend == "chunked":
        return chunked_attention(q_BSHd, k_BTKd, v_BTKd, segments, causal, offset_B)
    raise ValueError(f"attention backend {backend!r} is unknown; set model.attention to auto, reference or chunked")


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


@functools.cache
def _log_choice(backend: str, than: str) -> None:
    """Cached: each choice is logged once in a process, however many shapes lead to it."""
    _LOG.info("attention: auto takes %s for %s %d keys", backend, than, REFERENCE_MAX_KEYS)


def _check(q_BSHd, k_BTKd, v_BTKd, segments) -> None:
    q_segments_BS, kv_segments_BT = segments
    if k_BTKd.shape != v_BTKd.shape or q_BSHd.ndim != 4 or k_BTKd.ndim != 4:
        raise ValueError(
            f"attention got q {q_BSHd.shape}, k {k_BTKd.shape}, v {v_BTKd.shape}; it needs q [B, S, H, d] and equal"
            " k, v [B, T, K, d]"
        )
    if q_BSHd.shape[0] != k_BTKd.shape[0] or q_BSHd.shape[3] != k_BTKd.shape[3] or q_BSHd.shape[2] % k_BTKd.shape[2]:
        raise ValueError(
            f"attention got q {q_BSHd.shape} and k {k_BTKd.shape}; rows and head width must be equal and the key heads"
            " must divide the query heads"
        )
    if q_segments_BS.shape != q_BSHd.shape[:2] or kv_segments_BT.shape != k_BTKd.shape[:2]:
        raise ValueError(
            f"attention got segments {q_segments_BS.shape} and {kv_segments_BT.shape} for q {q_BSHd.shape} and k"
            f" {k_BTKd.shape}; they need one id per query and per key"
        )
