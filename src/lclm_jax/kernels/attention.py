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

REFERENCE_MAX_KEYS = 1024
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
        _log_choice(backend, q_BSHd.shape[1], k_BTKd.shape[1])
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
    rows, queries, heads, width = q_BSHd.shape
    kv_heads = k_BTKd.shape[2]
    precision = precision_of(q_BSHd.dtype)
    q_BSKGd = q_BSHd.reshape(rows, queries, kv_heads, heads // kv_heads, width)
    scores_BKGST = jnp.einsum(
        "BSKGd,BTKd->BKGST", q_BSKGd, k_BTKd, precision=precision, preferred_element_type=jnp.float32
    )
    mask_BKGST = allowed_BST(*segments, causal, offset_B)[:, None, None]
    scores_BKGST = jnp.where(mask_BKGST, scores_BKGST * width**-0.5, jnp.finfo(jnp.float32).min)
    weights_BKGST = jax.nn.softmax(scores_BKGST, axis=-1)
    out_BSKGd = jnp.einsum("BKGST,BTKd->BSKGd", weights_BKGST.astype(v_BTKd.dtype), v_BTKd, precision=precision)
    out_BSHd = out_BSKGd.reshape(rows, queries, heads, width)
    # A real query always sees itself; only padding is left without keys, and its row of weights is uniform.
    return jnp.where(segments[0][:, :, None, None] != 0, out_BSHd, 0)


@functools.cache
def _log_choice(backend: str, queries: int, keys: int) -> None:
    _LOG.info("attention over %d queries and %d keys: auto takes %s", queries, keys, backend)


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
