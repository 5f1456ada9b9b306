"""Embedding lookup over a table whose rows and columns lie on many devices."""

import jax
import jax.numpy as jnp

from lclm_jax.parallel.mapped import axis_names, mapped


def lookup(
    table_VD: jax.Array, tokens_BS: jax.Array, table_axes: tuple[str, str], token_axes: tuple[str, str], dtype: str
) -> jax.Array:
    """x_BSD in ``dtype``: rows ``tokens_BS`` of the table, without moving the table.

    Every device looks up its columns for the tokens of all devices that hold other columns; then tokens are swapped for
    columns (all-to-all). A device so receives its own positions' embeddings once, [B, S, D] / devices, where gathering
    the table would cost all of it; and the gradient of its columns needs nobody else's, and adds up in float32.

    Args:
        table_VD: embedding table.
        tokens_BS: ids, int32.
        table_axes: logical axes of the table.
        token_axes: logical axes of the tokens; the result has them too, and its width is whole.
        dtype: of the result.
    """
    vocab, width = (axis_names(name) for name in table_axes)
    spread = axis_names(*token_axes)
    shared = tuple(axis for axis in width if axis in spread)
    absent = tuple(axis for axis in width if axis not in spread)

    def local(table_VD: jax.Array, tokens_BS: jax.Array) -> jax.Array:
        ids_P = tokens_BS.reshape(-1)
        ids_NP = jax.lax.all_gather(ids_P, shared) if shared else ids_P[None]
        # Rounded after the lookup, so that a token's gradients add up in float32 whatever the table is kept in.
        columns_NPD = _rows(table_VD.astype(jnp.float32), ids_NP, vocab).astype(dtype)
        if shared:
            columns_NPD = jax.lax.all_to_all(columns_NPD, shared, 0, 0)
        columns = jax.lax.all_gather(columns_NPD, absent) if absent else columns_NPD[None]
        sizes = [jax.lax.axis_size(axis) for axis in (*absent, *shared)]
        columns = columns.reshape(*sizes, ids_P.size, -1)
        # From one axis for every mesh axis, in the order they were asked, to the order that cuts the table's columns.
        order = [(*absent, *shared).index(axis) for axis in width]
        x_BSD = columns.transpose(len(sizes), *order, len(sizes) + 1).reshape(*tokens_BS.shape, -1)
        return jax.lax.psum(x_BSD, vocab) if vocab else x_BSD

    return mapped(local, [table_axes, token_axes], (*token_axes, "embed"))(table_VD, tokens_BS)


def _rows(table_VD: jax.Array, ids_NP: jax.Array, vocab: tuple[str, ...]) -> jax.Array:
    """Rows of this device's part of the table; zeros for ids that lie in another's."""
    if not vocab:
        return table_VD[ids_NP]
    ids_NP = ids_NP - jax.lax.axis_index(vocab) * table_VD.shape[0]
    mine_NP = (ids_NP >= 0) & (ids_NP < table_VD.shape[0])
    rows_NPD = table_VD[jnp.where(mine_NP, ids_NP, 0)]
    return jnp.where(mine_NP[..., None], rows_NPD, 0.0)
