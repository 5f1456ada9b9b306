"""From hidden states of packed windows to one vector per latent slot."""

import jax
import jax.numpy as jnp

from lclm_jax.errors import LclmError


def pool(
    hidden_BMRE: jax.Array,
    pool_weights_BMR: jax.Array,
    ratio: int,
    kind: str,
    marker_index_BL: jax.Array | None = None,
) -> jax.Array:
    """Pool groups of N = ``ratio`` positions; slot g covers flattened positions [g * N, (g + 1) * N).

    With N = 2 and weights ``1 1 | 1 0 | 0 0`` the mean is over two positions, over one (a short tail), and a zero
    vector (a gap, or the one latent of an empty region).

    Args:
        hidden_BMRE: encoder output, float; R is a multiple of N.
        pool_weights_BMR: 1 on pooled real tokens, else 0, float32.
        ratio: N.
        kind: ``mean``; ``concat`` (N hidden states side by side, absent ones zero); ``eos`` (the marker's state).
        marker_index_BL: for ``eos``: flattened position of each slot's marker, int32.

    Returns:
        [B, L, E], or [B, L, N * E] for ``concat``, in the dtype of ``hidden_BMRE``; sums are float32.

    Raises:
        LclmError: R is not a multiple of N, an unknown kind, or markers missing.
    """
    rows, encoder_rows, positions, width = hidden_BMRE.shape
    if positions % ratio:
        raise LclmError(f"encoder rows of {positions} positions are not a multiple of ratio={ratio}; change one")
    slots = encoder_rows * positions // ratio
    weights_BLN = pool_weights_BMR.reshape(rows, slots, ratio)
    if kind == "eos":
        return _pick_markers(hidden_BMRE, weights_BLN, marker_index_BL)
    hidden_BLNE = hidden_BMRE.reshape(rows, slots, ratio, width)
    if kind == "concat":
        kept_BLNE = jnp.where(weights_BLN[..., None] > 0, hidden_BLNE, 0)
        return kept_BLNE.reshape(rows, slots, ratio * width)
    if kind != "mean":
        raise LclmError(f"pooling {kind!r} is unknown; set model.pooling to mean, concat or eos")
    count_BL = jnp.maximum(weights_BLN.sum(-1), 1.0)
    sum_BLE = (hidden_BLNE.astype(jnp.float32) * weights_BLN[..., None]).sum(2)
    return (sum_BLE / count_BL[..., None]).astype(hidden_BMRE.dtype)


def _pick_markers(hidden_BMRE: jax.Array, weights_BLN: jax.Array, marker_index_BL: jax.Array | None) -> jax.Array:
    """Hidden state of each slot's marker; slots without a token are zero."""
    if marker_index_BL is None:
        raise LclmError("pooling eos needs batch.marker_index, which is None; build the batch with the same model")
    rows, encoder_rows, positions, width = hidden_BMRE.shape
    flat_BRE = hidden_BMRE.reshape(rows, encoder_rows * positions, width)
    picked_BLE = jnp.take_along_axis(flat_BRE, marker_index_BL[..., None], axis=1)
    return jnp.where((weights_BLN.sum(-1) > 0)[..., None], picked_BLE, 0)
