"""Attention in blocks with an online softmax: memory grows with S + T, not with S * T.

The algorithm is that of FlashAttention (Dao et al. 2022, arXiv 2205.14135): the forward pass keeps the output and the
log-sum-exp of each query, the backward pass recomputes the weights block by block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.kernels.block_mask import summarise, tile_pairs
from lclm_jax.kernels.masks import allowed_BST, precision_of
from lclm_jax.kernels.platform import platform
from lclm_jax.kernels.request import SAVED, AttentionRequest
from lclm_jax.types import PyTree

BLOCK = 512
"""Queries and keys of a block."""
_CPU_BLOCKS = (256, 128)
_CPU_SCORES = 2**20
"""On a CPU the largest of these with at most so many scores, of all rows and heads: what its caches hold. Blocks of 512
were never the fastest there (docs/explanation/kernels.md)."""
Static = tuple[bool, int, int]
"""(causal, queries of a block, keys of a block)."""
Masks = tuple[jax.Array, jax.Array, jax.Array | None]
"""Segments of queries and keys, and the offset."""
Carry = tuple[jax.Array, jax.Array, jax.Array]
"""Running maximum, sum and output."""
Saved = tuple[jax.Array, jax.Array, jax.Array, Masks, jax.Array, jax.Array]
LOWEST = float(jnp.finfo(jnp.float32).min)


def unsupported_reason(request: AttentionRequest) -> str | None:
    """None: it honours every request."""
    return None


def chunked_attention(
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    causal: bool,
    offset_B: jax.Array | None = None,
    block: int | None = None,
) -> jax.Array:
    """As ``attention.reference_attention``; ``block`` (None: by platform and keys) need not divide the lengths."""
    rows, queries, heads, width = q_BSHd.shape
    keys, kv_heads = k_BTKd.shape[1:3]
    if block is None:
        block = BLOCK if platform() != "cpu" else _cpu_block(rows * heads)
    q_segments_BS, kv_segments_BT = segments
    q_block, k_block = min(block, queries), min(block, keys)
    q_BSKGd = _padded(q_BSHd, q_block).reshape(rows, -1, kv_heads, heads // kv_heads, width)
    out_BSKGd = _flash(
        (causal, q_block, k_block),
        q_BSKGd,
        _padded(k_BTKd, k_block),
        _padded(v_BTKd, k_block),
        (_padded(q_segments_BS, q_block), _padded(kv_segments_BT, k_block), offset_B),
    )
    return out_BSKGd.reshape(rows, -1, heads, width)[:, :queries]


run = chunked_attention


def _cpu_block(rows_heads: int) -> int:
    fitting = (block for block in _CPU_BLOCKS if rows_heads * block**2 <= _CPU_SCORES)
    return next(fitting, _CPU_BLOCKS[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(static: Static, q_BSKGd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, masks: Masks) -> jax.Array:
    """Attention over blocks; ``static`` is (causal, q_block, k_block), ``masks`` the segments and the offset."""
    return _forward(static, q_BSKGd, k_BTKd, v_BTKd, masks)[0]


def _forward(
    static: Static, q_BSKGd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, masks: Masks
) -> tuple[jax.Array, jax.Array]:
    """The output and the log-sum-exp of every query (blocks of [B, K, G, S], stacked)."""
    _, q_block, k_block = static
    # A scan over layers computes whatever no layer changes before its loop: all masks, S * T of them. A value of this
    # layer keeps them in here.
    masks, _ = jax.lax.optimization_barrier((masks, q_BSKGd[:1, :1, 0, 0, 0]))
    q_segments_BS, kv_segments_BT, offset_B = masks
    key_blocks = (_blocks(k_BTKd, k_block), _blocks(v_BTKd, k_block), _blocks(kv_segments_BT, k_block))

    def per_query_block(_: None, query: PyTree) -> PyTree:
        i, needed, q_BSKGd, segments_BS = query

        def per_key_block(carry: PyTree, key: PyTree) -> PyTree:
            j, needed, (k_BTKd, v_BTKd, segments_BT) = key

            def fold(carry: PyTree) -> PyTree:
                mask_BST = _mask(static, i, j, segments_BS, segments_BT, offset_B)
                return online_softmax(carry, q_BSKGd, k_BTKd, v_BTKd, mask_BST)

            return jax.lax.cond(needed, fold, lambda c: c, carry), None

        rows, _, kv_heads, group, width = q_BSKGd.shape
        lowest_BKGS = jnp.full((rows, kv_heads, group, q_block), LOWEST, jnp.float32)
        out_BKGSd = jnp.zeros((*lowest_BKGS.shape, width), jnp.float32)
        start = (lowest_BKGS, jnp.zeros_like(lowest_BKGS), out_BKGSd)
        order = jnp.arange(key_blocks[2].shape[0])
        (max_BKGS, sum_BKGS, out_BKGSd), _ = jax.lax.scan(per_key_block, start, (order, needed, key_blocks))
        sum_BKGS = jnp.where(sum_BKGS > 0, sum_BKGS, 1.0)  # padding sees nothing: 0 / 1
        out_BKGSd = (out_BKGSd / sum_BKGS[..., None]).astype(q_BSKGd.dtype)
        return None, (jnp.moveaxis(out_BKGSd, 3, 1), max_BKGS + jnp.log(sum_BKGS))

    queries = (_blocks(q_BSKGd, q_block), _blocks(q_segments_BS, q_block))
    order = jnp.arange(queries[0].shape[0])
    _, (out_blocks, lse_blocks) = jax.lax.scan(per_query_block, None, (order, _needed(static, masks), *queries))
    return _joined(out_blocks), lse_blocks


def online_softmax(
    carry: Carry, q_BSKGd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, mask_BST: jax.Array
) -> Carry:
    """Fold one block of keys into the running maximum, sum and output."""
    max_BKGS, sum_BKGS, out_BKGSd = carry
    mask_BKGST = mask_BST[:, None, None]
    scores_BKGST = jnp.where(mask_BKGST, _scores(q_BSKGd, k_BTKd), LOWEST)
    new_BKGS = jnp.maximum(max_BKGS, scores_BKGST.max(-1))
    weights_BKGST = jnp.where(mask_BKGST, jnp.exp(scores_BKGST - new_BKGS[..., None]), 0.0)
    shrink_BKGS = jnp.exp(max_BKGS - new_BKGS)
    added_BKGSd = _product("BKGST,BTKd->BKGSd", weights_BKGST.astype(v_BTKd.dtype), v_BTKd)
    out_BKGSd = out_BKGSd * shrink_BKGS[..., None] + added_BKGSd
    return new_BKGS, sum_BKGS * shrink_BKGS + weights_BKGST.sum(-1), out_BKGSd


def _flash_forward(
    static: Static, q_BSKGd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, masks: Masks
) -> tuple[jax.Array, Saved]:
    out_BSKGd, lse_blocks = (checkpoint_name(x, SAVED) for x in _forward(static, q_BSKGd, k_BTKd, v_BTKd, masks))
    return out_BSKGd, (q_BSKGd, k_BTKd, v_BTKd, masks, out_BSKGd, lse_blocks)


def _flash_backward(
    static: Static, saved: Saved, grad_BSKGd: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BSKGd, k_BTKd, v_BTKd, masks, out_BSKGd, lse_blocks = saved
    q_segments_BS, kv_segments_BT, offset_B = masks
    _, q_block, k_block = static
    key_blocks = (_blocks(k_BTKd, k_block), _blocks(v_BTKd, k_block), _blocks(kv_segments_BT, k_block))
    # sum over d of dO * O: the term that the softmax's normalisation adds to every score gradient
    delta_BSKG = (grad_BSKGd.astype(jnp.float32) * out_BSKGd.astype(jnp.float32)).sum(-1)

    def per_query_block(key_grads: PyTree, query: PyTree) -> PyTree:
        i, needed, lse_BKGS, q_BSKGd, grad_BSKGd, delta_BSKG, segments_BS = query
        delta_BKGS = jnp.moveaxis(delta_BSKG, 1, 3)

        def per_key_block(dq_BSKGd: jax.Array, key: PyTree) -> PyTree:
            j, needed, (k_BTKd, v_BTKd, segments_BT), (dk_BTKd, dv_BTKd) = key

            def fold(carry: PyTree) -> PyTree:
                dq_BSKGd, dk_BTKd, dv_BTKd = carry
                mask_BST = _mask(static, i, j, segments_BS, segments_BT, offset_B)
                weights_BKGST = jnp.exp(_scores(q_BSKGd, k_BTKd) - lse_BKGS[..., None])
                weights_BKGST = jnp.where(mask_BST[:, None, None], weights_BKGST, 0.0)
                dv_BTKd += _product("BKGST,BSKGd->BTKd", weights_BKGST.astype(grad_BSKGd.dtype), grad_BSKGd)
                back_BKGST = _product("BSKGd,BTKd->BKGST", grad_BSKGd, v_BTKd) - delta_BKGS[..., None]
                back_BKGST = (weights_BKGST * back_BKGST * q_BSKGd.shape[-1] ** -0.5).astype(q_BSKGd.dtype)
                dq_BSKGd += _product("BKGST,BTKd->BSKGd", back_BKGST, k_BTKd)
                dk_BTKd += _product("BKGST,BSKGd->BTKd", back_BKGST, q_BSKGd)
                return dq_BSKGd, dk_BTKd, dv_BTKd

            carry = (dq_BSKGd, dk_BTKd, dv_BTKd)
            dq_BSKGd, dk_BTKd, dv_BTKd = jax.lax.cond(needed, fold, lambda c: c, carry)
            return dq_BSKGd, (dk_BTKd, dv_BTKd)

        order = jnp.arange(key_blocks[2].shape[0])
        start_BSKGd = jnp.zeros(q_BSKGd.shape, jnp.float32)
        dq_BSKGd, key_grads = jax.lax.scan(per_key_block, start_BSKGd, (order, needed, key_blocks, key_grads))
        return key_grads, dq_BSKGd

    queries = [_blocks(x, q_block) for x in (q_BSKGd, grad_BSKGd, delta_BSKG, q_segments_BS)]
    zeros = tuple(jnp.zeros(blocks.shape, jnp.float32) for blocks in key_blocks[:2])
    order = jnp.arange(queries[0].shape[0])
    inputs = (order, _needed(static, masks), lse_blocks, *queries)
    (dk_blocks, dv_blocks), dq_blocks = jax.lax.scan(per_query_block, zeros, inputs)
    dq_BSKGd, dk_BTKd, dv_BTKd = _joined(dq_blocks), _joined(dk_blocks), _joined(dv_blocks)
    return dq_BSKGd.astype(q_BSKGd.dtype), dk_BTKd.astype(k_BTKd.dtype), dv_BTKd.astype(v_BTKd.dtype), None


_flash.defvjp(_flash_forward, _flash_backward)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Product of two arrays of one dtype, accumulated in float32."""
    return jnp.einsum(equation, a, b, precision=precision_of(a.dtype), preferred_element_type=jnp.float32)


