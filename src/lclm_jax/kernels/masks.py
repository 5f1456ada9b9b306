"""Which query sees which key, and at which precision products are taken."""

import jax
import jax.numpy as jnp
import numpy.typing as npt


def precision_of(dtype: npt.DTypeLike) -> jax.lax.Precision:
    """Full float32 products for float32 (accelerators would round to less), the fast path for bfloat16."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else jax.lax.Precision.DEFAULT


def allowed_BST(
    q_segments_BS: jax.Array,
    kv_segments_BT: jax.Array,
    causal: bool,
    offset_B: jax.Array | None = None,
    first_query: jax.Array | int = 0,
    first_key: jax.Array | int = 0,
) -> jax.Array:
    """[B, S, T] bool: same non-zero segment and, if ``causal``, key order not after query order.

    ``first_query`` and ``first_key`` are the orders of element 0 when the arguments are blocks of longer arrays. For
    segments ``[1, 1, 2, 0]`` on both sides, causal, the rows are ``1000, 1100, 0010, 0000``.
    """
    same_BST = q_segments_BS[:, :, None] == kv_segments_BT[:, None, :]
    mask_BST = same_BST & (kv_segments_BT != 0)[:, None, :]
    if not causal:
        return mask_BST
    order_S = first_query + jnp.arange(q_segments_BS.shape[1])
    order_T = first_key + jnp.arange(kv_segments_BT.shape[1])
    order_BS = order_S[None, :] if offset_B is None else order_S[None, :] + offset_B[:, None]
    return mask_BST & (order_T[None, None, :] <= order_BS[:, :, None])
