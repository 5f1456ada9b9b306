"""Negative log likelihood of the targets without the [B, S, V] logits."""

import jax
import jax.numpy as jnp

from lclm_jax.kernels.masks import precision_of


def overlaid_logits(
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    memory_rows_3D: jax.Array | None = None,
    memory_ids: tuple[int, int, int] | None = None,
) -> jax.Array:
    """float32 logits [B, S, V]; columns ``memory_ids`` come from ``memory_rows_3D`` instead of the table.

    The overlay is on the columns, not on the table, so that a frozen table needs no gradient at all. Both operands
    are used in the dtype of ``hidden_BSD``.
    """
    dtype, precision = hidden_BSD.dtype, precision_of(hidden_BSD.dtype)
    options = {"precision": precision, "preferred_element_type": jnp.float32}
    logits_BSV = jnp.einsum("BSD,VD->BSV", hidden_BSD, table_VD.astype(dtype), **options)
    if memory_rows_3D is None or memory_ids is None:
        return logits_BSV
    memory_BS3 = jnp.einsum("BSD,VD->BSV", hidden_BSD, memory_rows_3D.astype(dtype), **options)
    column_BSV = jnp.arange(table_VD.shape[0])[None, None, :]
    for order, token in enumerate(memory_ids):
        logits_BSV = jnp.where(column_BSV == token, memory_BS3[..., order : order + 1], logits_BSV)
    return logits_BSV


def chunked_cross_entropy(
    hidden_BSD: jax.Array,
    table_VD: jax.Array,
    targets_BS: jax.Array,
    *,
    chunk: int,
    remat: bool = True,
    memory_rows_3D: jax.Array | None = None,
    memory_ids: tuple[int, int, int] | None = None,
) -> jax.Array:
    """Per-position negative log likelihood in nats, logits taken ``chunk`` positions of every row at a time.

    Args:
        hidden_BSD: decoder output after the final norm; its dtype is the products' dtype.
        table_VD: output head, one row per token.
        targets_BS: token ids, int32.
        chunk: positions per scan step; it need not divide S, and chunk >= S means no scan.
        remat: recompute the logits in the backward pass instead of keeping them.
        memory_rows_3D: rows that stand in for the table's at ``memory_ids``; None: no overlay.
        memory_ids: token ids of the three memory rows.

    Returns:
        nll_BS, float32.
    """

    def piece(hidden_BSD, targets_BS):
        logits_BSV = overlaid_logits(hidden_BSD, table_VD, memory_rows_3D, memory_ids)
        column_BSV = jnp.arange(logits_BSV.shape[-1])[None, None, :]
        # A masked sum rather than a gather: its gradient is elementwise, not a scatter into [B, S, V].
        picked_BS = jnp.where(column_BSV == targets_BS[..., None], logits_BSV, 0.0).sum(-1)
        return jax.nn.logsumexp(logits_BSV, axis=-1) - picked_BS

    if remat:
        piece = jax.checkpoint(piece, policy=jax.checkpoint_policies.nothing_saveable)
    rows, length, width = hidden_BSD.shape
    if chunk >= length:
        return piece(hidden_BSD, targets_BS)
    steps = -(-length // chunk)
    padding = ((0, 0), (0, steps * chunk - length))
    hidden_BSD = jnp.pad(hidden_BSD, (*padding, (0, 0)))
    targets_BS = jnp.pad(targets_BS, padding)
    chunks = (
        hidden_BSD.reshape(rows, steps, chunk, width).swapaxes(0, 1),
        targets_BS.reshape(rows, steps, chunk).swapaxes(0, 1),
    )
    nll_steps = jax.lax.scan(lambda carry, xs: (carry, piece(*xs)), None, chunks)[1]
    return nll_steps.swapaxes(0, 1).reshape(rows, steps * chunk)[:, :length]