def _scores(q_BSKGd: jax.Array, k_BTKd: jax.Array) -> jax.Array:
    return _product("BSKGd,BTKd->BKGST", q_BSKGd, k_BTKd) * q_BSKGd.shape[-1] ** -0.5


def _mask(
    static: Static,
    i: jax.Array,
    j: jax.Array,
    q_segments_BS: jax.Array,
    kv_segments_BT: jax.Array,
    offset_B: jax.Array | None,
) -> jax.Array:
    causal, q_block, k_block = static
    return allowed_BST(q_segments_BS, kv_segments_BT, causal, offset_B, i * q_block, j * k_block)


def _needed(static: Static, masks: Masks) -> jax.Array:
    """[query blocks, key blocks] bool: whether any row has a query that may see a key there; the others are skipped."""
    causal, q_block, k_block = static
    q_segments_BS, kv_segments_BT, offset_B = masks
    order_BS, order_BT = (
        jnp.broadcast_to(jnp.arange(x.shape[1])[None, :], x.shape) for x in (q_segments_BS, kv_segments_BT)
    )
    order_BS = order_BS if offset_B is None else order_BS + offset_B[:, None]
    queries, keys = summarise(q_segments_BS, order_BS, q_block), summarise(kv_segments_BT, order_BT, k_block)
    return (tile_pairs(queries, keys, causal) > 0).any(0)


def _padded(x: jax.Array, block: int) -> jax.Array:
    """``x`` with axis 1 padded by zeros to a multiple of ``block``; zero segments are padding."""
    extra = -x.shape[1] % block
    return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[B, n * block, ...] to [n, B, block, ...]."""
    return x.reshape(x.shape[0], -1, block, *x.shape[2:]).swapaxes(0, 1)


def _joined(blocks: jax.Array) -> jax.Array:
    """[n, B, block, ...] to [B, n * block, ...]."""
    return blocks.swapaxes(0, 1).reshape(blocks.shape[1], -1, *blocks.shape[3:])
